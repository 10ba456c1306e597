"""Tests of a model's output: is it random, does it depend on the batch, is it logits or probabilities?"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import lacks_float64
from gradscope.attacks.pgd import prepared
from gradscope.config import PGD
from gradscope.distributed.units import Values
from gradscope.functional import norm_and_unit
from gradscope.models.inspection import measuring
from gradscope.seeding import seeded

#: Number of passes that are compared to find a random output.
PASSES = 5
#: Number of images passed alone as well as in a batch.
ALONE = 8
#: L2 distance of normalised logits above which two passes differ (AutoAttack's check_randomized).
SAME_LOGITS = 1e-4
#: Outputs have a bound if more than this share of images lies at the end of their range; without a bound 1 in 48 does.
PINNED_SHARE = 0.1
#: An output lies at its bound if it is within this share of the outputs' range of it.
AT_THE_BOUND = 1e-3
#: Outputs are clipped if more than this share of those at the bound equals another output of the same image. Of clipped
#: outputs all do. Of a tanh so steep that float32 rounds most of it to 1, most do but not all.
EQUAL_SHARE = 0.99
#: Tolerance for probabilities that leave [0, 1] or whose sum is not 1 (AutoAttack's check_range_output).
PROBABILITY_ROUNDING = 1e-5


def look_at_outputs(model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, seed: int, usual: int) -> Values:
    """Examine the outputs of ``images`` ``(N, C, H, W)``: ``logits`` ``(N, K)``, every other value ``(N,)``.

    ``wander``: largest L2 distance of the normalised logits between :data:`PASSES` passes, each with another seed (as
    in AutoAttack's check_randomized). ``flips``: the prediction differs between passes. ``alone``: distance of the
    normalised logits to those of the image passed alone; NaN if not tried. If they differ in float32 and the model runs
    in float64, the distance is measured there, because rounding is no longer small after a logarithm. ``predicted``:
    the class. ``lowest``, ``highest`` and ``sum`` of the outputs. ``outside``: the image leaves [0, 1].
    """
    with measuring(model), torch.no_grad():
        drawn = [_logits(model, images, numbers, (seed, "outputs", draw), usual) for draw in range(PASSES)]
        alone = _alone(model, images, numbers, drawn[0], seed)
    if float(alone.nan_to_num(0.0).max()) > SAME_LOGITS and not lacks_float64(model, images[:1]):
        with prepared(model, PGD(precision="float64")) as exact, torch.no_grad():
            together = _logits(exact, images.double(), numbers, (seed, "outputs", 0), usual)
            alone = _alone(exact, images.double(), numbers, together, seed)
    passes = torch.stack(drawn)
    first = passes[0]
    return {
        "wander": torch.stack([_distance(other, first) for other in passes[1:]]).amax(dim=0).cpu(),
        "flips": (passes.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).cpu(),
        "alone": alone,
        "logits": first.cpu(),
        "predicted": first.argmax(dim=1).cpu(),
        **range_of(first),
        "outside": ((images < 0) | (images > 1)).flatten(1).any(dim=1).cpu(),
    }


def _alone(model: nn.Module, images: Tensor, numbers: Tensor, together: Tensor, seed: int) -> Tensor:
    """Measure the distance ``(N,)`` of the first images' logits, passed alone, from those in a batch; else NaN."""
    alone = torch.full((len(images),), math.nan, dtype=torch.float64)
    for place in range(min(ALONE, len(images))):
        single = _logits(model, images[place : place + 1], numbers[place : place + 1], (seed, "alone"), 1)
        alone[place] = _distance(single, together[place : place + 1])
    return alone


def are_random(outputs: Values) -> bool:
    """Tell whether two passes over the same images differ."""
    return bool(outputs["flips"].any()) or float(outputs["wander"].max()) > SAME_LOGITS


def depend_on_the_batch(outputs: Values) -> bool:
    """Tell whether an image's output depends on the rest of its batch; False for random outputs (unknown)."""
    return not are_random(outputs) and float(outputs["alone"].nan_to_num(0.0).max()) > SAME_LOGITS


def range_of(logits: Tensor) -> Values:
    """Compute ``lowest``, ``highest`` and ``sum`` ``(N,)`` of outputs ``(N, K)``."""
    return {
        "lowest": logits.amin(dim=1).cpu(),
        "highest": logits.amax(dim=1).cpu(),
        "sum": logits.sum(dim=1).cpu(),
    }


def are_probabilities(outputs: Values) -> bool:
    """Tell whether all finite outputs lie in [0, 1] and add up to 1."""
    known = outputs["sum"].isfinite()
    low, high, total = (outputs[key][known] for key in ("lowest", "highest", "sum"))
    return bool(
        known.any()
        and (low > -PROBABILITY_ROUNDING).all()
        and (high < 1 + PROBABILITY_ROUNDING).all()
        and ((total - 1).abs() < PROBABILITY_ROUNDING).all()
    )


def are_labels(outputs: Values) -> bool:
    """Tell whether all outputs are exactly 0 or 1: one-hot labels."""
    return bool(((outputs["logits"] == 0) | (outputs["logits"] == 1)).all())


def flattened_by(outputs: Values) -> Literal["missing gradient", "clipped output", "bounded output"] | None:
    """Find why outputs are bounded; None unless more than :data:`PINNED_SHARE` of the images lie at a bound.

    Only the distance of each output below the image's largest output counts, so a shift changes nothing. An image lies
    at a bound if its lowest output is as far below as that of any image. "missing gradient": the outputs in between
    take few values, as votes do. "clipped output": several outputs of an image at the bound are equal. "bounded
    output": outputs only approach the bound, as under a tanh.
    """
    logits = outputs["logits"][outputs["logits"].isfinite().all(dim=1)]
    if not len(logits):
        return None
    below = logits.amax(dim=1, keepdim=True) - logits
    at_bound = below >= float(below.max()) * (1 - AT_THE_BOUND)
    if not bool(below.any()) or float(at_bound.any(dim=1).double().mean()) <= PINNED_SHARE:
        return None
    inside = ~at_bound & (below > 0)
    between = torch.cat([row[chosen].unique() for row, chosen in zip(below, inside, strict=True)])
    values = between if len(between) else below[at_bound]
    if 2 * len(values.unique()) <= len(values):
        return "missing gradient"
    several = [row[bound] for row, bound in zip(below, at_bound, strict=True) if int(bound.sum()) > 1]
    equal = sum(_repeated(values) for values in several)
    return "clipped output" if several and equal > EQUAL_SHARE * sum(map(len, several)) else "bounded output"


def _repeated(values: Tensor) -> int:
    """Count the ``values`` that equal another one."""
    counts = values.unique(return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _logits(model: nn.Module, images: Tensor, numbers: Tensor, stream: tuple[object, ...], usual: int) -> Tensor:
    seed, *names = stream
    assert isinstance(seed, int)
    logits = []
    for part, who in zip(images.split(usual), numbers.split(usual), strict=True):
        with seeded(seed, *names, *who.tolist()):
            logits.append(model(part).double())
    return torch.cat(logits)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute the L2 distance ``(N,)`` of the normalised rows; 0 where either is not finite."""
    distance: Tensor = torch.linalg.vector_norm(norm_and_unit(first)[1] - norm_and_unit(second)[1], dim=1)
    return distance.nan_to_num(0.0).cpu()


class LogProbabilities(nn.Module):
    """Turns a model's probabilities into logits, up to a shift: their logarithm, floored where they are 0."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Compute ``log max(p, smallest normal number)``, ``(N, K)``."""
        probabilities: Tensor = self.model(images)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()

"""What a model returns: whether it is random, depends on the batch, and is logits or probabilities."""

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

#: Passes that a random output is looked for in.
PASSES = 5
#: Images shown alone as well as in a batch.
ALONE = 8
#: L2 distance of normalised logits above which two passes differ (AutoAttack's check_randomized).
SAME_LOGITS = 1e-4
#: Share of images at the end of the outputs' range from which on it is a bound: of a network without one, 1 in 48 is.
PINNED_SHARE = 0.1
#: Share of the outputs' range that an output may fall short of its bound and lie at it.
AT_THE_BOUND = 1e-3
#: Share of the outputs at their bound that are equal to another of their image where they are clipped: all of them. Of
#: a tanh that is steep enough for float32 to round most of it to 1, most are and not all.
EQUAL_SHARE = 0.99
#: How far from [0, 1] and from a sum of 1 probabilities may round (AutoAttack's check_range_output).
PROBABILITY_ROUNDING = 1e-5


def look_at_outputs(model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, seed: int, usual: int) -> Values:
    """The outputs of ``images`` ``(N, C, H, W)``: ``logits`` ``(N, K)``, every other value ``(N,)``.

    ``wander``: largest L2 distance of the normalised logits over :data:`PASSES` passes, each under another seed (as
    AutoAttack's check_randomized); ``flips``: the prediction is not the same in all; ``alone``: that distance from the
    logits of the image shown without others, NaN where it was not tried, and in float64 where float32 parts them and
    the model runs in float64: behind a logarithm rounding is no longer small; ``predicted``: the class; ``lowest``,
    ``highest`` and ``sum`` of the outputs; ``outside``: the image leaves [0, 1].
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
        "wander": torch.stack([_apart(one, first) for one in passes[1:]]).amax(dim=0).cpu(),
        "flips": (passes.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).cpu(),
        "alone": alone,
        "logits": first.cpu(),
        "predicted": first.argmax(dim=1).cpu(),
        **range_of(first),
        "outside": ((images < 0) | (images > 1)).flatten(1).any(dim=1).cpu(),
    }


def _alone(model: nn.Module, images: Tensor, numbers: Tensor, together: Tensor, seed: int) -> Tensor:
    """Distance ``(N,)`` of the first images' logits, each shown alone, from those in a batch; else NaN."""
    alone = torch.full((len(images),), math.nan, dtype=torch.float64)
    for place in range(min(ALONE, len(images))):
        single = _logits(model, images[place : place + 1], numbers[place : place + 1], (seed, "alone"), 1)
        alone[place] = _apart(single, together[place : place + 1])
    return alone


def are_random(outputs: Values) -> bool:
    """Whether two passes over the same images differ."""
    return bool(outputs["flips"].any()) or float(outputs["wander"].max()) > SAME_LOGITS


def depend_on_the_batch(outputs: Values) -> bool:
    """Whether an image's output depends on those beside it; not known of random outputs."""
    return not are_random(outputs) and float(outputs["alone"].nan_to_num(0.0).max()) > SAME_LOGITS


def range_of(logits: Tensor) -> Values:
    """``lowest``, ``highest`` and ``sum`` ``(N,)`` of outputs ``(N, K)``."""
    return {
        "lowest": logits.amin(dim=1).cpu(),
        "highest": logits.amax(dim=1).cpu(),
        "sum": logits.sum(dim=1).cpu(),
    }


def are_probabilities(outputs: Values) -> bool:
    """Whether all outputs, those that are finite, lie in [0, 1] and add up to 1."""
    known = outputs["sum"].isfinite()
    low, high, total = (outputs[key][known] for key in ("lowest", "highest", "sum"))
    return bool(
        known.any()
        and (low > -PROBABILITY_ROUNDING).all()
        and (high < 1 + PROBABILITY_ROUNDING).all()
        and ((total - 1).abs() < PROBABILITY_ROUNDING).all()
    )


def are_labels(outputs: Values) -> bool:
    """Whether all outputs are exactly 0 or 1: a label for each image, one-hot."""
    return bool(((outputs["logits"] == 0) | (outputs["logits"] == 1)).all())


def flattened_by(outputs: Values) -> Literal["missing gradient", "clipped output", "bounded output"] | None:
    """What keeps the outputs within bounds, where more than :data:`PINNED_SHARE` of the images lie at these.

    Looked at is how far each image's outputs lie below its largest, so that a shift says nothing. An image lies at a
    bound where its lowest output is as far below as that of any image. "missing gradient": the outputs in between take
    few values, as votes do; "clipped output": where an image has several at the bound, these are equal; "bounded
    output": they come near it, as under a tanh.
    """
    logits = outputs["logits"][outputs["logits"].isfinite().all(dim=1)]
    if not len(logits):
        return None
    below = logits.amax(dim=1, keepdim=True) - logits
    at_bound = below >= float(below.max()) * (1 - AT_THE_BOUND)
    if not bool(below.any()) or float(at_bound.any(dim=1).double().mean()) <= PINNED_SHARE:
        return None
    between = torch.cat([row[one].unique() for row, one in zip(below, ~at_bound & (below > 0), strict=True)])
    values = between if len(between) else below[at_bound]
    if 2 * len(values.unique()) <= len(values):
        return "missing gradient"
    several = [row[bound] for row, bound in zip(below, at_bound, strict=True) if int(bound.sum()) > 1]
    equal = sum(_repeated(values) for values in several)
    return "clipped output" if several and equal > EQUAL_SHARE * sum(map(len, several)) else "bounded output"


def _repeated(values: Tensor) -> int:
    """How many of ``values`` are equal to another of them."""
    counts = values.unique(return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _logits(model: nn.Module, images: Tensor, numbers: Tensor, stream: tuple[object, ...], usual: int) -> Tensor:
    seed, *names = stream
    assert isinstance(seed, int)
    found = []
    for part, who in zip(images.split(usual), numbers.split(usual), strict=True):
        with seeded(seed, *names, *who.tolist()):
            found.append(model(part).double())
    return torch.cat(found)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """L2 distance of the normalised rows ``(N,)``; 0 where either is not finite."""
    distance: Tensor = torch.linalg.vector_norm(norm_and_unit(one)[1] - norm_and_unit(other)[1], dim=1)
    return distance.nan_to_num(0.0).cpu()


class LogProbabilities(nn.Module):
    """The logits, up to a shift, of a model that returns probabilities: their logarithm, floored where they are 0."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """``log max(p, smallest normal number)``."""
        probabilities: Tensor = self.model(images)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()

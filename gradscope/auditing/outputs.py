"""What a model returns: whether it is random, depends on the batch, and is logits or probabilities."""

import math

import torch
from torch import Tensor, nn

from gradscope.functional import norm_and_unit
from gradscope.models.inspection import measuring
from gradscope.seeding import seeded

#: Passes that a random output is looked for in.
PASSES = 5
#: Images shown alone as well as in a batch.
ALONE = 8


def look_at_outputs(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, seed: int, usual: int
) -> dict[str, Tensor]:
    """The outputs of ``images`` ``(N, C, H, W)``, each value ``(N,)``.

    ``wander``: largest L2 distance of the normalised logits over :data:`PASSES` passes, each under another seed (as
    AutoAttack's check_randomized); ``flips``: the prediction is not the same in all; ``alone``: that distance from the
    logits of the image shown without others, NaN where it was not tried; ``lowest``, ``highest`` and ``sum`` of the
    outputs; ``outside``: the image leaves [0, 1].
    """
    with measuring(model), torch.no_grad():
        drawn = [_logits(model, images, numbers, (seed, "outputs", draw), usual) for draw in range(PASSES)]
        alone = torch.full((len(images),), math.nan, dtype=torch.float64)
        for place in range(min(ALONE, len(images))):
            single = _logits(model, images[place : place + 1], numbers[place : place + 1], (seed, "alone"), usual)
            alone[place] = _apart(single, drawn[0][place : place + 1])
    passes = torch.stack(drawn)
    first = passes[0]
    return {
        "wander": torch.stack([_apart(one, first) for one in passes[1:]]).amax(dim=0).cpu(),
        "flips": (passes.argmax(dim=2) != first.argmax(dim=1)).any(dim=0).cpu(),
        "alone": alone,
        "lowest": first.amin(dim=1).cpu(),
        "highest": first.amax(dim=1).cpu(),
        "sum": first.sum(dim=1).cpu(),
        "outside": ((images < 0) | (images > 1)).flatten(1).any(dim=1).cpu(),
    }


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


class Averaged(nn.Module):
    """A random model's expectation: ``log mean over draws of softmax(z)`` (Athalye et al. 2018, EoT)."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, images: Tensor) -> Tensor:
        """Logits whose softmax is the mean of the model's."""
        drawn = torch.stack([self.model(images).log_softmax(dim=1) for _ in range(self.draws)])
        return drawn.logsumexp(dim=0) - math.log(self.draws)

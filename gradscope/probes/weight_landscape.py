"""The loss around a network's weights: planes of filter-normalised or given directions, and what is measured there."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy
from gradscope.models.inspection import evaluating
from gradscope.seeding import generator

#: A step in weight space: a tensor for each parameter, by name.
Direction = dict[str, Tensor]

#: What is measured at a point, by name: it gets a network with the point's weights, in eval mode.
Measure = Callable[[nn.Module], Mapping[str, float]]


def filter_normalised_direction(model: nn.Module, *, seed: int, name: str) -> Direction:
    """A Gaussian direction, each filter scaled to its weight's norm: ``d <- d |w| / |d|`` (Li et al. 2018).

    A filter is a slice along a parameter's first axis. Parameters of one axis (biases, batch norm) are zero in it. A
    model that has no others raises :class:`GradscopeError`. Each parameter draws from its own stream.
    """
    direction = {key: _normalised(weight, seed, name, key) for key, weight in model.named_parameters()}
    if not any(part.any() for part in direction.values()):
        raise GradscopeError("model: a parameter of two or more axes that is not zero is needed, it has none to move")
    return direction


def _normalised(weight: Tensor, seed: int, name: str, key: str) -> Tensor:
    weight = weight.detach()
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    drawn = torch.randn(weight.shape, generator=generator(seed, name, key)).to(weight)
    rows = drawn.flatten(1)
    scale = weight.flatten(1).norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
    scaled: Tensor = rows * scale
    return scaled.reshape(weight.shape)


def direction_towards(model: nn.Module, state: Mapping[str, Tensor]) -> Direction:
    """The direction from ``model``'s parameters to those of ``state``: 0 along it is the one, 1 the other.

    A parameter that is missing there or has another shape raises :class:`GradscopeError`.
    """
    direction = {}
    for key, weight in model.named_parameters():
        if key not in state or state[key].shape != weight.shape:
            there = tuple(state[key].shape) if key in state else "none"
            raise GradscopeError(
                f"CKPT: both ends need the same parameters; {key} is {tuple(weight.shape)} and {there}"
            )
        direction[key] = state[key].to(weight) - weight.detach()
    return direction


def orthogonal_to(direction: Direction, other: Direction) -> Direction:
    """``direction`` without its part along ``other``, over all parameters together.

    Directions that are parallel, to one part in 10^5, raise :class:`GradscopeError`.
    """
    share = _inner(direction, other) / _inner(other, other)
    remainder = {key: part - share * other[key] for key, part in direction.items()}
    if _inner(remainder, remainder) <= 1e-10 * _inner(direction, direction):
        raise GradscopeError("directions: two that span a plane are needed, these are parallel")
    return remainder


def _inner(first: Direction, second: Direction) -> float:
    return sum(float((part.double() * second[key].double()).sum()) for key, part in first.items())


def evaluate_plane(
    model: nn.Module,
    first: Direction,
    second: Direction,
    axes: tuple[Tensor, Tensor],
    measure: Measure,
    *,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> dict[str, NDArray[np.float64]]:
    """What ``measure`` gives at ``w + a * first + b * second``, ``(A, B)`` each, on the coordinates of ``axes``.

    Each point's weights are computed from w itself, so nothing drifts, and at a = b = 0 they are w to the bit. All is
    done on a copy; batch-norm statistics stay as they are. A metric of loss_landscapes is measured by
    ``lambda network: {"name": metric(wrap_model(network))}``.
    """
    moving = copy.deepcopy(model)
    origin = dict(model.named_parameters())
    values: dict[str, NDArray[np.float64]] = {}
    with evaluating(moving), torch.no_grad():
        for row, a in enumerate(axes[0].tolist()):
            for column, b in enumerate(axes[1].tolist()):
                for key, parameter in moving.named_parameters():
                    parameter.copy_(origin[key] + a * first[key] + b * second[key])
                for name, value in measure(moving).items():
                    table = values.setdefault(name, np.full((len(axes[0]), len(axes[1])), np.nan))
                    table[row, column] = value
                advanced(1, "")
    return values


def mean_loss_and_accuracy(images: ImageSet, device: torch.device, batch_size: int = 256) -> Measure:
    """The measure of ``loss``, mean cross-entropy in nats, and ``accuracy`` over ``images``.

    The images are kept as float batches on the device, for every point of a plane needs them again.
    """
    batches = [
        (batch.contiguous(memory_format=torch.channels_last), labels)
        for _, batch, labels in images.batches(batch_size, device)
    ]

    def measure(model: nn.Module) -> dict[str, float]:
        loss, right = 0.0, 0
        for batch, labels in batches:
            logits = model(batch)
            loss += float(cross_entropy(logits, labels).double().sum())
            right += int((logits.argmax(dim=1) == labels).sum())
        return {"loss": loss / len(images), "accuracy": right / len(images)}

    return measure

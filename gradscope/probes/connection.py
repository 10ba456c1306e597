"""Curves through weight space that connect two minima, and their training."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Values, halving
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy
from gradscope.models.inspection import call_with, copied, device_of, laid_out, measuring
from gradscope.progress import Advance
from gradscope.seeding import generator

#: Weights by the name of their parameter.
Weights = dict[str, Tensor]

#: Images of an update, and at how many points of the curve they are seen, each at its share of them.
IMAGES, PLACES = 128, 4
#: Adam's learning rate at the beginning, which falls to 0 along a line; and the rest of its settings.
LEARNING_RATE = 3e-3
_MOMENTS, _BETAS, _FLOOR = ("mean", "square"), (0.9, 0.999), 1e-8


def bezier(share: float, controls: Sequence[Weights]) -> Iterator[tuple[str, Tensor]]:
    """The weights ``(1 - t)^2 w_0 + 2 t (1 - t) w_bend + t^2 w_1`` at ``share`` t of the way, by name.

    ``controls`` are w_0, w_bend and w_1. At 0 and 1 they are the ends to the bit.
    """
    start, bend, end = controls
    weights = (1 - share) ** 2, 2 * share * (1 - share), share**2
    for key, first in start.items():
        yield key, weights[0] * first + weights[1] * bend[key] + weights[2] * end[key]


def straight(ends: tuple[Weights, Weights]) -> Values:
    """The state before training: the bend is the middle of the line, so the curve is the line."""
    bend = torch.cat([(0.5 * first + 0.5 * ends[1][key]).flatten() for key, first in ends[0].items()])
    return {"bend": bend, "mean": torch.zeros_like(bend), "square": torch.zeros_like(bend)}


def bend_of(state: Values, like: Weights) -> Weights:
    """The bend of a training's state as weights, with the names, shapes and device of those of ``like``."""
    parts = state["bend"].split([weight.numel() for weight in like.values()])
    return {key: part.reshape(like[key].shape).to(like[key]) for key, part in zip(like, parts, strict=True)}


def train_bend(
    model: nn.Module,
    ends: tuple[Weights, Weights],
    images: ImageSet,
    state: Values,
    updates: range,
    total: int,
    *,
    seed: int = 0,
    batch_statistics: bool = False,
    advance: Advance = lambda done, note: None,
) -> Values:
    """Train the bend of the Bezier curve between ``ends`` to the least loss along it (Garipov et al. 2018).

    Adam minimises the expected cross-entropy over ``images`` at w(t), t uniform in [0, 1], in float32, with a learning
    rate that falls to 0 over ``total`` updates. An update draws :data:`IMAGES` images and splits them into
    :data:`PLACES` parts; the k-th part is seen at a point drawn from the k-th of as many equal parts of the way.
    Networks are in evaluation mode, so there is no dropout; with ``batch_statistics`` batch norm takes the statistics
    of the images it sees. ``state`` is that before the first of ``updates``, from :func:`straight` or an earlier call;
    the state after the last is returned. The model is left as found. A loss that is not finite raises
    :class:`GradscopeError`.
    """
    moving, device = copied(model), device_of(model)
    kept = {key: value.to(device, copy=True) for key, value in state.items()}
    with measuring(moving), torch.enable_grad():
        if batch_statistics:
            for module in moving.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        for update in updates:
            stream = generator(seed, "curve", update)
            shares = (torch.arange(PLACES) + torch.rand(PLACES, generator=stream)) / PLACES
            chosen = torch.randint(len(images), (PLACES, max(2, IMAGES // PLACES)), generator=stream)
            controls = ends[0], bend_of(kept, ends[0]), ends[1]
            slope, loss = torch.zeros_like(kept["bend"]), 0.0
            for share, indices in zip(shares.tolist(), chosen, strict=True):
                batch, labels = images.batch(indices, device)
                found, value = _slope(moving, dict(bezier(share, controls)), laid_out(batch), labels)
                slope += 2 * share * (1 - share) / PLACES * found
                loss += value / PLACES
            if not math.isfinite(loss):
                raise GradscopeError(
                    f"curve must have a finite loss, got {loss} in update {update + 1} of its training"
                )
            _step(kept, slope, update, LEARNING_RATE * (1 - update / total))
            advance(1, f"loss {loss:.3g}")
    return kept


def _slope(model: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The gradient of the mean loss in ``weights``, all in a row, and the loss."""
    for weight in weights.values():
        weight.requires_grad_()

    def work(size: int) -> tuple[Tensor, float]:
        slope, total = torch.zeros(()), 0.0
        for part, of_part in zip(images.split(size), labels.split(size), strict=True):
            loss = cross_entropy(call_with(model, weights, part), of_part).sum() / len(labels)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            slope = slope.to(found[0]) + torch.cat([one.flatten() for one in found])
            total += float(loss.detach())
        return slope, total

    return halving(work, len(images))


def _step(state: Values, slope: Tensor, update: int, rate: float) -> None:
    """Adam's step, in place (Kingma and Ba 2015)."""
    for key, beta, seen in zip(_MOMENTS, _BETAS, (slope, slope.square()), strict=True):
        state[key].lerp_(seen, 1 - beta)
    mean, square = (
        state[key] / (1 - beta ** (update + 1)) for key, beta in zip(("mean", "square"), _BETAS, strict=True)
    )
    state["bend"] -= rate * mean / (square.sqrt() + _FLOOR)

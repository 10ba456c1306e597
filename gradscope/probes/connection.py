"""Curves through weight space that connect two minima, and the training of such curves."""

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

#: Number of images per update, and number of points of the curve among which they are divided.
IMAGES, PLACES = 128, 4
#: Adam's initial learning rate, which falls linearly to 0; below, its other settings.
LEARNING_RATE = 3e-3
_MOMENTS, _BETAS, _FLOOR = ("mean", "square"), (0.9, 0.999), 1e-8


def bezier(share: float, controls: Sequence[Weights]) -> Iterator[tuple[str, Tensor]]:
    """Compute the weights ``(1 - t)^2 w_0 + 2 t (1 - t) w_bend + t^2 w_1`` for ``share`` t, by parameter name.

    ``controls`` are w_0, w_bend and w_1. At t = 0 and t = 1 the weights equal the ends bit for bit.
    """
    start, bend, end = controls
    weights = (1 - share) ** 2, 2 * share * (1 - share), share**2
    for key, first in start.items():
        yield key, weights[0] * first + weights[1] * bend[key] + weights[2] * end[key]


def straight(ends: tuple[Weights, Weights]) -> Values:
    """Make the state before training: the bend is the midpoint, so the curve is the straight line."""
    bend = torch.cat([(0.5 * first + 0.5 * ends[1][key]).flatten() for key, first in ends[0].items()])
    return {"bend": bend, "mean": torch.zeros_like(bend), "square": torch.zeros_like(bend)}


def bend_of(state: Values, like: Weights) -> Weights:
    """Convert the bend of a training state to weights with the names, shapes and device of ``like``."""
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
    """Train the bend of the Bezier curve between ``ends`` to minimise the loss along it (Garipov et al. 2018).

    Adam minimises the expected cross-entropy over ``images`` at w(t), t uniform in [0, 1], in float32. The learning
    rate falls to 0 over ``total`` updates. Each update draws :data:`IMAGES` images and splits them into :data:`PLACES`
    parts. The curve is divided into as many equal parts, and the k-th images are used at a random point of the k-th
    part. Networks are in evaluation mode, so there is no dropout; with ``batch_statistics`` batch norm uses the
    statistics of the current images. ``state`` is the state before the first of ``updates``, from :func:`straight` or
    an earlier call. Returns the state after the last update. The model is not changed. Raises :class:`GradscopeError`
    if the loss is not finite.
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
                gradient, value = _slope(moving, dict(bezier(share, controls)), laid_out(batch), labels)
                slope += 2 * share * (1 - share) / PLACES * gradient
                loss += value / PLACES
            if not math.isfinite(loss):
                raise GradscopeError(
                    f"curve must have a finite loss, got {loss} in update {update + 1} of its training"
                )
            _step(kept, slope, update, LEARNING_RATE * (1 - update / total))
            advance(1, f"loss {loss:.3g}")
    return kept


def _slope(model: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Compute the mean loss and its gradient in ``weights``, flattened into one vector."""
    for weight in weights.values():
        weight.requires_grad_()

    def work(size: int) -> tuple[Tensor, float]:
        slope, total = torch.zeros(()), 0.0
        for part, of_part in zip(images.split(size), labels.split(size), strict=True):
            loss = cross_entropy(call_with(model, weights, part), of_part).sum() / len(labels)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            slope = slope.to(gradients[0]) + torch.cat([gradient.flatten() for gradient in gradients])
            total += float(loss.detach())
        return slope, total

    return halving(work, len(images))


def _step(state: Values, slope: Tensor, update: int, rate: float) -> None:
    """Make one step of Adam, in place (Kingma and Ba 2015)."""
    for key, beta, seen in zip(_MOMENTS, _BETAS, (slope, slope.square()), strict=True):
        state[key].lerp_(seen, 1 - beta)
    mean, square = (
        state[key] / (1 - beta ** (update + 1)) for key, beta in zip(("mean", "square"), _BETAS, strict=True)
    )
    state["bend"] -= rate * mean / (square.sqrt() + _FLOOR)

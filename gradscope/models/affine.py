"""Run a network's affine front layers once for a whole plane of images."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gradscope.models.architectures import Normalise
from gradscope.models.inspection import LogitsCheck, takes_channels_last

#: Layers that are affine in eval mode. Exact types only, because a subclass may do anything.
_AFFINE = (
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.ZeroPad2d,
    Normalise,
)
#: The affine layers that cost enough to be worth sharing.
_WEIGHTY = (nn.Conv2d, nn.Linear)


class PlaneModel:
    """A model on the planes of images: ``A(x + c D) = A(x) + c (A(D) - A(0))`` for its leading affine layers A.

    A is all leading layers of nested ``nn.Sequential`` that are affine in eval mode and carry no hook. A is computed in
    float64 for each plane's origin and directions; the rest of the model runs on each point. A model without such
    layers runs whole. Construct and call it while the model is in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = list(_layers(model))
        count = next((number for number, layer in enumerate(layers) if not _is_affine(layer)), len(layers))
        if not any(type(layer) in _WEIGHTY for layer in layers[:count]):
            count = 0
        self.front = copy.deepcopy(nn.Sequential(*layers[:count])).double() if count else None
        self.rest = nn.Sequential(*layers[count:]) if count else model

    def span(self, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Apply A to a plane's ``origin`` ``(C, H, W)`` and ``directions`` ``(K, C, H, W)``.

        Returns both in the shapes that the rest of the model takes, ``(1, ...)`` and ``(K, ...)``.
        """
        if self.front is None:
            return origin[None], directions
        base = self.front(origin[None].double())
        offset = self.front(torch.zeros_like(origin[None], dtype=torch.float64))
        return base.to(origin), (self.front(directions.double()) - offset).to(origin)

    def __call__(self, base: Tensor, span: Tensor, coordinates: Tensor) -> Tensor:
        """Compute logits ``(P, classes)`` at ``base + coordinates @ span``; ``coordinates`` ``(P, K)``."""
        if base.dim() != 4 or not takes_channels_last(base.device):
            return self._logits(torch.addmm(base.flatten(1), coordinates, span.flatten(1)).reshape(-1, *base.shape[1:]))
        # Channels last throughout, so that no point is copied to another layout.
        _, channels, height, width = base.shape
        rows = torch.addmm(_channels_last(base), coordinates, _channels_last(span))
        return self._logits(rows.reshape(-1, height, width, channels).permute(0, 3, 1, 2))

    def _logits(self, points: Tensor) -> Tensor:
        logits: Tensor = self.rest(points)
        return logits


def _channels_last(images: Tensor) -> Tensor:
    """Flatten ``(N, C, H, W)`` to rows ``(N, H * W * C)``."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is nn.Sequential and not _is_hooked(model):
        for layer in model:
            yield from _layers(layer)
    else:
        yield model


def _is_affine(layer: nn.Module) -> bool:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None:
        return False
    return type(layer) in _AFFINE and not _is_hooked(layer)


def _is_hooked(layer: nn.Module) -> bool:
    """Whether a hook may change the layer's output; :class:`LogitsCheck` does not."""
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
    return not all(isinstance(hook, LogitsCheck) for hook in hooks)

"""The user's own loss: load it, try it once, and check its values in every attack step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError
from gradscope.models.factories import find_function
from gradscope.models.failures import in_one_line
from gradscope.models.inspection import copied


@dataclass(frozen=True)
class OwnLoss:
    """A loss to maximise, ``function(logits, labels)``: logits ``(N, K)`` and labels ``(N,)`` to ``(N,)``."""

    function: Callable[..., Any]
    name: str

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss ``(N,)``.

        Raises :class:`GradscopeError` if the function fails, or if its result has another shape, does not depend on the
        logits differentiably, or is NaN for finite logits.
        """
        with in_one_line(f"loss must run on logits and labels, {self.name} raised", halved=True):
            losses = self.function(logits, labels)
        shape = (len(logits),)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != shape or not losses.is_floating_point():
            got = f"{losses.dtype} {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise GradscopeError(
                f"loss must return a number for each image, floating-point {shape}, {self.name} returned {got}"
            )
        if logits.requires_grad and not losses.requires_grad:
            raise self._cut_off
        unknown = losses.detach().isnan() & logits.detach().isfinite().all(dim=1)
        if bool(unknown.any()):
            count = int(unknown.sum())
            raise GradscopeError(
                f"loss must be a number where logits are finite, {self.name} returned NaN for {count} of {shape[0]}"
            )
        return losses

    @property
    def _cut_off(self) -> GradscopeError:
        return GradscopeError(
            f"loss must be differentiable in the logits, {self.name} returned a value without a gradient"
        )

    def require_gradient(self, classes: int, device: torch.device) -> None:
        """Raise :class:`GradscopeError` unless the loss of two random rows of ``classes`` logits has a gradient."""
        stream = torch.Generator().manual_seed(0)
        logits = torch.randn(2, classes, generator=stream).to(device).requires_grad_()
        with torch.enable_grad():
            total = self(logits, torch.tensor([0, classes - 1], device=device)).sum()
            (slope,) = torch.autograd.grad(total, logits, allow_unused=True)
        if slope is None:
            raise self._cut_off


def own_loss(given: Any, name: str, classes: int, device: torch.device, *, trust_code: bool = False) -> OwnLoss:
    """Load the user's loss, a callable or ``package.module:function``, and try it on ``classes`` logits.

    Errors call it ``name``. Raises :class:`GradscopeError` if its code is not trusted or it returns invalid values.
    """
    function = find_function(given, "loss", trust_code) if isinstance(given, str) else given
    loss = OwnLoss(copied(function).to(device) if isinstance(function, nn.Module) else function, name)
    loss.require_gradient(classes, device)
    return loss

"""A loss of the user's own: found, tried, and checked wherever an attack takes it."""

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
    """``function(logits, labels)`` with logits ``(N, K)`` and labels ``(N,)``: ``(N,)``, larger is more adversarial."""

    function: Callable[..., Any]
    name: str

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ``(N,)``.

        Raises :class:`GradscopeError` where the function fails, or returns another shape, what is cut off from the
        logits, or NaN for logits that are finite.
        """
        with in_one_line(f"loss must run on logits and labels, {self.name} raised", halved=True):
            found = self.function(logits, labels)
        wanted = (len(logits),)
        if not isinstance(found, Tensor) or tuple(found.shape) != wanted or not found.is_floating_point():
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise GradscopeError(
                f"loss must return a number for each image, floating-point {wanted}, {self.name} returned {got}"
            )
        if logits.requires_grad and not found.requires_grad:
            raise self._cut_off
        unknown = found.detach().isnan() & logits.detach().isfinite().all(dim=1)
        if bool(unknown.any()):
            count = int(unknown.sum())
            raise GradscopeError(
                f"loss must be a number where logits are finite, {self.name} returned NaN for {count} of {wanted[0]}"
            )
        return found

    @property
    def _cut_off(self) -> GradscopeError:
        return GradscopeError(f"loss must be differentiable in the logits, {self.name} returned what is cut off")

    def require_gradient(self, classes: int, device: torch.device) -> None:
        """Raise :class:`GradscopeError` unless the loss of two made-up images has a gradient in ``classes`` logits."""
        stream = torch.Generator().manual_seed(0)
        logits = torch.randn(2, classes, generator=stream).to(device).requires_grad_()
        with torch.enable_grad():
            total = self(logits, torch.tensor([0, classes - 1], device=device)).sum()
            (slope,) = torch.autograd.grad(total, logits, allow_unused=True)
        if slope is None:
            raise self._cut_off


def own_loss(given: Any, name: str, classes: int, device: torch.device, *, trust_code: bool = False) -> OwnLoss:
    """The loss that ``given`` is, a callable or ``package.module:function``, tried on ``classes`` logits.

    ``name`` is what errors call it. Raises :class:`GradscopeError` where its code is not trusted, or it does not fit.
    """
    function = find_function(given, "loss", trust_code) if isinstance(given, str) else given
    found = OwnLoss(copied(function).to(device) if isinstance(function, nn.Module) else function, name)
    found.require_gradient(classes, device)
    return found

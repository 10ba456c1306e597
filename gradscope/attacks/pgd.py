"""Projected gradient descent, once: every iterate is shown to an observer with the facts that belong to it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD
from gradscope.functional import flatten, norm_and_unit
from gradscope.losses import LOSSES, Loss
from gradscope.models.inspection import evaluating


@dataclass(frozen=True)
class Iterate:
    """Facts of one point of the path, all computed at that very point.

    ``images`` ``(N, C, H, W)``, ``logits`` ``(N, K)``, ``loss`` ``(N,)`` the attack's loss, and ``gradient`` of the
    sum or mean of that loss; None where it was not asked for. ``samples_per_gradient`` is what a mean divided by.
    """

    step: int
    images: Tensor
    logits: Tensor
    loss: Tensor
    gradient: Tensor | None
    samples_per_gradient: int = 1

    @cached_property
    def norm_and_unit(self) -> tuple[Tensor, Tensor]:
        """Norm ``(N,)`` and direction ``(N, D)`` of the attack's gradient; computed once, shared with the step."""
        assert self.gradient is not None
        return norm_and_unit(flatten(self.gradient))

    @property
    def own_norm(self) -> Tensor:
        """Norm of the gradient of each sample's own loss: a mean's division by the batch size undone."""
        return self.norm_and_unit[0] * self.samples_per_gradient

    @property
    def unit(self) -> Tensor:
        """Direction of the gradient ``(N, D)``; zero where the gradient is."""
        return self.norm_and_unit[1]

    @cached_property
    def signs(self) -> Tensor:
        """Signs of the gradient ``(N, D)`` as int8: a quarter of the memory to read again at the next iterate."""
        assert self.gradient is not None
        return flatten(self.gradient).sign().to(torch.int8)


Observer = Callable[[Iterate], None]


def threat_model(settings: PGD) -> ThreatModel:
    """The threat model of ``settings``."""
    return ThreatModel(settings.norm, settings.epsilon, settings.box)


@contextmanager
def prepared(model: nn.Module, settings: PGD) -> Iterator[nn.Module]:
    """``model`` in evaluation mode with frozen parameters, in the precision asked for; left as found.

    float64 works on a copy, so the caller's parameters are not touched there either.
    """
    working = copy.deepcopy(model).double() if settings.precision == "float64" else model
    with evaluating(working):
        yield working


def look(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    step: int = 0,
    *,
    loss: Loss | None = None,
    gradient: bool = True,
) -> Iterate:
    """The facts at ``images``: one forward pass, and one backward pass where the gradient is wanted.

    ``loss`` takes the place of the one that ``settings`` names.
    """
    # Channels last: the convolutions of a CPU run about a fifth faster, whatever the layout of the parameters.
    point = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_(gradient)
    divisor = len(images) if settings.reduction == "mean" else 1
    slope = None
    with torch.set_grad_enabled(gradient):
        logits = model(point)
        losses = (loss or LOSSES[settings.loss])(logits, labels)
        if gradient:
            (slope,) = torch.autograd.grad(losses.mean() if divisor > 1 else losses.sum(), point)
    return Iterate(step, point.detach(), logits.detach(), losses.detach(), slope, divisor)


def advance(iterate: Iterate, origin: Tensor, settings: PGD) -> Tensor:
    """The next point: a steepest step from ``iterate``, projected into the ball around ``origin``."""
    threat = threat_model(settings)
    assert iterate.gradient is not None
    if settings.norm == "linf":
        step = threat.steepest_step(iterate.gradient, settings.step_size)
    else:
        norms, units = iterate.norm_and_unit
        step = threat.scaled_step(norms, units, settings.step_size, settings.norm_floor).reshape(origin.shape)
    return threat.project(step.add_(iterate.images), origin)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    *,
    start: Tensor | None = None,
    loss: Loss | None = None,
    observe: Observer | None = None,
    final_gradient: bool = False,
) -> Tensor:
    """Climb the loss from ``start`` (``images`` where None); return x_T, ``(N, C, H, W)``.

    x_{t+1} = project(x_t + steepest_step(g_t)), t = 0 .. T-1 (Madry et al. 2018). ``observe`` is called T + 1
    times, with x_0 .. x_T in order; the last carries a gradient only where ``final_gradient`` is set. ``loss`` takes
    the place of the one that ``settings`` names.
    ``model`` is one that :func:`prepared` yields, ``images`` are in its precision.
    """
    current = images if start is None else start
    for step in range(settings.steps):
        iterate = look(model, current, labels, settings, step, loss=loss)
        if observe is not None:
            observe(iterate)
        current = advance(iterate, images, settings)
    if observe is not None:
        observe(look(model, current, labels, settings, settings.steps, loss=loss, gradient=final_gradient))
    return current

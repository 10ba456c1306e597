"""Projected gradient descent, once: every iterate is shown to an observer with the facts that belong to it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD
from gradscope.functional import flatten, norm_and_unit
from gradscope.losses import LOSSES, Loss
from gradscope.models.inspection import measuring
from gradscope.seeding import derive


@dataclass(frozen=True)
class Iterate:
    """Facts of one point of the path, all computed at that very point.

    ``images`` ``(N, C, H, W)``, ``logits`` ``(N, K)``, ``loss`` ``(N,)`` the attack's loss, and ``gradient`` of the
    sum or mean of that loss; None where it was not asked for. ``samples_per_gradient`` is what a mean divided by.
    A smoothed gradient is the mean over noisy copies of the point; logits and loss are always the point's own.
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


@dataclass(frozen=True)
class Streams:
    """Where the noise of smoothed gradients comes from: a stream for each step of each image.

    ``numbers`` ``(N,)`` name the images, on the CPU; so the noise depends neither on the batch size nor on who shares
    the batch.
    """

    seed: int
    names: tuple[object, ...]
    numbers: Tensor

    def gaussian(self, like: Tensor, copies: int, step: int) -> Tensor:
        """Standard Gaussian noise ``(copies, N, ...)`` for the images ``like`` ``(N, ...)`` at ``step``."""
        noise = torch.empty(len(like), copies, *like.shape[1:])
        stream = torch.Generator()
        for row, number in zip(noise, self.numbers.tolist(), strict=True):
            row.normal_(generator=stream.manual_seed(derive(self.seed, *self.names, step, number)))
        return noise.transpose(0, 1).to(like)


def threat_model(settings: PGD) -> ThreatModel:
    """The threat model of ``settings``."""
    return ThreatModel(settings.norm, settings.epsilon, settings.box)


@contextmanager
def prepared(model: nn.Module, settings: PGD) -> Iterator[nn.Module]:
    """``model`` in evaluation mode with frozen parameters, in the precision asked for; left as found.

    float64 works on a copy, so the caller's parameters are not touched there either.
    """
    working = copy.deepcopy(model).double() if settings.precision == "float64" else model
    with measuring(working):
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
    noise: Streams | None = None,
) -> Iterate:
    """The facts at ``images``: one forward pass, and one backward pass where the gradient is wanted.

    A smoothed gradient takes a forward and a backward pass more for each of its copies. ``loss`` takes the place of
    the one that ``settings`` names.
    """
    if gradient and settings.smooths:
        here = look(model, images, labels, settings, step, loss=loss, gradient=False)
        smoothed = _smoothed_gradient(model, here.images, labels, settings, step, loss, noise)
        return replace(here, gradient=smoothed, samples_per_gradient=len(images) if settings.reduction == "mean" else 1)
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


def _smoothed_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    step: int,
    loss: Loss | None,
    noise: Streams | None,
) -> Tensor:
    """``mean over c of grad loss(x + radius n_c)``, n_c standard Gaussian.

    For a random model the expectation over its randomness too (Athalye et al. 2018, EoT). The copies are not cut to
    the box, so that their mean stays the point.
    """
    noise = noise or Streams(0, ("smoothing",), torch.arange(len(images)))
    total = torch.zeros_like(images)
    plain = settings.model_copy(update={"smoothing": 1, "smoothing_radius": 0.0})
    for offset in noise.gaussian(images, settings.smoothing, step):
        copy_ = look(model, images + settings.smoothing_radius * offset, labels, plain, step, loss=loss)
        assert copy_.gradient is not None
        total += copy_.gradient
    return total / settings.smoothing


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
    noise: Streams | None = None,
) -> Tensor:
    """Climb the loss from ``start`` (``images`` where None); return x_T, ``(N, C, H, W)``.

    x_{t+1} = project(x_t + steepest_step(g_t)), t = 0 .. T-1 (Madry et al. 2018). ``observe`` is called T + 1
    times, with x_0 .. x_T in order; the last carries a gradient only where ``final_gradient`` is set. ``loss`` takes
    the place of the one that ``settings`` names. ``noise`` is what smoothed gradients draw from; the images' places
    in the batch name its streams where it is None.
    ``model`` is one that :func:`prepared` yields, ``images`` are in its precision.
    """
    current = images if start is None else start
    for step in range(settings.steps):
        iterate = look(model, current, labels, settings, step, loss=loss, noise=noise)
        if observe is not None:
            observe(iterate)
        current = advance(iterate, images, settings)
    if observe is not None:
        last = look(model, current, labels, settings, settings.steps, loss=loss, gradient=final_gradient, noise=noise)
        observe(last)
    return current

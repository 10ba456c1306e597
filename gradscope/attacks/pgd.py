"""Projected gradient descent (PGD), written once. An observer sees each iterate with its own logits, loss, gradient."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from gradscope.attacks.compaction import replaced, who_stays
from gradscope.attacks.registry import PAPER_BATCH
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Budget, attack_settings
from gradscope.functional import blindness, flatten, fooled, norm_and_unit
from gradscope.losses import LOSSES, Loss
from gradscope.models.inspection import copied, laid_out, measuring
from gradscope.seeding import derive, sent


@dataclass(frozen=True)
class Iterate:
    """One point of the attack's path, with logits, loss and gradient all computed at that point.

    ``images`` ``(N, C, H, W)``, ``logits`` ``(N, K)``, ``loss`` ``(N,)`` of the attack. ``gradient`` is that of the sum
    or mean of the loss; None if it was not requested. ``samples_per_gradient`` is the number that a mean loss was
    divided by, else 1. A smoothed gradient is the mean over noisy copies of the point; logits and loss are always those
    of the point itself.
    """

    step: int
    images: Tensor
    logits: Tensor
    loss: Tensor
    gradient: Tensor | None
    samples_per_gradient: int = 1

    @cached_property
    def norm_and_unit(self) -> tuple[Tensor, Tensor]:
        """Norm ``(N,)`` and direction ``(N, D)`` of the attack's gradient; computed once and reused by the step."""
        assert self.gradient is not None
        return norm_and_unit(flatten(self.gradient))

    @property
    def own_norm(self) -> Tensor:
        """Norm ``(N,)`` of the gradient of each sample's own loss; undoes a mean's division by the batch size."""
        return self.norm_and_unit[0] * self.samples_per_gradient

    @property
    def unit(self) -> Tensor:
        """Direction of the gradient ``(N, D)``; zero where the gradient is zero."""
        return self.norm_and_unit[1]

    def only(self, rows: Tensor) -> "Iterate":
        """The images at ``rows`` ``(M,)``."""
        gradient = None if self.gradient is None else self.gradient[rows]
        points, logits, loss = self.images[rows], self.logits[rows], self.loss[rows]
        return replace(self, images=points, logits=logits, loss=loss, gradient=gradient)

    @cached_property
    def signs(self) -> Tensor:
        """Signs of the gradient ``(N, D)`` as int8, a quarter of the memory that the next iterate has to read."""
        assert self.gradient is not None
        return flatten(self.gradient).sign().to(torch.int8)


Observer = Callable[[Iterate], None]


class Blindness:
    """Records, for ``count`` images, whether an attack met gradients that are zero or not finite.

    ``worst`` ``(count,)`` is the largest :func:`~gradscope.functional.blindness` of each image's gradients so far; None
    before the first gradient.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.worst: Tensor | None = None

    def note(self, rows: Tensor, gradient: Tensor, counts: Tensor | bool = True) -> None:
        """Record gradients ``(M, ...)`` of the images at ``rows`` ``(M,)``; only where ``counts`` ``(M,)``."""
        self.add(rows, blindness(gradient) * counts)

    def add(self, rows: Tensor, codes: Tensor) -> None:
        """Record blindness ``codes`` ``(M,)`` of the images at ``rows`` ``(M,)``."""
        if self.worst is None:
            self.worst = torch.zeros(self.count, dtype=torch.uint8, device=rows.device)
        self.worst.scatter_reduce_(0, rows, codes, "amax")


@dataclass(frozen=True)
class Streams:
    """Random streams of PGD: one per image for its start, and one per image and step for smoothing.

    ``numbers`` ``(N,)``, on the CPU, name the images under ``seed``, so the random numbers depend neither on the batch
    size nor on the other images of the batch. ``restart`` is the number of the start.
    """

    seed: int
    numbers: Tensor
    restart: int = 0

    def only(self, rows: Tensor) -> "Streams":
        """Select the streams of the images at ``rows`` ``(M,)``."""
        return replace(self, numbers=self.numbers[rows.cpu()])

    def start(self, images: Tensor, settings: PGD) -> Tensor:
        """Draw the first points of PGD, ``(N, C, H, W)``, as ``settings.start`` says."""
        if settings.start == "none":
            return images
        names = ("start", self.restart)
        return threat_model(settings).random_start(images, settings.start, self.seed, names, self.numbers)

    def gaussian(self, like: Tensor, copies: int, step: int) -> Tensor:
        """Draw standard Gaussian noise ``(copies, N, ...)`` for the images ``like`` ``(N, ...)`` at ``step``."""
        noise = torch.empty(len(like), copies, *like.shape[1:])
        stream = torch.Generator()
        for row, number in zip(noise.unbind(), self.numbers.tolist(), strict=True):
            row.normal_(generator=stream.manual_seed(derive(self.seed, "smoothing", self.restart, step, number)))
        return sent(noise, like.device, like.dtype).transpose(0, 1)


@dataclass(frozen=True)
class Reached:
    """Result of PGD on N images: the ``points`` ``(N, C, H, W)`` it reached.

    ``first_fooled`` ``(N,)`` is the step of the first iterate that fooled the model; -1 if no judged iterate did.
    """

    points: Tensor
    first_fooled: Tensor

    @property
    def fooled(self) -> Tensor:
        """The images ``(N,)`` on which some iterate fooled the model."""
        return self.first_fooled >= 0


def threat_model(settings: PGD) -> ThreatModel:
    """Build the threat model of ``settings``."""
    return ThreatModel(settings.norm, settings.epsilon, settings.box)


def settings_inside(threat: ThreatModel, budget: Budget, attack: str = "pgd", **given: object) -> PGD:
    """Resolve the PGD settings of ``attack`` for ``threat`` and ``budget``; the ``given`` settings override them."""
    box = {} if threat.box else {"box": False}  # an attack that ignores the box keeps ignoring it
    return attack_settings(attack, {"norm": threat.norm, "epsilon": threat.epsilon, **box, **budget.walk, **given})


@contextmanager
def prepared(model: nn.Module, settings: PGD) -> Iterator[nn.Module]:
    """Yield ``model`` in evaluation mode with frozen parameters and the requested precision; restore it afterwards.

    float64 uses a copy of the model, so the caller's parameters never change.
    """
    working = copied(model).double() if settings.precision == "float64" else model
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
    streams: Streams | None = None,
) -> Iterate:
    """Compute logits and loss at ``images`` in one forward pass, and with ``gradient`` the gradient in a backward pass.

    A smoothed gradient costs one more forward and backward pass per copy. ``loss`` replaces the loss of ``settings``.
    """
    if gradient and settings.smooths:
        here = look(model, images, labels, settings, step, loss=loss, gradient=False)
        smoothed = _smoothed_gradient(model, here.images, labels, settings, step, loss, streams)
        return replace(here, gradient=smoothed, samples_per_gradient=len(images) if settings.reduction == "mean" else 1)
    point = laid_out(images.detach()).requires_grad_(gradient)
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
    streams: Streams | None,
) -> Tensor:
    """Compute ``mean over c of grad loss(x + radius n_c)``, with n_c standard Gaussian.

    On a random model this also averages over the model's randomness (Athalye et al. 2018, EoT). The copies are not cut
    to the box, so that their mean stays at the point.
    """
    streams = streams or Streams(0, torch.arange(len(images)))
    total = torch.zeros_like(images)
    plain = settings.model_copy(update={"smoothing": 1, "smoothing_radius": 0.0})
    for offset in streams.gaussian(images, settings.smoothing, step):
        copy_ = look(model, images + settings.smoothing_radius * offset, labels, plain, step, loss=loss)
        assert copy_.gradient is not None
        total += copy_.gradient
    return total / settings.smoothing


def advance(iterate: Iterate, origin: Tensor, settings: PGD) -> Tensor:
    """Compute the next point: a steepest step from ``iterate``, projected into the ball around ``origin``.

    A coordinate whose step is NaN does not move.
    """
    threat = threat_model(settings)
    assert iterate.gradient is not None
    if settings.norm == "linf":
        step = threat.steepest_step(iterate.gradient, settings.step_size)
    else:
        norms, units = iterate.norm_and_unit
        step = threat.scaled_step(norms, units, settings.step_size, settings.norm_floor).reshape(origin.shape)
    return threat.project(step.nan_to_num_(0.0).add_(iterate.images), origin)


@dataclass(frozen=True)
class _Walkers:
    """The images still under attack: their indices among all, ``rows`` ``(N,)``, and the data of each."""

    rows: Tensor
    images: Tensor
    labels: Tensor
    streams: Streams | None

    def only(self, stay: Tensor) -> "_Walkers":
        streams = self.streams and self.streams.only(stay)
        return _Walkers(self.rows[stay], self.images[stay], self.labels[stay], streams)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    *,
    start: Tensor | None = None,
    streams: Streams | None = None,
    loss: Loss | None = None,
    observe: Observer | None = None,
    seen: Blindness | None = None,
    final_gradient: bool = False,
    keep_first: bool = False,
    boxed: bool = False,
) -> Reached:
    """Run PGD from one start: x_{t+1} = project(x_t + steepest_step(g_t)), t = 0 .. T-1 (Madry et al. 2018).

    Returns the points x_T. With ``keep_first`` it returns each image's first iterate that fools the model, if there is
    one, so that no success is lost later on the path (Pintor et al. 2022). Such an image is not attacked further,
    unless the batch is part of the attack (``reduction`` "mean"). With ``keep_first`` a coordinate whose gradient is
    NaN counts as flat. With ``boxed``, iterates that may leave the box under ``settings`` are cut to it before they are
    judged and kept.

    ``model`` must come from :func:`prepared`. ``start`` is the first point; if it is None, the start of ``settings`` is
    drawn from ``streams``, and without streams the images are the start. ``loss`` replaces the loss of ``settings``.
    ``observe`` is called with every iterate x_0 .. x_T in order; the last has a gradient only with ``final_gradient``,
    and is computed only if it is observed or may be kept. ``seen`` records the gradients that the steps used; with
    ``keep_first`` only those of images not yet fooled.
    """
    if start is None:
        start = images if streams is None else streams.start(images, settings)
    if settings.precision == "float64":
        images, start = images.double(), start.double()
    walkers = _Walkers(torch.arange(len(images), device=images.device), images, labels, streams)
    first_fooled = torch.full_like(walkers.rows, -1)
    current, points = start, start.clone() if keep_first else start
    for step in range(settings.steps + 1):
        is_last = step == settings.steps
        if is_last and not keep_first and observe is None:
            break
        gradient = final_gradient or not is_last
        here = look(
            model, current, walkers.labels, settings, step, loss=loss, gradient=gradient, streams=walkers.streams
        )
        if observe is not None:
            observe(here)
        judged, wrong = _judged(model, here, walkers.labels, settings, boxed)
        standing = first_fooled[walkers.rows] < 0
        replaced(first_fooled, walkers.rows, standing & wrong, torch.full_like(walkers.rows, step))
        if keep_first:
            replaced(points, walkers.rows, standing, judged)
        if is_last:
            break
        assert here.gradient is not None
        if seen is not None:
            seen.note(walkers.rows, here.gradient, standing & ~wrong if keep_first else True)
        if keep_first:
            here = replace(here, gradient=here.gradient.nan_to_num(0.0))
            stay = who_stays(standing & ~wrong, step)
            if stay is not None and not len(stay):
                break
            if stay is not None and settings.reduction == "sum":  # the one place where images leave the batch
                walkers, here = walkers.only(stay), here.only(stay)
        current = advance(here, walkers.images, settings)
    return Reached(points if keep_first else current, first_fooled)


def _judged(model: nn.Module, here: Iterate, labels: Tensor, settings: PGD, boxed: bool) -> tuple[Tensor, Tensor]:
    """Return the iterate, cut to the box if requested, and the images ``(N,)`` on which it fools the model."""
    if settings.box or not boxed:
        return here.images, fooled(here.logits, labels)
    cut = here.images.clamp(0, 1)
    with torch.no_grad():
        return cut, fooled(model(cut), labels)


def pgd_restarted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    streams: Streams,
    *,
    restarts: Iterable[int],
    standing: Tensor | None = None,
) -> Reached:
    """Run PGD from several starts; return each image's first iterate, over all ``restarts``, that fools the model.

    If no iterate does, return the last iterate of the last start. Only the images ``standing`` ``(N,)`` are attacked
    (all images if None), unless the batch is part of the attack. See :func:`pgd` for the other arguments.
    """
    points = images.clone()
    everyone = torch.arange(len(images), device=images.device)
    first_fooled = torch.full_like(everyone, -1)
    standing = torch.ones_like(everyone, dtype=torch.bool) if standing is None else standing.clone()
    for restart in restarts:
        if not standing.any():
            break
        rows = everyone if settings.reduction == "mean" else everyone[standing]
        drawn = replace(streams.only(rows), restart=restart)
        reached = pgd(model, images[rows], labels[rows], settings, streams=drawn, keep_first=True)
        new = standing[rows]
        points[rows[new]] = reached.points[new].to(points)
        first_fooled[rows[new]] = reached.first_fooled[new]
        standing[rows] &= ~reached.fooled
    return Reached(points, first_fooled)


#: Number of values in the images attacked at once on a CPU, for small images: 32 images of CIFAR-10.
_NUMBERS_AT_ONCE = 32 * 3 * 32 * 32
#: Number of images attacked at once on a GPU, and the most on a CPU.
_MOST_AT_ONCE = 512


def usual_batch_size(settings: PGD | None, device: torch.device, numbers: int = _NUMBERS_AT_ONCE) -> int:
    """Choose how many images, of ``numbers`` values each, to attack at once.

    The answer is the paper's 128 if the loss is a mean, else the fastest size. On a CPU the activations of 32 CIFAR-10
    images are still in the caches when the backward pass reads them. The batch of smaller images is larger in
    proportion, because a small batch takes as long as one of twice its size.
    """
    if settings is not None and settings.reduction == "mean":
        return PAPER_BATCH
    return min(max(32, _NUMBERS_AT_ONCE // numbers), _MOST_AT_ONCE) if device.type == "cpu" else _MOST_AT_ONCE

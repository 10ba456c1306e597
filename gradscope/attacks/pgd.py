"""Projected gradient descent, once: every iterate is shown to an observer with the facts that belong to it."""

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

    def only(self, rows: Tensor) -> "Iterate":
        """The images at ``rows`` ``(M,)``."""
        gradient = None if self.gradient is None else self.gradient[rows]
        points, logits, loss = self.images[rows], self.logits[rows], self.loss[rows]
        return replace(self, images=points, logits=logits, loss=loss, gradient=gradient)

    @cached_property
    def signs(self) -> Tensor:
        """Signs of the gradient ``(N, D)`` as int8: a quarter of the memory to read again at the next iterate."""
        assert self.gradient is not None
        return flatten(self.gradient).sign().to(torch.int8)


Observer = Callable[[Iterate], None]


class Blindness:
    """How blind an attack on ``count`` images was at its worst step.

    ``worst`` ``(count,)`` holds the largest :func:`~gradscope.functional.blindness` of each image's gradients; it is
    None where none was seen.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.worst: Tensor | None = None

    def note(self, rows: Tensor, gradient: Tensor, counts: Tensor | bool = True) -> None:
        """Take in the gradients ``(M, ...)`` of the images at ``rows`` ``(M,)``, of those that ``counts`` ``(M,)``."""
        self.add(rows, blindness(gradient) * counts)

    def add(self, rows: Tensor, found: Tensor) -> None:
        """Take in what was ``found`` ``(M,)`` of the images at ``rows`` ``(M,)``."""
        if self.worst is None:
            self.worst = torch.zeros(self.count, dtype=torch.uint8, device=rows.device)
        self.worst.scatter_reduce_(0, rows, found, "amax")


@dataclass(frozen=True)
class Streams:
    """Where the random numbers of PGD come from: streams of each image, for its start and for each step.

    ``numbers`` ``(N,)``, on the CPU, name the images under ``seed``; so what is drawn depends neither on the batch size
    nor on who shares the batch. ``restart`` counts the starts.
    """

    seed: int
    numbers: Tensor
    restart: int = 0

    def only(self, rows: Tensor) -> "Streams":
        """Those of the images at ``rows`` ``(M,)``."""
        return replace(self, numbers=self.numbers[rows.cpu()])

    def start(self, images: Tensor, settings: PGD) -> Tensor:
        """Draw where PGD begins, ``(N, C, H, W)``: the start that ``settings`` names."""
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
    """Where PGD led N images: their ``points`` ``(N, C, H, W)``.

    ``first_fooled`` ``(N,)``: the step of the first iterate that fooled the model, -1 where none of those that were
    looked at did.
    """

    points: Tensor
    first_fooled: Tensor

    @property
    def fooled(self) -> Tensor:
        """Which images ``(N,)`` were fooled by some iterate."""
        return self.first_fooled >= 0


def threat_model(settings: PGD) -> ThreatModel:
    """The threat model of ``settings``."""
    return ThreatModel(settings.norm, settings.epsilon, settings.box)


def settings_inside(threat: ThreatModel, budget: Budget, attack: str = "pgd", **given: object) -> PGD:
    """Resolve the PGD called ``attack`` inside ``threat`` and ``budget``, with what is ``given``."""
    box = {} if threat.box else {"box": False}  # an attack that ignores the box goes on doing so
    return attack_settings(attack, {"norm": threat.norm, "epsilon": threat.epsilon, **box, **budget.walk, **given})


@contextmanager
def prepared(model: nn.Module, settings: PGD) -> Iterator[nn.Module]:
    """``model`` in evaluation mode with frozen parameters, in the precision asked for; left as found.

    float64 works on a copy, so the caller's parameters are not touched there either.
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
    """The facts at ``images``: one forward pass, and one backward pass where the gradient is wanted.

    A smoothed gradient takes a forward and a backward pass more for each of its copies. ``loss`` takes the place of
    the one that ``settings`` names.
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
    """``mean over c of grad loss(x + radius n_c)``, n_c standard Gaussian.

    For a random model the expectation over its randomness too (Athalye et al. 2018, EoT). The copies are not cut to
    the box, so that their mean stays the point.
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
    """The next point: a steepest step from ``iterate``, projected into the ball around ``origin``.

    Where that step is not a number, the coordinate stays.
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
    """The images that still walk: their places among all ``(N,)``, and what belongs to each."""

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
    """Climb the loss from one start: x_{t+1} = project(x_t + steepest_step(g_t)), t = 0 .. T-1 (Madry et al. 2018).

    The points reached are x_T. With ``keep_first`` they are each image's first iterate that fools the model, where one
    does: no success is walked past (Pintor et al. 2022). Such an image is attacked no further, unless the batch is part
    of the attack (``reduction`` "mean"); a coordinate whose slope is not a number counts as flat; and with ``boxed``
    iterates that ``settings`` lets leave the box are cut to it before they are judged and kept.

    ``start`` is where to begin; where it is None the start that ``settings`` names is drawn from ``streams``, and
    without those it is the images. ``observe`` is called with every iterate, x_0 .. x_T, in order; the last carries a
    gradient only where ``final_gradient`` is set. It is looked at only where it is observed or may be kept. ``seen``
    notes the gradients that were gone along; with ``keep_first`` those of images that stood alone. ``loss``
    takes the place of the one that ``settings`` names. ``model`` is one that :func:`prepared` yields.
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
        stood = first_fooled[walkers.rows] < 0
        replaced(first_fooled, walkers.rows, stood & wrong, torch.full_like(walkers.rows, step))
        if keep_first:
            replaced(points, walkers.rows, stood, judged)
        if is_last:
            break
        assert here.gradient is not None
        if seen is not None:
            seen.note(walkers.rows, here.gradient, stood & ~wrong if keep_first else True)
        if keep_first:
            here = replace(here, gradient=here.gradient.nan_to_num(0.0))
            stay = who_stays(stood & ~wrong, step)
            if stay is not None and not len(stay):
                break
            if stay is not None and settings.reduction == "sum":  # the one place where images leave the batch
                walkers, here = walkers.only(stay), here.only(stay)
        current = advance(here, walkers.images, settings)
    return Reached(points if keep_first else current, first_fooled)


def _judged(model: nn.Module, here: Iterate, labels: Tensor, settings: PGD, boxed: bool) -> tuple[Tensor, Tensor]:
    """The iterate, cut to the box where that is asked for, and which images ``(N,)`` it fools."""
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
    """Climb from several starts: each image's first iterate, over all ``restarts``, that fools the model.

    Where none does the point is the last of the last start. Only the images still ``standing`` ``(N,)``, all where it
    is None, are attacked, unless the batch is part of the attack. See :func:`pgd` for the rest.
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


#: Numbers of the images attacked at once on a CPU, where they are small: 32 of CIFAR-10's.
_NUMBERS_AT_ONCE = 32 * 3 * 32 * 32
#: Images attacked at once on a GPU, and at most on a CPU.
_MOST_AT_ONCE = 512


def usual_batch_size(settings: PGD | None, device: torch.device, numbers: int = _NUMBERS_AT_ONCE) -> int:
    """Images of ``numbers`` values attacked at once: the paper's 128 where their loss is a mean, else what is fastest.

    On a CPU the activations of 32 CIFAR-10 images are still in its caches when the backward pass comes for them; of
    smaller images there are as many more, since a batch of few takes as long as one of twice its size.
    """
    if settings is not None and settings.reduction == "mean":
        return PAPER_BATCH
    return min(max(32, _NUMBERS_AT_ONCE // numbers), _MOST_AT_ONCE) if device.type == "cpu" else _MOST_AT_ONCE

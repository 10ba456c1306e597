"""Tests of the gradients: at the image, along PGD, against float64 and against finite differences."""

import math

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, Streams, look, pgd, prepared
from gradscope.config import PGD
from gradscope.distributed.units import is_out_of_memory
from gradscope.functional import cosine, first_order_gap, flatten, margin, norm_and_unit, sign_agreement
from gradscope.probes.curvature import input_curvature
from gradscope.seeding import generator, seeded

#: Length of the small finite difference, in pixel units. A ReLU network is linear over it, and in float32 the quotient
#: of a logit of 10 is accurate to 1e-3.
SMALL = 1e-3
#: Length of the shortest finite difference, for models that run in float64, where it is accurate to 1e-8. Models that
#: round pixels or coefficients hardly change over it. Of CIFAR-10's 3072 values, rounded to 256 levels, about 20 change
#: level in a difference over :data:`SMALL`, but only one in fifty differences over this length.
SHORT = 1e-6
#: Number of last steps in which Pintor et al. 2022 (I4) look for progress. In a short attack at most the last quarter
#: counts, because steps of 2.5 epsilon in all need four fifths of their number to cross the ball.
LATE_STEPS = 10
#: Gradient norm (L2) below which the usual norm floors (foolbox, AutoAttack, secml: 1e-12) shorten a step.
NORM_FLOOR = 1e-12

#: Power iterations for a curvature, of which only the order of magnitude is used.
CURVATURE_STEPS = 10


def at_the_image(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """Compute cross-entropy ``(N,)`` and its gradient's L2 norm ``(N,)`` and direction ``(N, D)``, in float32."""
    with prepared(model, settings) as plain, seeded(seed, "gradient", *numbers.tolist()):
        here = look(plain, images, labels, settings)
    return {"loss": here.loss.double().cpu(), "norm": here.own_norm.double().cpu(), "unit": here.unit.cpu()}


def in_float64(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """Compute the cosine ``(N,)`` of the gradients in float32 and float64; 0 if one is zero, NaN if both are."""
    single = at_the_image(model, images, labels, numbers, settings, seed)["unit"].double()
    double = settings.model_copy(update={"precision": "float64"})
    with prepared(model, double) as exact, seeded(seed, "gradient", *numbers.tolist()):
        other = look(exact, images.double(), labels, double).unit.cpu()
    one_is_zero = single.any(dim=1) != other.any(dim=1)
    return {"cosine": torch.where(one_is_zero, 0.0, cosine(single, other))}


def against_differences(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    settings: PGD,
    directions: int,
    seed: int,
) -> dict[str, Tensor]:
    """Measure slopes of the margin along K random unit directions, ``(N, K)`` each: autograd's and central differences.

    ``short`` is the difference over :data:`SHORT` in float64; in float32 it equals ``small``. ``small`` is over
    :data:`SMALL`, ``large`` over half the ball: epsilon in L2, epsilon sqrt(D) in L-infinity. Differences below
    ``short_noise``, ``small_noise`` and ``large_noise`` ``(N,)`` are rounding. The precision is that of ``settings``. A
    random model draws the same numbers in every pass.
    """
    double = settings.precision == "float64"
    images = images.double() if double else images
    size = images[0].numel()
    ball = settings.epsilon * (math.sqrt(size) if settings.norm == "linf" else 1.0)
    drawn = [torch.randn(directions, size, generator=generator(seed, "slopes", number)) for number in numbers.tolist()]
    units = torch.stack(drawn).to(images)
    units = units / units.norm(dim=2, keepdim=True)
    names = ("slopes", *numbers.tolist())
    with prepared(model, settings) as working:
        point = images.detach().clone().requires_grad_()
        with torch.enable_grad(), seeded(seed, *names):
            logits = working(point)
            (slope,) = torch.autograd.grad(margin(logits, labels).sum(), point)
        autograd = (units * flatten(slope).unsqueeze(1)).sum(dim=2)

        def difference(direction: int, length: float) -> Tensor:
            offset = (length * units[:, direction]).reshape(images.shape)
            ends = []
            for end in (images + offset, images - offset):
                with torch.no_grad(), seeded(seed, *names):
                    ends.append(margin(working(end), labels))
            return (ends[0] - ends[1]) / (2 * length)

        # Eight times the rounding of the largest logit: about what the sums of a few layers lose.
        rounding = 8 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1)
        # The type of the output counts, because a model may convert to float32 inside.
        lengths = {"small": SMALL, "large": ball / 2, "short": SHORT if logits.dtype == torch.float64 else SMALL}
        measured = {"autograd": autograd.double().cpu()}
        for name, length in lengths.items():
            slopes = [difference(direction, length) for direction in range(directions)]
            measured |= {
                name: torch.stack(slopes, dim=1).double().cpu(),
                f"{name}_noise": (rounding / length).double().cpu(),
            }
    return measured


class _Walk:
    """Observes a path of PGD: dead gradients, convergence, and how gradients turn."""

    def __init__(self, images: Tensor, labels: Tensor, settings: PGD) -> None:
        self.images, self.labels, self.settings = images, labels, settings
        self.dead = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        self.margins: list[Tensor] = []
        self.cosines: list[Tensor] = []
        self.signs: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.first: Tensor | None = None
        self.gap: Tensor | None = None
        self._unit: Tensor | None = None

    def __call__(self, iterate: Iterate) -> None:
        self.margins.append(margin(iterate.logits, self.labels))
        if iterate.gradient is None:
            return
        right = iterate.logits.argmax(dim=1) == self.labels
        self.dead |= is_dead(iterate.loss, iterate.own_norm) & right
        self.norms.append(iterate.own_norm)
        if self._unit is not None:
            self.cosines.append(cosine(iterate.unit, self._unit))
            self.signs.append(sign_agreement(iterate.unit, self._unit)[0])
        if iterate.step == self.settings.steps - 1:
            offsets = flatten(iterate.images - self.images)
            self.gap = first_order_gap(offsets, iterate.unit, self.settings.norm, self.settings.epsilon)
        self.first = iterate.unit if self.first is None else self.first
        self._unit = iterate.unit


def is_dead(loss: Tensor, norm: Tensor) -> Tensor:
    """Mark samples ``(N,)`` whose loss is 0 or whose gradient norm is below :data:`NORM_FLOOR` or not a number."""
    return (loss == 0) | ~(norm >= NORM_FLOOR)


def along_the_path(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """Run PGD once without stopping early, and record its gradients; each value is ``(N,)``, NaN where undefined.

    ``dead``: the gradient is dead at some correctly classified iterate. ``standing``: every iterate is classified
    correctly. ``moved``: decrease of the lowest margin so far in the last ten steps (at most a quarter of all), divided
    by its whole decrease. ``cosine`` and ``sign``: means between consecutive steps. ``norm``: mean. ``fosc``: at the
    last step. ``alignment``: cosine of the gradients at the image and at the start, a random point of the ball
    (GradAlign).
    """
    walk = _Walk(images, labels, settings)
    with prepared(model, settings) as attacked, seeded(seed, "path", *numbers.tolist()):
        pgd(attacked, images, labels, settings, streams=Streams(seed, numbers), observe=walk)
        clean = look(attacked, images, labels, settings)
    assert walk.first is not None
    assert walk.gap is not None
    lowest = torch.stack(walk.margins).cummin(dim=0).values.double()
    fall = lowest[0] - lowest[-1]
    late = lowest[-1 - min(LATE_STEPS, settings.steps // 4)] - lowest[-1]
    return {
        "dead": walk.dead.cpu(),
        "standing": (lowest[-1] > 0).cpu(),
        "moved": torch.where(fall > 0, late / fall, 0.0).cpu(),
        "cosine": _mean(walk.cosines).cpu(),
        "sign": _mean(walk.signs).cpu(),
        "norm": _mean(walk.norms).cpu(),
        "fosc": walk.gap.double().cpu(),
        "alignment": cosine(clean.unit, walk.first).double().cpu(),
    }


def curvature(model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, seed: int) -> dict[str, Tensor]:
    """Compute cross-entropy's largest Hessian eigenvalue in the image, ``(N,)``; NaN without second derivatives."""
    try:
        with seeded(seed, "curvature", *numbers.tolist()):
            largest = input_curvature(model, images, labels, numbers=numbers, seed=seed, most=CURVATURE_STEPS)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return {"curvature": torch.full((len(images),), math.nan, dtype=torch.float64)}
    return {"curvature": largest.value.double().cpu()}


def _mean(steps: list[Tensor]) -> Tensor:
    return torch.stack(steps).double().nanmean(dim=0) if steps else torch.empty(0, dtype=torch.float64)


def kinds_of_slope(measured: dict[str, Tensor]) -> dict[str, Tensor]:
    """Classify the slopes of :func:`against_differences`; three masks ``(N,)``, at most one True per image.

    ``stepped``: along at least half of the directions the margin does not change over the short difference, but over
    the large one it changes. ``missing``: the margin changes over the short difference, but autograd's slopes are zero.
    ``false``: both change, and their cosine over the directions is below :data:`SAME_SLOPE`. An image is in none of
    them if autograd's slopes agree with the small difference: then a constant short difference is only rounding to
    float32 inside the model.
    """
    rest = measured["short_noise"].unsqueeze(1), measured["large_noise"].unsqueeze(1)
    still = ((measured["short"].abs() <= rest[0]).double().mean(dim=1)) >= 0.5
    changes = (measured["large"].abs() > rest[1]).any(dim=1)
    lives = (measured["short"].abs() > 10 * rest[0]).any(dim=1)
    no_slope = ~(measured["autograd"].abs() > rest[0]).any(dim=1)
    own = norm_and_unit(measured["autograd"])[1]
    alike = {length: cosine(own, norm_and_unit(measured[length])[1]) for length in ("short", "small")}
    true = alike["small"] >= SAME_SLOPE
    stepped = still & changes & ~true
    missing = ~stepped & lives & no_slope
    return {
        "stepped": stepped,
        "missing": missing,
        "false": ~stepped & ~missing & lives & ~no_slope & ~true & (alike["short"] < SAME_SLOPE),
    }


#: Autograd's slopes and measured ones disagree if their cosine is below this. Exact slopes have a cosine within 1e-4 of
#: 1; one kink inside a difference, along one direction of eight, gives 0.9; noise gives about 0.
SAME_SLOPE = 0.5

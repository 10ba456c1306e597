"""Whether the gradients are alive, exact and true: at the image, along PGD, against float64 and finite differences."""

import math

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, Streams, look, pgd, prepared
from gradscope.config import PGD
from gradscope.distributed.units import is_out_of_memory
from gradscope.functional import cosine, first_order_gap, flatten, margin, norm_and_unit, sign_agreement
from gradscope.probes.curvature import input_curvature
from gradscope.seeding import generator, seeded

#: Length of the small finite difference, in pixel units: a ReLU network is linear over it, and in float32 the quotient
#: of a logit of 10 is still good to 1e-3.
SMALL = 1e-3
#: Length of the shortest, where the model runs in float64, in which it is good to 1e-8. Rounding of many pixels or
#: coefficients stays within its steps there: of CIFAR-10's 3072 numbers, rounded to 256 levels, some 20 take a step
#: over :data:`SMALL`, and over this one does in fifty differences.
SHORT = 1e-6
#: The steps in which Pintor et al. 2022 (I4) look for movement; of a short attack at most its last quarter, since a
#: walk of 2.5 epsilon takes four fifths of its steps to cross its ball.
LATE_STEPS = 10
#: L2 norm of a gradient below which usual floors of a step's norm (foolbox, AutoAttack, secml: 1e-12) shorten it.
NORM_FLOOR = 1e-12

#: Power iterations of a curvature: it is read to an order of magnitude.
CURVATURE_STEPS = 10


def at_the_image(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """Cross-entropy and the L2 norm of its gradient at ``images``, ``(N,)`` each, in float32."""
    with prepared(model, settings) as plain, seeded(seed, "gradient", *numbers.tolist()):
        here = look(plain, images, labels, settings)
    return {"loss": here.loss.double().cpu(), "norm": here.own_norm.double().cpu(), "unit": here.unit.cpu()}


def in_float64(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """Cosine ``(N,)`` of the float32 gradient and that of the model in float64; 0 where only one is zero, else NaN."""
    single = at_the_image(model, images, labels, numbers, settings, seed)["unit"].double()
    double = settings.model_copy(update={"precision": "float64"})
    with prepared(model, double) as exact, seeded(seed, "gradient", *numbers.tolist()):
        other = look(exact, images.double(), labels, double).unit.cpu()
    found = cosine(single, other)
    one_is_dead = single.any(dim=1) != other.any(dim=1)
    return {"cosine": torch.where(one_is_dead, 0.0, found)}


def against_differences(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    settings: PGD,
    directions: int,
    seed: int,
) -> dict[str, Tensor]:
    """Slopes of the margin along K random unit directions, ``(N, K)`` each: autograd's, and central differences.

    ``short`` is taken over :data:`SHORT` in float64, and equal to ``small`` in float32; ``small`` over :data:`SMALL`,
    ``large`` over half the ball: epsilon in L2, epsilon sqrt(D) in L-infinity. Below ``short_noise``, ``small_noise``
    and ``large_noise`` ``(N,)`` a difference is rounding. The settings' precision is used. A random model draws the
    same numbers in every pass.
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

        # Eight roundings of the largest logit: what a few layers' sums lose.
        rounding = 8 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1)
        # The output's type counts: a model may go back to float32 inside.
        lengths = {"small": SMALL, "large": ball / 2, "short": SHORT if logits.dtype == torch.float64 else SMALL}
        found = {"autograd": autograd.double().cpu()}
        for name, length in lengths.items():
            slopes = [difference(direction, length) for direction in range(directions)]
            found |= {
                name: torch.stack(slopes, dim=1).double().cpu(),
                f"{name}_noise": (rounding / length).double().cpu(),
            }
    return found


class _Walk:
    """The observer of a path: dead gradients, convergence and the geometry of the gradients."""

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
    """Which samples ``(N,)`` have a loss of 0, no gradient, or one whose norm is below :data:`NORM_FLOOR`."""
    return (loss == 0) | ~(norm >= NORM_FLOOR)


def along_the_path(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int
) -> dict[str, Tensor]:
    """One PGD without an early end, ``(N,)`` each.

    ``dead``: a dead gradient at some iterate that is right; ``standing``: every iterate is right; ``moved``: how far
    the lowest margin so far fell in the last ten steps (at most a quarter of all), over how far it fell at all; mean
    ``cosine`` and ``sign`` between steps and mean ``norm``; ``fosc`` at the last step; ``alignment``: cosine of the
    gradients at the image and at the start, a random point of the ball (GradAlign). NaN where undefined.
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
    """Largest Hessian eigenvalue of cross-entropy in the image ``(N,)``; NaN where there is no second derivative."""
    try:
        with seeded(seed, "curvature", *numbers.tolist()):
            found = input_curvature(model, images, labels, numbers=numbers, seed=seed, most=CURVATURE_STEPS)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return {"curvature": torch.full((len(images),), math.nan, dtype=torch.float64)}
    return {"curvature": found.value.double().cpu()}


def _mean(steps: list[Tensor]) -> Tensor:
    return torch.stack(steps).double().nanmean(dim=0) if steps else torch.empty(0, dtype=torch.float64)


def kinds_of_slope(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the slopes of :func:`against_differences` say of each image, ``(N,)`` each, at most one True.

    ``stepped``: along half of the directions or more the margin does not change over the short difference, but it does
    over the large one. ``missing``: it changes over the short one, and autograd's slopes are zero. ``false``: both are
    there, and their cosine over the directions is below :data:`SAME_SLOPE`. None where autograd's slopes are those over
    the small difference: what is still over the short one then is rounding to float32 inside of the model.
    """
    rest = found["short_noise"].unsqueeze(1), found["large_noise"].unsqueeze(1)
    still = ((found["short"].abs() <= rest[0]).double().mean(dim=1)) >= 0.5
    changes = (found["large"].abs() > rest[1]).any(dim=1)
    lives = (found["short"].abs() > 10 * rest[0]).any(dim=1)
    no_slope = ~(found["autograd"].abs() > rest[0]).any(dim=1)
    own = norm_and_unit(found["autograd"])[1]
    alike = {length: cosine(own, norm_and_unit(found[length])[1]) for length in ("short", "small")}
    true = alike["small"] >= SAME_SLOPE
    stepped = still & changes & ~true
    missing = ~stepped & lives & no_slope
    return {
        "stepped": stepped,
        "missing": missing,
        "false": ~stepped & ~missing & lives & ~no_slope & ~true & (alike["short"] < SAME_SLOPE),
    }


#: Cosine of autograd's and measured slopes below which they disagree: exact ones are within 1e-4 of 1, and one kink
#: inside a difference along one direction of eight leaves 0.9; noise is near 0.
SAME_SLOPE = 0.5

"""The loss around images, on a plane each, spanned by adversarial directions or by one and a random one.

A plane's points are ``x + u * (a * d1 + b * d2)``, d1 and d2 orthonormal and u the length at which d1 reaches the
threat model's radius in its own norm: epsilon in L2, ``epsilon / max |d1|`` in L-infinity. So a is in multiples of the
radius, b is as long, and two models can be drawn on the same axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.attacks.pgd import Iterate, Streams, pgd
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Grid
from gradscope.distributed.units import free_memory, is_out_of_memory
from gradscope.errors import GradscopeError
from gradscope.functional import flatten, margin, norm_and_unit
from gradscope.losses import cross_entropy
from gradscope.models.affine import PlaneModel
from gradscope.models.inspection import laid_out, measuring
from gradscope.seeding import generator

#: Points evaluated at once where memory allows: on a CPU their activations stay in its caches.
POINTS_AT_ONCE = {"cpu": 64, "cuda": 2048}

#: Cosine of two adversarial directions from which they count as parallel.
_PARALLEL = 1 - 1e-6


#: Points ``(M, 2)`` of the unit disc: 16 directions, both axes among them, at 8 distances up to 1.
DISC = torch.cartesian_prod(torch.arange(1, 9) / 8, torch.arange(16) * torch.pi / 8)
DISC = torch.stack([DISC[:, 0] * DISC[:, 1].cos(), DISC[:, 0] * DISC[:, 1].sin()], dim=1)


@dataclass(frozen=True)
class Planes:
    """A plane for each of N images: origins ``(N, C, H, W)`` and two orthonormal directions ``(N, D)`` each.

    ``unit`` ``(N,)`` is the L2 length in pixel units of 1 on the axes. ``paths`` ``(W, N, T + 1, 3)`` holds the
    iterates of W attacks as (a, b, distance from the plane), in that unit; NaN past the end of a shorter one.
    ``fallback`` ``(N, 2)`` is true where a direction was to be an attack's and is a random one instead: the attack did
    not move, or ran parallel to the first.
    """

    origins: Tensor
    first: Tensor
    second: Tensor
    unit: Tensor
    paths: Tensor
    fallback: Tensor

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def axes(self) -> Tensor:
        """What 1 along a and along b is in pixel units, ``(N, 2, D)``."""
        return torch.stack([self.first, self.second], dim=1) * self.unit[:, None, None]

    def __getitem__(self, part: slice) -> "Planes":
        origins, first, second, unit = (one[part] for one in (self.origins, self.first, self.second, self.unit))
        return Planes(origins, first, second, unit, self.paths[:, part], self.fallback[part])


class StepFacts:
    """What an attack meets at each iterate x_0 .. x_T of N images; call it with the iterates in order.

    ``losses`` ``(N, T + 1)``: cross-entropy in nats. ``gradients`` ``(N, T + 1)``: L2 norm, in nats per unit pixel
    range, of the gradient that the attack steps along, with its own loss and its own sum or mean over the batch; NaN
    at the last iterate, from which it takes no step. Both float64.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self._losses: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def __call__(self, iterate: Iterate) -> None:
        """Note an iterate."""
        losses = cross_entropy(iterate.logits, self.labels).double()
        self._losses.append(losses)
        known = iterate.gradient is not None
        self._gradients.append(iterate.norm_and_unit[0].double() if known else torch.full_like(losses, torch.nan))

    @property
    def losses(self) -> Tensor:
        """Cross-entropy at the iterates."""
        return torch.stack(self._losses, dim=1)

    @property
    def gradients(self) -> Tensor:
        """Norms of the gradients that were stepped along."""
        return torch.stack(self._gradients, dim=1)


def attack_walk(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: PGD,
    *,
    numbers: Tensor,
    seed: int = 0,
    facts: StepFacts | None = None,
) -> Tensor:
    """The attack's iterates as displacements ``x_t - x``, ``(N, T + 1, D)``.

    ``model`` is one that :func:`gradscope.attacks.pgd.prepared` yields. ``numbers`` ``(N,)`` name the images, whose
    random numbers depend on nothing else. ``facts`` notes every iterate. Raises :class:`GradscopeError` where
    epsilon is 0.
    """
    if settings.epsilon == 0:
        raise GradscopeError("epsilon: a number above 0 is needed, for a landscape's axes are in multiples of it")
    images = images.double() if settings.precision == "float64" else images
    displacements: list[Tensor] = []

    def observe(iterate: Iterate) -> None:
        displacements.append(flatten(iterate.images - images).float())
        if facts is not None:
            facts(iterate)

    pgd(model, images, labels, settings, streams=Streams(seed, numbers), observe=observe)
    return torch.stack(displacements, dim=1)


def adversarial_planes(images: Tensor, walk: Tensor, threat: ThreatModel, *, numbers: Tensor, seed: int = 0) -> Planes:
    """The planes of each image's adversarial direction, ``(x_T - x) / |x_T - x|``, and a random one orthogonal to it.

    ``walk`` ``(N, T + 1, D)`` is what :func:`attack_walk` gave. Raises :class:`GradscopeError` for images of one pixel.
    """
    first, still = _direction(walk, numbers, seed)
    second = _orthogonal(_random_units(images, numbers, seed, "second direction"), first)
    return _planes(images, first, second, threat, [walk], torch.stack([still, torch.zeros_like(still)], dim=1))


def shared_planes(
    images: Tensor, walks: tuple[Tensor, Tensor], threat: ThreatModel, *, numbers: Tensor, seed: int = 0
) -> Planes:
    """The planes of two adversarial directions on the same images, of two models or of two attacks on one.

    The first is the one's; the second is what the other's has beside it, so that the tip of the other's lies at its
    cosine along a. Where the two are parallel, or one attack did not move, a random direction takes its place.
    """
    first, still = _direction(walks[0], numbers, seed)
    other, other_still = _direction(walks[1], numbers, seed)
    lost = other_still | ((first * other).sum(dim=1).abs() > _PARALLEL)
    random = _random_units(images, numbers, seed, "second direction")
    second = _orthogonal(torch.where(lost[:, None], random, other), first)
    return _planes(images, first, second, threat, list(walks), torch.stack([still, lost], dim=1))


def _direction(walk: Tensor, numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The unit direction ``(N, D)`` to the last iterate, and where the attack did not move and it is a random one."""
    moved, adversarial = norm_and_unit(walk[:, -1])
    still = moved == 0
    return torch.where(still[:, None], _random_units(walk[:, -1], numbers, seed, "fallback"), adversarial), still


def _planes(
    images: Tensor, first: Tensor, second: Tensor, threat: ThreatModel, walks: list[Tensor], fallback: Tensor
) -> Planes:
    axes = torch.stack([first, second], dim=1)
    reach = torch.ones_like(first[:, 0]) if threat.norm == "l2" else first.abs().amax(dim=1)
    unit = threat.epsilon / reach
    longest = max(walk.shape[1] for walk in walks)
    paths = []
    for walk in walks:
        along = walk @ axes.transpose(1, 2)
        off = torch.linalg.vector_norm(walk - along @ axes, dim=2, keepdim=True)
        path = torch.cat([along, off], dim=2) / unit[:, None, None]
        paths.append(F.pad(path, (0, 0, 0, longest - path.shape[1]), value=torch.nan))
    return Planes(images, first, second, unit, torch.stack(paths), fallback)


def _random_units(like: Tensor, numbers: Tensor, seed: int, *name: object) -> Tensor:
    """A uniformly random direction ``(D,)`` for each image, from the image's own stream."""
    size = like[0].numel()
    if size < 2:
        raise GradscopeError(f"images: at least 2 pixels are needed to span a plane, got {size}")
    drawn = [torch.randn(size, generator=generator(seed, *name, number)) for number in numbers.tolist()]
    return norm_and_unit(torch.stack(drawn))[1].to(like)


def _orthogonal(vectors: Tensor, units: Tensor) -> Tensor:
    """Unit vectors of ``vectors`` without their part along ``units``; in float64, and twice, against cancellation."""
    remainder, along = vectors.double(), units.double()
    for _ in range(2):
        remainder = remainder - (remainder * along).sum(dim=1, keepdim=True) * along
    return norm_and_unit(remainder)[1].to(vectors)


@dataclass(frozen=True)
class PlaneValues:
    """What a model does on N planes of A x B points, first axis a, second axis b.

    ``loss`` cross-entropy in nats, ``margin`` in logits, ``predicted`` the class; each ``(N, A, B)``, on the CPU.
    """

    loss: Tensor
    margin: Tensor
    predicted: Tensor


def coordinates(grid: Grid) -> Tensor:
    """The coordinates along an axis, ``(P,)`` float64, exactly symmetric: the centre of an odd number is exactly 0.

    To 12 decimals, so that they are short where they are written.
    """
    half = torch.linspace(-grid.span, grid.span, grid.points, dtype=torch.float64)
    return ((half - half.flip(0)) / 2).round(decimals=12)


def evaluate_planes(
    model: nn.Module,
    planes: Planes,
    labels: Tensor,
    grid: Grid,
    *,
    rows: range | None = None,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> PlaneValues:
    """Loss, margin and predicted class at every point of every plane, or of its ``rows``; the model is left as found.

    The centre of an odd grid is the image itself, evaluated alone, so it equals the plain loss bit for bit. Points
    are evaluated in batches, halved where memory runs out; layers that are affine in the image are computed once.
    ``advanced`` is told how many points are done.
    """
    axis, rows = coordinates(grid), rows or range(grid.points)
    points = torch.cartesian_prod(axis[rows.start : rows.stop], axis).to(planes.origins)
    middle = (grid.points // 2 - rows.start) * grid.points + grid.points // 2
    found = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for origin, axes, label in zip(planes.origins, planes.axes, labels, strict=True):
            logits = _logits(plane_model, origin, points, axes, advanced)
            if grid.points % 2 and 0 <= middle < len(points):
                logits[middle] = model(laid_out(origin[None]))[0]
            right = label.expand(len(points))
            found.append((cross_entropy(logits, right), margin(logits, right), logits.argmax(dim=1)))
    losses, margins, predicted = (torch.stack(part).cpu() for part in zip(*found, strict=True))
    shape = (len(labels), len(rows), grid.points)
    return PlaneValues(losses.reshape(shape), margins.reshape(shape), predicted.reshape(shape))


def losses_on_disc(model: nn.Module, planes: Planes, labels: Tensor) -> Tensor:
    """Losses ``(N, M)`` at the centre of each plane and on :data:`DISC`, whatever the grid is that it is drawn on."""
    points = torch.cat([torch.zeros(1, 2), DISC]).to(planes.origins)
    found = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for origin, axes, label in zip(planes.origins, planes.axes, labels, strict=True):
            logits = _logits(plane_model, origin, points, axes)
            found.append(cross_entropy(logits, label.expand(len(points))))
    return torch.stack(found).cpu()


def margins_along(model: nn.Module, images: Tensor, labels: Tensor, rays: Tensor, distances: Tensor) -> Tensor:
    """Margins ``(N, R, Q)`` at ``x + distance * ray``; ``rays`` ``(N, R, D)``, ``distances`` ``(Q,)``."""
    points = torch.zeros(rays.shape[1], len(distances), rays.shape[1]).to(images)
    for number, ray in enumerate(points):
        ray[:, number] = distances
    points = points.flatten(0, 1)
    found = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for image, directions, label in zip(images, rays, labels, strict=True):
            logits = _logits(plane_model, image, points, directions)
            found.append(margin(logits, label.expand(len(points))))
    return torch.stack(found).reshape(len(images), rays.shape[1], len(distances)).cpu()


def _logits(
    model: PlaneModel,
    origin: Tensor,
    points: Tensor,
    axes: Tensor,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> Tensor:
    """Logits ``(points, classes)`` at ``origin + points @ axes``."""
    size = POINTS_AT_ONCE.get(origin.device.type, 256)
    base, span = model.span(origin, axes.reshape(-1, *origin.shape))
    parts: list[Tensor] = []
    done = 0
    while done < len(points):
        chosen = points[done : done + size]
        try:
            parts.append(model(base, span, chosen))
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
        else:
            done += len(chosen)
            advanced(len(chosen), "")
            continue
        free_memory()
    logits = torch.cat(parts)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # NumPy has no bfloat16


def correct_radius(margins: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """How far along a ray the prediction stays right, in multiples of epsilon, and whether it does to its end.

    ``margins`` ``(..., Q)`` at the distances ``axis`` ``(Q,)``, ascending from 0; both results ``(...)``. The crossing
    is interpolated linearly between the last right point and the first wrong one; 0 where the image itself is wrong,
    and the ray's length, which the radius exceeds, where no point on it is.
    """
    wrong = ~(margins > 0)
    crossed = wrong.any(dim=-1)
    after = wrong.int().argmax(dim=-1, keepdim=True).clamp(min=1)
    inside, outside = (margins.gather(-1, at).squeeze(-1) for at in (after - 1, after))
    near, far = (axis.to(margins)[at.squeeze(-1)] for at in (after - 1, after))
    crossing = near + (inside / (inside - outside)).nan_to_num() * (far - near)
    radius = torch.where(wrong[..., 0], 0.0, torch.where(crossed, crossing, float(axis[-1])))
    return radius, ~crossed


def roughness(values: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute second difference over both axes of grids ``(..., A, B)``, per squared unit of theirs, ``(...)``.

    0 on every plane that is linear, 2c on ``c a^2 + c b^2``. Axes of fewer than 3 points give none; NaN without any.
    """
    differences = []
    for dim, axis in ((-2, axes[0]), (-1, axes[1])):
        if len(axis) > 2:
            step = float(axis[-1] - axis[0]) / (len(axis) - 1)
            differences.append(values.diff(n=2, dim=dim).abs().flatten(-2) / step**2)
    return torch.cat(differences, dim=-1).mean(dim=-1) if differences else values.flatten(-2).mean(dim=-1) * torch.nan

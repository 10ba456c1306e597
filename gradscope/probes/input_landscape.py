"""The loss around images, on one plane per image, spanned by two adversarial directions or by one and a random one.

The points of a plane are ``x + u * (a * d1 + b * d2)``, with d1 and d2 orthonormal. u is the length at which d1 reaches
the threat model's radius in its own norm: epsilon in L2, ``epsilon / max |d1|`` in L-infinity. So a is in multiples of
the radius, b has the same unit, and two models can be drawn on the same axes.
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

#: Number of points evaluated at once if memory allows; on a CPU their activations stay in the caches.
POINTS_AT_ONCE = {"cpu": 64, "cuda": 2048}

#: Two adversarial directions count as parallel above this cosine.
_PARALLEL = 1 - 1e-6


#: Points ``(M, 2)`` of the unit disc: 16 directions, both axes among them, at 8 distances up to 1.
DISC = torch.cartesian_prod(torch.arange(1, 9) / 8, torch.arange(16) * torch.pi / 8)
DISC = torch.stack([DISC[:, 0] * DISC[:, 1].cos(), DISC[:, 0] * DISC[:, 1].sin()], dim=1)


@dataclass(frozen=True)
class Planes:
    """One plane for each of N images: origins ``(N, C, H, W)`` and two orthonormal directions ``(N, D)`` each.

    ``unit`` ``(N,)`` is the L2 length, in pixel units, of 1 on the axes. ``paths`` ``(W, N, T + 1, 3)`` holds the
    iterates of W attacks as (a, b, distance from the plane), in that unit; NaN after the end of a shorter path.
    ``fallback`` ``(N, 2)`` marks directions that are random instead of adversarial, because the attack did not move or
    its direction was parallel to the first.
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
        """The vectors of length 1 along a and along b, in pixel units, ``(N, 2, D)``."""
        return torch.stack([self.first, self.second], dim=1) * self.unit[:, None, None]

    def __getitem__(self, part: slice) -> "Planes":
        origins, first, second, unit = (values[part] for values in (self.origins, self.first, self.second, self.unit))
        return Planes(origins, first, second, unit, self.paths[:, part], self.fallback[part])


class StepFacts:
    """Records loss and gradient norm at each iterate x_0 .. x_T of an attack on N images; call it for each iterate.

    ``losses`` ``(N, T + 1)``: cross-entropy in nats. ``gradients`` ``(N, T + 1)``: L2 norm, in nats per unit pixel
    range, of the gradient that the attack follows, with its own loss and reduction. It is NaN at the last iterate,
    from which no step is taken. Both are float64.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self._losses: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def __call__(self, iterate: Iterate) -> None:
        """Record an iterate."""
        losses = cross_entropy(iterate.logits, self.labels).double()
        self._losses.append(losses)
        known = iterate.gradient is not None
        self._gradients.append(iterate.norm_and_unit[0].double() if known else torch.full_like(losses, torch.nan))

    @property
    def losses(self) -> Tensor:
        """Cross-entropy at the iterates, ``(N, T + 1)``, in nats."""
        return torch.stack(self._losses, dim=1)

    @property
    def gradients(self) -> Tensor:
        """Norms of the gradients that the attack followed, ``(N, T + 1)``."""
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
    """Run the attack and return its iterates as displacements ``x_t - x``, ``(N, T + 1, D)``.

    ``model`` must come from :func:`gradscope.attacks.pgd.prepared`. ``numbers`` ``(N,)`` name the images' random
    streams. ``facts`` records every iterate. Raises :class:`GradscopeError` if epsilon is 0.
    """
    if settings.epsilon == 0:
        raise GradscopeError("epsilon must be above 0, because a landscape's axes are in multiples of it; got 0")
    images = images.double() if settings.precision == "float64" else images
    displacements: list[Tensor] = []

    def observe(iterate: Iterate) -> None:
        displacements.append(flatten(iterate.images - images).float())
        if facts is not None:
            facts(iterate)

    pgd(model, images, labels, settings, streams=Streams(seed, numbers), observe=observe)
    return torch.stack(displacements, dim=1)


def adversarial_planes(images: Tensor, walk: Tensor, threat: ThreatModel, *, numbers: Tensor, seed: int = 0) -> Planes:
    """Span planes by each image's adversarial direction ``(x_T - x) / |x_T - x|`` and an orthogonal random one.

    ``walk`` ``(N, T + 1, D)`` is the result of :func:`attack_walk`. Raises :class:`GradscopeError` for images with a
    single value.
    """
    first, still = _direction(walk, numbers, seed)
    second = _orthogonal(_random_units(images, numbers, seed, "second direction"), first)
    return _planes(images, first, second, threat, [walk], torch.stack([still, torch.zeros_like(still)], dim=1))


def shared_planes(
    images: Tensor, walks: tuple[Tensor, Tensor], threat: ThreatModel, *, numbers: Tensor, seed: int = 0
) -> Planes:
    """Span planes by two adversarial directions on the same images, from two models or two attacks on one model.

    The first axis is the first walk's direction. The second axis is the part of the second walk's direction orthogonal
    to it, so the second direction ends at its cosine along a. A random direction replaces one that is parallel to the
    first, or whose attack did not move.
    """
    first, still = _direction(walks[0], numbers, seed)
    other, other_still = _direction(walks[1], numbers, seed)
    lost = other_still | ((first * other).sum(dim=1).abs() > _PARALLEL)
    random = _random_units(images, numbers, seed, "second direction")
    second = _orthogonal(torch.where(lost[:, None], random, other), first)
    return _planes(images, first, second, threat, list(walks), torch.stack([still, lost], dim=1))


def _direction(walk: Tensor, numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the unit direction ``(N, D)`` to the last iterate; random, and marked, where the attack did not move."""
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
    """Draw a uniformly random direction ``(D,)`` for each image from its own stream."""
    size = like[0].numel()
    if size < 2:
        raise GradscopeError(f"images must have at least 2 values to span a plane, got {size}")
    drawn = [torch.randn(size, generator=generator(seed, *name, number)) for number in numbers.tolist()]
    return norm_and_unit(torch.stack(drawn))[1].to(like)


def _orthogonal(vectors: Tensor, units: Tensor) -> Tensor:
    """Remove from ``vectors`` their part along ``units`` and normalise; in float64 and twice, against cancellation."""
    remainder, along = vectors.double(), units.double()
    for _ in range(2):
        remainder = remainder - (remainder * along).sum(dim=1, keepdim=True) * along
    return norm_and_unit(remainder)[1].to(vectors)


@dataclass(frozen=True)
class PlaneValues:
    """Values of a model on N planes of A x B points, first axis a, second axis b; each ``(N, A, B)``, on the CPU.

    ``loss`` is cross-entropy in nats, ``margin`` is in logits, ``predicted`` is the class.
    """

    loss: Tensor
    margin: Tensor
    predicted: Tensor


def coordinates(grid: Grid) -> Tensor:
    """Compute the coordinates along an axis, ``(P,)`` float64, exactly symmetric; with odd P the centre is exactly 0.

    They are rounded to 12 decimals, so that they are short in files.

    >>> coordinates(Grid(points=3, span=1.5))
    tensor([-1.5000,  0.0000,  1.5000], dtype=torch.float64)
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
    """Compute loss, margin and predicted class at every point of every plane, or of its ``rows``.

    The centre of an odd grid is the image itself, evaluated alone, so its loss equals the plain loss bit for bit.
    Points are evaluated in batches, halved if memory runs out; layers that are affine in the image are computed once.
    ``advanced`` is called with the number of points done. The model is not changed.
    """
    axis, rows = coordinates(grid), rows or range(grid.points)
    points = torch.cartesian_prod(axis[rows.start : rows.stop], axis).to(planes.origins)
    middle = (grid.points // 2 - rows.start) * grid.points + grid.points // 2
    results = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for origin, axes, label in zip(planes.origins, planes.axes, labels, strict=True):
            logits = _logits(plane_model, origin, points, axes, advanced)
            if grid.points % 2 and 0 <= middle < len(points):
                logits[middle] = model(laid_out(origin[None]))[0]
            right = label.expand(len(points))
            results.append((cross_entropy(logits, right), margin(logits, right), logits.argmax(dim=1)))
    losses, margins, predicted = (torch.stack(part).cpu() for part in zip(*results, strict=True))
    shape = (len(labels), len(rows), grid.points)
    return PlaneValues(losses.reshape(shape), margins.reshape(shape), predicted.reshape(shape))


def losses_on_disc(model: nn.Module, planes: Planes, labels: Tensor) -> Tensor:
    """Compute losses ``(N, M)`` at the centre of each plane and on :data:`DISC`; they do not depend on the grid."""
    points = torch.cat([torch.zeros(1, 2), DISC]).to(planes.origins)
    results = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for origin, axes, label in zip(planes.origins, planes.axes, labels, strict=True):
            logits = _logits(plane_model, origin, points, axes)
            results.append(cross_entropy(logits, label.expand(len(points))))
    return torch.stack(results).cpu()


def margins_along(model: nn.Module, images: Tensor, labels: Tensor, rays: Tensor, distances: Tensor) -> Tensor:
    """Compute margins ``(N, R, Q)`` at ``x + distance * ray``; ``rays`` ``(N, R, D)``, ``distances`` ``(Q,)``."""
    points = torch.zeros(rays.shape[1], len(distances), rays.shape[1]).to(images)
    for number, ray in enumerate(points):
        ray[:, number] = distances
    points = points.flatten(0, 1)
    results = []
    with measuring(model), torch.no_grad():
        plane_model = PlaneModel(model)
        for image, directions, label in zip(images, rays, labels, strict=True):
            logits = _logits(plane_model, image, points, directions)
            results.append(margin(logits, label.expand(len(points))))
    return torch.stack(results).reshape(len(images), rays.shape[1], len(distances)).cpu()


def _logits(
    model: PlaneModel,
    origin: Tensor,
    points: Tensor,
    axes: Tensor,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> Tensor:
    """Compute logits ``(points, classes)`` at ``origin + points @ axes``."""
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
    """Measure how far along a ray the prediction stays right, and whether it stays right to the end of the ray.

    ``margins`` ``(..., Q)`` are at the distances ``axis`` ``(Q,)``, ascending from 0, in multiples of epsilon; both
    results are ``(...)``. The crossing is interpolated linearly between the last right and the first wrong point. The
    radius is 0 where the image itself is wrong, and the ray's length, a lower bound, where no point is wrong.

    >>> correct_radius(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0]))
    (tensor(0.5000), tensor(False))
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
    """Compute the mean absolute second difference over both axes of grids ``(..., A, B)``, ``(...)``.

    The unit is that of the values per squared unit of the axes. It is 0 on a linear function and 2c on
    ``c a^2 + c b^2``. An axis with fewer than 3 points does not count; NaN if none counts.
    """
    differences = []
    for dim, axis in ((-2, axes[0]), (-1, axes[1])):
        if len(axis) > 2:
            step = float(axis[-1] - axis[0]) / (len(axis) - 1)
            differences.append(values.diff(n=2, dim=dim).abs().flatten(-2) / step**2)
    return torch.cat(differences, dim=-1).mean(dim=-1) if differences else values.flatten(-2).mean(dim=-1) * torch.nan

"""The loss around images, on a plane each: the adversarial direction by a random one orthogonal to it.

A plane's points are ``x + epsilon * (a * d1 + b * d2)``, d1 and d2 of unit length, so a and b are in multiples of the
threat model's radius and two models can be drawn on the same axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, pgd, threat_model
from gradscope.config import PGD, Grid
from gradscope.errors import GradscopeError
from gradscope.functional import flatten, margin, norm_and_unit
from gradscope.losses import cross_entropy
from gradscope.models.inspection import evaluating
from gradscope.seeding import generator

#: Points evaluated at once where memory allows: on a CPU their activations stay in its caches.
POINTS_AT_ONCE = {"cpu": 64, "cuda": 2048}


@dataclass(frozen=True)
class Planes:
    """A plane for each of N images: origins ``(N, C, H, W)`` and two orthonormal directions ``(N, D)`` each.

    ``path`` ``(N, T + 1, 2)`` holds the attack's iterates projected onto the plane, in multiples of ``epsilon``.
    ``fallback`` ``(N,)`` is true where the attack did not move and the first direction is a random one instead.
    """

    origins: Tensor
    first: Tensor
    second: Tensor
    epsilon: float
    path: Tensor
    fallback: Tensor


def adversarial_planes(
    model: nn.Module, images: Tensor, labels: Tensor, settings: PGD, *, numbers: Tensor, seed: int = 0
) -> Planes:
    """The planes spanned by each image's PGD direction, ``(x_T - x) / |x_T - x|``, and a random one orthogonal to it.

    ``model`` is one that :func:`gradscope.attacks.pgd.prepared` yields. ``numbers`` ``(N,)`` name the images, whose
    random numbers depend on nothing else. Raises :class:`GradscopeError` where epsilon is 0 or an image has one pixel.
    """
    if settings.epsilon == 0:
        raise GradscopeError("epsilon: a number above 0 is needed, for a landscape's axes are in multiples of it")
    if images[0].numel() < 2:
        raise GradscopeError("images: at least 2 pixels are needed to span a plane, got 1")
    start = images
    if settings.start != "none":
        start = threat_model(settings).random_start(images, settings.start, seed, ("start", 0), numbers)
    displacements: list[Tensor] = []

    def observe(iterate: Iterate) -> None:
        displacements.append(flatten(iterate.images - images))

    pgd(model, images, labels, settings, start=start, observe=observe)
    moved, adversarial = norm_and_unit(displacements[-1])
    fallback = moved == 0
    first = torch.where(fallback[:, None], _random_units(images, numbers, seed, "fallback direction"), adversarial)
    second = _orthogonal(_random_units(images, numbers, seed, "second direction"), first)
    axes = torch.stack([first, second], dim=2)
    path = torch.stack(displacements, dim=1) @ axes / settings.epsilon
    return Planes(images, first, second, settings.epsilon, path, fallback)


def _random_units(images: Tensor, numbers: Tensor, seed: int, name: str) -> Tensor:
    """A uniformly random direction ``(D,)`` for each image, from the image's own stream."""
    size = images[0].numel()
    drawn = [torch.randn(size, generator=generator(seed, name, number)) for number in numbers.tolist()]
    return norm_and_unit(torch.stack(drawn))[1].to(images)


def _orthogonal(vectors: Tensor, units: Tensor) -> Tensor:
    """Unit vectors of ``vectors`` without their part along ``units``; in float64, and twice, against cancellation."""
    remainder, along = vectors.double(), units.double()
    for _ in range(2):
        remainder = remainder - (remainder * along).sum(dim=1, keepdim=True) * along
    return norm_and_unit(remainder)[1].to(vectors)


@dataclass(frozen=True)
class PlaneValues:
    """What a model does on N planes of P x P points, first axis a, second axis b.

    ``loss`` cross-entropy in nats, ``margin`` in logits, ``predicted`` the class; each ``(N, P, P)``, on the CPU.
    """

    loss: Tensor
    margin: Tensor
    predicted: Tensor


def coordinates(grid: Grid) -> Tensor:
    """The coordinates along an axis, ``(P,)`` float64, exactly symmetric: the centre of an odd number is exactly 0."""
    half = torch.linspace(-grid.span, grid.span, grid.points, dtype=torch.float64)
    return (half - half.flip(0)) / 2


def evaluate_planes(
    model: nn.Module,
    planes: Planes,
    labels: Tensor,
    grid: Grid,
    *,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> PlaneValues:
    """Loss, margin and predicted class at every point of every plane; the model is left as found.

    The centre of an odd grid is the image itself, evaluated alone, so it equals the plain loss bit for bit. Points
    are evaluated in batches, halved where memory runs out. ``advanced`` is told how many points are done.
    """
    axis = coordinates(grid)
    points = torch.cartesian_prod(axis, axis).to(planes.origins)
    found = []
    with evaluating(model), torch.no_grad():
        for origin, first, second, label in zip(planes.origins, planes.first, planes.second, labels, strict=True):
            axes = torch.stack([first, second]) * planes.epsilon
            logits = _logits(model, origin, points, axes, advanced)
            if grid.points % 2:
                logits[len(points) // 2] = model(_images(origin[None], origin))[0]
            right = label.expand(len(points))
            found.append((cross_entropy(logits, right), margin(logits, right), logits.argmax(dim=1)))
    losses, margins, predicted = (torch.stack(part).cpu() for part in zip(*found, strict=True))
    shape = (len(labels), grid.points, grid.points)
    return PlaneValues(losses.reshape(shape), margins.reshape(shape), predicted.reshape(shape))


def _logits(
    model: nn.Module, origin: Tensor, points: Tensor, axes: Tensor, advanced: Callable[[int, str], None]
) -> Tensor:
    """Logits ``(points, K)`` at ``origin + points @ axes``."""
    size = POINTS_AT_ONCE.get(origin.device.type, 256)
    parts: list[Tensor] = []
    done = 0
    while done < len(points):
        chosen = points[done : done + size]
        try:
            parts.append(model(_images(torch.addmm(origin.reshape(1, -1), chosen, axes), origin)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            torch.cuda.empty_cache()
            continue
        done += len(chosen)
        advanced(len(chosen), "")
    return torch.cat(parts)


def _images(flat: Tensor, like: Tensor) -> Tensor:
    return flat.reshape(-1, *like.shape).contiguous(memory_format=torch.channels_last)


def correct_radius(margins: Tensor, axis: Tensor) -> Tensor:
    """How far along a ray the prediction stays right, in multiples of epsilon, ``(N,)``.

    ``margins`` ``(N, R)`` at the distances ``axis`` ``(R,)``, ascending from 0. The crossing is interpolated linearly
    between the last right point and the first wrong one; 0 where the image itself is wrong, and the ray's length
    where no point on it is.
    """
    wrong = margins <= 0
    crossed = wrong.any(dim=1)
    after = wrong.int().argmax(dim=1).clamp(min=1)
    rows = torch.arange(len(margins))
    inside, outside = margins[rows, after - 1], margins[rows, after]
    share = inside / (inside - outside)
    crossing = axis[after - 1] + share * (axis[after] - axis[after - 1])
    return torch.where(wrong[:, 0], 0.0, torch.where(crossed, crossing.to(margins), float(axis[-1])))


def roughness(values: Tensor, step: float) -> Tensor:
    """Mean absolute second difference over both axes of grids ``(N, P, P)``, per squared multiple of epsilon, ``(N,)``.

    0 on every plane that is linear, 2c on ``c a^2 + c b^2``. Needs at least 3 points a side, else NaN.
    """
    along_a = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
    along_b = values[:, :, 2:] - 2 * values[:, :, 1:-1] + values[:, :, :-2]
    both = torch.cat([along_a.flatten(1), along_b.flatten(1)], dim=1)
    return both.abs().mean(dim=1) / step**2

"""Numbers that describe the surroundings of each image, to compare models by."""

import torch
from torch import Tensor, nn

from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Grid, StepSize
from gradscope.functional import norm_and_unit
from gradscope.probes.curvature import input_curvature, local_nonlinearity
from gradscope.probes.input_landscape import (
    Planes,
    PlaneValues,
    coordinates,
    correct_radius,
    losses_on_disc,
    margins_along,
    roughness,
)
from gradscope.seeding import generator

#: Number of random directions along which the radius of the correct region is measured.
RANDOM_RAYS = 8
#: Number of points on a ray beyond the image, and the ray's length in multiples of epsilon.
_RAY_POINTS, RAY_REACH = 64, 3.0
#: The power iteration stops at this relative residual, or after this many products.
TOLERANCE, MOST_PRODUCTS = 1e-3, 100
#: Number of steps of the ascent that searches for the largest deviation from linearity.
ASCENT_STEPS = 10


def compare_planes(
    model: nn.Module, planes: Planes, labels: Tensor, values: PlaneValues, grid: Grid
) -> dict[str, Tensor]:
    """Compute ``roughness`` of the loss on each plane's grid and ``sharpness`` within one epsilon, ``(N,)`` each."""
    axis = coordinates(grid)
    losses = losses_on_disc(model, planes, labels)
    return {
        "roughness": roughness(values.loss, (axis, axis)),
        "sharpness": losses.amax(dim=1) - losses[:, 0],
    }


def compare_surroundings(
    model: nn.Module, planes: Planes, labels: Tensor, settings: PGD, *, numbers: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """Measure radii, curvature and nonlinearity around each image, ``(N,)`` each, named as in LANDSCAPE_METRICS.

    The radius along an adversarial direction is NaN (undefined) where the attack did not move. The nonlinearity is
    measured in the ball of the threat model.
    """
    images = planes.origins
    radii, ends = _radii(model, planes, labels, numbers, seed)
    moved = ~planes.fallback[:, 0].cpu()
    eigenvalue = input_curvature(
        model, images, labels, numbers=numbers, seed=seed, tolerance=TOLERANCE, most=MOST_PRODUCTS
    )
    return {
        "radius-adversarial": radii[:, 0].where(moved, torch.nan),
        "beyond-adversarial": ends[:, 0].double().where(moved, torch.nan),
        "radius-random": radii[:, 1:].mean(dim=1),
        "beyond-random": ends[:, 1:].double().mean(dim=1),
        "curvature": eigenvalue.value.cpu(),
        "curvature-residual": eigenvalue.residual.cpu(),
        "nonlinearity": _nonlinearity(model, images, labels, settings, numbers, seed).cpu(),
    }


def _radii(model: nn.Module, planes: Planes, labels: Tensor, numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Measure radii, and whether the ray's end cuts them, ``(N, 1 + RANDOM_RAYS)``: first direction, random ones."""
    size = planes.first.shape[1]
    drawn = [torch.randn(RANDOM_RAYS, size, generator=generator(seed, "rays", number)) for number in numbers.tolist()]
    random = norm_and_unit(torch.cat(drawn))[1].reshape(len(drawn), RANDOM_RAYS, size).to(planes.first)
    rays = torch.cat([planes.first[:, None], random], dim=1) * planes.unit[:, None, None]
    distances = torch.linspace(0, RAY_REACH, _RAY_POINTS + 1)
    margins = margins_along(model, planes.origins, labels, rays, distances)
    return correct_radius(margins, distances)


def _nonlinearity(
    model: nn.Module, images: Tensor, labels: Tensor, settings: PGD, numbers: Tensor, seed: int
) -> Tensor:
    threat = ThreatModel(settings.norm, settings.epsilon, settings.box)
    step_size = StepSize().at(settings.epsilon, ASCENT_STEPS)
    start = threat.random_start(images, "ball", seed, ("nonlinearity",), numbers)
    return local_nonlinearity(
        model,
        images,
        labels,
        threat.project,
        lambda gradient: threat.steepest_step(gradient, step_size),
        start,
        steps=ASCENT_STEPS,
    )

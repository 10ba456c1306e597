"""Every measurement of a model, small: functions of a model, images and a device that return tensors on the CPU."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.pgd import prepared, threat_model
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.transfer import Transfer, make_examples, transfer
from gradscope.auditing.verdict import Audit, examine
from gradscope.config import PGD, Budget, Grid
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Values, Work
from gradscope.losses import margin_loss
from gradscope.models.inspection import measuring
from gradscope.probes.comparison import compare_planes, compare_surroundings
from gradscope.probes.curvature import input_curvature, weight_curvature, weight_curvature_along
from gradscope.probes.input_landscape import Planes, adversarial_planes, attack_walk, evaluate_planes
from gradscope.probes.spectrum import (
    find_eigenpairs,
    input_matrix,
    probe,
    random_signs,
    random_unit,
    weight_matrix,
)
from gradscope.probes.trajectory import measure_trajectory
from gradscope.probes.weight_landscape import Measures, evaluate_plane, filter_normalised_direction
from gradscope.results.metrics import METRICS
from gradscope.seeding import generator

#: Radii at which attacks fool some images, but not all.
EPSILONS = {"l2": 0.7, "linf": 10 / 255}
BUDGET = Budget(steps=8, restarts=2, smoothing=2, targets=2, queries=60, noise_points=10)
GRID = Grid(points=7)
#: How many images planes and curvatures use.
FEW = 6


def settings(norm: str, **changes: object) -> PGD:
    """Eight steps that can cross the ball."""
    epsilon = EPSILONS[norm]
    return PGD.parse({"norm": norm, "epsilon": epsilon, "step_size": 2.5 * epsilon / 8, "steps": 8, **changes})


def trajectory(model: nn.Module, images: ImageSet, device: torch.device, norm: str, **changes: object) -> Values:
    """All metrics along PGD."""
    return measure_trajectory(
        model, images, settings(norm, **changes), frozenset(METRICS), work=Work(device=device)
    ).state()


def attack(model: nn.Module, images: ImageSet, device: torch.device, norm: str, name: str) -> Outcome:
    """One attack on all images, which are examples of themselves in another order of brightness."""
    threat = ThreatModel(norm, EPSILONS[norm])
    batch, _ = images.batch(torch.arange(len(images)), "cpu")
    examples = [threat.project(batch.flip(dims), batch) for dims in ([2], [3])]
    return evaluate(
        model,
        images,
        [name],
        threat,
        BUDGET,
        examples=examples,
        loss=margin_loss,
        cascade=False,
        keep_images=True,
        work=Work(device=device),
    )


def planes_of(model: nn.Module, images: ImageSet, device: torch.device, norm: str) -> tuple[Planes, Tensor]:
    """The adversarial planes of the first images, and their labels."""
    numbers, pgd = torch.arange(FEW), settings(norm)
    batch, labels = images.batch(numbers, device)
    with prepared(model, pgd) as attacked:
        walk = attack_walk(attacked, batch, labels, pgd, numbers=numbers)
    return adversarial_planes(batch, walk, threat_model(pgd), numbers=numbers), labels


def moved(planes: Planes, device: torch.device) -> Planes:
    """The planes on ``device``."""
    return Planes(**{field.name: getattr(planes, field.name).to(device) for field in fields(planes)})


def input_landscape(model: nn.Module, planes: Planes, labels: Tensor, norm: str) -> Values:
    """Values on planes, and the numbers that compare models around images."""
    values = evaluate_planes(model, planes, labels, GRID)
    found = {name: getattr(values, name) for name in ("loss", "margin", "predicted")}
    found |= compare_planes(model, planes, labels, values, GRID)
    return found | compare_surroundings(model, planes, labels, settings(norm), numbers=torch.arange(len(labels)))


def weight_landscape(model: nn.Module, images: ImageSet, device: torch.device) -> Values:
    """Sums of clean and adversarial loss, and of right predictions, on a plane."""
    first, second = (filter_normalised_direction(model, seed=0, name=name) for name in ("first", "second"))
    axis = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    measures = Measures(images, torch.arange(len(images)), device, attack=settings("l2", steps=3))
    found = evaluate_plane(model, first, second, (axis, axis), measures)
    return {name: torch.from_numpy(values) for name, values in found.items()}


def curvature(model: nn.Module, images: ImageSet, device: torch.device) -> Values:
    """Largest eigenvalues in the image and in the weights, and each batch's curvature along the latter's vector."""
    batches = [images.batch(part, device) for part in torch.arange(len(images)).split(len(images) // 2)]
    of_images = input_curvature(model, *batches[0], numbers=torch.arange(len(batches[0][1])), tolerance=1e-4)
    of_weights = weight_curvature(model, batches, tolerance=1e-4)
    along = weight_curvature_along(model, batches, of_weights.vector[0])
    found = {"input": of_images.value, "residual": of_images.residual, "weight": of_weights.value, "along": along}
    return {name: value.cpu() for name, value in found.items()}


def spectrum(model: nn.Module, images: ImageSet, device: torch.device, matrix: str = "hessian") -> Values:
    """Eigenvalues in the weights and in the image, and estimates from one random vector for the weights."""
    batches = [images.batch(part, device) for part in torch.arange(len(images)).split(len(images) // 2)]
    size = sum(parameter.numel() for parameter in model.parameters())
    with measuring(model):
        product = weight_matrix(model, batches, matrix=matrix)
        start = random_unit((1, size), 0, "start").to(device)
        known, _ = find_eigenpairs(product, start, generator(0), count=3, most=30)
        seen = probe(product, random_signs((1, size), 0, "probe").to(device), generator(1), most=5, known=known)
        shown, labels = batches[0]
        bent = input_matrix(model, shown, labels, matrix=matrix)
        start = random_unit((len(shown), shown[0].numel()), 0, "images").to(device)
        of_images, _ = find_eigenpairs(bent, start, generator(2), count=2, most=12)
    return {"weights": known.values, "residuals": known.residuals, "traces": seen.traces, "images": of_images.values}


def transferred(models: dict[str, nn.Module], images: ImageSet, examples: Tensor, device: torch.device) -> Transfer:
    """Predictions of the models for ``examples``."""
    return transfer(models, images, {"one": examples}, threat_model(settings("l2")), work=Work(device=device))


def examples_of(model: nn.Module, images: ImageSet, device: torch.device) -> Tensor:
    """The last iterates of PGD."""
    return make_examples(model, images, settings("l2"), work=Work(device=device))


def audit(model: nn.Module, images: ImageSet, device: torch.device) -> Audit:
    """A quick audit of every other image."""
    images = images.subset(torch.arange(0, len(images), 2))
    return examine(model, images, None, ThreatModel("l2", EPSILONS["l2"]), "quick", work=Work(device=device))


#: Every measurement, for tests that all of them must pass.
MEASUREMENTS: dict[str, Callable[[nn.Module, ImageSet, torch.device], object]] = {
    "trajectory": lambda model, images, device: trajectory(model, images, device, "l2"),
    "trajectory float64": lambda model, images, device: trajectory(model, images, device, "l2", precision="float64"),
    "pgd": lambda model, images, device: attack(model, images, device, "linf", "pgd"),
    "apgd-ce": lambda model, images, device: attack(model, images, device, "linf", "apgd-ce"),
    "fab": lambda model, images, device: attack(model, images, device, "linf", "fab"),
    "square": lambda model, images, device: attack(model, images, device, "linf", "square"),
    "input landscape": lambda model, images, device: input_landscape(
        model, *planes_of(model, images, device, "l2"), "l2"
    ),
    "weight landscape": weight_landscape,
    "curvature": curvature,
    "spectrum": spectrum,
    "transfer": lambda model, images, device: transferred(
        {"one": model}, images, examples_of(model, images, device), device
    ),
    "audit": audit,
}

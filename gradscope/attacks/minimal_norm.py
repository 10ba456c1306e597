"""Fast minimum-norm attack (Pintor et al. 2021): find the smallest perturbation that fools the model.

Each step follows the gradient and is projected into a ball around the image. The ball shrinks while the model is fooled
and grows while it is not. The attack differs from the published one in six points. Further walks aim at single classes.
Step sizes are multiples of the ball's radius, so that they suit distances of any size. In L-infinity, steps follow the
sign of the gradient. No step leaves the box. The last iterate counts too, and a bisection towards the image follows. A
point that fools the model by less than rounding is replaced by one that fools it for certain, because it is judged
again in another batch.
"""

import math
from functools import partial

import torch
from torch import Tensor

from gradscope.attacks.pgd import look
from gradscope.attacks.problem import Problem, wrong_classes
from gradscope.attacks.threat import ThreatModel
from gradscope.functional import flatten, fooled, margin, norm_and_unit, per_sample
from gradscope.losses import Loss, margin_loss

#: Length of the first and of the last step, in multiples of the radius, with a cosine schedule in between.
STEP = (1.0, 0.01)
#: Relative change of the radius at the first and at the last step.
CHANGE = (0.05, 0.001)
#: Bisections between the image and the nearest point; they leave a thousandth of the distance.
BISECTIONS = 10
#: Margin, as a share of the largest logit, whose sign rounding cannot change.
CERTAIN = 1e-6


def fmn(problem: Problem) -> Tensor:
    """Run FMN; return the nearest point found beyond any boundary, or the image if that is farther than epsilon.

    The first walk maximises the negative margin. Each other walk aims at one of the ``targets`` likeliest wrong classes
    of the clean image, which the first walk often misses. The paths do not depend on epsilon, and no random numbers are
    used. A walk costs ``steps`` backward passes and ``steps + 1`` forward passes.
    """
    threat, origin, nearest = problem.threat, problem.images, _Nearest(problem.images)
    for loss in (margin_loss, *_aims(problem)):
        _walk(problem, nearest, loss)
    near = _bisected(problem, nearest.points)
    within = nearest.distance.isfinite() & (threat.distance(near, origin) <= threat.epsilon)
    return torch.where(per_sample(within, near), near, origin)


def _aims(problem: Problem) -> list[Loss]:
    """Make one loss per likely wrong class, ``z_t - z_y``; none for two classes, which have only one margin."""
    ranks = range(min(problem.budget.targets, problem.classes - 1))
    if problem.classes < 3:
        return []
    with torch.no_grad():
        aims = wrong_classes(problem.model(problem.images), problem.labels, ranks)
    return [partial(_aimed, aim=aim) for aim in aims.unbind(dim=1)]


def _aimed(logits: Tensor, labels: Tensor, aim: Tensor) -> Tensor:
    return (logits.gather(1, aim.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)


def _walk(problem: Problem, nearest: "_Nearest", loss: Loss) -> None:
    """Maximise ``loss`` from the images, in balls no larger than the distance of the ``nearest`` point so far."""
    threat, origin, steps = problem.threat, problem.images, problem.budget.steps
    settings, diameter = problem.settings("pgd-margin"), threat.unbounded(origin[0].numel()).epsilon
    points, radius = origin, torch.full((len(problem),), diameter, device=origin.device)
    rows = torch.arange(len(problem), device=origin.device)
    was_fooled = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps + 1):
        here = look(problem.model, points, problem.labels, settings, step, loss=loss, gradient=step < steps)
        distance = threat.distance(points, origin)
        wrong, certain = judged(here.logits, problem.labels)
        was_fooled |= wrong
        nearest.compare(points, distance, wrong, certain)
        if here.gradient is None:
            break
        problem.note(here.gradient, rows, nearest.distance.isinf())
        gradient, progress = _inwards(here.gradient, points, threat), (1 + math.cos(math.pi * step / steps)) / 2
        change, length = (last + (first - last) * progress for first, last in (CHANGE, STEP))
        linear = linear_distance(-here.loss, gradient, linf=threat.norm == "linf")
        radius = torch.where(was_fooled, radius, distance + linear)
        radius = torch.where(wrong, radius * (1 - change), radius * (1 + change)).nan_to_num(diameter)
        radius = torch.minimum(radius, nearest.distance).clamp(0, diameter)
        moved = points + threat.steepest_step(gradient, length).mul_(per_sample(radius, points))
        points = threat.project(moved, origin, radius)


def _inwards(gradient: Tensor, points: Tensor, threat: ThreatModel) -> Tensor:
    """Set to 0 the gradient's NaN entries and those that point out of the box, which cannot bring a boundary nearer."""
    gradient = gradient.nan_to_num(0.0)
    if not threat.box:
        return gradient
    return gradient.masked_fill(((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0)), 0.0)


def linear_distance(margins: Tensor, gradient: Tensor, *, linf: bool) -> Tensor:
    """Compute the distance to the boundary of a linear margin, ``margin / |g|_dual``, ``(N,)``, in pixel units.

    ``gradient`` ``(N, ...)`` is the margin's gradient in the image; the dual norm is L1 for L-infinity and L2 for L2.
    Scaling the logits does not change it. Infinite where the gradient is 0.

    >>> linear_distance(torch.tensor([1.0]), torch.tensor([[3.0, 4.0]]), linf=False)
    tensor([0.2000])
    """
    rows = flatten(gradient)
    largest = rows.abs().amax(dim=1)
    scaled = rows / torch.where(largest > 0, largest, 1.0).unsqueeze(1)
    dual = scaled.abs().sum(dim=1) if linf else norm_and_unit(scaled)[0]
    return margins / largest / dual


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mark the images ``(N,)`` that the model gets wrong, and those it gets wrong by more than rounding."""
    wrong = fooled(logits, labels)
    certain = margin(logits, labels) < -CERTAIN * logits.abs().amax(dim=1)
    return wrong, wrong & (certain | ~logits.isfinite().all(dim=1))


class _Nearest:
    """The nearest points so far that fool the model, ``(N, C, H, W)``, and their distances, infinite at first."""

    def __init__(self, origin: Tensor) -> None:
        self.points = origin
        self.distance = torch.full((len(origin),), math.inf, device=origin.device)
        self.certain = torch.zeros(len(origin), dtype=torch.bool, device=origin.device)

    def compare(self, points: Tensor, distance: Tensor, wrong: Tensor, certain: Tensor) -> None:
        """Replace the nearest points by ``points`` that are nearer, or that are the first ``certain`` ones."""
        nearer = wrong & (distance < self.distance)
        better = torch.where(certain, nearer | ~self.certain, nearer & ~self.certain)
        self.points = torch.where(per_sample(better, points), points, self.points)
        self.distance = torch.where(better, distance, self.distance)
        self.certain |= certain


def _bisected(problem: Problem, points: Tensor) -> Tensor:
    """Bisect between images and ``points``; return the nearest points that fool the model for certain."""
    low = torch.zeros(len(problem), device=points.device)
    high = torch.ones_like(low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        with torch.no_grad():
            _, certain = judged(problem.model(_between(problem.images, points, middle)), problem.labels)
        low, high = torch.where(certain, low, middle), torch.where(certain, middle, high)
    return torch.where(per_sample(high < 1, points), _between(problem.images, points, high), points)


def _between(origin: Tensor, points: Tensor, share: Tensor) -> Tensor:
    return origin + per_sample(share, points) * (points - origin)

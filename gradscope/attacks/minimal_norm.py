"""Fast minimum-norm attack (Pintor et al. 2021): the shortest way over a boundary, at no given radius.

Each step goes along the gradient and is projected into a ball of the image's own, which shrinks while the model is
fooled and grows while it is not. It differs from the published attack in six points. Further walks aim at
single classes. Steps are in multiples of the ball's radius, so that they fit distances of any size. In L-infinity they
go along the gradient's sign. No step leads out of the box. The last iterate counts, and a bisection towards the image
follows. A point that fools the model by less than rounding gives way to one that fools it for certain, for another
batch judges it again.
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

#: Length of the first and the last step, in multiples of the radius; a cosine leads from one to the other.
STEP = (1.0, 0.01)
#: By what share the radius shrinks or grows, at the first step and at the last.
CHANGE = (0.05, 0.001)
#: Halvings of the way between the image and the nearest point: they leave a thousandth of it.
BISECTIONS = 10
#: Margin, as a share of the largest logit, that rounding does not turn around.
CERTAIN = 1e-6


def fmn(problem: Problem) -> Tensor:
    """The nearest point found over any boundary; the image itself where that is farther than epsilon.

    The first walk climbs the margin, the others towards each of the ``targets`` likeliest wrong classes for the clean
    image, which a walk along the margin often passes by. The paths do not depend on epsilon, and nothing is drawn. A
    walk costs ``steps`` backward passes and one forward pass more.
    """
    threat, origin, nearest = problem.threat, problem.images, _Nearest(problem.images)
    for loss in (margin_loss, *_aims(problem)):
        _walk(problem, nearest, loss)
    near = _bisected(problem, nearest.points)
    within = nearest.distance.isfinite() & (threat.distance(near, origin) <= threat.epsilon)
    return torch.where(per_sample(within, near), near, origin)


def _aims(problem: Problem) -> list[Loss]:
    """The margins towards each of the likeliest wrong classes; none of two classes, where there is but one margin."""
    ranks = range(min(problem.budget.targets, problem.classes - 1))
    if problem.classes < 3:
        return []
    with torch.no_grad():
        aims = wrong_classes(problem.model(problem.images), problem.labels, ranks)
    return [partial(_aimed, aim=aim) for aim in aims.unbind(dim=1)]


def _aimed(logits: Tensor, labels: Tensor, aim: Tensor) -> Tensor:
    return (logits.gather(1, aim.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)


def _walk(problem: Problem, nearest: "_Nearest", loss: Loss) -> None:
    """Climb ``loss`` from the images, in balls no larger than the distance of what is ``nearest`` until then."""
    threat, origin, steps = problem.threat, problem.images, problem.budget.steps
    settings, diameter = problem.settings("pgd-margin"), threat.unbounded(origin[0].numel()).epsilon
    points, radius = origin, torch.full((len(problem),), diameter, device=origin.device)
    rows = torch.arange(len(problem), device=origin.device)
    fallen = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps + 1):
        here = look(problem.model, points, problem.labels, settings, step, loss=loss, gradient=step < steps)
        distance = threat.distance(points, origin)
        wrong, certain = judged(here.logits, problem.labels)
        fallen |= wrong
        nearest.compare(points, distance, wrong, certain)
        if here.gradient is None:
            break
        problem.note(here.gradient, rows, nearest.distance.isinf())
        gradient, progress = _inwards(here.gradient, points, threat), (1 + math.cos(math.pi * step / steps)) / 2
        change, length = (last + (first - last) * progress for first, last in (CHANGE, STEP))
        linear = linear_distance(-here.loss, gradient, linf=threat.norm == "linf")
        radius = torch.where(fallen, radius, distance + linear)
        radius = torch.where(wrong, radius * (1 - change), radius * (1 + change)).nan_to_num(diameter)
        radius = torch.minimum(radius, nearest.distance).clamp(0, diameter)
        moved = points + threat.steepest_step(gradient, length).mul_(per_sample(radius, points))
        points = threat.project(moved, origin, radius)


def _inwards(gradient: Tensor, points: Tensor, threat: ThreatModel) -> Tensor:
    """The gradient without what is no number, or leads out of the box from its edge, and so no nearer to a boundary."""
    gradient = gradient.nan_to_num(0.0)
    if not threat.box:
        return gradient
    return gradient.masked_fill(((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0)), 0.0)


def linear_distance(margins: Tensor, gradient: Tensor, *, linf: bool) -> Tensor:
    """``margin / |g|_dual``: how far the boundary is if the margin is linear, ``(N,)``, in pixel units.

    ``gradient`` ``(N, ...)`` is the margin's in the image; its dual norm is L1 for L-infinity and L2 for L2. No scale
    of the logits matters. Infinite where the gradient is 0.

    >>> linear_distance(torch.tensor([1.0]), torch.tensor([[3.0, 4.0]]), linf=False)
    tensor([0.2000])
    """
    rows = flatten(gradient)
    largest = rows.abs().amax(dim=1)
    scaled = rows / torch.where(largest > 0, largest, 1.0).unsqueeze(1)
    dual = scaled.abs().sum(dim=1) if linf else norm_and_unit(scaled)[0]
    return margins / largest / dual


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which images ``(N,)`` the model gets wrong, and by a margin that rounding does not turn around."""
    wrong = fooled(logits, labels)
    certain = margin(logits, labels) < -CERTAIN * logits.abs().amax(dim=1)
    return wrong, wrong & (certain | ~logits.isfinite().all(dim=1))


class _Nearest:
    """The nearest points that fool the model, ``(N, C, H, W)``, and how far they are; infinitely before the first."""

    def __init__(self, origin: Tensor) -> None:
        self.points = origin
        self.distance = torch.full((len(origin),), math.inf, device=origin.device)
        self.certain = torch.zeros(len(origin), dtype=torch.bool, device=origin.device)

    def compare(self, points: Tensor, distance: Tensor, wrong: Tensor, certain: Tensor) -> None:
        """Take in ``points`` where they are nearer, or the first that are ``certain``."""
        nearer = wrong & (distance < self.distance)
        better = torch.where(certain, nearer | ~self.certain, nearer & ~self.certain)
        self.points = torch.where(per_sample(better, points), points, self.points)
        self.distance = torch.where(better, distance, self.distance)
        self.certain |= certain


def _bisected(problem: Problem, points: Tensor) -> Tensor:
    """The nearest to the images of the points tried on the ways to ``points`` that fool the model for certain."""
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

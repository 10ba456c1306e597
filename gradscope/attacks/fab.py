"""Targeted FAB (Croce and Hein 2020): find the nearest point beyond the boundary to a wrong class.

The version of torchattacks sorts the pixels for each projection, which is slower; the tests check that both agree. A
step takes two forward passes. Most points fool the model but lie beyond epsilon, so they are moved back and need a
second pass. If the other points skipped it, an image's cost would depend on its batch, or there would be more backward
passes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.attacks.problem import Problem, chosen_copy, wrong_classes
from gradscope.functional import flatten, per_sample
from gradscope.models.inspection import laid_out

#: AutoAttack's parameters: the largest weight of the step from the image; the factor by which a step overshoots the
#: linear boundary; and the factor on the distance to the image after a point that fools the model.
ORIGIN_SHARE, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9

#: Most rounds of Newton's method in a projection; it usually needs few.
_MOST_ROUNDS = 50


def fab_targeted(problem: Problem, ranks: Sequence[int]) -> Tensor:
    """Run targeted FAB; return the nearest point beyond the boundaries to the wrong classes of ``ranks``.

    ``ranks`` are the ranks of the classes by the clean image's logits, 0 the likeliest wrong class. If the nearest
    point is farther than epsilon, the image itself is returned. Each class has one start, the image; no random numbers
    are used.
    """
    images, problem = problem, problem.repeated(len(ranks))
    rows = torch.arange(len(problem), device=problem.images.device) // len(ranks)
    threat, labels, origin = problem.threat, problem.labels, problem.images
    nearest, shortest = origin, torch.full((len(problem),), math.inf, device=origin.device)
    points = origin
    targets = labels
    for step in range(problem.budget.steps):
        leaf = laid_out(points).requires_grad_()
        with torch.enable_grad():
            logits = problem.model(leaf)
            if step == 0:
                targets = wrong_classes(logits.detach()[:: len(ranks)], labels[:: len(ranks)], ranks).flatten()
            rise = (logits.gather(1, targets.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)
            (slope,) = torch.autograd.grad(rise.sum(), leaf)
        images.note(slope, rows)
        points = _step(problem, points, rise.detach(), slope)
        wrong = problem.fooled_at(points)
        distance = threat.distance(points, origin)
        nearer = wrong & (distance < shortest)
        nearest = torch.where(per_sample(nearer, points), points, nearest)
        shortest = torch.where(nearer, distance, shortest)
        points = torch.where(per_sample(wrong, points), origin + BACKWARD * (points - origin), points)
    near = torch.where(per_sample(shortest <= threat.epsilon, nearest), nearest, origin)
    return chosen_copy(near, -shortest.reshape(-1, len(ranks)))


def _step(problem: Problem, points: Tensor, rise: Tensor, slope: Tensor) -> Tensor:
    """Step to the plane where the linearised ``rise`` is zero, mostly from the points and partly from the images.

    ``x <- (1 - a) (x + eta d(x)) + a (x_0 + eta d(x_0))``. d is the shortest step onto the plane, and ``a`` the length
    of d(x) divided by the sum of both lengths, at most :data:`ORIGIN_SHARE`.
    """
    linf = problem.threat.norm == "linf"
    x, x0, normal = (flatten(batch) for batch in (points, problem.images, slope.nan_to_num(0.0)))
    largest = normal.abs().amax(dim=1).clamp(min=1e-30)
    normal = normal / largest.unsqueeze(1)
    height = rise / largest
    both = torch.stack([x, x0])
    steps = onto_plane(both, normal, torch.stack([height, height + ((x0 - x) * normal).sum(dim=1)]), linf=linf)
    lengths = steps.abs().amax(dim=2) if linf else torch.linalg.vector_norm(steps, dim=2)
    lengths = lengths.clamp(min=1e-8)
    share = (lengths[0] / (lengths[0] + lengths[1])).clamp(max=ORIGIN_SHARE).unsqueeze(1)
    ends = both + OVERSHOOT * steps
    return ends[0].lerp(ends[1], share).clamp_(0, 1).reshape(points.shape)


def onto_plane(points: Tensor, normal: Tensor, height: Tensor, *, linf: bool) -> Tensor:
    """Compute the shortest steps within [0, 1] from ``points`` to where ``<normal, x>`` is smaller by ``height``.

    ``points`` ``(..., N, D)``, ``normal`` ``(N, D)``, ``height`` ``(..., N)``. If the box does not reach the plane, the
    step leads to the corner nearest to it. Each coordinate moves in proportion to one multiplier, or until it meets the
    box. The progress is a concave function of the multiplier, so Newton's method rises to the solution and stops there
    after a few rounds.
    """
    steep, wanted = normal.abs(), height.abs()
    room = torch.where((normal > 0) == (height > 0).unsqueeze(-1), points, 1 - points)
    gain, at_the_box = steep if linf else steep.square(), steep * room
    multiplier = wanted / gain.sum(dim=-1).clamp(min=1e-30)
    for _ in range(_MOST_ROUNDS):
        reach = multiplier.unsqueeze(-1) if linf else multiplier.unsqueeze(-1) * steep
        stopped = reach >= room
        rest = wanted - torch.where(stopped, at_the_box, 0.0).sum(dim=-1)
        longer = torch.maximum(multiplier, rest / torch.where(stopped, 0.0, gain).sum(dim=-1).clamp(min=1e-30))
        if torch.equal(longer, multiplier):
            break
        multiplier = longer
    direction = -normal.sign() * height.sign().unsqueeze(-1)
    return direction * torch.minimum(reach, room)

"""Targeted FAB (Croce and Hein 2020): the nearest point over the boundary to a wrong class.

torchattacks has it too, but sorts the pixels for each projection. The tests find the two equal. A step takes two
forward passes: most points fool the model, beyond epsilon, and are moved back, so they need a second pass
there. If the others did without, an image's cost would depend on its batch, or there would be more backward passes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.attacks.problem import Problem, chosen_copy, wrong_classes
from gradscope.functional import flatten, per_sample
from gradscope.models.inspection import laid_out

#: AutoAttack's parameters: the largest share of the step from the image, how far a step goes beyond the linear
#: boundary, and what is left of the distance to the image after a point that fools the model.
ORIGIN_SHARE, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9

#: Rounds of Newton's method in a projection, of which it needs few.
_MOST_ROUNDS = 50


def fab_targeted(problem: Problem, ranks: Sequence[int]) -> Tensor:
    """The nearest point found over the boundaries to the wrong classes of ``ranks`` for the clean image.

    Where it is farther than epsilon, the image itself. One start for each class, the image; nothing is drawn.
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
    """Towards where ``rise`` is zero if it is linear: from the points, and a little from the images.

    ``x <- (1 - a) (x + eta d(x)) + a (x_0 + eta d(x_0))``, d the shortest step onto the plane, ``a`` the share of d(x)
    in the lengths of the two.
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
    """The shortest steps within [0, 1] from ``points`` to where ``<normal, x>`` is less by ``height``.

    ``points`` ``(..., N, D)``, ``normal`` ``(N, D)``, ``height`` ``(..., N)``. Where the box does not reach the plane,
    the step to the corner nearest to it. Each coordinate goes as far as one multiplier says, or to the box. The way
    made is a concave function of the multiplier: Newton's method rises to the solution and ends there in a few rounds.
    """
    steep, wanted = normal.abs(), height.abs()
    room = torch.where((normal > 0) == (height > 0).unsqueeze(-1), points, 1 - points)
    gain, way = steep if linf else steep.square(), steep * room
    multiplier = wanted / gain.sum(dim=-1).clamp(min=1e-30)
    for _ in range(_MOST_ROUNDS):
        reach = multiplier.unsqueeze(-1) if linf else multiplier.unsqueeze(-1) * steep
        stopped = reach >= room
        rest = wanted - torch.where(stopped, way, 0.0).sum(dim=-1)
        longer = torch.maximum(multiplier, rest / torch.where(stopped, 0.0, gain).sum(dim=-1).clamp(min=1e-30))
        if torch.equal(longer, multiplier):
            break
        multiplier = longer
    direction = -normal.sign() * height.sign().unsqueeze(-1)
    return direction * torch.minimum(reach, room)

"""How far the boundary is from each image: to first order, and as a minimal-norm attack finds it."""

import torch
from torch import Tensor, nn

from gradscope.attacks.minimal_norm import fmn, linear_distance
from gradscope.attacks.problem import Problem, wrong_classes
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Budget
from gradscope.functional import fooled
from gradscope.models.inspection import laid_out

#: Wrong classes whose boundaries are looked at, the likeliest first: all of ten.
CLASSES = 9


def distances(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, metrics: frozenset[str], seed: int
) -> dict[str, Tensor]:
    """The metrics of distance that are in ``metrics``, ``(B,)`` each.

    In the norm of ``settings``, within the box; the attack takes as many steps as ``settings`` does.
    """
    found = {}
    if "linear-distance" in metrics:
        found["linear-distance"] = to_linear_boundary(model, images, labels, linf=settings.norm == "linf")
    if "distance" in metrics:
        threat = ThreatModel(settings.norm, 0.0).unbounded(images[0].numel())
        found["distance"] = to_nearest_point(model, images, labels, numbers, threat, settings.steps, seed)
    return found


def to_linear_boundary(model: nn.Module, images: Tensor, labels: Tensor, *, linf: bool) -> Tensor:
    """``min over j of (z_y - z_j) / |grad (z_y - z_j)|_dual`` over the likeliest wrong classes, ``(B,)``, pixel units.

    Exact where the logits are linear and the box is far; without the minimum over classes (Moosavi-Dezfooli et al.
    2016) it would be too large where the runner-up's boundary is not the nearest. 0 where the image is wrong, NaN where
    no gradient leads anywhere.
    """
    point = laid_out(images.detach()).requires_grad_()
    with torch.enable_grad():
        logits = model(point)
        others = wrong_classes(logits.detach(), labels, range(min(CLASSES, logits.shape[1] - 1)))
        gaps = logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, others)
        ways = []
        for column in gaps.unbind(dim=1):
            (slope,) = torch.autograd.grad(column.sum(), point, retain_graph=True)
            ways.append(linear_distance(column.detach(), slope.nan_to_num(0.0), linf=linf))
    nearest = torch.stack(ways).nan_to_num(torch.inf, posinf=torch.inf).amin(dim=0)
    nearest = nearest.masked_fill(fooled(logits.detach(), labels), 0.0)
    return nearest.masked_fill(nearest.isinf(), torch.nan)


def to_nearest_point(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    threat: ThreatModel,
    steps: int,
    seed: int,
) -> Tensor:
    """The distance of the nearest point that fools the model, ``(B,)``: see :func:`fmn`, in ``steps`` steps.

    0 where the image is wrong; epsilon of ``threat``, the largest that the box allows, where no point was found.
    """
    with torch.no_grad():
        logits = model(images)
    right = (~fooled(logits, labels)).nonzero().squeeze(1)
    found = images.new_zeros(len(images))
    if len(right):
        whole = Problem(model, images, labels, numbers, logits.shape[1], threat, Budget(steps=steps), seed=seed)
        problem = whole.only(right)
        points = fmn(problem)
        away = threat.distance(points, problem.images)
        found[right] = torch.where(problem.fooled_at(points), away, threat.epsilon)
    return found

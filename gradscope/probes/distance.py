"""Distance from each image to the decision boundary: to first order, and by a minimal-norm attack."""

import torch
from torch import Tensor, nn

from gradscope.attacks.minimal_norm import fmn, linear_distance
from gradscope.attacks.problem import Problem, wrong_classes
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Budget
from gradscope.functional import fooled
from gradscope.models.inspection import laid_out

#: Number of wrong classes whose boundaries are considered, likeliest first: all, if there are ten classes.
CLASSES = 9


def distances(
    model: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, metrics: frozenset[str], seed: int
) -> dict[str, Tensor]:
    """Measure the distance metrics that are in ``metrics``, ``(B,)`` each, in pixel units.

    The norm is that of ``settings``; points stay in the box. The attack takes the number of steps of ``settings``.
    """
    values = {}
    if "linear-distance" in metrics:
        values["linear-distance"] = to_linear_boundary(model, images, labels, linf=settings.norm == "linf")
    if "distance" in metrics:
        threat = ThreatModel(settings.norm, 0.0).unbounded(images[0].numel())
        values["distance"] = to_nearest_point(model, images, labels, numbers, threat, settings.steps, seed)
    return values


def to_linear_boundary(model: nn.Module, images: Tensor, labels: Tensor, *, linf: bool) -> Tensor:
    """Compute ``min over j of (z_y - z_j) / |grad (z_y - z_j)|_dual``, ``(B,)``, over the likeliest wrong classes j.

    In pixel units; exact where the logits are linear and the box is far. Without the minimum over classes
    (Moosavi-Dezfooli et al. 2016) it would be too large where the boundary to the runner-up is not the nearest. 0 where
    the image is misclassified, NaN where all gradients are zero.
    """
    point = laid_out(images.detach()).requires_grad_()
    with torch.enable_grad():
        logits = model(point)
        others = wrong_classes(logits.detach(), labels, range(min(CLASSES, logits.shape[1] - 1)))
        gaps = logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, others)
        lengths = []
        for column in gaps.unbind(dim=1):
            (slope,) = torch.autograd.grad(column.sum(), point, retain_graph=True)
            lengths.append(linear_distance(column.detach(), slope.nan_to_num(0.0), linf=linf))
    nearest = torch.stack(lengths).nan_to_num(torch.inf, posinf=torch.inf).amin(dim=0)
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
    """Measure the distance of the nearest point that fools the model, ``(B,)``, with :func:`fmn` in ``steps`` steps.

    0 where the image is misclassified. Where no point fools the model: the epsilon of ``threat``, the largest distance
    in the box.
    """
    with torch.no_grad():
        logits = model(images)
    right = (~fooled(logits, labels)).nonzero().squeeze(1)
    values = images.new_zeros(len(images))
    if len(right):
        whole = Problem(model, images, labels, numbers, logits.shape[1], threat, Budget(steps=steps), seed=seed)
        problem = whole.only(right)
        points = fmn(problem)
        away = threat.distance(points, problem.images)
        values[right] = torch.where(problem.fooled_at(points), away, threat.epsilon)
    return values

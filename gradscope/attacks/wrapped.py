"""What torchattacks 3.5.1 does right, made safe to call.

Used: FAB, untargeted. It is the published algorithm with AutoAttack's parameters, its projections are
exact (the tests compare its result with the closed form on linear models), and with one start it draws nothing, so
that an image's result depends on nobody else in the batch. It is called on a model whose logits are divided by their
own range: that moves no boundary, and without it the L2 form stands still where gradients are below 1e-8.

Not used, and written anew: APGD and APGDT (:mod:`gradscope.attacks.apgd`), targeted FAB (:mod:`gradscope.attacks.fab`),
Square (:mod:`gradscope.attacks.black_box`), and AutoAttack, which runs its parts with 10 steps instead of 100, shrinks
Square's squares on another schedule, aims at every wrong class instead of nine, and takes its seed from the clock.
"""

import torch
from torch import Tensor, nn

from gradscope.attacks.problem import Problem
from gradscope.functional import per_sample


class _Scaled(nn.Module):
    """Logits divided by their own range, a constant of each image: the same boundaries at a scale that FAB can see."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self.training = False  # torchattacks puts a model into training mode afterwards if it seems to be in it
        # torchattacks takes the device from the first parameter, and prints where there is none.
        self.anchor = nn.Parameter(torch.empty(0, device=problem.images.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        values = logits.detach()
        span = values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)
        return logits / span.clamp(min=1e-12)


def fab(problem: Problem) -> Tensor:
    """Fast adaptive boundary attack (Croce and Hein 2020): the nearest point over the boundary it finds, one start.

    It takes a backward pass for each class in every step. Where the nearest point is farther than epsilon the image
    itself is returned.
    """
    from torchattacks.attacks.fab import FAB

    from gradscope import vision  # noqa: F401, before torchattacks, which imports torchvision

    attack = FAB(
        _Scaled(problem),
        norm={"linf": "Linf", "l2": "L2"}[problem.threat.norm],
        eps=problem.threat.epsilon,
        steps=problem.budget.steps,
        n_restarts=1,
        seed=0,
    )
    points: Tensor = attack(problem.images, problem.labels)
    near = problem.threat.distance(points, problem.images) <= problem.threat.epsilon
    return torch.where(per_sample(near, points) & points.isfinite(), points.detach(), problem.images)

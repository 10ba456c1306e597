"""The parts of torchattacks 3.5.1 that are correct, made safe to call.

gradscope uses its untargeted FAB. That is the published algorithm with AutoAttack's parameters, and its projections are
exact (the tests compare its result with the closed form on linear models). With one start it draws no random numbers,
so an image's result does not depend on the rest of the batch. gradscope divides the model's logits by their own range
first. This moves no boundary; without it the L2 form does not move where gradients are below 1e-8.

gradscope does not use these, and has its own: APGD and APGDT (:mod:`gradscope.attacks.apgd`), targeted FAB
(:mod:`gradscope.attacks.fab`), Square (:mod:`gradscope.attacks.black_box`), and AutoAttack, which runs its parts with
10 steps instead of 100, shrinks Square's squares on another schedule, aims at every wrong class instead of nine, and
takes its seed from the clock.
"""

import torch
from torch import Tensor, nn

from gradscope.attacks.problem import Problem
from gradscope.functional import per_sample


class _Scaled(nn.Module):
    """Divides each image's logits by their own range, held constant: same boundaries, at a scale that FAB handles."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model = problem.model
        self.training = False  # torchattacks restores training mode afterwards if this says so
        # torchattacks takes the device from the first parameter, and prints a message if there is none.
        self.anchor = nn.Parameter(torch.empty(0, device=problem.images.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        values = logits.detach()
        span = values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)
        return logits / span.clamp(min=1e-12)


def fab(problem: Problem) -> Tensor:
    """Run the fast adaptive boundary attack (Croce and Hein 2020) once; return the nearest point beyond a boundary.

    Each step takes one backward pass per class. If the nearest point is farther than epsilon, the image itself is
    returned.
    """
    from torchattacks.attacks.fab import FAB

    from gradscope import vision  # noqa: F401, must come before torchattacks, which imports torchvision

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

"""Two attacks by hand: PGD as a user runs it, and PGD along a known way round a defence. None of gradscope's."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Draws over which the accuracy of a random model is averaged.
DRAWS = 16


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, draws: int = DRAWS) -> float:
    """The share of right answers, averaged over ``draws`` passes."""
    with torch.no_grad():
        right = [(model(images).argmax(dim=1) == labels).double().mean() for _ in range(draws)]
    return float(torch.stack(right).mean())


def plain_pgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int = 20) -> Tensor:
    """L-infinity PGD of Madry et al. 2018: cross-entropy, float32, a random start, the last iterate."""
    points = (images + torch.empty_like(images).uniform_(-epsilon, epsilon)).clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_()
        loss = F.cross_entropy(model(points), labels)
        (gradient,) = torch.autograd.grad(loss, points)
        points = points.detach() + 2.5 * epsilon / steps * gradient.sign()
        points = (images + (points - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return points


def adaptive_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = 40,
    draws: int = 1,
    noise: float = 0.0,
) -> Tensor:
    """PGD on the margin in float64 along the mean of ``draws`` gradients, each at a copy with Gaussian noise.

    The step falls linearly from a quarter of ``epsilon``.
    """
    model, images = copy.deepcopy(model).double(), images.double()
    points = images.clone()
    for step in range(steps):
        gradient = torch.zeros_like(points)
        for _ in range(draws):
            copies = (points + noise * torch.randn_like(points)).requires_grad_()
            logits = model(copies)
            own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1)
            gradient += torch.autograd.grad((others - own).sum(), copies)[0]
        points = points + epsilon / 4 * (1 - step / steps) * gradient.sign()
        points = (images + (points - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    # Into the ball again, which a rounding to float32 may leave.
    points = points.float()
    return torch.minimum(torch.maximum(points, images.float() - epsilon), images.float() + epsilon).clamp(0, 1)

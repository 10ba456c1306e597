from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gradscope.attacks.problem import Problem
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.data.image_set import ImageSet


@dataclass(frozen=True)
class LinearProblem:
    """A linear model, images that it gets right, and each image's distance to the nearest boundary, in closed form."""

    model: nn.Module
    image_set: ImageSet
    distance: Tensor

    @property
    def epsilon(self) -> float:
        """A radius with a good share of the images on either side of it, and none close to it."""
        ordered = self.distance.sort().values
        middle = slice(len(ordered) // 3, 2 * len(ordered) // 3 + 1)
        below = int((ordered[middle][1:] / ordered[middle][:-1]).argmax()) + middle.start
        assert ordered[below + 1] / ordered[below] > 1.05
        return float((ordered[below] * ordered[below + 1]).sqrt())


def make_linear(linear, norm: str, classes: int, count: int = 24, side: int = 6) -> LinearProblem:
    """Classes 0 and 1 meet in the middle of the images; the others are far, so that every loss points at the boundary.

    The distance in a norm is the gap of the logits over the dual norm of the difference of the weights.
    """
    stream = torch.Generator().manual_seed(classes)
    weight = 0.1 * torch.randn(classes, 3 * side * side, generator=stream)
    weight[2:] *= 0.1
    images = torch.randint(100, 156, (count, 3, side, side), dtype=torch.uint8, generator=stream)
    bias = -weight @ torch.full((3 * side * side,), 0.5)
    bias[2:] -= 12
    model = linear(weight, bias)
    logits = model(images.float() / 255).detach()
    labels = logits.argmax(dim=1)
    between = weight[labels].unsqueeze(1) - weight
    dual = between.abs().sum(dim=2) if norm == "linf" else between.norm(dim=2)
    distance = (logits.gather(1, labels.unsqueeze(1)) - logits) / dual
    distance[torch.arange(count), labels] = torch.inf
    image_set = ImageSet.from_tensors("linear", images, labels, [str(name) for name in range(classes)])
    return LinearProblem(model, image_set, distance.amin(dim=1))


@pytest.fixture
def boundary(linear) -> Callable[..., LinearProblem]:
    """The maker of linear problems: norm, number of classes, and of images."""
    return partial(make_linear, linear)


@pytest.fixture(params=[("linf", 2), ("linf", 3), ("l2", 2), ("l2", 3)], ids=lambda case: f"{case[0]}-{case[1]}")
def case_and_norm(request, boundary) -> tuple[LinearProblem, str]:
    norm, classes = request.param
    return boundary(norm, classes), norm


def make_problem(
    model: nn.Module, image_set: ImageSet, threat: ThreatModel, count: int | None = None, **budget: int
) -> Problem:
    images, labels = image_set.batch(torch.arange(count or len(image_set)), "cpu")
    model.eval().requires_grad_(False)
    return Problem(model, images, labels, torch.arange(len(images)), len(image_set.classes), threat, Budget(**budget))


@pytest.fixture
def problem_of() -> Callable[..., Problem]:
    """The maker of problem from a model, which it freezes, the first images of a set, and a threat model."""
    return make_problem

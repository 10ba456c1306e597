from dataclasses import replace

import pytest
import torch
from torch import nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.minimal_norm import BISECTIONS, fmn, linear_distance
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.distributed.units import Work


def everywhere(norm, image_set):
    """A ball that holds the whole box, in which every distance counts."""
    return ThreatModel(norm, 0.1).unbounded(image_set.images[0].numel())


def distances(model, image_set, norm, *, steps=30, numbers=None, batch_size=None):
    """The distance of every image, infinite where the model was not fooled."""
    labelled = image_set
    outcome = evaluate(
        model,
        labelled,
        ["fmn"],
        everywhere(norm, image_set),
        Budget(steps=steps),
        numbers=numbers,
        work=Work(batch_size=batch_size),
    )
    found = torch.full((len(image_set),), torch.inf, dtype=torch.float64)
    attack = outcome.attacks["fmn"]
    found[attack.attacked[attack.fooled]] = attack.distance[attack.fooled]
    return found


def as_predicted(model, image_set):
    """The images, each with the label that the model gives it."""
    images, _ = image_set.batch(torch.arange(len(image_set)), "cpu")
    with torch.no_grad():
        return replace(image_set, labels=model.eval()(images).argmax(dim=1))


class Scale(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.factor * self.model(images)


def test_the_distance_of_a_linear_model_is_margin_over_dual_norm(case_and_norm):
    case, norm = case_and_norm
    found = distances(case.model, case.image_set, norm)
    torch.testing.assert_close(found, case.distance.double(), rtol=2e-3, atol=1e-5)
    assert (found >= case.distance.double() * (1 - 1e-5)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_box_lengthens_the_way(linear, norm, problem_of, image_set):
    """One pixel steers; it is at 0.9 and must come to 1, so the rest is left to a pixel half as steep."""
    weight = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    model = linear(weight, torch.tensor([0.0, -2.5]))
    images = torch.tensor([0.9, 0.2]).reshape(1, 1, 1, 2)
    problem = problem_of(model, image_set, everywhere(norm, image_set), 1, steps=200)
    problem = replace(problem, images=images, labels=torch.tensor([0]), classes=2)
    reached = float(problem.threat.distance(fmn(problem), images))
    # 2 dx + dy = 0.5 with dx <= 0.1: dy = 0.3
    expected = 0.3 if norm == "linf" else (0.1**2 + 0.3**2) ** 0.5
    assert reached == pytest.approx(expected, rel=5e-3)


def ball_of_class_0(images):
    """Class 0 inside a ball around mid-grey, whose boundary has a curvature that no linear step sees."""
    away = (images.flatten(1) - 0.5).square().sum(dim=1)
    return torch.stack([torch.full_like(away, 0.2), away], dim=1)


class Round(nn.Module):
    def forward(self, images):
        return ball_of_class_0(images)


def test_the_distance_to_a_sphere_is_what_is_left_of_its_radius(problem_of, image_set):
    problem = problem_of(Round(), image_set, everywhere("l2", image_set), 6, steps=40)
    offset = 0.02 * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    problem = replace(problem, images=0.5 + offset, labels=torch.zeros(6, dtype=torch.int64), classes=2)
    reached = problem.threat.distance(fmn(problem), problem.images)
    torch.testing.assert_close(reached, 0.2**0.5 - offset.flatten(1).norm(dim=1), rtol=2e-3, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_no_scale_of_the_logits_matters(convolutional, image_set, norm, factor):
    image_set = as_predicted(convolutional, image_set)
    plain, scaled = (
        distances(model, image_set, norm) for model in (convolutional, Scale(convolutional, factor).eval())
    )
    assert plain.isfinite().all()
    torch.testing.assert_close(scaled, plain, rtol=1e-2, atol=0)
    assert (scaled / plain - 1).abs().median() < 1e-3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_other_image_of_the_batch_matters(convolutional, image_set, norm):
    image_set = as_predicted(convolutional, image_set)
    torch.testing.assert_close(
        distances(convolutional, image_set, norm, batch_size=7),
        distances(convolutional, image_set, norm),
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_path_does_not_depend_on_epsilon(convolutional, image_set, norm):
    """Within a radius fall exactly the images whose distance is not larger."""
    image_set = as_predicted(convolutional, image_set)
    found = distances(convolutional, image_set, norm)
    epsilon = float(found.median())
    outcome = evaluate(convolutional, image_set, ["fmn"], ThreatModel(norm, epsilon), Budget(steps=30))
    assert torch.equal(outcome.fooled_by("fmn"), found <= epsilon)


@pytest.mark.parametrize("targets", [1, 3, 9])
def test_its_passes_are_counted(convolutional, image_set, problem_of, targets):
    """A walk along the margin and one for each class, of which there are four; the ranking; the bisection."""
    tally, walks = Tally(), 1 + min(targets, 4)
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 1.0), 8, steps=4, targets=targets)
    fmn(replace(problem, model=Counted(problem.model, tally)))
    assert (tally.forward, tally.backward) == (8 * (walks * (4 + 1) + 1 + BISECTIONS), 8 * walks * 4)


class Hidden(nn.Module):
    """Class 2 is near along the second pixel, but less likely than class 1, which is far along the first."""

    def forward(self, images):
        pixels = images.flatten(1) - 0.5
        return torch.stack([0 * pixels[:, 0], pixels[:, 0] - 0.4, 10 * pixels[:, 1] - 1.0], dim=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_class_that_is_nearer_than_the_likeliest_is_found(image_set, problem_of, norm):
    """The runner-up's boundary is 0.4 away, the other class's 0.1."""
    problem = problem_of(Hidden(), image_set, everywhere(norm, image_set), 3, steps=20, targets=2)
    problem = replace(problem, images=torch.full((3, 1, 1, 2), 0.5), labels=torch.zeros(3, dtype=int), classes=3)
    torch.testing.assert_close(
        problem.threat.distance(fmn(problem), problem.images), torch.full((3,), 0.1), rtol=2e-3, atol=0
    )
    along_the_margin = replace(problem, budget=Budget(steps=20, targets=1))
    assert problem.threat.distance(fmn(along_the_margin), problem.images).min() > 0.3


class Dead(nn.Module):
    def forward(self, images):
        return torch.tensor([1.0, 0.0, -1.0, -2.0, -3.0]) + 0 * images.flatten(1)[:, :5]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_dead_gradient_leaves_the_image(image_set, problem_of, norm):
    problem = problem_of(Dead(), image_set, everywhere(norm, image_set), 6, steps=3)
    problem = replace(problem, labels=torch.zeros(6, dtype=torch.int64))
    assert torch.equal(fmn(problem), problem.images)


def test_a_linear_distance_is_exact_for_tiny_and_huge_gradients():
    gradient = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])
    margins = torch.tensor([1.0, 1e-30, 1e30, 1.0])
    assert linear_distance(margins, gradient, linf=False).tolist() == pytest.approx([0.2, 0.2, 0.2, float("inf")])
    assert linear_distance(margins, gradient, linf=True).tolist() == pytest.approx([1 / 7] * 3 + [float("inf")])

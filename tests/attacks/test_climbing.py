from dataclasses import replace

import pytest
import torch
from torch import nn

from gradscope.attacks.pgd import Streams, pgd, pgd_restarted
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.functional import fooled


def walked(problem, settings, restart=0):
    """Every iterate of PGD without an early end, from the same start, and which of them fool: ``(T + 1, N, ...)``."""
    seen = []
    streams = Streams(problem.seed, problem.numbers, restart)
    pgd(problem.model, problem.images, problem.labels, settings, streams=streams, observe=seen.append)
    return torch.stack([it.images for it in seen]), torch.stack([fooled(it.logits, problem.labels) for it in seen])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("changes", [{}, {"start": "none"}, {"smoothing": 3, "smoothing_radius": 0.05}])
def test_the_first_iterate_that_fools_is_kept(convolutional, image_set, problem_of, norm, changes):
    threat = ThreatModel(norm, 0.03 if norm == "linf" else 0.5)
    everyone = problem_of(convolutional, image_set, threat, steps=8)
    problem = everyone.only((~everyone.fooled_at(everyone.images)).nonzero().squeeze(1))
    settings = problem.settings(**changes)
    images, wrong = walked(problem, settings)
    first = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), settings.steps)
    expected = images[first, torch.arange(len(problem))]
    torch.testing.assert_close(problem.climb(settings).points, expected, rtol=0, atol=1e-5)
    assert 0 < wrong.any(dim=0).sum() < len(problem) or changes
    expected = torch.where(wrong.any(dim=0), first, -1)
    assert torch.equal(problem.climb(settings).first_fooled, expected)
    seen = pgd(
        problem.model, problem.images, problem.labels, settings, streams=problem.streams, observe=lambda here: None
    )
    assert torch.equal(seen.first_fooled, expected)


class Stripe(nn.Module):
    """Class 1 only where the first pixel is between 0.6 and 0.7, but its logit rises all the way: a silent success."""

    def forward(self, images):
        first = images.flatten(1)[:, 0]
        inside = (first > 0.6) & (first < 0.7)
        return torch.stack([torch.full_like(first, 5.0), torch.where(inside, first + 10, first)], dim=1)


def test_success_is_not_walked_past(image_set, problem_of):
    problem = problem_of(Stripe(), image_set, ThreatModel("linf", 0.5), 4, steps=10)
    problem = replace(problem, images=torch.full((4, 3, 8, 8), 0.5), labels=torch.zeros(4, dtype=torch.int64))
    settings = problem.settings(start="none", loss="margin", step_size=0.05)
    _, wrong = walked(problem, settings)
    assert not wrong[-1].any()
    assert not problem.fooled_at(pgd(problem.model, problem.images, problem.labels, settings).points).any()
    assert problem.fooled_at(problem.climb(settings).points).all()


def test_an_image_falls_at_the_step_that_reaches_its_boundary(boundary, problem_of):
    """On a linear model step t is t steps from the image: the first beyond the distance fools. Restarts keep it."""
    case = boundary("l2", 2)
    problem = problem_of(case.model, case.image_set, ThreatModel("l2", case.epsilon), steps=10)
    settings = problem.settings(start="none", step_size=case.epsilon / 10)
    reached = problem.climb(settings)
    needed = (case.distance / settings.step_size).ceil().long()
    assert torch.equal(reached.first_fooled, torch.where(case.distance < case.epsilon, needed, -1))
    assert torch.equal(reached.fooled, problem.fooled_at(reached.points))
    streams = replace(problem.streams, seed=1)
    again = pgd_restarted(
        case.model,
        problem.images,
        problem.labels,
        settings.model_copy(update={"start": "ball"}),
        streams,
        restarts=range(2),
        standing=~reached.fooled,
    )
    assert (again.first_fooled[reached.fooled] == -1).all()
    assert torch.equal(again.points[reached.fooled], problem.images[reached.fooled])


def test_what_has_fallen_costs_nothing_more(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("linf", 0.05), steps=10)
    settings = problem.settings()
    tally = Tally()
    counted = Counted(problem.model, tally)
    pgd_restarted(counted, problem.images, problem.labels, settings, problem.streams, restarts=range(3))
    forward = backward = 0
    standing = torch.ones(len(problem), dtype=torch.bool)
    for restart in range(3):
        _, wrong = walked(problem, settings, restart)
        looks = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0) + 1, 11)[standing]
        forward += int(looks.sum())
        backward += int(looks.clamp(max=10).sum())
        standing &= ~wrong.any(dim=0)
    assert (tally.forward, tally.backward) == (forward, backward)


def test_where_the_batch_is_part_of_the_attack_all_stay_in_it(convolutional, image_set, problem_of):
    """The mean's floor: an image's steps depend on how many share its batch, so those that fall are not left out."""
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 0.5, box=False), steps=6)
    settings = problem.settings(reduction="mean", norm_floor=0.05, start="cube")
    images, wrong = walked(problem, settings)
    first = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), settings.steps)
    torch.testing.assert_close(problem.climb(settings).points, images[first, torch.arange(40)], rtol=0, atol=1e-5)


def test_a_later_start_changes_nothing_of_what_fell_before(convolutional, image_set, problem_of):
    """Also where it is attacked again, as a part of the batch."""
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 0.5, box=False), steps=6)
    settings = problem.settings(reduction="mean", norm_floor=0.05, start="cube")
    given = (problem.model, problem.images, problem.labels, settings, problem.streams)
    once, twice = (pgd_restarted(*given, restarts=range(count)) for count in (1, 2))
    assert 0 < once.fooled.sum() < len(problem)
    assert torch.equal(twice.points[once.fooled], once.points[once.fooled])
    assert torch.equal(twice.first_fooled[once.fooled], once.first_fooled[once.fooled])


def test_iterates_outside_the_box_are_judged_inside(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 2.0), steps=10)
    settings = problem.settings(box=False)
    points = problem.climb(settings).points
    assert points.min() >= 0
    assert points.max() <= 1
    images, _ = walked(problem, settings)
    assert images.min() < 0
    inside = torch.stack([problem.fooled_at(step.clamp(0, 1)) for step in images])
    assert torch.equal(problem.fooled_at(points), inside.any(dim=0))


def test_float64_ends_in_float32(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 0.5), 8, steps=5)
    points = problem.climb(problem.settings(precision="float64")).points
    assert points.dtype == torch.float32
    torch.testing.assert_close(points, problem.climb(problem.settings()).points, rtol=0, atol=1e-4)


class Broken(nn.Module):
    """The slope in a pixel below a half is 0 times infinity, not a number."""

    def forward(self, images):
        height = torch.sqrt(torch.relu(images.flatten(1) - 0.5)).mean(dim=1)
        return torch.stack([torch.full_like(height, 0.5), height], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_coordinate_whose_slope_is_not_a_number_stays(image_set, problem_of, norm):
    problem = problem_of(Broken(), image_set, ThreatModel(norm, 0.1), steps=3)
    problem = replace(problem, labels=torch.zeros(40, dtype=torch.int64))
    points = problem.climb(problem.settings(start="none", loss="margin")).points
    below = problem.images <= 0.5
    assert torch.equal(points[below], problem.images[below])
    assert (points[~below] > problem.images[~below]).float().mean() > 0.9


def test_a_given_start_takes_the_place_of_the_drawn_one(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("linf", 0.1), 10, steps=1)
    start = problem.threat.project(problem.images + 0.05, problem.images)
    settings = problem.settings(step_size=0.0)
    assert torch.equal(problem.climb(settings, start=start).points, start)
    drawn = [problem.climb(settings, restart).points for restart in (0, 1)]
    assert not torch.equal(*drawn)

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradscope.attacks.climbing import climb
from gradscope.attacks.pgd import pgd
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.victims import Counted, Tally, fooled


def walked(victims, settings, restart=0):
    """Every iterate of plain PGD from the same start, and which of them fool the model: ``(T + 1, N, ...)``."""
    seen = []
    threat = ThreatModel(settings.norm, settings.epsilon, settings.box)
    start = victims.images
    if settings.start != "none":
        start = threat.random_start(start, settings.start, victims.seed, ("start", restart), victims.numbers)
    noise = victims.streams("smoothing", restart)
    pgd(victims.model, victims.images, victims.labels, settings, start=start, observe=seen.append, noise=noise)
    return torch.stack([it.images for it in seen]), torch.stack([fooled(it.logits, victims.labels) for it in seen])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("changes", [{}, {"start": "none"}, {"smoothing": 3, "smoothing_radius": 0.05}])
def test_the_first_iterate_that_fools_is_kept(convolutional, image_set, victims_of, norm, changes):
    threat = ThreatModel(norm, 0.03 if norm == "linf" else 0.5)
    everyone = victims_of(convolutional, image_set, threat, steps=8)
    victims = everyone.only((~everyone.fooled_at(everyone.images)).nonzero().squeeze(1))
    settings = victims.settings(**changes)
    images, wrong = walked(victims, settings)
    first = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), settings.steps)
    expected = images[first, torch.arange(len(victims))]
    torch.testing.assert_close(climb(victims, settings), expected, rtol=0, atol=1e-5)
    assert 0 < wrong.any(dim=0).sum() < len(victims) or changes


class Stripe(nn.Module):
    """Class 1 only where the first pixel is between 0.6 and 0.7, but its logit rises all the way: a silent success."""

    def forward(self, images):
        first = images.flatten(1)[:, 0]
        inside = (first > 0.6) & (first < 0.7)
        return torch.stack([torch.full_like(first, 5.0), torch.where(inside, first + 10, first)], dim=1)


def test_success_is_not_walked_past(image_set, victims_of):
    victims = victims_of(Stripe(), image_set, ThreatModel("linf", 0.5), 4, steps=10)
    victims = replace(victims, images=torch.full((4, 3, 8, 8), 0.5), labels=torch.zeros(4, dtype=torch.int64))
    settings = victims.settings(start="none", loss="margin", step_size=0.05)
    _, wrong = walked(victims, settings)
    assert not wrong[-1].any()
    assert not victims.fooled_at(pgd(victims.model, victims.images, victims.labels, settings)).any()
    assert victims.fooled_at(climb(victims, settings)).all()


def test_what_has_fallen_costs_nothing_more(convolutional, image_set, victims_of):
    victims = victims_of(convolutional, image_set, ThreatModel("linf", 0.05), steps=10)
    settings = victims.settings(restarts=3)
    tally = Tally()
    counted = replace(victims, model=Counted(victims.model, tally))
    climb(counted, settings)
    forward = backward = 0
    standing = torch.ones(len(victims), dtype=torch.bool)
    for restart in range(3):
        _, wrong = walked(victims, settings, restart)
        looks = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0) + 1, 11)[standing]
        forward += int(looks.sum())
        backward += int(looks.clamp(max=10).sum())
        standing &= ~wrong.any(dim=0)
    assert (tally.forward, tally.backward) == (forward, backward)


def test_where_the_batch_is_part_of_the_attack_all_stay_in_it(convolutional, image_set, victims_of):
    """The mean's floor: an image's steps depend on how many share its batch, so those that fall are not left out."""
    victims = victims_of(convolutional, image_set, ThreatModel("l2", 0.5, box=False), steps=6)
    settings = victims.settings(reduction="mean", norm_floor=0.05, start="cube")
    images, wrong = walked(victims, settings)
    first = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), settings.steps)
    torch.testing.assert_close(climb(victims, settings), images[first, torch.arange(40)], rtol=0, atol=1e-5)


def test_iterates_outside_the_box_are_judged_inside(convolutional, image_set, victims_of):
    victims = victims_of(convolutional, image_set, ThreatModel("l2", 2.0), steps=10)
    settings = victims.settings(box=False)
    points = climb(victims, settings)
    assert points.min() >= 0
    assert points.max() <= 1
    images, _ = walked(victims, settings)
    assert images.min() < 0
    inside = torch.stack([victims.fooled_at(step.clamp(0, 1)) for step in images])
    assert torch.equal(victims.fooled_at(points), inside.any(dim=0))


def test_float64_ends_in_float32(convolutional, image_set, victims_of):
    victims = victims_of(convolutional, image_set, ThreatModel("l2", 0.5), 8, steps=5)
    points = climb(victims, victims.settings(precision="float64"))
    assert points.dtype == torch.float32
    torch.testing.assert_close(points, climb(victims, victims.settings()), rtol=0, atol=1e-4)


class Broken(nn.Module):
    """The slope in a pixel below a half is 0 times infinity, not a number."""

    def forward(self, images):
        height = torch.sqrt(torch.relu(images.flatten(1) - 0.5)).mean(dim=1)
        return torch.stack([torch.full_like(height, 0.5), height], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_coordinate_whose_slope_is_not_a_number_stays(image_set, victims_of, norm):
    victims = victims_of(Broken(), image_set, ThreatModel(norm, 0.1), steps=3)
    victims = replace(victims, labels=torch.zeros(40, dtype=torch.int64))
    points = climb(victims, victims.settings(start="none", loss="margin"))
    below = victims.images <= 0.5
    assert torch.equal(points[below], victims.images[below])
    assert (points[~below] > victims.images[~below]).float().mean() > 0.9


def test_begin_takes_the_place_of_the_start(convolutional, image_set, victims_of):
    victims = victims_of(convolutional, image_set, ThreatModel("linf", 0.1), 10, steps=1)
    asked = []

    def begin(left, restart):
        asked.append((restart, left.numbers.tolist()))
        return left.images

    settings = victims.settings(step_size=0.0, restarts=2)
    points = climb(victims, settings, begin)
    wrong = victims.fooled_at(victims.images)
    assert asked == [(0, list(range(10))), (1, victims.numbers[~wrong].tolist())]
    assert torch.equal(points, victims.images)

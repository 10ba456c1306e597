import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.black_box import bump, noise, square, square_share
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.functional import margin

torchattacks = importlib.import_module("torchattacks")


class Constant(nn.Module):
    """Class 0 wherever it is asked; keeps the points."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, images):
        self.asked.append(images.clone())
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)


def grey(problem_of, image_set, threat, count=4, channels=3, side=8, **budget):
    problem = problem_of(Constant(), image_set, threat, count, **budget)
    images = torch.full((count, channels, side, side), 0.5)
    return replace(problem, images=images, labels=torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("side", range(2, 12))
def test_the_bump_is_the_published_one(side):
    ours = bump(side)
    assert float(ours.norm()) == pytest.approx(1)
    reference = torchattacks.Square(nn.Linear(1, 1))
    theirs = reference.eta(side)
    assert torch.allclose(ours, theirs, atol=1e-6) or torch.allclose(ours.T, theirs, atol=1e-6)


@pytest.mark.parametrize("queries", [10_000, 500])
def test_the_squares_shrink_as_published(queries):
    reference = torchattacks.Square(nn.Linear(1, 1), n_queries=queries)
    for query in range(queries):
        assert square_share(query, queries) == reference.p_selection(query)


def test_first_stripes_then_squares_in_linf(problem_of, image_set):
    """While nothing improves, each candidate is the first point with one square of +-epsilon in each channel."""
    problem = grey(problem_of, image_set, ThreatModel("linf", 0.1), queries=400)
    square(problem)
    first, *others = problem.model.asked
    stripes = first - 0.5
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 0.1))
    assert (stripes == stripes[:, :, :1]).all()
    assert len(others) == 399
    reached = torch.zeros(8, 8, dtype=torch.bool)
    for query, candidate in enumerate(others, start=1):
        changed = (candidate != first).any(dim=1)
        side = max(min(round((square_share(query, 400) * 64) ** 0.5), 7), 1)
        for image, points in zip(changed, candidate - 0.5, strict=True):
            rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
            assert len(rows), "a query that changes nothing is wasted"
            assert max(rows.max() - rows.min(), columns.max() - columns.min()) < side
            window = points[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            torch.testing.assert_close(window.abs(), torch.full_like(window, 0.1))
        reached |= (changed & (changed.sum(dim=(1, 2), keepdim=True) <= 3)).any(dim=0)
    assert reached[-1].any()
    assert reached[:, -1].any(), "the last row and column can be reached"


def test_the_images_of_a_batch_have_squares_of_their_own(problem_of, image_set):
    problem = grey(problem_of, image_set, ThreatModel("linf", 0.1), queries=30)
    square(problem)
    first, *others = problem.model.asked
    places = [(candidate != first).any(dim=1).flatten(1) for candidate in others]
    assert any(not torch.equal(place[0], place[1]) for place in places)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8, 12, 14, 24, 32])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_square_takes_images_of_any_side(problem_of, image_set, norm, side, channels):
    """All of the radius is used, but for what the box cuts."""
    problem = grey(problem_of, image_set, ThreatModel(norm, 0.3), 3, channels, side, queries=30)
    square(problem)
    for candidate in problem.model.asked:
        assert candidate.isfinite().all()
        reach = problem.threat.distance(candidate, problem.images)
        if side > 1:
            torch.testing.assert_close(reach, torch.full_like(reach, 0.3), rtol=1e-4, atol=0)
        assert reach.max() <= 0.3 + 1e-6


@pytest.mark.parametrize("side", [4, 12, 14, 24])
def test_sides_at_which_torchattacks_square_fails(side):
    """Why ours."""
    model = Constant()
    reference = torchattacks.Square(model, norm="L2", eps=0.3, n_queries=5)
    reference.set_device(torch.device("cpu"))
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        reference(torch.full((2, 3, side, side), 0.5), torch.zeros(2, dtype=torch.int64))


def test_torchattacks_squares_never_reach_the_last_row():
    """Why ours: the first row of a square of one pixel."""
    reference = torchattacks.Square(nn.Linear(1, 1))
    assert max(int(reference.random_int(0, 8 - 1)) for _ in range(2000)) == 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_lowers_the_margin_and_never_goes_back(convolutional, image_set, problem_of, norm):
    problem = problem_of(convolutional, image_set, ThreatModel(norm, 0.01 if norm == "linf" else 0.1), queries=2)
    problem = replace(problem, labels=convolutional(problem.images).argmax(dim=1))
    before = None
    for queries in (1, 20, 200):
        points = square(
            replace(problem, budget=problem.budget.model_copy(update={"queries": queries})), stretched=False
        )
        now = margin(convolutional(points), problem.labels)
        assert before is None or (now <= before + 1e-5).all()
        before = now
    assert 0 < problem.fooled_at(points).sum() < 40


@pytest.mark.parametrize("attack", [square, noise])
def test_what_has_fallen_is_asked_no_more(convolutional, image_set, problem_of, attack):
    problem = problem_of(convolutional, image_set, ThreatModel("linf", 0.05), queries=50, noise_points=50)
    problem = replace(problem, labels=convolutional(problem.images).argmax(dim=1))
    alone = []
    for row in range(40):
        tally = Tally()
        attack(replace(problem.only(torch.tensor([row])), model=Counted(problem.model, tally)))
        alone.append(tally.forward)
    tally = Tally()
    points = attack(replace(problem, model=Counted(problem.model, tally)))
    assert tally.forward == sum(alone)
    assert tally.backward == 0
    stands = ~problem.fooled_at(points)
    assert 0 < stands.sum() < 40
    assert {count for count, stand in zip(alone, stands.tolist(), strict=True) if stand} == {50}


def test_noise_is_drawn_anew_for_each_image_and_draw(problem_of, image_set):
    problem = grey(problem_of, image_set, ThreatModel("l2", 0.3), noise_points=20)
    noise(problem)
    drawn = torch.stack(problem.model.asked).flatten(0, 1)
    assert len(drawn.flatten(1).unique(dim=0)) == 80
    assert problem.threat.distance(drawn, problem.images.repeat(20, 1, 1, 1)).max() <= 0.3 + 1e-6

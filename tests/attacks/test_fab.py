import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.fab import fab_targeted, onto_plane
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel

torchattacks_fab = importlib.import_module("torchattacks.attacks.fab")
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def right(problem, epsilon=None):
    """The problem with the model's own classes as labels, at another radius if one is given."""
    threat = replace(problem.threat, epsilon=epsilon or problem.threat.epsilon)
    return replace(problem, labels=problem.model(problem.images).argmax(dim=1), threat=threat)


def test_it_finds_the_nearest_point_over_the_boundary(case_and_norm, problem_of):
    case, norm = case_and_norm
    threat = ThreatModel(norm, 2 * float(case.distance.max()))
    problem = problem_of(case.model, case.image_set, threat, steps=30)
    points = fab_targeted(problem, [0])
    assert problem.fooled_at(points).all()
    torch.testing.assert_close(threat.distance(points, problem.images), case.distance, rtol=0.01, atol=1e-6)


@NORMS
def test_the_image_is_returned_where_the_boundary_is_farther(boundary, problem_of, norm):
    case = boundary(norm, 3)
    problem = problem_of(case.model, case.image_set, ThreatModel(norm, case.epsilon), steps=30)
    points = fab_targeted(problem, [0])
    far = case.distance > case.epsilon
    assert 0 < far.sum() < len(far)
    assert torch.equal(problem.fooled_at(points), ~far)
    assert torch.equal(points[far], problem.images[far])


def planes(count, dimensions, share):
    """Points of the box, planes, and how much less <normal, x> is to be: ``share`` of what the box allows."""
    stream = torch.Generator().manual_seed(dimensions)
    points = torch.rand(count, dimensions, generator=stream, dtype=torch.float64)
    points[:, ::4] = points[:, ::4].round()
    normal = torch.randn(count, dimensions, generator=stream, dtype=torch.float64) ** 3
    normal[:, 1] = 0
    normal[normal.abs() < 1e-6] = 0  # torchattacks leaves pixels below 1e-8 where they are
    down = torch.arange(count) % 2 == 0
    corner = ((normal < 0) == down[:, None]).double()
    return points, normal, share * ((points - corner) * normal).sum(dim=1)


@NORMS
@pytest.mark.parametrize("share", [0.01, 0.4, 0.9])
def test_a_projection_is_the_nearest_point_of_plane_and_box(norm, share):
    points, normal, height = planes(12, 7, share)
    steps = onto_plane(points, normal, height, linf=norm == "linf")
    moved = points + steps
    assert ((moved >= -1e-12) & (moved <= 1 + 1e-12)).all()
    torch.testing.assert_close((-steps * normal).sum(dim=1), height)
    for step, point, plane, much in zip(steps.numpy(), points.numpy(), normal.numpy(), height.numpy(), strict=True):
        bounds = list(zip(-point, 1 - point, strict=True))
        if norm == "linf":  # least t with -t <= step <= t
            ones, eye = np.ones((7, 1)), np.eye(7)
            limits = np.block([[eye, -ones], [-eye, -ones]])
            found = linprog(
                [0] * 7 + [1], limits, np.zeros(14), [[*-plane, 0]], [much], bounds=[*bounds, (0, None)], method="highs"
            )
            assert np.abs(step).max() == pytest.approx(found.x[-1], rel=1e-6, abs=1e-9)
        else:
            onto = {"type": "eq", "fun": lambda step, plane=plane, much=much: -step @ plane - much}
            found = minimize(lambda step: step @ step, np.zeros(7), bounds=bounds, constraints=onto, method="SLSQP")
            assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(found.x), rel=1e-4, abs=1e-6)


@NORMS
@pytest.mark.parametrize("share", [0.01, 0.4, 0.9, 1.5])
def test_projections_are_those_of_torchattacks(norm, share):
    """Where the box does not reach the plane, too: the corner nearest to it."""
    points, normal, height = planes(20, 500, share)
    theirs = getattr(torchattacks_fab, f"projection_{norm}")
    expected = theirs(points.float(), normal.float(), ((points * normal).sum(dim=1) - height).float())
    steps = onto_plane(points, normal, height, linf=norm == "linf")
    torch.testing.assert_close(steps.float(), expected, rtol=1e-3, atol=1e-4)


@NORMS
def test_a_plane_through_the_point_and_no_plane_need_no_step(norm):
    points, normal, height = planes(4, 9, 0.5)
    assert not onto_plane(points, normal, 0 * height, linf=norm == "linf").any()
    assert not onto_plane(points, 0 * normal, height, linf=norm == "linf").any()


@NORMS
@pytest.mark.parametrize("rank", [0, 2])
def test_it_agrees_with_torchattacks(convolutional, image_set, problem_of, norm, rank):
    problem = right(problem_of(convolutional, image_set, ThreatModel(norm, 1e3), steps=20))
    theirs = torchattacks_fab.FAB(
        problem.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=1e3, steps=20, multi_targeted=True
    )
    theirs.target_class = rank + 2
    expected = theirs.attack_single_run_targeted(problem.images, problem.labels)
    here = problem.threat.distance(fab_targeted(problem, [rank]), problem.images)
    there = problem.threat.distance(expected, problem.images)
    assert (there > 0).any()
    close = (here - there).abs() <= 1e-4 * there
    assert close.double().mean() >= 0.9
    epsilon = float(there.median()) * 1.001
    fooled = problem.fooled_at(fab_targeted(right(problem, epsilon), [rank]))
    assert torch.equal(fooled[close], ((there > 0) & (there <= epsilon))[close])


def test_a_step_takes_two_forward_passes_and_one_backward(convolutional, image_set, problem_of):
    tally = Tally()
    problem = right(problem_of(convolutional, image_set, ThreatModel("linf", 1e-6), 8, steps=4))
    fab_targeted(replace(problem, model=Counted(problem.model, tally)), [0])
    assert (tally.forward, tally.backward) == (8 * 2 * 4, 8 * 4)


@NORMS
def test_small_gradients_are_seen(boundary, problem_of, norm):
    case = boundary(norm, 3)

    class Small(nn.Module):
        def forward(self, images):
            return 1e-15 * case.model(images)

    problem = problem_of(Small(), case.image_set, ThreatModel(norm, 2 * float(case.distance.max())), steps=20)
    assert problem.fooled_at(fab_targeted(problem, [0])).all()


def test_a_dead_gradient_leaves_the_image(image_set, problem_of):
    class Dead(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 0.0, -1.0, -2.0, -3.0]) + 0 * images.flatten(1)[:, :5]

    problem = right(problem_of(Dead(), image_set, ThreatModel("linf", 0.1), 6, steps=3))
    assert torch.equal(fab_targeted(problem, [0]), problem.images)


@NORMS
def test_an_images_point_does_not_depend_on_the_batch(convolutional, image_set, problem_of, norm):
    problem = right(problem_of(convolutional, image_set, ThreatModel(norm, 1e3), 8, steps=10))
    apart = torch.cat([fab_targeted(problem.only(torch.tensor([row])), [0]) for row in range(8)])
    distances = (problem.threat.distance(points, problem.images) for points in (fab_targeted(problem, [0]), apart))
    torch.testing.assert_close(*distances, rtol=1e-3, atol=1e-6)


@NORMS
def test_classes_side_by_side_are_the_nearest_of_each_alone(convolutional, image_set, problem_of, norm):
    problem = right(problem_of(convolutional, image_set, ThreatModel(norm, 1e3), steps=10))
    together, *alone = (
        problem.threat.distance(fab_targeted(problem, ranks), problem.images) for ranks in ([1, 2, 3], [1], [2], [3])
    )
    alone = torch.stack(alone)
    assert len(alone.argmin(dim=0).unique()) > 1
    close = (together - alone.amin(dim=0)).abs() <= 1e-3 * together
    assert close.double().mean() >= 0.9

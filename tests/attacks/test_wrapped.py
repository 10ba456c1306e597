import contextlib
import importlib
import io
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.wrapped import fab

torchattacks = importlib.import_module("torchattacks")


def test_fab_finds_the_nearest_point_over_the_boundary(case_and_norm, problem_of):
    case, norm = case_and_norm
    threat = ThreatModel(norm, 2 * float(case.distance.max()))
    problem = problem_of(case.model, case.image_set, threat, steps=30)
    points = fab(problem)
    assert problem.fooled_at(points).all()
    torch.testing.assert_close(threat.distance(points, problem.images), case.distance, rtol=0.01, atol=1e-6)


def test_torchattacks_autoattack_is_not_the_published_one():
    """Why ours: 100 steps, nine targets and Square's own schedule are the published ones."""
    parts = torchattacks.AutoAttack(nn.Linear(1, 1), n_classes=100)._autoattack.attacks
    assert [part.steps for part in parts[:3]] == [10, 10, 10]
    assert [part.n_target_classes for part in parts[1:3]] == [99, 99]
    assert parts[3].rescale_schedule


class Parameterless(nn.Module):
    """No parameter from which torchattacks could take the device; class 1 where the mean is above a half."""

    def forward(self, images):
        height = images.flatten(1).mean(dim=1)
        return torch.stack([torch.full_like(height, 0.5), height], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_is_printed_and_the_model_stays_as_it_is(image_set, problem_of, norm):
    problem = problem_of(Parameterless(), image_set, ThreatModel(norm, 3.0), 6, steps=10)
    problem = replace(problem, labels=problem.model(problem.images).argmax(dim=1))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        points = fab(problem)
    assert printed.getvalue() == ""
    assert not problem.model.training
    assert problem.fooled_at(points).all()


def test_the_passes_of_fab_are_counted(convolutional, image_set, problem_of):
    """Two forward passes a step, three before the first and after the last; a backward pass a class in each step."""
    tally = Tally()
    problem = problem_of(convolutional, image_set, ThreatModel("linf", 1e-6), 8, steps=4)
    problem = replace(problem, labels=convolutional(problem.images).argmax(dim=1))
    fab(replace(problem, model=Counted(problem.model, tally)))
    assert (tally.forward, tally.backward) == (8 * (3 + 2 * 4), 8 * 4 * 5)


def test_a_dead_gradient_leaves_the_image(image_set, problem_of):
    class Dead(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 0.0, -1.0, -2.0, -3.0]) + 0 * images.flatten(1)[:, :5]

    problem = problem_of(Dead(), image_set, ThreatModel("linf", 0.1), 6, steps=3)
    problem = replace(problem, labels=torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(fab(problem), problem.images)

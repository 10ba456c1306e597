import math

import pytest
import torch

from gradscope.attacks.threat import ThreatModel


@pytest.fixture
def origin() -> torch.Tensor:
    return torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("box", [True, False])
def test_projection_lands_in_the_ball_and_the_box_and_keeps_what_is_inside(norm, box, origin):
    threat = ThreatModel(norm, 0.5, box)
    far = origin + torch.randn(origin.shape, generator=torch.Generator().manual_seed(1))
    projected = threat.project(far, origin)
    delta = (projected - origin).flatten(1)
    reach = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert reach.max() <= 0.5 + 1e-6
    assert (not box) or (projected.min() >= 0 and projected.max() <= 1)
    inside = origin.clamp(0.2, 0.8) + (0.1 if norm == "linf" else 0.1 / math.sqrt(192))
    torch.testing.assert_close(threat.project(inside, origin.clamp(0.2, 0.8)), inside)


def test_l2_projection_is_radial():
    threat = ThreatModel("l2", 1.0, box=False)
    origin = torch.zeros(1, 1, 1, 2)
    torch.testing.assert_close(threat.project(torch.tensor([[[[3.0, 4.0]]]]), origin), torch.tensor([[[[0.6, 0.8]]]]))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-38])
def test_l2_step_has_the_exact_length_however_small_the_gradient(scale, origin):
    gradient = torch.randn(origin.shape, generator=torch.Generator().manual_seed(2)) * scale
    step = ThreatModel("l2", 1.0).steepest_step(gradient, 0.1)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((50,), 0.1))


def test_no_step_where_the_gradient_is_zero(origin):
    for norm in ("l2", "linf"):
        assert ThreatModel(norm, 1.0).steepest_step(torch.zeros_like(origin), 0.1).eq(0).all()


def test_a_floor_shortens_the_step_below_it_only():
    gradient = torch.tensor([[[[1e-8, 0.0]]], [[[2e-6, 0.0]]]])
    step = ThreatModel("l2", 1.0).steepest_step(gradient, 0.1, norm_floor=1e-6)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.tensor([1e-3, 0.1]))


def test_linf_step_is_the_sign():
    gradient = torch.tensor([[[[-3.0, 0.0, 1e-30]]]])
    step = ThreatModel("linf", 1.0).steepest_step(gradient, 0.25)
    assert step.tolist() == [[[[-0.25, 0.0, 0.25]]]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", ["ball", "cube", "surface"])
def test_a_start_depends_on_its_image_alone(norm, shape, origin):
    threat = ThreatModel(norm, 0.5)
    numbers = torch.arange(50)
    whole = threat.random_start(origin, shape, 7, ("start", 0), numbers)
    parts = [
        threat.random_start(origin[part], shape, 7, ("start", 0), part)
        for part in (numbers[:1], numbers[1:8], numbers[8:])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(threat.random_start(origin, shape, 8, ("start", 0), numbers), whole)
    assert not torch.equal(threat.random_start(origin, shape, 7, ("start", 1), numbers), whole)


def test_the_ball_is_filled_uniformly():
    """In a disc of radius 1 a uniform point has radius sqrt(u): mean 2/3, and a quarter lies within 1/2."""
    threat = ThreatModel("l2", 1.0, box=False)
    points = threat.random_start(torch.zeros(4000, 1, 1, 2), "ball", 0, ("start",), torch.arange(4000))
    radius = points.flatten(1).norm(dim=1)
    assert abs(float(radius.mean()) - 2 / 3) < 0.01
    assert abs(float((radius < 0.5).float().mean()) - 0.25) < 0.02


def test_the_cube_start_lies_on_the_sphere_in_many_dimensions():
    threat = ThreatModel("l2", 1.0, box=False)
    points = threat.random_start(torch.zeros(20, 3, 32, 32), "cube", 0, ("start",), torch.arange(20))
    torch.testing.assert_close(points.flatten(1).norm(dim=1), torch.ones(20))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_surface_start_lies_on_the_surface(norm):
    threat = ThreatModel(norm, 0.7, box=False)
    origin = torch.zeros(30, 3, 4, 4)
    points = threat.random_start(origin, "surface", 0, ("start",), torch.arange(30))
    torch.testing.assert_close(threat.distance(points, origin), torch.full((30,), 0.7))
    assert abs(float(points.mean())) < 0.05


def test_distance_is_the_norm_of_the_difference():
    origin = torch.ones(1, 1, 1, 2)
    moved = origin + torch.tensor([[[[3.0, -4.0]]]])
    assert ThreatModel("l2", 1.0).distance(moved, origin).tolist() == [5.0]
    assert ThreatModel("linf", 1.0).distance(moved, origin).tolist() == [4.0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", ["ball", "cube", "surface"])
def test_a_ball_of_radius_0_is_its_centre(norm, shape, origin):
    assert torch.equal(ThreatModel(norm, 0.0).random_start(origin, shape, 0, ("start",), torch.arange(50)), origin)

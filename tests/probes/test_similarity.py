"""Gradient similarity and relative curvature: closed forms, no scale of the logits, and models without a gradient."""

import pytest
import torch
from torch import nn

from gradscope.losses import rescaled_cross_entropy
from gradscope.probes.similarity import gradient_cosines, relative_curvature


class Scaled(nn.Module):
    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images):
        return self.network(images) * self.factor


class Detached(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.detach()).detach()


class OnceDifferentiable(nn.Module):
    """Minus the L3 distances to a point of each class, of which torch has a first derivative alone."""

    def forward(self, images):
        stream = torch.Generator().manual_seed(2)
        return -torch.cdist(images.flatten(1), torch.rand(5, 192, generator=stream), p=3.0)


@pytest.fixture
def batch(image_set):
    return image_set.batch(torch.arange(12), "cpu")


@pytest.mark.parametrize("factor", [1, 1e-3, 1000, 1e6])
def test_a_model_is_like_itself_and_its_logits_times_a_factor(convolutional, batch, factor):
    cosines = gradient_cosines([convolutional, Scaled(convolutional, factor)], *batch)
    torch.testing.assert_close(cosines, torch.ones(2, 2, 12).double(), rtol=0, atol=1e-5)


def test_linear_models_have_the_cosine_of_their_weights_differences(linear, batch):
    images, labels = batch
    stream = torch.Generator().manual_seed(1)
    weights = [torch.randn(5, 3 * 8 * 8, generator=stream) for _ in range(2)]
    found = gradient_cosines([linear(weight) for weight in weights], images, labels)
    rows = []
    for weight in weights:
        logits = images.flatten(1) @ weight.T
        runner_up = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
        rows.append((weight[runner_up] - weight[labels]).double())
    wanted = (rows[0] * rows[1]).sum(dim=1) / (rows[0].norm(dim=1) * rows[1].norm(dim=1))
    torch.testing.assert_close(found[0, 1], wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1, 0], wanted, rtol=0, atol=1e-6)
    assert float(wanted.abs().max()) < 0.5


@pytest.mark.parametrize("factor", [1, 1e-3, 1000])
def test_curvature_is_the_largest_eigenvalue_over_the_gradient_at_any_scale(factor, image_set):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 5))
    images, labels = image_set.batch(torch.arange(4), "cpu")
    found = relative_curvature(Scaled(small, factor), images, labels, numbers=torch.arange(4))
    for image, label, value in zip(images, labels, found, strict=True):

        def loss(point, label=label):
            return rescaled_cross_entropy(small(point[None]), label[None]).sum()

        hessian = torch.autograd.functional.hessian(loss, image).reshape(192, 192)
        slope = torch.autograd.functional.jacobian(loss, image)
        exact = torch.linalg.eigvalsh(hessian).abs().max() / slope.norm()
        assert float(value) == pytest.approx(float(exact), rel=0.02)
        assert float(value) <= float(exact) * (1 + 1e-4)


def test_a_model_without_gradient_is_undefined_and_no_error(convolutional, batch):
    images, labels = batch
    flat = Scaled(convolutional, 0)
    cosines = gradient_cosines([convolutional, Detached(convolutional), flat], images, labels)
    assert cosines[0, 0].isfinite().all()
    assert cosines[0, 1].isnan().all()
    assert cosines[0, 2].isnan().all()
    for blind in (Detached(convolutional), flat):
        assert relative_curvature(blind, images, labels, numbers=torch.arange(12)).isnan().all()


def test_a_model_without_second_derivative_has_cosines_but_no_curvature(convolutional, batch):
    images, labels = batch
    once = OnceDifferentiable()
    torch.testing.assert_close(gradient_cosines([once], images, labels)[0, 0], torch.ones(12).double())
    assert relative_curvature(once, images, labels, numbers=torch.arange(12)).isnan().all()


def test_no_trace_is_left(convolutional, batch, digest):
    before = digest(convolutional)
    gradient_cosines([convolutional], *batch)
    relative_curvature(convolutional, *batch, numbers=torch.arange(12))
    assert digest(convolutional) == before

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.attacks.threat import ThreatModel
from gradscope.probes.curvature import (
    input_curvature,
    local_nonlinearity,
    power_iteration,
    weight_curvature,
    weight_curvature_along,
)


class Quadratic(nn.Module):
    """One "logit" ``x^T A x / 2``: as its own loss it has the Hessian A everywhere."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, images):
        flat = images.flatten(1)
        return ((flat @ self.matrix) * flat).sum(dim=1, keepdim=True) / 2


def the_logit(logits, labels):
    return logits[:, 0]


def symmetric(size, eigenvalues, seed=0):
    stream = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=stream, dtype=torch.float64))
    return ((basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T).float()


@pytest.mark.parametrize("largest", [7.0, -7.0])
def test_a_quadratics_eigenvalue(largest):
    matrix = symmetric(12, [largest, 4, 3, 2, 1, 1, 0.5, 0, 0, -1, -2, -3])
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(5, dtype=torch.int64)
    found = input_curvature(
        Quadratic(matrix), images, labels, numbers=torch.arange(5), loss=the_logit, tolerance=1e-5, most=300
    )
    torch.testing.assert_close(found.value, torch.full((5,), largest), rtol=1e-4, atol=0)
    assert found.residual.max() < 1e-4
    assert found.iterations < 300
    torch.testing.assert_close(found.vector @ matrix, largest * found.vector, rtol=0, atol=1e-2)


def test_the_tolerance_that_was_not_reached_is_told():
    matrix = symmetric(4, [1.0, 0.999, 0.5, 0.1])
    product = lambda vectors: vectors @ matrix  # noqa: E731
    start = F.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    found = power_iteration(product, start, tolerance=1e-9, most=5)
    assert found.iterations == 5
    assert found.residual.max() > 1e-5


def test_input_curvature_of_a_softmax_is_its_closed_form(linear):
    """Two classes: the Hessian is p (1 - p) w w^T with w the difference of the rows; its eigenvalue p (1 - p) |w|^2."""
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model = linear(weight)
    images, labels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 3)
    p = torch.softmax(model(images), 1)[:, 0].detach()
    expected = p * (1 - p) * (weight[0] - weight[1]).square().sum()
    found = input_curvature(model, images, labels, numbers=torch.arange(6))
    torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=0)


def test_input_curvature_equals_the_full_hessian(image_set):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    images, labels = image_set.batch(torch.arange(3), "cpu")
    images = images.double()
    found = input_curvature(model, images, labels, numbers=torch.arange(3), tolerance=1e-6, most=2000)
    for index in range(3):

        def own(flat, index=index):
            return F.cross_entropy(model(flat.reshape(1, 3, 8, 8)), labels[index : index + 1])

        spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(own, images[index].flatten()))
        expected = spectrum[spectrum.abs().argmax()]
        torch.testing.assert_close(found.value[index], expected, rtol=1e-4, atol=0)


def test_weight_curvature_equals_the_full_hessian(image_set, digest):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Tanh(), nn.Linear(2, 5)).double()
    images, labels = image_set.batch(torch.arange(20), "cpu")
    images = images.double()
    before = digest(model)
    batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    found = weight_curvature(model, batches, tolerance=1e-7, most=3000)
    shares = weight_curvature_along(model, batches, found.vector[0])
    assert digest(model) == before
    torch.testing.assert_close((7 * shares[0] + 13 * shares[1]) / 20, found.value[0])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def mean_loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (images,)), labels)

    spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(mean_loss, flat))
    torch.testing.assert_close(found.value[0], spectrum[spectrum.abs().argmax()], rtol=1e-4, atol=0)


def test_a_linear_loss_has_no_curvature(linear):
    model = linear(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
    images, labels = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    found = input_curvature(model, images, labels, numbers=torch.arange(2), loss=the_logit)
    assert found.value.tolist() == [0, 0]
    assert found.residual.tolist() == [0, 0]


def test_no_trace_is_left(convolutional, image_set, digest):
    before = digest(convolutional)
    images, labels = image_set.batch(torch.arange(4), "cpu")
    input_curvature(convolutional, images, labels, numbers=torch.arange(4), most=5)
    weight_curvature(convolutional, [(images, labels)], most=5)
    assert digest(convolutional) == before
    assert not images.requires_grad


def test_local_nonlinearity_of_a_quadratic():
    """The gap is |d^T A d| / 2, largest at half the size of A's largest eigenvalue times the squared radius."""
    matrix = symmetric(12, [6.0, 3, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    threat = ThreatModel("l2", 0.5, box=False)
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    start = threat.random_start(images, "ball", 0, ("start",), torch.arange(4))
    found = local_nonlinearity(
        Quadratic(matrix),
        images,
        torch.zeros(4, dtype=torch.int64),
        threat.project,
        lambda gradient: threat.steepest_step(gradient, 0.2),
        start,
        steps=60,
        loss=the_logit,
    )
    torch.testing.assert_close(found, torch.full((4,), 6.0 / 2 * 0.5**2), rtol=1e-2, atol=0)

"""Curvature of the loss: the Hessian eigenvalue of largest absolute value, by power iteration."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradscope.functional import flatten, norm_and_unit
from gradscope.losses import Loss, cross_entropy
from gradscope.models.inspection import call_with, measuring
from gradscope.seeding import generator

HessianProduct = Callable[[Tensor], Tensor]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Make attention inside use the only kernel of torch whose backward pass can itself be differentiated."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True)
class Eigenvalue:
    """Eigenvalues of largest absolute value ``(N,)``, their relative residuals ``(N,)`` and the number of iterations.

    The residual is ``|H v - value v| / |value|`` for the unit vector v that was reached. Where H v is 0, value and
    residual are 0. ``vector`` ``(N, D)`` is v.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    vector: Tensor


def power_iteration(product: HessianProduct, start: Tensor, *, tolerance: float, most: int) -> Eigenvalue:
    """Find the eigenvalue of largest absolute value of N symmetric matrices, from unit vectors ``start`` ``(N, D)``.

    Iterates v <- H v / |H v|, with the Rayleigh quotient <v, H v> as the value, until every residual is below
    ``tolerance`` or after ``most`` products. If two eigenvalues have nearly the same absolute value, the iteration
    converges slowly; the residual shows it.
    """
    vector = start
    for iteration in range(1, most + 1):
        image = product(vector)
        value = (vector * image).sum(dim=1)
        length, following = norm_and_unit(image)
        off = (image - value[:, None] * vector).norm(dim=1)
        residual = torch.where(length > 0, off / value.abs().clamp(min=torch.finfo(off.dtype).tiny), 0.0)
        if bool((residual < tolerance).all()) or iteration == most:
            break
        vector = torch.where((length > 0)[:, None], following, vector)
    return Eigenvalue(value, residual, iteration, vector)


def input_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    numbers: Tensor,
    seed: int = 0,
    loss: Loss = cross_entropy,
    tolerance: float = 1e-3,
    most: int = 100,
) -> Eigenvalue:
    """Compute the largest Hessian eigenvalue of each image's loss in the image, in nats per squared unit pixel range.

    ``images`` ``(N, C, H, W)``; ``numbers`` ``(N,)`` name the images' random starts. The model is not changed.
    """
    with measuring(model), twice_differentiable():
        point = images.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(model(point), labels).sum(), point, create_graph=True)

        def product(vectors: Tensor) -> Tensor:
            return _product(slope, [point], vectors.reshape(images.shape))[0].flatten(1)

        size = images[0].numel()
        drawn = [torch.randn(size, generator=generator(seed, "curvature", number)) for number in numbers.tolist()]
        start = norm_and_unit(torch.stack(drawn))[1].to(images)
        return power_iteration(product, start, tolerance=tolerance, most=most)


def weight_curvature(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    loss: Loss = cross_entropy,
    tolerance: float = 1e-3,
    most: int = 100,
    advanced: Callable[[int, str], None] = lambda products, note: None,
) -> Eigenvalue:
    """Compute the largest Hessian eigenvalue of the mean loss in all parameters together; N is 1.

    ``batches`` are pairs of images ``(B, C, H, W)`` and labels ``(B,)``; only one batch has its graph in memory at a
    time. Batch norm uses its running statistics. The model is not changed.
    """
    count = sum(len(labels) for _, labels in batches)

    def product(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors[0])
        for images, labels in batches:
            total += len(labels) / count * _weight_product(model, images, labels, vectors[0], loss)
        advanced(1, "")
        return total[None]

    size = sum(parameter.numel() for parameter in model.parameters())
    drawn = torch.randn(1, size, generator=generator(seed, "weight curvature"))
    with measuring(model):
        return power_iteration(product, norm_and_unit(drawn)[1].to(batches[0][0]), tolerance=tolerance, most=most)


def weight_curvature_along(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], vector: Tensor, *, loss: Loss = cross_entropy
) -> Tensor:
    """Compute ``v' H_b v`` of each batch's own mean loss, ``(batches,)``, along the unit ``vector`` ``(D,)``.

    At the v of :func:`weight_curvature`, their mean weighted by batch sizes is the eigenvalue. To first order they give
    the change of the eigenvalue with a batch's weight, hence its jackknife.
    """
    with measuring(model):
        return torch.stack(
            [torch.dot(vector, _weight_product(model, images, labels, vector, loss)) for images, labels in batches]
        )


def _weight_product(model: nn.Module, images: Tensor, labels: Tensor, vector: Tensor, loss: Loss) -> Tensor:
    """Compute ``H v`` of a batch's mean loss in all parameters, ``(D,)``; the graph uses copies of the parameters."""
    copies = {name: parameter.detach().clone().requires_grad_(True) for name, parameter in model.named_parameters()}
    points = list(copies.values())
    with twice_differentiable():
        mean = loss(call_with(model, copies, images), labels).mean()
        return torch.cat([part.flatten() for part in hessian_product(mean, points, vector)])


def hessian_product(value: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    """Compute ``H v`` of the scalar ``value`` in all ``points`` together, in their shapes; ``vector`` is ``(D,)``."""
    slopes = torch.autograd.grad(value, points, create_graph=True, allow_unused=True, materialize_grads=True)
    return _product(torch.cat([part.flatten() for part in slopes]), points, vector)


def _product(slope: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    """Compute ``H v`` as gradient of ``<slope, v>``; zeros where the slope does not depend on a point (linear loss)."""
    if not slope.requires_grad:
        return [torch.zeros_like(point) for point in points]
    products = torch.autograd.grad(slope, points, vector, retain_graph=True, allow_unused=True)
    pairs = zip(products, points, strict=True)
    return [torch.zeros_like(point) if product is None else product for product, point in pairs]


def local_nonlinearity(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    project: Callable[[Tensor, Tensor], Tensor],
    steepest: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int = 10,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Measure ``max over d of |loss(x + d) - loss(x) - <d, g>|`` in the ball, ``(N,)`` (Qin et al. 2019).

    A short ascent searches for the maximum. ``project`` projects points into the ball around the images; ``steepest``
    turns a gradient into a step; both as in :class:`gradscope.attacks.threat.ThreatModel`. The ascent begins at
    ``start``, because the gap is flat at the image itself. Returns the largest gap seen, a lower bound of the maximum.
    """
    with measuring(model), twice_differentiable():
        centre = images.detach().requires_grad_(True)
        plain = loss(model(centre), labels)
        (slope,) = torch.autograd.grad(plain.sum(), centre)
        plain, largest, current = plain.detach(), torch.zeros_like(plain.detach()), start
        for step in range(steps + 1):
            point = current.detach().requires_grad_(True)
            linear = (flatten(point - images) * flatten(slope)).sum(dim=1)
            gap = (loss(model(point), labels) - plain - linear).abs()
            largest = torch.maximum(largest, gap.detach())
            if step < steps:
                (ascent,) = torch.autograd.grad(gap.sum(), point)
                current = project(point.detach() + steepest(ascent), images)
    return largest

"""Curvature of the loss: the Hessian eigenvalue of largest size, by power iteration on Hessian-vector products."""

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
    """Compute attention inside with the one kernel of torch's whose backward pass has a derivative itself."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True)
class Eigenvalue:
    """Eigenvalues of largest size ``(N,)``, the relative residual each reached ``(N,)``, and the iterations used.

    The residual is ``|H v - value v| / |value|`` for the unit vector v reached; where H v is 0 the value is 0 and so
    is the residual. ``vector`` ``(N, D)`` is v.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    vector: Tensor


def power_iteration(product: HessianProduct, start: Tensor, *, tolerance: float, most: int) -> Eigenvalue:
    """The eigenvalue of largest size of N symmetric matrices at once, from unit vectors ``start`` ``(N, D)``.

    v <- H v / |H v|, with the Rayleigh quotient <v, H v> as the value, until every residual is below ``tolerance``
    or ``most`` products have been taken. Two eigenvalues of nearly one size converge slowly: the residual tells.
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
    """Largest Hessian eigenvalue of each image's own loss in the image, in nats per squared unit pixel range.

    ``images`` ``(N, C, H, W)``; ``numbers`` ``(N,)`` name them, for their random start. The model is left as found.
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
    """Largest Hessian eigenvalue of the mean loss over the images in all parameters together; N is 1.

    ``batches`` are pairs of images ``(B, C, H, W)`` and labels ``(B,)``; one has its graph in memory at a time. Batch
    norm uses its running statistics. The model is left as found.
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
    """``v' H_b v`` of each batch's own mean loss, ``(batches,)``, along the unit ``vector`` ``(D,)``.

    At the v of :func:`weight_curvature` their mean, weighted by the batches' sizes, is its eigenvalue; an eigenvalue
    moves with the weight of a batch by them, to first order, so they give its jackknife.
    """
    with measuring(model):
        return torch.stack(
            [torch.dot(vector, _weight_product(model, images, labels, vector, loss)) for images, labels in batches]
        )


def _weight_product(model: nn.Module, images: Tensor, labels: Tensor, vector: Tensor, loss: Loss) -> Tensor:
    """``H v`` of the mean loss over a batch in all parameters, ``(D,)``; the graph is built on copies of them."""
    copies = {name: parameter.detach().clone().requires_grad_(True) for name, parameter in model.named_parameters()}
    points = list(copies.values())
    with twice_differentiable():
        mean = loss(call_with(model, copies, images), labels).mean()
        return torch.cat([part.flatten() for part in hessian_product(mean, points, vector)])


def hessian_product(value: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    """``H v`` of the scalar ``value`` in all ``points`` together, in their shapes; ``vector`` ``(D,)``."""
    slopes = torch.autograd.grad(value, points, create_graph=True, allow_unused=True, materialize_grads=True)
    return _product(torch.cat([part.flatten() for part in slopes]), points, vector)


def _product(slope: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    """``H v``: the gradient of ``<slope, v>``; zeros where the slope does not depend on a point (a linear loss)."""
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
    """``max over d of |loss(x + d) - loss(x) - <d, g>|`` in the ball, by a short ascent (Qin et al. 2019), ``(N,)``.

    ``project`` brings points back into the ball around the images, ``steepest`` makes a step from a gradient, both
    as :class:`gradscope.attacks.threat.ThreatModel` has them; ``start`` is where the ascent begins, for at the image
    itself the gap is flat. The largest gap of all points seen is returned: a lower bound of the maximum.
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

"""Spectrum of the loss's curvature: Hessian and Gauss-Newton matrix, in the weights or in the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.functional import norm_and_unit
from gradscope.losses import Loss, cross_entropy
from gradscope.models.inspection import call_with
from gradscope.probes.curvature import hessian_product, twice_differentiable
from gradscope.probes.lanczos import Eigenpairs, Krylov, Product, Quadrature
from gradscope.seeding import generator

#: Multiplies a matrix of second derivatives by a vector. The scalar ``value`` depends on the parameters ``points`` only
#: through ``logits``.
MatrixProduct = Callable[[Tensor, Tensor, list[Tensor], Tensor], list[Tensor]]

#: Number of points of a density's grid. The least width of a bump, relative to its eigenvalue and to the largest one.
GRID_POINTS = 801
_BUMP, _LEAST_BUMP = 0.02, 1e-4

#: Residuals below this share of the largest eigenvalue are rounding of float32.
_ROUNDING = 1e-6

#: Number of products between checks whether the eigenvalues have converged.
_LOOK_EVERY = 5


def _hessian(value: Tensor, logits: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    return hessian_product(value, points, vector)


def _gauss_newton(value: Tensor, logits: Tensor, points: list[Tensor], vector: Tensor) -> list[Tensor]:
    """Compute ``J' L J v``: J is the Jacobian of the logits, L the Hessian of the loss in them (Schraudolph 2002)."""
    grad_options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    ones = torch.zeros_like(logits, requires_grad=True)
    back = torch.autograd.grad(logits, points, ones, create_graph=True, **grad_options)
    # <J' ones, v> is linear in ones, with J v as its gradient.
    along = torch.cat([part.flatten() for part in back]) @ vector
    (moved,) = torch.autograd.grad(along, ones, retain_graph=True, **grad_options)
    (slope,) = torch.autograd.grad(value, logits, create_graph=True)
    (bent,) = torch.autograd.grad(slope, logits, moved, retain_graph=True, **grad_options)
    return list(torch.autograd.grad(logits, points, bent, **grad_options))


#: The matrices whose spectrum can be measured, by name.
MATRICES: dict[str, MatrixProduct] = {"hessian": _hessian, "gauss-newton": _gauss_newton}


def layers_of(model: nn.Module) -> dict[str, slice]:
    """Find the position of each layer's parameters in the flattened vector of all parameters, by module name.

    A layer is a module with parameters of its own; parameters of the model itself count under their own names. Names
    leave out modules that contain all others, such as wrappers.
    """
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0] or name
        if layer in sizes and layer != next(reversed(sizes)):
            layer = name  # its parameters are not contiguous: another module's lie between them
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    ends = np.cumsum(list(sizes.values())).tolist()
    parts = [layer.split(".") for layer in sizes]
    inside = 0
    while parts and all(len(part) > inside + 1 and part[inside] == parts[0][inside] for part in parts):
        inside += 1
    names = [".".join(part[inside:]) for part in parts]
    return {name: slice(end - size, end) for name, size, end in zip(names, sizes.values(), ends, strict=True)}


def weight_matrix(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    matrix: str = "hessian",
    part: slice = slice(None),
    loss: Loss = cross_entropy,
    advanced: Callable[[], None] = lambda: None,
) -> Product:
    """Make the product with a curvature matrix of the mean loss in the parameters, ``(1, D)`` to ``(1, D)``.

    ``batches`` are pairs of images ``(B, C, H, W)`` and labels ``(B,)``; only one batch has its graph in memory at a
    time. ``part`` selects a block of the flattened parameters. Batch norm uses its running statistics. ``advanced`` is
    called after every product. Call it inside :func:`gradscope.models.inspection.measuring`.
    """
    count = sum(len(labels) for _, labels in batches)
    multiply = MATRICES[matrix]
    chosen, rest = _chosen_parameters(model, part)

    def product(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors[0])
        for images, labels in batches:
            copies = {name: value.detach().clone().requires_grad_(True) for name, value in chosen.items()}
            with twice_differentiable():
                logits = call_with(model, copies | rest, images)
                value = loss(logits, labels).mean()
                parts = multiply(value, logits, list(copies.values()), vectors[0])
            total += len(labels) / count * torch.cat([block.detach().flatten() for block in parts])
        advanced()
        return total[None]

    return product


def _chosen_parameters(model: nn.Module, part: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the parameters into those whose entries lie in ``part`` and the others."""
    chosen: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    at = 0
    for name, parameter in model.named_parameters():
        inside = (part.start is None or at >= part.start) and (part.stop is None or at < part.stop)
        (chosen if inside else others)[name] = parameter.detach()
        at += parameter.numel()
    return chosen, others


def loss_slope(model: nn.Module, images: Tensor, labels: Tensor, *, of_weights: bool) -> Tensor:
    """Compute the gradient of the mean loss in the parameters or the images, flattened, with its autograd graph."""
    copies = {name: value.detach().clone().requires_grad_(of_weights) for name, value in model.named_parameters()}
    shown = images.detach().requires_grad_(not of_weights)
    points = list(copies.values()) if of_weights else [shown]
    with twice_differentiable():
        value = cross_entropy(call_with(model, copies, shown), labels).mean()
        slopes = torch.autograd.grad(value, points, create_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.flatten() for slope in slopes])


def input_matrix(
    model: nn.Module, images: Tensor, labels: Tensor, *, matrix: str = "hessian", loss: Loss = cross_entropy
) -> Product:
    """Make the products with the curvature matrices of N images' own losses in the image, ``(N, D)`` to ``(N, D)``.

    Images ``(N, C, H, W)``, labels ``(N,)``. Call it inside :func:`gradscope.models.inspection.measuring`.
    """
    multiply = MATRICES[matrix]

    def product(vectors: Tensor) -> Tensor:
        point = images.detach().requires_grad_(True)
        with twice_differentiable():
            logits = model(point)
            # An image's loss does not depend on other images, so the joint product equals the separate ones.
            (products,) = multiply(loss(logits, labels).sum(), logits, [point], vectors.flatten())
        return products.detach().flatten(1)

    return product


def is_cut_off(slope: Tensor) -> bool:
    """Tell whether autograd's graph of the gradient ``slope`` ends at a function without a second derivative.

    autograd skips such a function silently, as if the loss were flat, if no derivative beyond it is requested.
    """
    seen, left = set(), [slope.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False


def find_eigenpairs(
    product: Product, start: Tensor, stream: torch.Generator, *, count: int, most: int, tolerance: float = 1e-3
) -> tuple[Eigenpairs, int]:
    """Find the ``count`` eigenvalues of largest absolute value from random unit vectors ``start`` ``(N, D)``.

    Also returns the number of products made. Lanczos continues until every residual is below ``tolerance`` times its
    eigenvalue or is rounding relative to the largest one, or until ``most`` products are made.
    """
    space = Krylov(product, start, stream, most=most)
    while True:
        space.grow(min(most, space.steps + _LOOK_EVERY if space.steps else count + _LOOK_EVERY))
        values, residuals = space.extremes(count)
        rounding = _ROUNDING * values.abs().amax(dim=1, keepdim=True)
        done = bool((residuals <= torch.maximum(tolerance * values.abs(), rounding)).all()) and values.shape[1] == count
        if done or space.steps >= min(most, start.shape[1]):
            return space.eigenpairs(count), space.steps


@dataclass(frozen=True)
class Probe:
    """Estimates for N matrices from one random vector each: ``quadrature`` of the spectrum, and traces.

    ``traces`` ``(N, P)``: the contribution of each of P parts of the diagonal; their sum estimates the trace.
    """

    quadrature: Quadrature
    traces: Tensor


def probe(
    product: Product,
    signs: Tensor,
    stream: torch.Generator,
    *,
    most: int,
    parts: Sequence[slice] = (slice(None),),
    known: Eigenpairs | None = None,
) -> Probe:
    """Run Lanczos for ``most`` products from ``signs`` ``(N, D)``, drawn from -1 and 1 (Hutchinson 1989).

    ``trace H = E[v' H v]``, and for the diagonal ``E[v_i (H v)_i] = H_ii``. ``known`` eigenpairs, found from another
    random vector, reduce the noise of the estimate and leave it unbiased: the trace of ``K = sum of value u u'`` is
    known exactly, so only the trace of H - K is estimated.
    """
    size = signs.shape[1]
    first_image: list[Tensor] = []

    def recorded(vectors: Tensor) -> Tensor:
        image = product(vectors)
        if not first_image:
            first_image.append(image)
        return image

    space = Krylov(recorded, signs / size**0.5, stream, most=most)
    space.grow(most, beyond=False)
    image = first_image[0].double() * size**0.5
    trace_of_known = torch.zeros_like(image)
    if known is not None:
        values, vectors = known.values.to(image), known.vectors.to(image)
        inner = torch.einsum("nkd,nd->nk", vectors, signs.double())
        image = image - torch.einsum("nk,nkd->nd", values * inner, vectors)
        trace_of_known = torch.einsum("nk,nkd->nd", values, vectors.square())
    diagonal = signs.double() * image + trace_of_known
    traces = torch.stack([diagonal[:, part].sum(dim=1) for part in parts], dim=1)
    return Probe(space.quadrature(), traces.cpu())


def random_signs(shape: tuple[int, ...], seed: int, *names: object) -> Tensor:
    """Draw -1 and 1 with equal probability, float32, from the stream ``names``."""
    return torch.randint(0, 2, shape, generator=generator(seed, *names)).float() * 2 - 1


def random_unit(shape: tuple[int, int], seed: int, *names: object) -> Tensor:
    """Draw random unit vectors ``(N, D)``, float32, from the stream ``names``."""
    return norm_and_unit(torch.randn(shape, generator=generator(seed, *names)))[1]


def density_grid(quadratures: Sequence[Quadrature]) -> tuple[NDArray[np.float64], float]:
    """Make the grid of eigenvalues for a density, denser near 0, and the least width of its bumps."""
    nodes = torch.cat([quadrature.nodes.flatten() for quadrature in quadratures])
    low, high = float(nodes.min()), float(nodes.max())
    least = _LEAST_BUMP * (max(abs(high), abs(low)) or 1.0)
    room = 5 * (_BUMP * max(abs(high), abs(low)) + least)
    # Even steps of asinh(eigenvalue / least): linear near 0, logarithmic farther away.
    ends = np.arcsinh(np.array([low - room, high + room]) / least)
    return least * np.sinh(np.linspace(ends[0], ends[1], GRID_POINTS)), least


def densities(quadrature: Quadrature, grid: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Compute spectral densities ``sum of weights * normal density(grid; node, width)``, ``(N, G)``, each of area 1.

    The width of a bump is the uncertainty of its node, combined with 2 % of the node and ``least``, so that unresolved
    parts are smooth.
    """
    nodes, weights, widths = (
        part.numpy()[..., None] for part in (quadrature.nodes, quadrature.weights, quadrature.widths)
    )
    widths = np.sqrt(widths**2 + (_BUMP * nodes) ** 2 + least**2)
    bumps = np.exp(-0.5 * np.square((grid - nodes) / widths)) / (widths * np.sqrt(2 * np.pi))
    values: NDArray[np.float64] = (weights * bumps).sum(axis=1)
    return values


def masses(quadrature: Quadrature) -> Tensor:
    """Compute ``sum of weights * |node|`` over the negative eigenvalues and over all, ``(N, 2)``."""
    size = quadrature.weights * quadrature.nodes.abs()
    negative = torch.where(quadrature.nodes < 0, size, 0.0)
    return torch.stack([negative.sum(dim=1), size.sum(dim=1)], dim=1)

"""Formulas on tensors, each written once. This module knows no files, models or configurations."""

import math

import torch
from torch import Tensor

#: Longest row whose norm torch computes in float32 without losing digits. With two million entries the norm is wrong by
#: 1 in 25,000 on a CPU; the square root of a sum of squares is not.
_WIDE = 2**16


def flatten(batch: Tensor) -> Tensor:
    """Flatten each sample: ``(N, ...)`` to ``(N, D)``.

    >>> flatten(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """
    return batch.reshape(batch.shape[0], -1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value a sample, ``(N,)``, to ``(N, 1, ...)``, so that it broadcasts against ``like``.

    >>> per_sample(torch.zeros(2), torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 1, 1, 1])
    """
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def norm_and_unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the Euclidean norms ``(N,)`` and unit vectors ``(N, D)`` of the rows of ``(N, D)``, exact for tiny rows.

    Each row is first divided by its largest entry, so that the squares neither underflow nor overflow. A row of
    zeros has norm 0 and stays zero.

    >>> norm_and_unit(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))[1]
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    scale = vectors.abs().amax(dim=1, keepdim=True)
    scaled = vectors / torch.where(scale > 0, scale, 1.0)
    if vectors.shape[1] > _WIDE:
        scaled_norm = scaled.square().sum(dim=1, keepdim=True).sqrt()
    else:
        scaled_norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = scaled.div_(torch.where(scaled_norm > 0, scaled_norm, 1.0))
    return (scale * scaled_norm).squeeze(1), unit


#: Codes of :func:`blindness` for a gradient without a direction; the larger code is the worse case.
ZERO, NOT_FINITE = 1, 2


def blindness(gradients: Tensor) -> Tensor:
    """Mark gradients ``(N, ...)`` without a direction: 2 where any entry is NaN or infinite, 1 where all are 0, else 0.

    Returns uint8 ``(N,)``.

    >>> blindness(torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, torch.nan]]))
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    largest = gradients.abs().amax(dim=tuple(range(1, gradients.dim())))
    codes: Tensor = (largest == 0) * ZERO + ~largest.isfinite() * NOT_FINITE
    return codes.to(torch.uint8)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Compute the cosine ``<first, second>``, ``(N,)``, of unit vectors ``(N, D)``; NaN (undefined) if a row is zero.

    >>> cosine(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    tensor([1., nan])
    """
    defined = first.any(dim=1) & second.any(dim=1)
    return torch.where(defined, (first * second).sum(dim=1).clamp(-1, 1), math.nan)


def first_order_gap(offsets: Tensor, units: Tensor, norm: str, epsilon: float) -> Tensor:
    """Compute the relative FOSC ``1 - <x_t - x, g> / (epsilon |g|_*)``: the first-order gain left in the ball.

    This is the first-order stationary condition of Wang et al. 2019, divided by ``epsilon |g|_*``. It is 0 at the point
    of the ball that the gradient g points to, 1 at the centre, 2 at the opposite point. Scaling g does not change it.
    ``offsets`` ``(N, D)`` are x_t - x; ``units`` ``(N, D)`` are the directions of g; the result is ``(N,)``. ``|g|_*``
    is the L1 norm in "linf" and the L2 norm in "l2". NaN (undefined) where g is 0.

    >>> first_order_gap(torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "l2", 1.0)
    tensor([0.5000,    nan])
    """
    gained = torch.linalg.vecdot(offsets, units)
    dual = units.abs().sum(dim=1) if norm == "linf" else torch.ones_like(gained)
    return torch.where(units.any(dim=1), (1 - gained / (epsilon * dual)).clamp(0, 2), math.nan)


def sign_agreement(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the share of coordinates with equal sign, and the share that is zero in ``first`` or ``second``.

    Compares the rows of ``(N, D)`` and returns two tensors ``(N,)``. The first share is among the coordinates that are
    non-zero in both; NaN (undefined) where there are none.

    >>> sign_agreement(torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[3.0, 1.0, 1.0]]))
    (tensor([0.5000]), tensor([0.3333]))
    """
    products = first.sign() * second.sign()
    agree = (products > 0).sum(dim=1)
    both = (products != 0).sum(dim=1)
    return agree / both, 1 - both / first.shape[1]


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of ``softmax(logits)`` over the last axis, in bits; finite on a saturated softmax.

    >>> entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]]))
    tensor([2., 0.])
    """
    nats: Tensor = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)
    return nats / math.log(2)


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """Select the largest logit of the wrong classes, ``max over j != y of z_j``, ``(N,)``, from logits ``(N, K)``.

    >>> largest_other(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([2.])
    """
    masked = logits.scatter(1, labels.unsqueeze(1), -math.inf)
    return masked.amax(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the margin ``z_y - max over j != y of z_j``, ``(N,)``, in logits; positive where the prediction is right.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1) - largest_other(logits, labels)


def mean_pairwise_cosine(sum_of_units: Tensor, count: Tensor) -> Tensor:
    """Compute the mean cosine over the pairs of T unit vectors from their sum alone: ``(|sum|^2 - T) / (T (T - 1))``.

    ``sum_of_units`` is ``(N, D)``, ``count`` is T ``(N,)``, the result ``(N,)``. NaN (undefined) where T < 2.

    >>> mean_pairwise_cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([2.0]))
    tensor([0.])
    """
    squared = sum_of_units.square().sum(dim=1)
    value = ((squared - count) / (count * (count - 1))).clamp(max=1)
    return value.where(count >= 2, math.nan)


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Mark the images ``(N,)`` that the model gets wrong; an image whose logits are not all finite counts as wrong.

    >>> fooled(torch.tensor([[2.0, 1.0], [0.0, 1.0], [torch.inf, 0.0]]), torch.tensor([0, 0, 0]))
    tensor([False,  True,  True])
    """
    return (logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error ``sum over bins of |B| / N * |accuracy(B) - confidence(B)|``.

    Source: Guo et al. 2017. The confidence is the largest probability of ``softmax(logits)``; the bins divide (0, 1]
    into equal widths. Logits are ``(N, K)``, labels ``(N,)``.

    >>> round(calibration_error(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 1])), 6)
    0.5
    """
    confidence, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    gap = (predicted == labels).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(gap.new_zeros(bins).index_add_(0, bin_of, gap).abs().sum()) / len(gap)

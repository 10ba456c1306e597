"""Formulas on tensors. One formula, one place; no file, model or configuration is known here."""

import math

import torch
from torch import Tensor

#: Of rows so wide torch's norm in float32 loses digits: 1 in 25,000 of two million entries on a CPU. Its sum does not.
_WIDE = 2**16


def flatten(batch: Tensor) -> Tensor:
    """``(N, ...)`` to ``(N, D)``."""
    return batch.reshape(batch.shape[0], -1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``(N,)`` to ``(N, 1, ...)``, ready to broadcast against ``like``."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def norm_and_unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean norm ``(N,)`` and unit vectors ``(N, D)`` of the rows of ``(N, D)``, exact for tiny rows.

    Each row is scaled by its largest entry first, so the squares neither underflow nor overflow. A row of
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


#: What :func:`blindness` says of a gradient that shows no way, the worse the larger.
ZERO, NOT_FINITE = 1, 2


def blindness(gradients: Tensor) -> Tensor:
    """Which of ``(N, ...)`` show no way: 2 where one is NaN or infinite somewhere, 1 where it is 0, else 0; uint8.

    >>> blindness(torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, torch.nan]]))
    tensor([0, 1, 2], dtype=torch.uint8)
    """
    largest = gradients.abs().amax(dim=tuple(range(1, gradients.dim())))
    found: Tensor = (largest == 0) * ZERO + ~largest.isfinite() * NOT_FINITE
    return found.to(torch.uint8)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """``<first, second>`` of unit vectors ``(N, D)``; NaN, "undefined", where either row is zero.

    >>> cosine(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    tensor([1., nan])
    """
    defined = first.any(dim=1) & second.any(dim=1)
    return torch.where(defined, (first * second).sum(dim=1).clamp(-1, 1), math.nan)


def first_order_gap(offsets: Tensor, units: Tensor, norm: str, epsilon: float) -> Tensor:
    """``1 - <x_t - x, g> / (epsilon |g|_*)``: what a ball has left to first order, as a share of all (FOSC).

    Wang et al. 2019's first-order stationary condition over its largest value inside the ball: 0 at the point that the
    gradient g points to, 1 at the centre, 2 opposite; no scale of g changes it. ``offsets`` ``(N, D)`` are x_t - x, and
    ``units`` ``(N, D)`` the directions of g; ``|g|_*`` is L1 in "linf" and L2 in "l2". NaN, "undefined", where g is 0.

    >>> first_order_gap(torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "l2", 1.0)
    tensor([0.5000,    nan])
    """
    gained = torch.linalg.vecdot(offsets, units)
    dual = units.abs().sum(dim=1) if norm == "linf" else torch.ones_like(gained)
    return torch.where(units.any(dim=1), (1 - gained / (epsilon * dual)).clamp(0, 2), math.nan)


def sign_agreement(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Share of coordinates with equal sign among those non-zero in both, and share zero in either.

    Rows of ``(N, D)``; the first is NaN, "undefined", where no coordinate is non-zero in both.

    >>> sign_agreement(torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[3.0, 1.0, 1.0]]))
    (tensor([0.5000]), tensor([0.3333]))
    """
    products = first.sign() * second.sign()
    agree = (products > 0).sum(dim=1)
    both = (products != 0).sum(dim=1)
    return agree / both, 1 - both / first.shape[1]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(logits)`` over the last axis, in bits; finite on a saturated softmax.

    >>> entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]]))
    tensor([2., 0.])
    """
    nats: Tensor = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)
    return nats / math.log(2)


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """``max over j != y of z_j``, ``(N,)``, of logits ``(N, K)``."""
    masked = logits.scatter(1, labels.unsqueeze(1), -math.inf)
    return masked.amax(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``z_y - max over j != y of z_j``, in logits, ``(N,)``; positive where the prediction is right.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1) - largest_other(logits, labels)


def mean_pairwise_cosine(sum_of_units: Tensor, count: Tensor) -> Tensor:
    """``(|sum|^2 - T) / (T (T - 1))``: mean cosine over the pairs of T unit vectors, from their sum ``(N, D)``.

    ``count`` is T, ``(N,)``. NaN, "undefined", where T < 2.

    >>> mean_pairwise_cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([2.0]))
    tensor([0.])
    """
    squared = sum_of_units.square().sum(dim=1)
    value = ((squared - count) / (count * (count - 1))).clamp(max=1)
    return value.where(count >= 2, math.nan)


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images ``(N,)`` the model gets wrong. Logits that are not all finite are wrong: no argmax is the label."""
    return (logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): ``sum over bins of |B| / N * |accuracy(B) - confidence(B)|``.

    The bins divide (0, 1], where the largest probability of ``softmax(logits)`` lies, into equal widths. Logits
    ``(N, K)``, labels ``(N,)``.

    >>> round(calibration_error(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 1])), 6)
    0.5
    """
    confidence, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    gap = (predicted == labels).double() - confidence
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(gap.new_zeros(bins).index_add_(0, places, gap).abs().sum()) / len(gap)

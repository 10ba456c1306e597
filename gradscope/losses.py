"""Per-sample losses an attacker climbs: logits ``(N, K)`` and labels ``(N,)`` to ``(N,)``. Never reduced here."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscope.errors import GradscopeError
from gradscope.functional import largest_other, margin

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(z)_y``, in nats. In float32 its gradient vanishes once the margin passes about 104."""
    return F.cross_entropy(logits, labels, reduction="none")


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """``log((1 - p_y) / p_y) = logsumexp over j != y of z_j, - z_y``, in nats: cross-entropy is its softplus.

    In exact arithmetic its gradient has the direction of cross-entropy's, and an attack that normalises its steps
    takes the same path. Here it is computed without the cancellation that blinds cross-entropy: it never saturates.
    """
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.logsumexp(dim=1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``max over j != y of z_j - z_y``, in logits (Carlini and Wagner 2017, without the floor). Never saturates."""
    return -margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020): ``-(z_y - max z_j) / (z_(1) - z_(3) + 1e-12)``.

    Unchanged by any shift or scale of the logits. Needs at least three classes.
    """
    if logits.shape[1] < 3:
        raise GradscopeError(f"loss: 'dlr' needs at least 3 classes, the model has {logits.shape[1]}; use 'margin'")
    top = logits.topk(3, dim=1).values
    right = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -(right - largest_other(logits, labels)) / (top[:, 0] - top[:, 2] + 1e-12)


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(z / gap)_y``, ``gap = max(z_(1) - z_(2), 1e-12)`` of the same sample and constant in z; in nats.

    After Yu and Xu 2023 (MIFPE). The two largest logits are always 1 apart, so the loss of a right prediction stays
    between log(1 + 1/e) and log(1 + (K - 1)/e) and its gradient never vanishes. Unchanged by any shift or scale of
    the logits.
    """
    top = logits.detach().topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).clamp(min=1e-12)
    return cross_entropy(logits / gap.unsqueeze(1), labels)


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "log-odds": log_odds,
    "margin": margin_loss,
    "dlr": dlr,
    "rescaled-cross-entropy": rescaled_cross_entropy,
}


def expected_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """``softmax(z)_y``: the chance that an action drawn from the policy is the label."""
    return torch.softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

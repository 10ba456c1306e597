"""Losses that an attack maximises: logits ``(N, K)`` and labels ``(N,)`` to one loss a sample ``(N,)``, not reduced."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscope.errors import GradscopeError
from gradscope.functional import largest_other, margin

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute ``-log softmax(z)_y``, in nats. In float32 its gradient is exactly 0 once the margin passes about 104.

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    return F.cross_entropy(logits, labels, reduction="none")


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute ``log((1 - p_y) / p_y) = (logsumexp over j != y of z_j) - z_y``, in nats. Never saturates.

    Cross-entropy is the softplus of this loss. In exact arithmetic both gradients have the same direction, so an attack
    that normalises its steps takes the same path. In float32 cross-entropy loses its gradient to cancellation; this
    form has none.

    >>> log_odds(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    tensor([-200.])
    """
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.logsumexp(dim=1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute ``(max over j != y of z_j) - z_y``, in logits (Carlini and Wagner 2017, no floor). Never saturates.

    >>> margin_loss(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    return -margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the difference of logits ratio ``-(z_y - max over j != y of z_j) / (z_(1) - z_(3) + 1e-12)``.

    Source: Croce and Hein 2020; z_(1) and z_(3) are the largest and third largest logit. Shifting or scaling the logits
    does not change it. Raises :class:`GradscopeError` with fewer than three classes.

    >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-0.5000])
    """
    if logits.shape[1] < 3:
        raise GradscopeError(f"loss: 'dlr' needs at least 3 classes, the model has {logits.shape[1]}; use 'margin'")
    top = logits.topk(3, dim=1).values
    right = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -(right - largest_other(logits, labels)) / (top[:, 0] - top[:, 2] + 1e-12)


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy with the two largest logits scaled to be 1 apart: ``-log softmax(z / gap)_y``, in nats.

    ``gap = max(z_(1) - z_(2), 1e-12)`` of the same sample, held constant in the gradient (Yu and Xu 2023, MIFPE). The
    loss of a right prediction stays between log(1 + 1/e) and log(1 + (K - 1)/e), so its gradient never vanishes.
    Shifting or scaling the logits does not change it.

    >>> rescaled_cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    tensor([0.3133])
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
    """Compute ``softmax(z)_y``, ``(N,)``: the probability that an action sampled from the policy is the label.

    >>> expected_accuracy(torch.zeros(1, 4), torch.tensor([0]))
    tensor([0.2500])
    """
    return torch.softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

"""Running sums of an epoch of training."""

import math
from pathlib import Path

import torch
from torch import Tensor

from gradscope.errors import GradscopeError


class Totals:
    """Sums over an epoch, kept on the device: loss, right predictions, rewards, images."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.rewarded = False

    def add(self, losses: Tensor, right: Tensor, rewards: Tensor | None) -> None:
        """Add one batch's per-sample values."""
        self.rewarded = rewards is not None
        reward = rewards.sum() if rewards is not None else torch.zeros((), device=losses.device)
        count = torch.full((), float(len(losses)), device=losses.device)
        self.sums += torch.stack([losses.sum(), right.sum(), reward, count])

    def require_finite(self, epoch: int, out: Path) -> None:
        """Stop a run whose loss is not finite."""
        if not math.isfinite(float(self.sums[0])):
            kept = f"the last good checkpoint is {out}" if out.exists() else "there is no checkpoint yet"
            raise GradscopeError(
                f"loss: it is not finite in epoch {epoch}; lower the learning rate or set clip_norm; {kept}"
            )

    @property
    def images(self) -> int:
        """Images trained on, by all processes."""
        return int(self.sums[3])

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.sums[0] / self.sums[3])

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float(self.sums[1] / self.sums[3])

    @property
    def reward(self) -> float | None:
        """Mean reward; None where no actions were sampled."""
        return float(self.sums[2] / self.sums[3]) if self.rewarded else None

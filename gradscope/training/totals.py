"""Running sums of an epoch of training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Means:
    """The results of an epoch so far: mean loss, share of right predictions, mean reward, images trained on."""

    loss: float
    accuracy: float
    reward: float
    images: int


class Totals:
    """Sums over an epoch in one tensor on the device: loss, right predictions, rewards, images."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def begin(self) -> None:
        """Reset the sums for another epoch."""
        self.sums.zero_()

    def add(self, losses: Tensor, right: Tensor, rewards: Tensor | None) -> None:
        """Add one batch's per-sample values."""
        reward = rewards.sum() if rewards is not None else torch.zeros((), device=losses.device)
        count = torch.full((), float(len(losses)), device=losses.device)
        self.sums += torch.stack([losses.sum(), right.sum(), reward, count])

    def means(self, summed: Callable[[Tensor], Tensor] = Tensor.clone) -> Means:
        """Compute the means of this process, or of all if ``summed`` adds their sums; this waits for the device."""
        loss, right, reward, images = summed(self.sums).tolist()
        return Means(loss / images, right / images, reward / images, int(images))

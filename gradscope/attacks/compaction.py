"""When to remove fooled images from a batch. Removal copies the rest, and on a GPU the CPU waits for the count."""

import torch
from torch import Tensor

from gradscope.functional import per_sample

#: By device: the number of steps between counts, and the share of the batch that must be fooled before the batch
#: shrinks. On a CPU each removed image saves work at once. On a GPU the count waits for all queued work, and a batch
#: takes as long as one of twice its size.
SHRINKING = {"cpu": (1, 0.0), "cuda": (10, 0.5)}


def who_stays(standing: Tensor, step: int) -> Tensor | None:
    """Return the indices ``(M,)`` of images that stay in the batch after ``step``; None if the batch does not change.

    ``standing`` ``(N,)`` marks the images not yet fooled.
    """
    every, share = SHRINKING.get(standing.device.type, SHRINKING["cuda"])
    if step % every:
        return None
    stay = standing.nonzero().squeeze(1)
    fooled = len(standing) - len(stay)
    return stay if fooled and fooled >= share * len(standing) else None


def replaced(into: Tensor, rows: Tensor, chosen: Tensor, values: Tensor) -> None:
    """Assign ``into[rows[chosen]] = values[chosen]`` without counting ``chosen`` ``(M,)``: on a GPU a count waits."""
    into[rows] = torch.where(per_sample(chosen, values), values, into[rows])

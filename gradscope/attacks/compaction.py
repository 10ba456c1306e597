"""When images that have fallen leave the batch: what is left of it is copied, and on a GPU the count is waited for."""

import torch
from torch import Tensor

from gradscope.functional import per_sample

#: By device: every how many steps the images are counted, and what share of the batch must have fallen for it to
#: shrink. On a CPU every image less is less work at once. A GPU's answer waits for all work before it, and a batch
#: takes it as long as one of twice its size.
SHRINKING = {"cpu": (1, 0.0), "cuda": (10, 0.5)}


def who_stays(standing: Tensor, step: int) -> Tensor | None:
    """The places ``(M,)`` of the images that stay in the batch after ``step``; None where none leaves it now.

    ``standing`` ``(N,)`` are those that have not fallen.
    """
    every, share = SHRINKING.get(standing.device.type, SHRINKING["cuda"])
    if step % every:
        return None
    stay = standing.nonzero().squeeze(1)
    fallen = len(standing) - len(stay)
    return stay if fallen and fallen >= share * len(standing) else None


def replaced(into: Tensor, rows: Tensor, chosen: Tensor, values: Tensor) -> None:
    """``into[rows[chosen]] = values[chosen]``, without counting the ``chosen`` ``(M,)``: a GPU would wait for that."""
    into[rows] = torch.where(per_sample(chosen, values), values, into[rows])

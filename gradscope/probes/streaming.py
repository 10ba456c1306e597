"""Running sums for the statistics of a path; their memory does not grow with the number of images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gradscope.results.stats import Interval, jackknife_interval

Array = NDArray[np.float64]

JACKKNIFE_GROUPS = 10


class Moments:
    """Count, mean and sum of squared deviations at each step, merged batch by batch (Chan et al. 1979)."""

    def __init__(self, steps: int) -> None:
        self.n = np.zeros(steps, dtype=np.int64)
        self.undefined = np.zeros(steps, dtype=np.int64)
        self.mean = np.zeros(steps)
        self.squares = np.zeros(steps)

    @classmethod
    def of(cls, state: Array) -> "Moments":
        """Restore the moments from their :attr:`state`."""
        moments = cls(state.shape[1])
        moments.n, moments.undefined = (row.astype(np.int64) for row in state[:2])
        moments.mean, moments.squares = state[2].copy(), state[3].copy()
        return moments

    @property
    def state(self) -> Array:
        """The complete state, ``(4, steps)``, for a later :meth:`of`."""
        return np.stack([self.n, self.undefined, self.mean, self.squares])

    def add(self, values: Array) -> None:
        """Merge a batch ``(steps, B)``; NaN values are undefined and only counted."""
        defined = ~np.isnan(values)
        n = defined.sum(axis=1)
        filled = np.where(defined, values, 0.0)
        mean = filled.sum(axis=1) / np.maximum(n, 1)
        squares = np.where(defined, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
        total = self.n + n
        shift = mean - self.mean
        weight = n / np.maximum(total, 1)
        self.squares += squares + shift**2 * self.n * weight
        self.mean += shift * weight
        self.n = total
        self.undefined += values.shape[1] - n

    @property
    def std(self) -> Array:
        """Sample standard deviation at each step; NaN with fewer than two values."""
        std: Array = np.sqrt(np.divide(self.squares, self.n - 1, out=np.full(len(self.n), np.nan), where=self.n > 1))
        return std


class Directions:
    """Sums of unit gradients at each step, for ten groups of images; they give the dispersion and its jackknife.

    Memory: 10 * steps * D float32 numbers, on the gradients' device. Batches are merged in order, because float32 sums
    in another order round differently.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._sums: list[Tensor | None] = [None] * steps
        self._counts: list[Tensor | None] = [None] * steps

    @staticmethod
    def membership(numbers: Tensor, units: Tensor) -> Tensor:
        """Assign each image of a batch to a group by its number; one-hot ``(10, B)``."""
        groups = F.one_hot(numbers % JACKKNIFE_GROUPS, JACKKNIFE_GROUPS)
        return groups.T.to(units.device, units.dtype)

    def add(self, step: int, units: Tensor, membership: Tensor) -> None:
        """Add the unit gradients ``(B, D)`` of a batch at ``step``; zero rows are not counted."""
        self._add(step, membership @ units, membership @ units.any(dim=1).to(units.dtype))

    def merge(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sums ``(steps, 10, D)`` and counts ``(steps, 10)`` of another batch."""
        for step, (of_step, count) in enumerate(zip(sums, counts, strict=True)):
            self._add(step, of_step, count)

    def totals(self) -> tuple[Tensor, Tensor]:
        """Sums ``(steps, 10, D)`` and counts ``(steps, 10)``, on the CPU; every step must have been added."""
        kept = ([part for part in parts if part is not None] for parts in (self._sums, self._counts))
        sums, counts = (torch.stack(parts).cpu() for parts in kept)  # one copy each from a GPU
        return sums, counts

    def _add(self, step: int, sums: Tensor, counts: Tensor) -> None:
        known_sums, known_counts = self._sums[step], self._counts[step]
        self._sums[step] = sums if known_sums is None else known_sums.add_(sums)
        self._counts[step] = counts if known_counts is None else known_counts.add_(counts)

    def count(self, step: int) -> int:
        """Count the non-zero gradients at ``step``."""
        counts = self._counts[step]
        return 0 if counts is None else round(float(counts.sum()))

    def estimates(self, step: int) -> Array:
        """Compute ``1 - |mean unit gradient|`` over the set, then with each group left out; NaN if none is left."""
        sums, counts = self._sums[step], self._counts[step]
        if sums is None or counts is None:
            return np.full(1 + JACKKNIFE_GROUPS, np.nan)
        groups, sizes = sums.double().cpu(), counts.double().cpu()
        total = groups.sum(dim=0)
        norms = torch.stack([total, *(total - groups)]).norm(dim=1)
        n = sizes.sum() - torch.cat([torch.zeros(1, dtype=torch.float64), sizes])
        used = torch.cat([torch.ones(1, dtype=torch.bool), sizes > 0])
        values: Array = torch.where((n > 0) & used, (1 - norms / n).clamp(min=0), torch.nan).numpy()
        return values

    def dispersion(self, step: int) -> tuple[float, Interval]:
        """Compute the dispersion at ``step`` and its interval."""
        return _with_jackknife(self.estimates(step))

    def mean_dispersion(self) -> tuple[float, Interval]:
        """Compute the mean dispersion over the path and its interval."""
        return _with_jackknife(np.mean([self.estimates(step) for step in range(self.steps)], axis=0))


def _with_jackknife(estimates: Array) -> tuple[float, Interval]:
    value, left_out = float(estimates[0]), estimates[1:]
    return value, jackknife_interval(value, left_out[~np.isnan(left_out)].tolist()).within(0, 1)

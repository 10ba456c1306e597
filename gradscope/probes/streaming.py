"""Running sums from which the statistics of a path come: they do not grow with the number of images."""

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

    def add(self, values: Array) -> None:
        """Merge a batch ``(steps, B)``; NaN is "undefined" and only counted."""
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
        """Sample standard deviation at each step; NaN below two values."""
        std: Array = np.sqrt(np.divide(self.squares, self.n - 1, out=np.full(len(self.n), np.nan), where=self.n > 1))
        return std


class Directions:
    """Sums of unit gradients at each step in ten groups of images: the dispersion and its jackknife.

    Memory: 10 * steps * D float32 on the device.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.counts = torch.zeros(steps, JACKKNIFE_GROUPS, dtype=torch.float64)
        self._sums: list[Tensor | None] = [None] * steps

    def add(self, step: int, units: Tensor, indices: Tensor) -> None:
        """Add the unit gradients ``(B, D)`` of the images ``indices`` at ``step``; zero rows are not counted."""
        groups = (indices % JACKKNIFE_GROUPS).to(units.device)
        one_hot = F.one_hot(groups, JACKKNIFE_GROUPS).to(units.dtype)
        sums = self._sums[step]
        self._sums[step] = one_hot.T @ units if sums is None else sums.addmm_(one_hot.T, units)
        self.counts[step] += (one_hot.T @ units.any(dim=1).to(units.dtype)).double().cpu()

    def estimates(self, step: int) -> Array:
        """``1 - |mean unit gradient|`` over the set, then the same with each group left out; NaN where none is left."""
        sums, counts = self._sums[step], self.counts[step]
        if sums is None:
            return np.full(1 + JACKKNIFE_GROUPS, np.nan)
        groups = sums.double().cpu()
        total = groups.sum(dim=0)
        norms = torch.stack([total, *(total - groups)]).norm(dim=1)
        n = counts.sum() - torch.cat([torch.zeros(1, dtype=torch.float64), counts])
        used = torch.cat([torch.ones(1, dtype=torch.bool), counts > 0])
        return torch.where((n > 0) & used, 1 - norms / n, torch.nan).numpy()

    def dispersion(self, step: int) -> tuple[float, Interval]:
        """Dispersion at ``step`` and its interval."""
        return _with_jackknife(self.estimates(step))

    def mean_dispersion(self) -> tuple[float, Interval]:
        """Mean of the dispersion over the path and its interval."""
        return _with_jackknife(np.mean([self.estimates(step) for step in range(self.steps)], axis=0))


def _with_jackknife(estimates: Array) -> tuple[float, Interval]:
    value, left_out = float(estimates[0]), estimates[1:]
    return value, jackknife_interval(value, left_out[~np.isnan(left_out)].tolist())

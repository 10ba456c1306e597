"""Intervals: all at 95 %, all from scipy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

#: How each interval is made; copied into every manifest.
METHODS = {
    "accuracy": "Wilson score interval over images, 95 %",
    "beyond-adversarial": "Wilson score interval over images, 95 %",
    "dispersion": "delete-a-group jackknife over 10 groups of images, Student t, 95 %",
    "weight space": "delete-a-group jackknife over 10 groups of images, Student t, Wilson for accuracy; 95 %",
    "all others": "Student t interval of the mean over images, 95 %; cut where the metric's range ends",
}


class Interval(NamedTuple):
    """Lower and upper end; both NaN where the data do not define them."""

    low: float
    high: float

    def within(self, low: float, high: float) -> "Interval":
        """The part of the interval where the quantity can be; NaN stays NaN."""
        return Interval(float(np.clip(self.low, low, high)), float(np.clip(self.high, low, high)))


UNDEFINED = Interval(math.nan, math.nan)


def mean_interval(mean: float, std: float, n: int) -> Interval:
    """Student t interval of a mean from the sample standard deviation ``std`` of ``n`` values."""
    if n < 2:
        return UNDEFINED
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean - half, mean + half)


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson score interval of a rate (Wilson 1927)."""
    if n == 0:
        return UNDEFINED
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def jackknife_interval(value: float, leave_one_out: Sequence[float]) -> Interval:
    """Interval of ``value`` from the estimates that leave out one group each (Efron and Tibshirani 1993, ch. 11)."""
    groups = len(leave_one_out)
    if groups < 2:
        return UNDEFINED
    deviations = np.asarray(leave_one_out) - np.mean(leave_one_out)
    error = math.sqrt((groups - 1) / groups * float(np.sum(deviations**2)))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * error
    return Interval(value - half, value + half)

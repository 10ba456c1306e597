"""Intervals at 95 % and tests; distributions from scipy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

#: How each interval is made; copied into every manifest.
METHODS = {
    "accuracy": "Wilson score interval over images, 95 %",
    "robust-accuracy": "Wilson score interval over images, 95 %",
    "undefined": "Wilson score interval over images, 95 %",
    "beyond-adversarial, beyond-random": "Wilson score interval over images, 95 %; of shares the rounded sum",
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


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value that two rates over the same images are equal (McNemar 1947, exact).

    Of the images on which the two differ, ``only_first`` and ``only_second`` count those of one kind each: under
    equal rates each is binomial with probability 1/2. 1 where they differ on none.
    """
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the order given (Holm 1979).

    With p_(1) <= ... <= p_(m): ``adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j))``. Rejecting where it is
    at most alpha keeps the chance of any false rejection at alpha, whatever the tests' dependence.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.minimum(scaled, 1.0))
    return [float(value) for value in adjusted]

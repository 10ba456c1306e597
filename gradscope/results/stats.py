"""Intervals at 95 % and significance tests; the distributions are scipy's."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

CONFIDENCE = 0.95

#: The method of each interval; copied into every manifest.
METHODS = {
    "accuracy": "Wilson score interval over images, 95 %",
    "robust-accuracy": "Wilson score interval over images, 95 %",
    "undefined": "Wilson score interval over images, 95 %",
    "beyond-adversarial, beyond-random": "Wilson score interval over images, 95 %; a sum of shares is rounded",
    "relative-curvature": "interval of the median over images between two order statistics, at least 95 %",
    "dispersion": "delete-a-group jackknife over 10 groups of images, Student t, 95 %",
    "curve": "Dvoretzky-Kiefer-Wolfowitz band over images, simultaneous at all radii, 95 %",
    "weight space": "delete-a-group jackknife over 10 groups of images, Student t, Wilson for accuracy; 95 %",
    "spectrum": "Student t interval of the mean over random vectors (over images in input space); for the negative "
    "mass their jackknife; 95 %",
    "all others": "Student t interval of the mean over images, 95 %; clipped to the metric's range",
}


class Interval(NamedTuple):
    """Lower and upper end; both NaN if the data do not define them."""

    low: float
    high: float

    def within(self, low: float, high: float) -> "Interval":
        """Clip both ends to [``low``, ``high``], the range of the quantity; NaN stays NaN."""
        return Interval(float(np.clip(self.low, low, high)), float(np.clip(self.high, low, high)))


UNDEFINED = Interval(math.nan, math.nan)


def mean_interval(mean: float, std: float, n: int) -> Interval:
    """Compute the Student t interval of a mean from the sample standard deviation ``std`` of ``n`` values.

    >>> mean_interval(1.0, 0.5, 16)
    Interval(low=0.7335..., high=1.2664...)
    """
    if n < 2:
        return UNDEFINED
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean - half, mean + half)


def wilson_interval(successes: int, n: int) -> Interval:
    """Compute the Wilson score interval of a rate (Wilson 1927).

    >>> wilson_interval(90, 100)
    Interval(low=0.8256..., high=0.9447...)
    """
    if n == 0:
        return UNDEFINED
    interval = scipy.stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def simultaneous_interval(rate: float, n: int) -> Interval:
    """Compute a band for a distribution function at all points at once (Dvoretzky, Kiefer, Wolfowitz; Massart 1990).

    ``rate +- sqrt(log(2 / 0.05) / (2 n))``, clipped to [0, 1]. With probability at least 95 % the whole true function
    lies in the band from the ``n`` images.

    >>> simultaneous_interval(0.5, 100)
    Interval(low=0.3641..., high=0.6358...)
    """
    if n == 0:
        return UNDEFINED
    half = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * n))
    return Interval(rate - half, rate + half).within(0.0, 1.0)


def jackknife_interval(value: float, leave_one_out: Sequence[float]) -> Interval:
    """Compute the jackknife interval of ``value`` from leave-one-group-out estimates.

    (Efron and Tibshirani 1993, ch. 11.)

    >>> jackknife_interval(1.0, [0.9, 1.0, 1.1])
    Interval(low=0.5031..., high=1.4968...)
    """
    groups = len(leave_one_out)
    if groups < 2:
        return UNDEFINED
    deviations = np.asarray(leave_one_out) - np.mean(leave_one_out)
    error = math.sqrt((groups - 1) / groups * float(np.sum(deviations**2)))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * error
    return Interval(value - half, value + half)


def mcnemar(only_first: int, only_second: int, *, greater: bool = False) -> float:
    """Test whether two rates over the same images are equal; returns the exact two-sided p-value (McNemar 1947).

    ``only_first`` and ``only_second`` count the images that are in the first or second rate only; under equal rates
    each is binomial with probability 1/2. The p-value is 1 if both are 0. With ``greater`` the test is one-sided, for a
    direction fixed beforehand: the null hypothesis is that the first rate is not greater.

    >>> mcnemar(8, 1)
    0.0390625
    """
    differing = only_first + only_second
    if not differing:
        return 1.0
    test = scipy.stats.binomtest(only_first, differing, 0.5, alternative="greater" if greater else "two-sided")
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing, in the order given (Holm 1979).

    With p_(1) <= ... <= p_(m): ``adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j))``. Rejecting whenever the
    adjusted value is at most alpha keeps the chance of any false rejection at alpha, however the tests depend.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.minimum(scaled, 1.0))
    return [float(value) for value in adjusted]


def paired_rates_interval(only_first: int, only_second: int, n: int) -> Interval:
    """Compute the score interval of ``p_first - p_second``, two rates over the same ``n`` images (Tango 1998).

    ``only_first`` and ``only_second`` count the images that are in the first or second rate only. The interval
    contains every difference that :func:`paired_rates_score` does not reject at 5 %.

    >>> paired_rates_interval(8, 1, 100)
    Interval(low=0.0143..., high=0.1417...)
    """
    if n == 0:
        return UNDEFINED
    difference = (only_first - only_second) / n
    quantile = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))

    def end(side: float) -> float:
        def distance(assumed: float) -> float:
            distance, error = _score_parts(only_first, only_second, n, assumed)
            return distance + side * quantile * error

        if side * distance(side) >= 0:
            return side
        inside = difference + side * 1e-12  # at rates of 0 and 1 the error is 0, so the distance has no sign
        return float(scipy.optimize.brentq(distance, inside, side))

    return Interval(end(-1.0), end(1.0))


def paired_rates_score(only_first: int, only_second: int, n: int, assumed: float) -> float:
    """Test whether ``p_first - p_second`` is ``assumed``; returns the two-sided p-value (score test, Tango 1998).

    With ``assumed`` 0 it is McNemar's asymptotic test of 1947.
    """
    distance, error = _score_parts(only_first, only_second, n, assumed)
    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * scipy.stats.norm.sf(abs(distance) / error))


def _score_parts(only_first: int, only_second: int, n: int, assumed: float) -> tuple[float, float]:
    """Compute the score and its standard error under ``assumed``; the rate of ``only_second`` is the likeliest."""
    a = 2 * n
    b = -only_first - only_second + (2 * n - only_first + only_second) * assumed
    c = -only_second * assumed * (1 - assumed)
    likeliest = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * likeliest + assumed * (1 - assumed))
    return only_first - only_second - n * assumed, math.sqrt(max(0.0, variance))


def newcombe_interval(first: int, of_first: int, second: int, of_second: int) -> Interval:
    """Compute the interval of a difference of two rates over different images (Newcombe 1998, method 10).

    It combines the Wilson intervals of the two rates.

    >>> newcombe_interval(90, 100, 80, 100)
    Interval(low=0.0001..., high=0.1994...)
    """
    if of_first == 0 or of_second == 0:
        return UNDEFINED
    rate_first, rate_second = first / of_first, second / of_second
    interval_first, interval_second = wilson_interval(first, of_first), wilson_interval(second, of_second)
    below = math.hypot(rate_first - interval_first.low, interval_second.high - rate_second)
    above = math.hypot(interval_first.high - rate_first, rate_second - interval_second.low)
    return Interval(rate_first - rate_second - below, rate_first - rate_second + above)


def mean_test(mean: float, std: float, n: int, assumed: float = 0.0) -> float:
    """Test whether the mean of ``n`` values is ``assumed``; returns the two-sided p-value (Student 1908).

    NaN with fewer than two values.

    >>> round(mean_test(1.0, 2.0, 16), 6)
    0.063945
    """
    if n < 2:
        return math.nan
    if std == 0:
        return 1.0 if mean == assumed else 0.0
    return float(2 * scipy.stats.t.sf(abs(mean - assumed) / (std / math.sqrt(n)), n - 1))


def mantel(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], permutations: int = 9999
) -> tuple[tuple[float, ...], float]:
    """Test whether two matrices correlate in rank off the diagonal; returns each pair's correlation and one p-value.

    Rows and columns of both matrices are the same objects, such as models, so the entries are not independent. The
    null hypothesis is one-sided: the mean correlation is not above 0. The p-value is the share of random orders of the
    objects, in one matrix of each pair, that give a correlation at least as large (Mantel 1967). The orders come from a
    fixed seed. A correlation is NaN if all entries of a matrix are equal.
    """
    stream = np.random.default_rng(0)
    correlations, permuted = [], np.zeros(permutations)
    for pair in pairs:
        off_diagonal = ~np.eye(len(pair[0]), dtype=bool)
        first, second = (np.zeros(off_diagonal.shape) for _ in pair)
        for scaled, matrix in zip((first, second), pair, strict=True):
            ranks = scipy.stats.rankdata(matrix[off_diagonal])
            with np.errstate(invalid="ignore"):
                scaled[off_diagonal] = (ranks - ranks.mean()) / np.linalg.norm(ranks - ranks.mean())
        correlations.append(float((first * second)[off_diagonal].sum()))
        orders = stream.permuted(np.tile(np.arange(len(off_diagonal)), (permutations, 1)), axis=1)
        permuted += (first[orders[:, :, None], orders[:, None, :]] * second).sum(axis=(1, 2))
    at_least = int((permuted >= sum(correlations) - 1e-9).sum())
    return tuple(correlations), (1 + at_least) / (1 + permutations)


def median_interval(values: Sequence[float]) -> Interval:
    """Compute the interval of the median between two order statistics, at least 95 % (Conover 1999, 3.2).

    With x_(1) <= ... <= x_(n) it is [x_(k), x_(n+1-k)] for the largest k with P(Bin(n, 1/2) < k) <= 2.5 %. Values may
    be infinite. The interval is undefined with fewer than six values.

    >>> median_interval([1, 2, 3, 4, 5, 6])
    Interval(low=1.0, high=6.0)
    """
    n = len(values)
    k = int(scipy.stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)) if n else 0
    k += int(scipy.stats.binom.cdf(k, n, 0.5) <= (1 - CONFIDENCE) / 2)
    if k == 0:
        return UNDEFINED
    ordered = np.sort(np.asarray(values, dtype=float))
    return Interval(float(ordered[k - 1]), float(ordered[n - k]))

"""Intervals at 95 % and tests; distributions from scipy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

CONFIDENCE = 0.95

#: How each interval is made; copied into every manifest.
METHODS = {
    "accuracy": "Wilson score interval over images, 95 %",
    "robust-accuracy": "Wilson score interval over images, 95 %",
    "undefined": "Wilson score interval over images, 95 %",
    "beyond-adversarial, beyond-random": "Wilson score interval over images, 95 %; of shares the rounded sum",
    "relative-curvature": "between two order statistics, of the median over images, at least 95 %",
    "dispersion": "delete-a-group jackknife over 10 groups of images, Student t, 95 %",
    "curve": "Dvoretzky-Kiefer-Wolfowitz band over images, simultaneous at all radii, 95 %",
    "weight space": "delete-a-group jackknife over 10 groups of images, Student t, Wilson for accuracy; 95 %",
    "spectrum": "Student t interval of the mean over random vectors (over images in input space); of the negative mass "
    "their jackknife; 95 %",
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
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean - half, mean + half)


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson score interval of a rate (Wilson 1927)."""
    if n == 0:
        return UNDEFINED
    interval = scipy.stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def simultaneous_interval(rate: float, n: int) -> Interval:
    """Interval of a distribution function at all points at once (Dvoretzky, Kiefer and Wolfowitz; Massart 1990).

    ``rate +- sqrt(log(2 / 0.05) / (2 n))``, cut to [0, 1]: the whole true function lies in the band of the ``n`` images
    with a probability of at least 95 %.
    """
    if n == 0:
        return UNDEFINED
    half = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * n))
    return Interval(rate - half, rate + half).within(0.0, 1.0)


def jackknife_interval(value: float, leave_one_out: Sequence[float]) -> Interval:
    """Interval of ``value`` from the estimates that leave out one group each (Efron and Tibshirani 1993, ch. 11)."""
    groups = len(leave_one_out)
    if groups < 2:
        return UNDEFINED
    deviations = np.asarray(leave_one_out) - np.mean(leave_one_out)
    error = math.sqrt((groups - 1) / groups * float(np.sum(deviations**2)))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * error
    return Interval(value - half, value + half)


def mcnemar(only_first: int, only_second: int, *, greater: bool = False) -> float:
    """P-value that two rates over the same images are equal (McNemar 1947, exact); two-sided.

    Of the images on which the two differ, ``only_first`` and ``only_second`` count those of one kind each: under
    equal rates each is binomial with probability 1/2. 1 where they differ on none. ``greater``: one-sided, that the
    first is not greater than the second, for a question whose direction was fixed beforehand.
    """
    differing = only_first + only_second
    if not differing:
        return 1.0
    found = scipy.stats.binomtest(only_first, differing, 0.5, alternative="greater" if greater else "two-sided")
    return float(found.pvalue)


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


def paired_rates_interval(only_first: int, only_second: int, n: int) -> Interval:
    """Score interval of ``p_first - p_second``, two rates over the same ``n`` images (Tango 1998).

    ``only_first`` and ``only_second`` count the images that one alone has. The interval holds every difference that
    :func:`paired_rates_score` does not reject at 5 %.
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
        inside = difference + side * 1e-12  # at 0 and 1 the score has no error, and so no sign
        return float(scipy.optimize.brentq(distance, inside, side))

    return Interval(end(-1.0), end(1.0))


def paired_rates_score(only_first: int, only_second: int, n: int, assumed: float) -> float:
    """Two-sided p-value that ``p_first - p_second`` is ``assumed`` (Tango 1998, score test); 0 is McNemar's of 1947."""
    distance, error = _score_parts(only_first, only_second, n, assumed)
    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * scipy.stats.norm.sf(abs(distance) / error))


def _score_parts(only_first: int, only_second: int, n: int, assumed: float) -> tuple[float, float]:
    """Score and its standard error under the ``assumed`` difference; the rate of ``only_second`` is its likeliest."""
    a = 2 * n
    b = -only_first - only_second + (2 * n - only_first + only_second) * assumed
    c = -only_second * assumed * (1 - assumed)
    likeliest = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * likeliest + assumed * (1 - assumed))
    return only_first - only_second - n * assumed, math.sqrt(max(0.0, variance))


def newcombe_interval(first: int, of_first: int, second: int, of_second: int) -> Interval:
    """Interval of the difference of two rates over different images, from their Wilson ones (Newcombe 1998, 10)."""
    if of_first == 0 or of_second == 0:
        return UNDEFINED
    one, other = first / of_first, second / of_second
    around, beside = wilson_interval(first, of_first), wilson_interval(second, of_second)
    below = math.hypot(one - around.low, beside.high - other)
    above = math.hypot(around.high - one, other - beside.low)
    return Interval(one - other - below, one - other + above)


def mean_test(mean: float, std: float, n: int, assumed: float = 0.0) -> float:
    """Two-sided p-value that the mean of ``n`` values is ``assumed`` (Student 1908); NaN with fewer than two."""
    if n < 2:
        return math.nan
    if std == 0:
        return 1.0 if mean == assumed else 0.0
    return float(2 * scipy.stats.t.sf(abs(mean - assumed) / (std / math.sqrt(n)), n - 1))


def mantel(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], permutations: int = 9999
) -> tuple[tuple[float, ...], float]:
    """Rank correlation of two matrices over their entries off the diagonal, for each of ``pairs``, and its p-value.

    One matrix's rows and columns are the same things as the other's, such as models, so that its entries are not
    independent. One-sided, that the mean correlation is not above 0: the share of random orders of the things, in one
    matrix of each pair, that give as much (Mantel 1967), always the same ones. NaN where all entries are equal.
    """
    stream = np.random.default_rng(0)
    found, drawn = [], np.zeros(permutations)
    for pair in pairs:
        apart = ~np.eye(len(pair[0]), dtype=bool)
        one, other = (np.zeros(apart.shape) for _ in pair)
        for into, matrix in zip((one, other), pair, strict=True):
            ranks = scipy.stats.rankdata(matrix[apart])
            with np.errstate(invalid="ignore"):
                into[apart] = (ranks - ranks.mean()) / np.linalg.norm(ranks - ranks.mean())
        found.append(float((one * other)[apart].sum()))
        orders = stream.permuted(np.tile(np.arange(len(apart)), (permutations, 1)), axis=1)
        drawn += (one[orders[:, :, None], orders[:, None, :]] * other).sum(axis=(1, 2))
    as_much = int((drawn >= sum(found) - 1e-9).sum())
    return tuple(found), (1 + as_much) / (1 + permutations)


def median_interval(values: Sequence[float]) -> Interval:
    """Interval of the median between two order statistics (Conover 1999, 3.2), at least 95 %; infinite values may be.

    With x_(1) <= ... <= x_(n) it is [x_(k), x_(n+1-k)] for the largest k with P(Bin(n, 1/2) < k) <= 2.5 %; undefined
    with fewer than six values.
    """
    n = len(values)
    k = int(scipy.stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)) if n else 0
    k += int(scipy.stats.binom.cdf(k, n, 0.5) <= (1 - CONFIDENCE) / 2)
    if k == 0:
        return UNDEFINED
    ordered = np.sort(np.asarray(values, dtype=float))
    return Interval(float(ordered[k - 1]), float(ordered[n - k]))

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from gradscope.results.stats import (
    CONFIDENCE,
    METHODS,
    UNDEFINED,
    Interval,
    holm,
    jackknife_interval,
    mantel,
    mcnemar,
    mean_interval,
    mean_test,
    median_interval,
    newcombe_interval,
    paired_rates_interval,
    paired_rates_score,
    simultaneous_interval,
    wilson_interval,
)

few = settings(derandomize=True, max_examples=50, deadline=None)


def test_undefined_is_nan_at_both_ends():
    assert math.isnan(UNDEFINED.low)
    assert math.isnan(UNDEFINED.high)
    assert mean_interval(1.0, 0.0, 1) is mean_interval(1.0, 0.0, 0) is UNDEFINED
    assert wilson_interval(0, 0) is UNDEFINED
    assert jackknife_interval(1.0, [1.0]) is jackknife_interval(1.0, []) is UNDEFINED


def test_methods_name_the_confidence():
    assert CONFIDENCE == 0.95
    assert all("95 %" in method for method in METHODS.values())


def test_mean_interval_by_the_tables():
    """t quantile of 0.975 with 9 degrees of freedom: 2.262."""
    low, high = mean_interval(5.0, 2.0, 10)
    assert high - 5 == pytest.approx(2.262157 * 2 / math.sqrt(10), rel=1e-6)
    assert 5 - low == pytest.approx(high - 5)


@few
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-6))
def test_mean_interval_against_scipy(values):
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    interval = mean_interval(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
    assert interval == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


@few
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_the_closed_formula(case):
    successes, n = case
    z = stats.norm.ppf(0.975)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(centre - half, abs=1e-9)
    assert high == pytest.approx(centre + half, abs=1e-9)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.97])
def test_wilson_covers_the_truth_as_often_as_it_says(rate):
    """Exact coverage: the binomial probability of the counts whose interval holds the truth."""
    n = 400
    plausible = [count for count in range(n + 1) if stats.binom.pmf(count, n, rate) > 1e-7]
    covered = [count for count in plausible if wilson_interval(count, n).low <= rate <= wilson_interval(count, n).high]
    assert stats.binom.pmf(covered, n, rate).sum() == pytest.approx(0.95, abs=0.02)


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 8))
    intervals = [mean_interval(row.mean(), row.std(ddof=1), 8) for row in draws]
    assert np.mean([low <= 3.0 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


@few
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_jackknife_of_a_mean_is_the_t_interval(values):
    """With one value a group, the jackknife error of the mean is std / sqrt(n) exactly."""
    array = np.asarray(values)
    left_out = [float(np.delete(array, index).mean()) for index in range(len(array))]
    expected = mean_interval(float(array.mean()), float(array.std(ddof=1)), len(array))
    assert jackknife_interval(float(array.mean()), left_out) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


def test_the_simultaneous_band_holds_the_whole_function():
    """Of uniform numbers: 95 % of the bands, at least, hold F(x) = x everywhere; pointwise intervals do not."""
    random, held, pointwise = np.random.default_rng(0), [], []
    shares = np.arange(61) / 60
    bands = np.array([simultaneous_interval(share, 60) for share in shares])
    wilson = np.array([wilson_interval(count, 60) for count in range(61)])
    for _ in range(400):
        values = np.sort(random.uniform(size=60))
        edges = np.concatenate([[0.0], values, [1.0]])  # the share is i/60 between edges i and i + 1
        for ends, found in ((bands, held), (wilson, pointwise)):
            found.append(bool(((ends[:, 0] <= edges[:-1]) & (edges[1:] <= ends[:, 1])).all()))
    assert np.mean(held) > 0.94
    assert np.mean(pointwise) < 0.9
    assert simultaneous_interval(1.0, 60).high == 1.0


def test_jackknife_covers_a_ratio():
    """A smooth statistic that is no mean: the ratio of two means, 10 groups of 20."""
    random = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        one, other = random.normal(2, 1, (10, 20)), random.normal(4, 1, (10, 20))
        value = one.mean() / other.mean()
        left_out = [np.delete(one, g, 0).mean() / np.delete(other, g, 0).mean() for g in range(10)]
        low, high = jackknife_interval(float(value), left_out)
        hits.append(low <= 0.5 <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)


def test_an_interval_is_cut_where_the_quantity_ends() -> None:
    assert Interval(-0.5, 1.5).within(0, 1) == (0, 1)
    assert Interval(0.2, 0.3).within(0, 1) == (0.2, 0.3)
    assert all(math.isnan(end) for end in UNDEFINED.within(0, 1))


def test_mcnemar_by_hand():
    """1 against 9: twice the chance of at most one head in ten throws, 2 * (1 + 10) / 1024."""
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(4, 4) == mcnemar(0, 0) == mcnemar(1, 0) == 1.0


def test_mcnemar_rejects_no_more_often_than_it_says():
    """Exact: under equal rates the chance of p <= 0.05, given how many images differ."""
    for differing in range(1, 60):
        counts = [count for count in range(differing + 1) if mcnemar(count, differing - count) <= 0.05]
        assert stats.binom.pmf(counts, differing, 0.5).sum() <= 0.05


def test_holm_by_hand():
    """m = 4: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 held up by the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.2))
def test_holm_is_the_step_down_procedure(p_values, alpha):
    """Reject in order of size while p_(i) <= alpha / (m - i + 1); stop at the first that is not."""
    rejected = set()
    for position, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - position) > alpha:
            break
        rejected.add(int(index))
    assert {index for index, value in enumerate(holm(p_values)) if value <= alpha} == rejected


def tango_by_likelihood(first: int, second: int, n: int, assumed: float) -> float:
    """The score statistic with the nuisance rate found by maximising the multinomial likelihood numerically."""

    def minus_likelihood(rate):
        cells = [rate + assumed, rate, 1 - 2 * rate - assumed]
        counts = [first, second, n - first - second]
        if min(cells) < 0:
            return np.inf
        return -sum(count * np.log(max(cell, 1e-300)) for count, cell in zip(counts, cells, strict=True))

    low, high = max(0.0, -assumed), (1 - assumed) / 2
    rate = optimize.minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (first - second - n * assumed) / math.sqrt(n * (2 * rate + assumed * (1 - assumed)))


@pytest.mark.parametrize(("first", "second", "n"), [(12, 2, 50), (67, 5, 500), (3, 9, 30), (1, 1, 40), (20, 15, 36)])
def test_the_paired_interval_inverts_the_score_test(first, second, n):
    low, high = paired_rates_interval(first, second, n)
    assert low < (first - second) / n < high
    assert tango_by_likelihood(first, second, n, low) == pytest.approx(1.959964, abs=1e-3)
    assert tango_by_likelihood(first, second, n, high) == pytest.approx(-1.959964, abs=1e-3)
    for assumed in (-0.3, -0.05, 0.1, 0.4):
        expected = 2 * stats.norm.sf(abs(tango_by_likelihood(first, second, n, assumed)))
        assert paired_rates_score(first, second, n, assumed) == pytest.approx(expected, abs=1e-4)


def test_the_paired_interval_at_its_edges():
    """Nothing differs: the ends are Wilson's of no success. Everything does: one end is 1."""
    for n in (1, 20, 500):
        low, high = paired_rates_interval(0, 0, n)
        assert high == pytest.approx(wilson_interval(0, n).high)
        assert low == pytest.approx(-high)
        low, high = paired_rates_interval(n, 0, n)
        assert high == 1
        assert low < 1
    assert paired_rates_interval(0, 0, 0) is UNDEFINED


@few
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_the_paired_interval_agrees_with_mcnemars_score(case):
    """It leaves 0 out where (b - c)^2 / (b + c) is above the square of 1.96; and turned around it changes signs."""
    first, second, n = min(case[0], case[2] - case[1]), case[1], case[2]
    if first < 0:
        return
    low, high = paired_rates_interval(first, second, n)
    assert -1 <= low <= (first - second) / n <= high <= 1
    assert paired_rates_interval(second, first, n) == pytest.approx((-high, -low), abs=1e-9)
    if first + second:
        statistic = (first - second) ** 2 / (first + second)
        if abs(statistic - 3.841459) > 1e-6:
            assert (low > 0 or high < 0) == (statistic > 3.841459)
        assert paired_rates_score(first, second, n, 0) == pytest.approx(stats.chi2.sf(statistic, 1))


def test_the_paired_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(5)
    hits = []
    for _ in range(1500):
        first, second, _ = random.multinomial(80, [0.2, 0.05, 0.75])
        low, high = paired_rates_interval(int(first), int(second), 80)
        hits.append(low <= 0.15 <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_a_score_without_error_is_sure():
    assert paired_rates_score(5, 0, 5, 1.0) == 1.0
    assert paired_rates_score(0, 0, 5, 1.0) == 0.0


def test_newcombe_as_published():
    """Newcombe 1998, table II: 56/70 against 48/80, 9/10 against 3/10, 10/10 against 0/10, method 10."""
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe_interval(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert newcombe_interval(0, 0, 1, 2) is newcombe_interval(1, 2, 0, 0) is UNDEFINED


@few
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-3))
def test_mean_test_against_scipy(values):
    p = mean_test(float(np.mean(values)), float(np.std(values, ddof=1)), len(values), 0.5)
    assert p == pytest.approx(stats.ttest_1samp(values, 0.5).pvalue, rel=1e-6)


def test_mean_test_without_spread():
    assert mean_test(1.0, 0.0, 5, 1.0) == 1.0
    assert mean_test(1.0, 0.0, 5) == 0.0
    assert math.isnan(mean_test(1.0, math.nan, 1))


@pytest.mark.parametrize("n", [6, 7, 20, 25, 101, 500])
def test_median_interval_against_scipy(n):
    values = np.random.default_rng(n).normal(size=n)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert median_interval(values.tolist()) == pytest.approx(tuple(expected))


def test_median_interval_with_few_or_infinite_values():
    assert median_interval([]) is median_interval([1.0] * 5) is UNDEFINED
    assert median_interval([-math.inf] * 4 + [1.0, 2.0, 3.0]) == (-math.inf, 3.0)


def test_mantel_is_the_rank_correlation_and_the_share_of_orders_that_give_as_much():
    """Against scipy's Spearman and every order of four things."""
    stream = np.random.default_rng(1)
    one, other = (stream.normal(size=(4, 4)) for _ in range(2))
    other += 2 * one
    apart = ~np.eye(4, dtype=bool)
    wanted = stats.spearmanr(one[apart], other[apart]).statistic
    (found,), p_value = mantel([(one, other)])
    assert found == pytest.approx(wanted)
    orders = [list(order) for order in itertools.permutations(range(4))]
    as_much = [
        stats.spearmanr(one[np.ix_(order, order)][apart], other[apart]).statistic >= wanted - 1e-9 for order in orders
    ]
    assert p_value == pytest.approx(np.mean(as_much), abs=0.01)
    assert mantel([(one, other)]) == ((found,), p_value)


def test_mantel_tells_independent_matrices_from_none():
    stream = np.random.default_rng(2)
    p_values = [mantel([tuple(stream.normal(size=(2, 5, 5)))], permutations=199)[1] for _ in range(200)]
    assert 0.01 < np.mean(np.asarray(p_values) <= 0.05) < 0.12

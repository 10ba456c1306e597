import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gradscope.claims.effects import Effect, between_groups, difference, matched, paired, shared
from gradscope.claims.measured import Ball, Measured, MeasuredModel
from gradscope.results.stats import Interval, mcnemar, newcombe_interval, paired_rates_interval


def series(values, first=0):
    return pd.Series(np.asarray(values, dtype=float), pd.Index(range(first, first + len(values)), name="index"))


def measured(values, mode="rl", seed=0, first=0, kind="analysis", settings="", label=0, attack="pgd"):
    model = MeasuredModel("d", "a", mode, seed, mode, f"{mode}{seed}")
    held = series(values, first)
    return Measured(model, kind, attack, Ball("l2", 1), "accuracy", "final", settings, held, held * 0 + label)


def test_rates_of_one_seed_by_hand():
    """Ten images: first alone right on three, second alone on one."""
    one, other = [1, 1, 1, 1, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    effect = difference([(series(one), series(other))], "rate")
    assert effect.value == pytest.approx(0.2)
    assert effect.levels == pytest.approx((0.6, 0.4))
    assert effect.interval == paired_rates_interval(3, 1, 10)
    assert effect.p_value == mcnemar(3, 1) == pytest.approx(2 * 5 / 16)
    assert (effect.n, effect.undefined, effect.seeds) == (10, 0, pytest.approx((0.2,)))


def test_rates_against_a_bound_are_not_mcnemars():
    one, other = series([1] * 50 + [0] * 50), series([1] * 52 + [0] * 48)
    effect = difference([(one, other)], "rate", -0.05)
    assert effect.interval.low > -0.08
    assert effect.p_value != pytest.approx(mcnemar(0, 2))


def test_means_are_the_paired_t_test():
    random = np.random.default_rng(0)
    one, other = random.normal(1, 2, 40), random.normal(0.3, 2, 40)
    effect = difference([(series(one), series(other))], "mean")
    test = stats.ttest_rel(one, other)
    assert effect.value == pytest.approx(one.mean() - other.mean())
    assert effect.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert effect.p_value == pytest.approx(test.pvalue)


def test_several_seeds_are_averaged_by_image():
    """Images stay the independent units: 30 of them, not 90; and the seeds' own interval is of three effects."""
    random = np.random.default_rng(1)
    ones, others = random.normal(1, 1, (3, 30)), random.normal(0, 1, (3, 30))
    effect = difference([(series(one), series(other)) for one, other in zip(ones, others, strict=True)], "mean")
    image = (ones - others).mean(axis=0)
    assert effect.interval == pytest.approx(tuple(stats.ttest_1samp(image, 0).confidence_interval(0.95)))
    assert effect.n == 30
    by_seed = (ones - others).mean(axis=1)
    assert effect.seeds == pytest.approx(tuple(by_seed))
    assert effect.over_seeds == pytest.approx(tuple(stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)))


def test_rates_of_several_seeds_stay_between_minus_one_and_one():
    pairs = [(series([1] * 5 + [0]), series([0] * 6)), (series([1] * 6), series([0] * 6))]
    effect = difference(pairs, "rate")
    assert effect.value == pytest.approx(11 / 12)
    assert effect.interval.high == 1
    assert effect.p_value == pytest.approx(stats.ttest_1samp([1, 1, 1, 1, 1, 0.5], 0).pvalue)


def test_medians_with_norms_of_zero():
    """log 0 is -inf: an image with it on one side is a difference like others, on both sides it is undefined."""
    one = np.log(series([1, 2, 4, 8, 16, 32, 64]))
    other = one - 1
    one.iloc[:2], other.iloc[0] = -np.inf, -np.inf
    effect = difference([(one, other)], "median")
    assert (effect.n, effect.undefined) == (6, 1)
    assert effect.value == pytest.approx(1)
    assert effect.interval == pytest.approx((-math.inf, 1))
    assert effect.p_value == mcnemar(5, 1)


def test_what_is_undefined_is_left_out_and_counted():
    one, other = series([1, math.nan, 3, math.inf, 5]), series([0, 1, 1, 1, math.nan])
    effect = difference([(one, other)], "mean")
    assert (effect.n, effect.undefined, effect.value) == (2, 3, pytest.approx(1.5))
    nothing = difference([(one * math.nan, other)], "mean")
    assert (nothing.n, nothing.p_value, nothing.undefined) == (0, None, 5)
    assert math.isnan(nothing.value)


def test_one_image_has_no_interval():
    effect = difference([(series([2]), series([1]))], "mean")
    assert effect.value == 1
    assert math.isnan(effect.interval.low)
    assert effect.p_value is None


def test_seeds_need_two_that_are_finite():
    def over(*seeds):
        return Effect(0, Interval(0, 0), seeds, None, 1).over_seeds

    assert all(math.isnan(end) for end in (*over(1.0), *over(), *over(1.0, math.inf)))
    assert over(1.0, 3.0) == pytest.approx(tuple(stats.ttest_1samp([1.0, 3.0], 0).confidence_interval(0.95)))


def test_shared_images_need_equal_labels():
    assert list(shared([measured([1, 0, 1]), measured([1, 1], first=1)])) == [1, 2]
    assert list(shared([measured([1, 0, 1]), measured([1, 1], first=1, label=4)])) == []


def test_matching_takes_one_way_of_measuring():
    """Most seeds first, then the analysis before the battery, then most images; never two ways mixed."""
    many = {0: [measured([1] * 9, kind="battery"), measured([1] * 5)], 1: [measured([1] * 9, kind="battery", seed=1)]}
    found = matched(many, many)
    assert {seed: one.kind for seed, (one, _) in found.items()} == {0: "battery", 1: "battery"}
    found = matched({0: many[0]}, {0: many[0]})
    assert found[0][0].kind == "analysis"
    longer = {0: [measured([1] * 5), measured([1] * 7, settings="long")]}
    assert len(matched(longer, longer)[0][0].of_images) == 7
    assert matched({0: [measured([1], settings="a")]}, {0: [measured([1], settings="b")]}) == {}
    assert matched({0: many[0]}, {1: many[1]}) == {}


def test_pairs_are_of_the_images_that_all_seeds_have():
    pairs = paired([(measured([1, 1, 1]), measured([0, 0, 0])), (measured([1, 1], first=1), measured([0, 0], first=1))])
    assert [list(one.index) for pair in pairs for one in pair] == [[1, 2]] * 4


def test_groups_of_one_seed_are_newcombes():
    holds, member = np.array([1, 1, 0, 1, 0, 0, 0, 1.0]), np.array([1, 1, 1, 0, 0, 0, 0, math.nan])
    effect = between_groups([(holds, member)])
    assert effect.value == pytest.approx(2 / 3 - 1 / 4)
    assert effect.interval == newcombe_interval(2, 3, 1, 4)
    assert (effect.n, effect.p_value, effect.levels) == (7, None, pytest.approx((2 / 3, 1 / 4)))


def test_groups_of_several_seeds_are_a_jackknife():
    """Of two equal seeds the pooled shares are those of one, and the images' interval does not shrink."""
    random = np.random.default_rng(3)
    member = (random.random(400) < 0.5).astype(float)
    holds = (random.random(400) < 0.2 + 0.5 * member).astype(float)
    single, double = between_groups([(holds, member)]), between_groups([(holds, member)] * 2)
    assert double.value == pytest.approx(single.value)
    assert double.n == single.n == 400
    width = [effect.interval.high - effect.interval.low for effect in (single, double)]
    assert width[1] == pytest.approx(width[0], rel=0.6)
    assert double.interval.low < single.value < double.interval.high


def test_a_group_without_images_is_undefined():
    effect = between_groups([(np.ones(4), np.ones(4))])
    assert math.isnan(effect.value)
    assert effect.n == 4

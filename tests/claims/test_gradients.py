import math

import numpy as np
import pytest
from scipy import stats

from gradscope.claims.table import claim_rows

RANDOM = np.random.default_rng(7)
SL, RL = RANDOM.lognormal(0.5, 1, 60), RANDOM.lognormal(-1, 3, 60)


def both(metric, sl, rl, attack="pgd", point="clean"):
    return {("sl", attack, metric, point): list(sl), ("rl", attack, metric, point): list(rl)}


def test_norms_by_median_ratio_and_by_mean(directories, one):
    made = directories()
    made.analysis(both("norm", SL, RL))
    rows = claim_rows(made.all)
    median = one(rows, "C3", "clean image", "median")
    ratio = np.log(RL / SL)
    assert median["value"] == pytest.approx(np.median(ratio))
    assert (median["ci_low"], median["ci_high"]) == pytest.approx(
        tuple(stats.quantile_test(ratio, p=0.5).confidence_interval(0.95))
    )
    mean = one(rows, "C3", "difference of the means")
    assert (mean["ci_low"], mean["ci_high"]) == pytest.approx(tuple(stats.ttest_rel(RL, SL).confidence_interval(0.95)))
    assert median["direction"] == mean["direction"] == "below 0"


def test_norms_of_zero_are_the_smallest_and_counted(directories, one):
    made = directories()
    rl = RL.copy()
    rl[:40] = 0
    sl = SL.copy()
    sl[:3] = 0
    made.analysis(both("norm", sl, rl))
    row = one(claim_rows(made.all), "C3", "clean image", "median")
    assert row["value"] == -math.inf
    assert row["n"] == 57
    assert "3 images on which it is undefined are left out" in row["why"]
    assert "exactly 0 on 40 images of rl and 3 images of sl" in row["why"]
    assert (row["ci_low"], row["verdict"]) == (-math.inf, "supported")


@pytest.mark.parametrize("metric", ["cosine", "sign"])
@pytest.mark.parametrize("attack", ["pgd", "pgd-paper"])
def test_directions_along_the_path(directories, one, metric, attack):
    made = directories()
    sl, rl = RANDOM.uniform(0.7, 0.9, 60), RANDOM.uniform(0.4, 0.8, 60)
    rl[5] = math.nan
    made.analysis(both(metric, sl, rl, attack, "path"))
    word = {"cosine": "cosine", "sign": "sign"}[metric]
    row = one(claim_rows(made.all), "C4", word, f"{attack},")
    defined = np.isfinite(rl)
    test = stats.ttest_rel(rl[defined], sl[defined])
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert (row["n"], row["verdict"]) == (59, "supported")
    assert "points" not in row["why"]
    other = {"pgd": "pgd-paper", "pgd-paper": "pgd"}[attack]
    assert one(claim_rows(made.all), "C4", word, f"{other},")["verdict"] == "not tested"


def test_entropy_may_go_either_way(directories, one):
    made = directories()
    entropy = RANDOM.uniform(0, 1, 60)
    made.analysis(
        both("entropy", entropy, entropy + RANDOM.normal(0.3, 0.1, 60))
        | both("entropy", entropy, entropy + RANDOM.normal(-0.3, 0.1, 60), "pgd", "final")
        | both("entropy", entropy, entropy + RANDOM.normal(0, 1, 60).round(1), "pgd-paper", "final")
    )
    rows = claim_rows(made.all)
    clean, paper, exact = (row for row in rows if row["claim"] == "C5")
    assert [row["direction"] for row in (clean, paper, exact)] == ["not 0"] * 3
    assert (clean["verdict"], exact["verdict"]) == ("supported", "supported")
    assert clean["value"] > 0 > exact["value"]
    assert paper["verdict"] == "not supported"


def test_landscapes_of_one_grid_are_compared(directories, one):
    """Roughness depends on the grid: of two grids the one with more images is taken, and they are never mixed."""
    made = directories()
    sl, rl = RANDOM.uniform(2, 3, 40), RANDOM.uniform(6, 7, 40)
    made.landscape({("sl", "roughness"): sl[:16] * 9, ("rl", "roughness"): rl[:16] * 9}, name="fine", points=51)
    made.landscape({("sl", "roughness"): sl, ("rl", "roughness"): rl})
    row = one(claim_rows(made.all), "C6", "roughness")
    test = stats.ttest_rel(rl, sl)
    assert (row["value"], row["n"]) == (pytest.approx((rl - sl).mean()), 40)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert one(claim_rows(made.all), "C6", "sharpness")["verdict"] == "not tested"
    apart = directories()
    apart.root = made.new("apart")
    apart.landscape({("sl", "roughness"): sl}, name="fine", points=51)
    apart.landscape({("rl", "roughness"): rl})
    row = one(claim_rows(apart.all), "C6", "roughness")
    assert row["verdict"] == "not tested"
    assert "`gradscope landscape" in row["why"]


def test_norms_of_another_loss_are_no_norms_of_cross_entropy(directories, one):
    """`analyze --loss margin` measures the margin's gradient; entropy does not care."""
    made = directories()
    entropy = RANDOM.uniform(0, 1, 60)
    settings = {"pgd": {"norm": "l2", "epsilon": 1.0, "loss": "margin"}}
    made.analysis(both("norm", SL, RL) | both("entropy", entropy, entropy + SL), settings=settings)
    rows = claim_rows(made.all)
    assert one(rows, "C3", "clean image", "median")["verdict"] == "not tested"
    assert one(rows, "C5", "clean image")["value"] == pytest.approx(SL.mean())

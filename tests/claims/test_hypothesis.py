import json
import math

import numpy as np
import pytest

from gradscope.claims.hypothesis import SATURATED
from gradscope.claims.table import claim_rows
from gradscope.results.stats import newcombe_interval, paired_rates_interval

#: 20 images of rl: the first 6 saturated with tiny gradients, four of which survive; 16 are right when clean.
MARGIN = [20.0] * 6 + [3.0] * 10 + [-4.0] * 4
NORM = [1e-7] * 4 + [1e-5] * 2 + [1e-5] + [0.5] * 9 + [30.0] * 4
CLEAN = [1.0] * 16 + [0.0] * 4
SURVIVED = [1.0] * 4 + [0.0] * 16
EXACT = [1.0] + [0.0] * 19


@pytest.fixture
def made(directories):
    study = directories()
    cells = {
        ("rl", "pgd-paper", "margin", "clean"): MARGIN,
        ("rl", "pgd-paper", "norm", "clean"): NORM,
        ("rl", "pgd-paper", "accuracy", "clean"): CLEAN,
        ("rl", "pgd-paper", "accuracy", "final"): SURVIVED,
        ("rl", "pgd", "accuracy", "final"): EXACT,
        ("sl", "pgd-paper", "margin", "clean"): [2.0] * 19 + [-1.0],
        ("sl", "pgd-paper", "norm", "clean"): [1.0] * 20,
        ("sl", "pgd-paper", "accuracy", "clean"): [1.0] * 19 + [0.0],
        ("sl", "pgd-paper", "accuracy", "final"): [0.0] * 20,
        ("sl", "pgd", "accuracy", "final"): [0.0] * 20,
    }
    study.analysis(cells)
    return study


def test_the_margin_at_which_float32_rounds_the_probability_to_one():
    def probability(margin):
        return np.float32(1) / (np.float32(1) + np.exp(np.float32(-margin)))

    assert probability(SATURATED + 0.1) == 1
    assert probability(SATURATED - 1.0) < 1


def test_margins_and_norms(made, one):
    rows = claim_rows(made.all)
    saturated = one(rows, "H1", "above 16.6")
    assert saturated["value"] == pytest.approx(6 / 20)
    assert (saturated["ci_low"], saturated["ci_high"]) == pytest.approx(tuple(paired_rates_interval(6, 0, 20)))
    size = one(rows, "H1", "absolute")
    assert size["value"] == pytest.approx(np.abs(MARGIN).mean() - (19 * 2 + 1) / 20)
    assert one(rows, "H2", "1e-06")["value"] == pytest.approx(4 / 20)
    assert one(rows, "H2", "0.000128", "batch of 128")["value"] == pytest.approx(7 / 20)


def test_who_survived(made, one):
    """Of 4 survivors all have tiny gradients and large margins, of the 12 fallen 3 and 2."""
    rows = claim_rows(made.all)
    norm, margin = one(rows, "H3", "norm"), one(rows, "H3", "margin")
    assert (norm["value"], norm["n"], norm["p_value"]) == (pytest.approx(1 - 3 / 12), 16, None)
    assert (norm["ci_low"], norm["ci_high"]) == pytest.approx(tuple(newcombe_interval(4, 4, 3, 12)))
    assert margin["value"] == pytest.approx(1 - 2 / 12)
    assert "4 survivors, of them 100.0 %, of the fallen 25.0 %" in norm["why"]


def test_without_survivors_there_is_nothing_to_compare(directories, one):
    study = directories(rl=("rl", 0))
    cells = {("rl", "pgd-paper", "norm", "clean"): NORM, ("rl", "pgd-paper", "accuracy", "clean"): CLEAN}
    study.analysis(cells | {("rl", "pgd-paper", "accuracy", "final"): [0.0] * 20})
    rows = claim_rows(study.all)
    assert one(rows, "H3", "norm")["why"].startswith("none of rl's images survived pgd-paper")
    assert one(rows, "H3", "margin")["why"].startswith("pgd-paper and margin were not measured on rl")


def test_what_other_attacks_take(made, one):
    made.battery(
        {
            ("rl", "none"): CLEAN,
            ("rl", "pgd-paper"): [*SURVIVED[:16], *[None] * 4],
            ("rl", "pgd-log-odds"): [1.0, 1.0, *[0.0] * 14, *[None] * 4],
            ("rl", "square"): [0.0, 0.0, *[None] * 18],
        },
        budget={"steps": 100, "step_size": None, "relative_step_size": 0.1},
    )
    rows = claim_rows(made.all)
    exact = one(rows, "H4", "exact PGD")
    assert (exact["value"], exact["n"]) == (pytest.approx(3 / 20), 20)
    assert "under pgd-paper 20.0 %, under pgd 5.0 %" in exact["why"]
    assert one(rows, "H4", "pgd-log-odds")["value"] == pytest.approx(2 / 20)
    assert one(rows, "H4", "pgd-margin")["verdict"] == "not tested"
    assert one(rows, "H4", "every attack")["value"] == pytest.approx(4 / 20)


def test_what_of_the_advantage_is_the_attacks(made, one):
    row = one(claim_rows(made.all), "H5", "(rl - sl under pgd-paper)")
    difference = np.array(SURVIVED) - np.array(EXACT)
    assert row["value"] == pytest.approx(difference.mean())
    half = 2.093024 * difference.std(ddof=1) / math.sqrt(20)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.15 - half, 0.15 + half), abs=1e-6)
    assert "rl - sl under pgd-paper 20.0 %, under pgd 5.0 %: +15.0 points" in row["why"]


@pytest.mark.parametrize("changed", [{"step_size": 0.025}, {"steps": 250}])
def test_attacks_of_unequal_steps_are_not_compared(directories, one, changed):
    """Half of the difference would be the step's: the claims that compare the two attacks say so, others are made."""
    study = directories(rl=("rl", 0), sl=("sl", 0))
    cells = {
        (label, attack, "accuracy", "final"): SURVIVED for label in ("rl", "sl") for attack in ("pgd", "pgd-paper")
    }
    path = study.analysis(cells) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["attacks"]["pgd"] |= changed
    path.write_text(json.dumps(manifest))
    rows = claim_rows(study.all)
    own = f"{changed.get('steps', 100)} steps of {changed.get('step_size', 0.1)}"
    for row in (one(rows, "H4", "exact PGD"), one(rows, "H5", "")):
        assert row["verdict"] == "not tested"
        assert f"pgd-paper takes 100 steps of 0.1, pgd {own}; give both relative_step_size = 0.1" in row["why"]
    assert one(rows, "H4", "every attack")["verdict"] != "not tested"
    assert one(rows, "C1", "exact PGD")["value"] == 0


@pytest.mark.parametrize(
    ("budget", "alike"),
    [
        ({"steps": 25}, True),
        ({"steps": 20}, False),
        ({"steps": 20, "step_size": None, "relative_step_size": 0.1}, True),
        ({"steps": 20, "step_size": 0.07, "relative_step_size": None}, True),
        ({"steps": 20, "step_size": 0.07}, False),
    ],
)
def test_the_steps_of_an_evaluation_follow_from_its_budget(directories, one, budget, alike):
    """2.5 epsilon / 25 is the paper's tenth; before `relative_step_size` a step size was not the paper's attack's."""
    study = directories(rl=("rl", 0))
    cells = {("rl", "none"): [1.0] * 20, ("rl", "pgd-paper"): SURVIVED, ("rl", "pgd-margin"): [0.0] * 20}
    study.battery(cells, budget=budget)
    row = one(claim_rows(study.all), "H4", "pgd-margin")
    assert (row["verdict"] != "not tested") == alike
    assert ("give both relative_step_size" in row["why"]) != alike


def test_rescaled_copies(directories, one):
    copies = {"sl-x10": ("sl-x10", 0), "rl-calibrated": ("rl-calibrated", 0), "sl-x0.1": ("sl-x0.1", 0)}
    study = directories(**{"sl": ("sl", 0), "rl": ("rl", 0), **copies})
    base = {"phases": [{"epochs": 1}]}
    study.configs = {
        "sl": base | {"mode": "sl"},
        "rl": base | {"mode": "rl"},
        "sl-x10": base | {"mode": "sl", "logit_factor": 10},
        "sl-x0.1": base | {"mode": "sl", "logit_factor": 0.1},
        "rl-calibrated": base | {"mode": "rl", "logit_factor": 0.31},
    }
    right = {"sl": 1, "rl": 30, "sl-x10": 54, "sl-x0.1": 0, "rl-calibrated": 2}
    study.analysis(
        {(label, "pgd-paper", "accuracy", "final"): [1.0] * n + [0.0] * (100 - n) for label, n in right.items()}
    )
    rows = [row for row in claim_rows(study.all) if row["claim"] == "H6"]
    larger, smaller = rows
    assert (larger["value"], larger["direction"], larger["verdict"]) == (pytest.approx(0.53), "above 0", "supported")
    assert "sl with its logits times 10 - sl" in larger["statistic"]
    assert (smaller["value"], smaller["direction"], smaller["verdict"]) == (
        pytest.approx(-0.28),
        "below 0",
        "supported",
    )
    assert "rl with its logits times 0.31 - rl" in smaller["statistic"]


def test_several_seeds(directories, one):
    study = directories(**{f"{mode}{seed}": (mode, seed) for mode in ("sl", "rl") for seed in range(3)})
    random = np.random.default_rng(2)
    cells = {}
    for seed in range(3):
        tiny = random.random(200) < 0.3
        cells[f"rl{seed}", "pgd-paper", "norm", "clean"] = np.where(tiny, 1e-7, 1.0)
        cells[f"rl{seed}", "pgd-paper", "accuracy", "clean"] = np.ones(200)
        cells[f"rl{seed}", "pgd-paper", "accuracy", "final"] = (tiny & (random.random(200) < 0.8)).astype(float)
        cells[f"rl{seed}", "pgd", "accuracy", "final"] = np.zeros(200)
    study.analysis({key: list(values) for key, values in cells.items()})
    rows = claim_rows(study.all)
    norm, exact = one(rows, "H3", "norm"), one(rows, "H4", "exact PGD")
    assert (norm["seeds"], norm["n"], norm["verdict"]) == (3, 200, "supported")
    assert norm["ci_low"] < norm["value"] <= norm["ci_high"] <= 1
    assert (exact["seeds"], exact["verdict"]) == (3, "supported")


def test_analyses_come_before_batteries(made, one):
    """The battery cuts the paper's examples to the box; whichever directory comes first."""
    made.battery({("rl", "none"): CLEAN, ("rl", "pgd-paper"): [*[1.0] * 8, *[0.0] * 8, *[None] * 4]})
    for directories in (made.all, made.all[::-1]):
        rows = claim_rows(directories)
        assert "4 survivors" in one(rows, "H3", "norm")["why"]
        assert "of analysis, 100 steps" in one(rows, "H4", "exact PGD")["why"]

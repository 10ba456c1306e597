"""What is printed of results, to the letter, from files written by hand."""

from math import nan
from pathlib import Path
from typing import Any

import pytest

from gradscope.reporting.console import analysis_lines, landscape_lines
from gradscope.results.files import write_json
from gradscope.results.schemas import STEPS, SUMMARY
from gradscope.results.tables import write_table


def row(subset: str, value: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    identity = {"checkpoint": "sl", "mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0, "attack": "pgd"}
    measured = {"metric": "accuracy", "unit": "-", "value": value, "ci_low": low, "ci_high": high, "n": 40}
    return identity | measured | {"subset": subset} | changes


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A directory with one checkpoint and nothing to remark on it."""
    rows = [
        row("clean/all", 0.975, 0.871, 0.9956),
        row("worst/all", 0.05, 0.0138, 0.165),
        row("worst/wrong", 0.0, 0.0, 0.1, n=38),
        row("clean/all", 0.4, 0.26, 0.55, attack="pgd-paper"),
        row("worst/all", 1.0, 0.912, 1.0, attack="pgd-paper"),
        row("worst/all", 123456.0, -0.5, 3e-7, metric="loss", unit="nats"),
        row("around/all", 5e-4, nan, nan, metric="curvature-residual"),
        row("clean/all", 0.25, 0.2, 0.3, metric="distance", unit="pixel units"),
        row("clean/correct", 0.26, 0.2, 0.3, metric="distance", unit="pixel units"),
    ]
    write_table(tmp_path / SUMMARY.file, SUMMARY, rows)
    write_json(tmp_path / "manifest.json", {"checkpoints": [{"label": "sl"}]})
    return tmp_path


def test_an_analysis_is_accuracy_clean_and_under_each_attack(results: Path) -> None:
    """Of the steps where the cosine was measured the last one is said."""
    cosine = {"metric": "cosine", "unit": "-", "std": 0.1, "ci_low": 0.0, "ci_high": 1.0, "n": 40, "undefined": 0}
    identity = {key: row("", 0.0, 0.0, 0.0)[key] for key in ("checkpoint", "mode", "dataset", "arch", "seed", "attack")}
    ball = {"norm": "l2", "epsilon": 1.0}
    steps = [identity | ball | cosine | {"step": step, "mean": 0.25 * step} for step in (1, 2)]
    write_table(results / STEPS.file, STEPS, steps)
    assert analysis_lines(results).splitlines() == [
        "sl               pgd        clean  97.5 %  under attack   5.0 % [1.4, 16.5]  n = 40  cosine 0.500",
        "sl               pgd        distance           mean 0.25 [0.2, 0.3]  n = 40  pixel units",
        "sl               pgd-paper  clean  40.0 %  under attack 100.0 % [91.2, 100.0]  n = 40",
    ]


def test_a_landscape_is_every_number_over_all_images(results: Path) -> None:
    assert landscape_lines(results).splitlines() == [
        "sl               clean accuracy                   0.975 [0.871, 0.9956]  n = 40",
        "sl               worst accuracy                    0.05 [0.0138, 0.165]  n = 40",
        "sl               clean accuracy                     0.4 [0.26, 0.55]  n = 40",
        "sl               worst accuracy                       1 [0.912, 1]  n = 40",
        "sl               worst loss                   1.235e+05 [-0.5, 3e-07]  n = 40  nats",
        "sl               around curvature-residual       0.0005  n = 40",
        "sl               clean distance                    0.25 [0.2, 0.3]  n = 40  pixel units",
    ]


def test_what_went_wrong_in_a_landscape_follows_its_numbers(results: Path) -> None:
    entry = {
        "label": "sl",
        "random_instead_of_adversarial": {"first": [3, 17], "second": []},
        "keeps_batch_norm": True,
        "custom_failed": 2,
        "custom_failure": "ValueError: no",
    }
    write_json(results / "manifest.json", {"checkpoints": [entry, {"label": "rl"}]})
    assert landscape_lines(results).splitlines()[7:] == [
        "sl: the attack gave no first direction for 2 images",
        "sl: batch norm's statistics stay its own, so the far end is not the other checkpoint; "
        "--batch-norm re-estimated measures them again",
        "sl: --metric failed at 2 points, ValueError: no",
    ]

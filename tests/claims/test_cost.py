import json
import math

import numpy as np
import pytest
from scipy.stats import t

from gradscope.claims.table import claim_rows


def phases(*epochs, adversary=None):
    return [{"epochs": count, "adversary": None} for count in epochs[:-1]] + [
        {"epochs": epochs[-1], "adversary": adversary}
    ]


@pytest.fixture
def made(directories):
    """SL of two epochs and RL of four, the last with an adversary."""
    study = directories()
    study.configs = {
        "sl": {"mode": "sl", "phases": phases(2), "validation_fraction": 0.1},
        "rl": {"mode": "rl", "phases": phases(3, 1, adversary={"method": "fgsm"}), "validation_fraction": 0.1},
    }
    study.analysis({("sl", "pgd", "accuracy", "clean"): [1.0], ("rl", "pgd", "accuracy", "clean"): [1.0]})
    return study


def test_epochs_and_images(made, one):
    rows = claim_rows(made.all)
    epochs, images = one(rows, "C9", "epochs of training"), one(rows, "C9", "images seen")
    assert (epochs["value"], epochs["verdict"], epochs["paper"]) == (
        2.0,
        "supported",
        "600 against 100 in their scripts",
    )
    assert images["value"] == pytest.approx(5 / 2)
    assert (epochs["p_value"], epochs["direction"], epochs["unit"]) == (None, "above 1", "times")
    assert math.isnan(epochs["ci_low"])
    assert "rl 4, sl 2 epochs (by the configurations): 2 times; one seed" in epochs["why"]


def test_seconds_and_what_it_took_to_catch_up(made, one):
    without = claim_rows(made.all)
    assert one(without, "C9", "seconds")["verdict"] == one(without, "C9", "epochs until")["verdict"] == "not tested"
    assert ".history.csv" in one(without, "C9", "seconds")["why"]
    made.history("sl", [0.5, 0.7], seconds=3.0)
    made.history("rl", [0.2, 0.4, 0.7, 0.8], seconds=2.0)
    rows = claim_rows(made.all)
    assert one(rows, "C9", "seconds")["value"] == pytest.approx(8 / 6)
    caught_up = one(rows, "C9", "epochs until")
    assert caught_up["value"] == pytest.approx(3 / 2)
    assert "sl 70.0 % after 2, rl after 3" in caught_up["why"]


def test_what_was_never_reached_has_a_lower_bound(made, one):
    made.history("sl", [0.5, 0.9])
    made.history("rl", [0.2, 0.4, 0.5, 0.6])
    row = one(claim_rows(made.all), "C9", "epochs until")
    assert (row["value"], row["verdict"]) == (2.0, "supported")
    assert "rl not within 4 epochs, a lower bound" in row["why"]


def test_a_run_too_short_to_catch_up_says_nothing(directories, one):
    study = directories()
    study.configs = {"sl": {"phases": phases(4)}, "rl": {"phases": phases(4)}}
    study.analysis({("sl", "pgd", "accuracy", "clean"): [1.0], ("rl", "pgd", "accuracy", "clean"): [1.0]})
    study.history("sl", [0.5, 0.6, 0.7, 0.9])
    study.history("rl", [0.2, 0.4, 0.5, 0.6])
    row = one(claim_rows(study.all), "C9", "epochs until")
    assert row["verdict"] == "not tested"
    assert "train rl for longer" in row["why"]


def test_seconds_of_different_machines_are_not_compared(directories, one, made):

    path = made.all[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoints"][0]["trained"] = {"device": "cuda", "processor": "one", "processes": 2}
    path.write_text(json.dumps(manifest))
    made.history("sl", [0.5, 0.9])
    made.history("rl", [0.2, 0.4, 0.5, 0.6])
    row = one(claim_rows(made.all), "C9", "seconds")
    assert (row["verdict"], row["why"]) == (
        "not tested",
        "rl and sl were trained on different machines; train both on the same one",
    )


def test_foreign_models_have_no_cost(directories, one):
    study = directories()
    study.analysis({("sl", "pgd", "accuracy", "clean"): [1.0], ("rl", "pgd", "accuracy", "clean"): [1.0]})
    assert one(claim_rows(study.all), "C9", "epochs of training")["verdict"] == "not tested"


def test_several_seeds(directories, one):
    study = directories(**{f"{mode}{seed}": (mode, seed) for mode in ("sl", "rl") for seed in range(2)})
    study.configs = {"sl0": {"phases": phases(2)}, "sl1": {"phases": phases(4)}}
    study.configs |= {"rl0": {"phases": phases(6)}, "rl1": {"phases": phases(4)}}
    study.analysis({(label, "pgd", "accuracy", "clean"): [1.0] for label in study.models})
    row = one(claim_rows(study.all), "C9", "epochs of training")
    assert (row["value"], row["seeds"], row["verdict"]) == (pytest.approx(3**0.5), 2, "not supported")
    assert "not above 1 at every seed" in row["why"]
    assert "rl 4.89898, sl 2.82843 epochs" in row["why"], "their ratio is the value"
    # Student t in logarithms, one degree of freedom: a ratio cannot be negative.
    half = t.ppf(0.975, 1) * np.std([np.log(3), 0], ddof=1) / 2**0.5
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx(
        (np.exp(np.log(3) / 2 - half), np.exp(np.log(3) / 2 + half))
    )


@pytest.mark.parametrize(
    ("rl_ended", "verdict"), [("10:00:06", "not tested"), ("10:00:14", "supported"), ("12:00:00", "supported")]
)
def test_seconds_of_models_trained_side_by_side_are_not_compared(directories, one, made, rl_ended, verdict):
    made.history("sl", [0.5, 0.7], seconds=3.0)  # 10:00:00 to 10:00:06
    made.history("rl", [0.2, 0.4, 0.7, 0.8], seconds=2.0)
    path = made.all[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["checkpoints"]:
        ended = rl_ended if entry["label"] == "rl" else "10:00:06"
        entry["trained"] = {"device": "cuda", "processor": "one", "time": f"2026-11-26T{ended}+00:00"}
    path.write_text(json.dumps(manifest))
    row = one(claim_rows(made.all), "C9", "seconds")
    assert row["verdict"] == verdict
    assert ("at the same time on one machine" in row["why"]) == (verdict == "not tested")


def test_seconds_of_a_study_of_several_jobs_are_not_compared(directories, one, made):
    made.history("sl", [0.5, 0.7])
    made.history("rl", [0.2, 0.4, 0.7, 0.8])
    path = made.all[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    for jobs in (1, 2):
        for entry in manifest["checkpoints"]:
            entry["trained"] = {"device": "cpu", "processor": "one", "jobs": jobs if entry["label"] == "sl" else 1}
        path.write_text(json.dumps(manifest))
        row = one(claim_rows(made.all), "C9", "seconds")
        assert (row["verdict"] == "not tested") == (jobs == 2)
    assert row["why"] == "the study trained with 2 stages at a time; train the models again, one after the other"

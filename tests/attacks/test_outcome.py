import math

import pytest
import torch

from gradscope.attacks.outcome import AttackOutcome, Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS
from gradscope.results.stats import mcnemar, wilson_interval
from gradscope.results.tables import read_table, write_table

IDENTITY = {"checkpoint": "c", "mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0}


def attack(attacked, fooled, forward=0, backward=0, seconds=0.0):
    felled = torch.tensor(fooled, dtype=torch.bool)
    distance = torch.where(felled, 0.25, torch.nan).double()
    return AttackOutcome(torch.tensor(attacked), felled, distance, forward, backward, seconds)


def outcome(cascade=True):
    """Ten images: 0 is wrong when clean, 1 undefined; the first attack fells 2 and 3, the second 4."""
    right = torch.tensor([False, False] + [True] * 8)
    first = attack(range(2, 10), [1, 1, 0, 0, 0, 0, 0, 0], forward=80, backward=72, seconds=2.0)
    second = attack([4, 5, 6, 7, 8, 9], [1, 0, 0, 0, 0, 0], forward=6)
    if not cascade:
        second = attack(range(2, 10), [1, 0, 1, 0, 0, 0, 0, 0], forward=8)
    return Outcome(
        ThreatModel("l2", 0.5),
        torch.arange(100, 110),
        torch.arange(10),
        right,
        torch.arange(10) == 1,
        frozenset(["pgd", "square"] if cascade else []),
        {"pgd": first, "square": second},
        {"transfer": "needs adversarial examples made on another model"},
    )


def test_who_fell_to_what():
    found = outcome()
    assert found.fooled_by("pgd").nonzero().squeeze(1).tolist() == [2, 3]
    assert found.fooled_by("square").nonzero().squeeze(1).tolist() == [4]
    assert found.felled_by() == [None, None, "pgd", "pgd", "square", None, None, None, None, None]
    assert found.standing().nonzero().squeeze(1).tolist() == [5, 6, 7, 8, 9]
    assert found.standing("square").nonzero().squeeze(1).tolist() == [2, 3, 5, 6, 7, 8, 9]
    assert found.robust_accuracy == 0.5
    assert (found.distance == 0.25).nonzero().squeeze(1).tolist() == [2, 3, 4]
    assert int(found.distance.isnan().sum()) == 7
    assert outcome(cascade=False).felled_by() == found.felled_by()


def test_pairs_for_mcnemar():
    assert outcome(cascade=False).only("pgd", "square") == (1, 1)
    assert mcnemar(*outcome(cascade=False).only("pgd", "square")) == 1
    with pytest.raises(ValueError, match="pgd and square attacked different images"):
        outcome().only("pgd", "square")


def of(rows, **keys):
    (row,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return row


@pytest.mark.parametrize("cascade", [True, False])
def test_attack_rows_name_their_denominator(tmp_path, cascade):
    write_table(tmp_path / "attacks.csv", ATTACKS, outcome(cascade).attack_rows(IDENTITY))
    rows = read_table(tmp_path / "attacks.csv", ATTACKS).to_dict("records")
    assert {(row["checkpoint"], row["norm"], row["epsilon"]) for row in rows} == {("c", "l2", 0.5)}
    expected = {
        ("none", "accuracy", "all"): (8, 10),
        ("none", "undefined", "all"): (1, 10),
        ("pgd", "accuracy", "attacked"): (6, 8),
        ("pgd", "robust-accuracy", "all"): (6, 10),
        ("square", "accuracy", "attacked"): (5, 6) if cascade else (6, 8),
        ("square", "robust-accuracy", "all"): (5, 10),
    }
    if not cascade:
        expected |= {("pgd", "accuracy", "all"): (6, 10), ("square", "accuracy", "all"): (6, 10)}
    shares = {(row["attack"], row["metric"], row["subset"]): row for row in rows if row["unit"] == "-"}
    assert shares.keys() == expected.keys()
    for key, (count, n) in expected.items():
        row = shares[key]
        assert (row["value"], row["n"]) == (count / n, n)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(wilson_interval(count, n)))
    assert of(rows, attack="pgd", metric="forward")["value"] == 10
    assert of(rows, attack="pgd", metric="backward")["value"] == 9
    assert of(rows, attack="pgd", metric="seconds")["value"] == 2
    assert math.isnan(of(rows, attack="pgd", metric="seconds")["ci_low"])
    assert of(rows, attack="square", metric="forward")["value"] == 1


def test_sample_rows_say_which_attack_felled_which_image_at_what_distance(tmp_path):
    write_table(tmp_path / "samples.csv", ATTACK_SAMPLES, outcome().sample_rows(IDENTITY))
    rows = read_table(tmp_path / "samples.csv", ATTACK_SAMPLES).to_dict("records")
    assert len(rows) == 10 + 2 * 8 + 2 * 6
    assert of(rows, attack="none", index=100)["value"] == 0
    assert math.isnan(of(rows, attack="none", index=101)["value"])
    assert of(rows, attack="none", index=104)["value"] == 1
    assert of(rows, attack="pgd", metric="accuracy", index=103)["value"] == 0
    assert of(rows, attack="pgd", metric="distance", index=103)["value"] == 0.25
    assert of(rows, attack="pgd", metric="accuracy", index=104)["value"] == 1
    assert math.isnan(of(rows, attack="pgd", metric="distance", index=104)["value"])
    assert of(rows, attack="square", metric="accuracy", index=104) | {"value": 0} == {
        **IDENTITY,
        "attack": "square",
        "norm": "l2",
        "epsilon": 0.5,
        "index": 104,
        "label": 4,
        "metric": "accuracy",
        "point": "worst",
        "unit": "-",
        "value": 0,
        "first": 1,
    }
    assert of(rows, attack="pgd", metric="accuracy", index=104)["first"] == 0
    assert of(rows, attack="pgd", metric="distance", index=103)["first"] == 1

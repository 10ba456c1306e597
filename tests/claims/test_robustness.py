import json
import math

import pytest

from gradscope.claims.table import claim_rows
from gradscope.results.stats import mcnemar, paired_rates_interval

MANY = 100


def flags(right: int, of: int = MANY) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


def both(attack: str, sl: int, rl: int, point: str = "final"):
    return {("sl", attack, "accuracy", point): flags(sl), ("rl", attack, "accuracy", point): flags(rl)}


def test_a_claim_that_stands_under_the_papers_attack_and_falls_under_the_others(directories, one):
    made = directories()
    clean = both("pgd", 90, 85, "clean")
    made.analysis({**clean, **both("pgd-paper", 5, 55), **both("pgd", 2, 6), **both("pgd", 1, 0, "worst")})
    rows = claim_rows(made.all)
    paper, exact, everything = (row for row in rows if row["claim"] == "C1")
    assert [row["verdict"] for row in (paper, exact, everything)] == ["supported", "not supported", "not supported"]
    assert paper["value"] == pytest.approx(0.5)
    assert (paper["ci_low"], paper["ci_high"]) == pytest.approx(tuple(paired_rates_interval(50, 0, MANY)))
    assert "rl 55.0 %, sl 5.0 %: +50.0 points" in paper["why"]
    assert "about 5 % -> 55 % (cnn6)" in paper["paper"]
    assert exact["value"] == pytest.approx(0.04)
    assert everything["value"] == pytest.approx(-0.01)
    assert "1 attack: pgd" in everything["why"]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_distances_ask_of_robustness_without_a_radius(directories, one, factor):
    made = directories()
    away = [0.0] * 10 + [0.1 + image / 1000 for image in range(90)]
    cells = {("sl", "pgd", "distance", "clean"): away, ("rl", "pgd", "distance", "clean"): [factor * v for v in away]}
    made.analysis({**both("pgd", 90, 90, "clean"), **both("pgd", 50, 60), **cells})
    row = one(claim_rows(made.all), "C1", "distance of the nearest point")
    assert row["value"] == pytest.approx((factor - 1) * sum(away) / MANY)
    assert row["verdict"] == ("supported" if factor > 1 else "not supported")
    assert row["unit"] == "pixel units"


def test_without_distances_there_is_no_row_of_them(directories):
    made = directories()
    made.analysis({**both("pgd", 90, 90, "clean"), **both("pgd", 50, 60)})
    assert not [row for row in claim_rows(made.all) if "distance of the nearest" in row["statistic"]]


def test_accuracies_are_paired_by_image(directories, one):
    """Equal rates on different images differ on 40; unpaired indices leave the images of one alone out."""
    made = directories()
    cells = {
        ("sl", "pgd-paper", "accuracy", "final"): [1] * 20 + [0] * 60,
        ("rl", "pgd-paper", "accuracy", "final"): [0] * 20 + [1] * 20 + [0] * 60,
    }
    made.analysis(cells)
    row = one(claim_rows(made.all), "C1", "pgd-paper")
    assert (row["value"], row["n"]) == (0, 80)
    assert row["p_value"] == mcnemar(20, 20) == 1
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(paired_rates_interval(20, 20, 80)))


def test_everything_takes_the_attacks_that_both_had(directories, one):
    """rl had square as well: on images that sl stood, so it is no fair part of the comparison."""
    made = directories()
    made.analysis({**both("pgd", 90, 90, "clean"), **both("pgd", 50, 60)})
    made.battery(
        {
            ("sl", "none"): flags(90),
            ("sl", "pgd"): [1.0] * 55 + [0.0] * 35 + [None] * 10,
            ("rl", "none"): flags(90),
            ("rl", "pgd"): [1.0] * 58 + [0.0] * 32 + [None] * 10,
            ("rl", "square"): [0.0] * 58 + [None] * 42,
        }
    )
    row = one(claim_rows(made.all), "C1", "every attack")
    assert "rl 58.0 %, sl 50.0 %" in row["why"]
    assert "1 attack: pgd" in row["why"]
    alone = one(claim_rows(made.all), "H4", "every attack")
    assert alone["verdict"] == "not tested"


def test_every_attack_is_every_attack_on_the_images_that_all_had(directories, one):
    """A weak attack on many images takes no strong one on few out of the test, and is a test of its own."""
    made = directories()
    made.analysis({**both("pgd", 90, 90, "clean"), **both("pgd", 50, 60)})
    few = {("sl", "none"): [1.0] * 40, ("rl", "none"): [1.0] * 40}
    made.battery(few | {("sl", "apgd-t"): [1.0] * 20 + [0.0] * 20, ("rl", "apgd-t"): [1.0] * 4 + [0.0] * 36})
    rows = claim_rows(made.all)
    row = one(rows, "C1", "every attack")
    assert (row["n"], row["value"]) == (40, pytest.approx(-0.4))
    assert "2 attacks: pgd, apgd-t" in row["why"]
    row = one(rows, "C1", "on most images")
    assert (row["n"], row["value"]) == (100, pytest.approx(0.1))
    assert "1 attack: pgd" in row["why"]


def test_examples_of_others_count_among_everything(directories, one):
    made = directories()
    made.transfer(
        {
            ("", "sl"): flags(90),
            ("", "rl"): flags(90),
            ("sl", "sl"): flags(40),
            ("rl", "sl"): flags(30),
            ("sl", "rl"): flags(20),
            ("rl", "rl"): flags(45),
        }
    )
    row = one(claim_rows(made.all), "C1", "every attack")
    assert "rl 20.0 %, sl 30.0 %" in row["why"]
    assert "2 attacks: pgd, examples of 1 other models" in row["why"]


def test_an_attack_outside_the_box_is_not_among_everything(directories, one):
    made = directories()
    made.analysis({**both("pgd-paper", 90, 90, "clean"), **both("pgd-paper", 0, 50)})
    row = one(claim_rows(made.all), "C1", "every attack")
    assert row["verdict"] == "not tested"
    assert "no attack that respects the box" in row["why"]


def test_the_radius_of_the_paper_is_taken_where_there_are_several(directories, one):
    made = directories()
    for epsilon, right in ((0.5, 80), (1.0, 30), (2.0, 10)):
        cells = {("sl", "none"): flags(90), ("sl", "pgd"): flags(20), ("rl", "none"): flags(90)}
        made.battery(cells | {("rl", "pgd"): flags(right)}, name=f"at {epsilon}", epsilon=epsilon)
    row = one(claim_rows(made.all), "C1", "exact PGD")
    assert row["value"] == pytest.approx(0.1)
    assert "(l2, epsilon 1)" in row["statistic"]
    row = one(claim_rows(made.all[2:]), "C1", "exact PGD")
    assert row["value"] == pytest.approx(-0.1)
    assert "(l2, epsilon 2)" in row["statistic"]


@pytest.mark.parametrize(("rl", "verdict"), [(880, "supported"), (860, "not supported"), (700, "not supported")])
def test_clean_accuracy_may_fall_by_five_points(directories, one, rl, verdict):
    made = directories()
    cells = {("sl", "pgd"): 900, ("rl", "pgd"): rl}
    made.analysis({(*key, "accuracy", "clean"): flags(right, 1000) for key, right in cells.items()})
    row = one(claim_rows(made.all), "C2", "clean accuracy")
    assert (row["direction"], row["verdict"]) == ("above -0.05", verdict)


def test_transfer_both_ways_and_on_its_own(directories, one):
    """The paper's pattern: what SL's examples break, RL's own do not."""
    made = directories()
    cells = {("", "sl"): flags(80), ("", "rl"): flags(60), ("rl", "sl"): flags(43), ("sl", "rl"): flags(8)}
    made.transfer(cells | {("rl", "rl"): flags(43), ("sl", "sl"): flags(0)}, attack="pgd-paper")
    rows = claim_rows(made.all)
    ways = one(rows, "C7", "on the other's examples", "pgd-paper")
    assert (ways["value"], ways["verdict"]) == (pytest.approx(0.35), "supported")
    assert "sl on rl's examples 43.0 %, rl on sl's 8.0 %" in ways["why"]
    right = one(rows, "C7", "both have right", "pgd-paper")
    assert (right["value"], right["n"]) == (pytest.approx(35 / 60), 60)
    own = one(rows, "C7", "on its own", "pgd-paper")
    assert (own["value"], own["verdict"]) == (pytest.approx(-0.35), "supported")
    assert one(rows, "C7", "on its own", "exact PGD")["verdict"] == "not tested"
    assert "--attack pgd`" in one(rows, "C7", "on its own", "exact PGD")["why"]
    assert not [row for row in rows if "every attack that made any" in row["statistic"]], "it is the same test"
    assert one(rows, "C1", "pgd-paper")["value"] == pytest.approx(0.43)


def test_every_attack_that_made_examples_together(directories, one):
    made = directories()
    first = {("", "sl"): flags(90), ("", "rl"): flags(90), ("rl", "sl"): flags(50), ("sl", "rl"): flags(40)}
    second = {**first, ("rl", "sl"): [0.0] * 10 + [1.0] * 60 + [0.0] * 30}
    made.transfer(first)
    made.transfer(second, name="paper", attack="pgd-paper")
    row = one(claim_rows(made.all), "C7", "on the other's", "every attack")
    assert row["value"] == pytest.approx(0.0)
    assert "pgd and pgd-paper" in row["why"]


def test_adversarial_training_under_each_attack(directories, one):
    made = directories(**{"sl": ("sl", 0), "rl": ("rl", 0), "s": ("sl-adv", 0), "r": ("rl-adv", 0)})
    made.battery(
        {
            ("s", "none"): flags(80),
            ("s", "fgsm"): flags(50),
            ("s", "square"): flags(45),
            ("r", "none"): flags(80),
            ("r", "fgsm"): flags(70),
            ("r", "square"): flags(40),
        }
    )
    clean = {("", label): flags(80) for label in made.models}
    on = {(source, target): flags(at) for target, at in (("s", 20), ("r", 45)) for source in ("sl", "rl")}
    on["rl", "r"] = [0.0] * 15 + [1.0] * 35 + [0.0] * 50
    made.transfer(clean | on, attack="pgd-paper")
    rows = claim_rows(made.all)
    assert one(rows, "C8", "fgsm")["value"] == pytest.approx(0.2)
    assert one(rows, "C8", "square")["value"] == pytest.approx(-0.05)
    assert one(rows, "C8", "autoattack")["verdict"] == "not tested"
    assert one(rows, "C8", "every attack measured")["value"] == pytest.approx(-0.05)
    transfer = one(rows, "C8", "sl's and on rl's examples", "pgd-paper")
    assert transfer["value"] == pytest.approx(0.10)
    assert "rl-adv 30.0 %, sl-adv 20.0 %" in transfer["why"]


def test_a_study_without_the_adversarial_modes(directories, one):
    made = directories()
    made.analysis(both("pgd", 5, 6))
    row = one(claim_rows(made.all), "C8", "square")
    assert row["why"] == (
        "the study has no rl-adv and no sl-adv checkpoint; "
        "train one with `gradscope train --mode rl-adv` and `gradscope train --mode sl-adv`"
    )
    assert row["verdict"] == "not tested"
    assert math.isnan(row["value"])


def test_seeds_are_paired_and_pooled(directories, one):
    made = directories(**{f"{mode}-{seed}": (mode, seed) for mode in ("sl", "rl") for seed in range(3)})
    cells = {}
    for seed, rl in enumerate((40, 50, 60)):
        cells[f"sl-{seed}", "pgd-paper", "accuracy", "final"] = flags(10)
        cells[f"rl-{seed}", "pgd-paper", "accuracy", "final"] = flags(rl)
    made.analysis(cells)
    row = one(claim_rows(made.all), "C1", "pgd-paper")
    assert (row["value"], row["seeds"], row["n"]) == (pytest.approx(0.4), 3, 100)
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((0.4 - 0.2484, 0.4 + 0.2484), abs=1e-4)
    assert row["verdict"] == "supported"
    assert "seed" not in row["why"]


def test_seeds_that_only_one_mode_has_are_left_out(directories, one):
    made = directories(**{"sl": ("sl", 0), "rl": ("rl", 0), "rl-1": ("rl", 1)})
    made.analysis(both("pgd", 5, 9) | {("rl-1", "pgd", "accuracy", "final"): flags(90)})
    assert one(claim_rows(made.all), "C1", "exact PGD")["value"] == pytest.approx(0.04)
    made.models = {"sl": ("sl", 0), "rl": ("rl", 1)}
    path = made.analysis(both("pgd", 5, 9), name="apart")
    why = one(claim_rows([path]), "C1", "exact PGD")["why"]
    assert why == "rl and sl have no training seed in common; train both with the same --seed"


def test_of_several_checkpoints_alike_the_first_is_taken_and_said(directories, one):
    made = directories(**{"sl": ("sl", 0), "rl": ("rl", 0), "rl-long": ("rl", 0)})
    made.analysis(both("pgd", 5, 9) | {("rl-long", "pgd", "accuracy", "final"): flags(90)})
    row = one(claim_rows(made.all), "C1", "exact PGD")
    assert row["value"] == pytest.approx(0.04)
    assert "of several rl checkpoints rl was used, not rl-long" in row["why"]


def test_models_measured_in_different_directories_are_paired(directories, one):
    made = directories()
    made.analysis({("sl", "pgd", "accuracy", "final"): flags(5)}, name="one")
    made.analysis({("rl", "pgd", "accuracy", "final"): flags(9, 120)}, name="other")
    row = one(claim_rows(made.all), "C1", "exact PGD")
    assert (row["value"], row["n"]) == (pytest.approx(0.04), 100)


def test_audits_say_what_they_found(directories, one):

    made = directories()
    path = made.battery(
        {("sl", "none"): flags(80), ("sl", "pgd"): flags(5), ("rl", "none"): flags(80), ("rl", "pgd"): flags(30)},
        kind="audit",
    )
    share = {"value": 0.8, "ci_low": 0.7, "ci_high": 0.9}
    audit = {
        "checkpoint": "rl",
        "verdict": "masking found",
        "causes": ["saturation"],
        "reason": "",
        "robust_accuracy": {"upper_bound": 0.3, "ci_low": 0.2, "ci_high": 0.4, "n": 100},
        "clean_accuracy": share,
        "under": {},
        "threat": {"norm": "l2", "epsilon": 1.0},
        "budget": "quick",
        "left_out": {},
        "checks": [],
    }
    (path / "audit.json").write_text(json.dumps({"schema": 1, "audits": [audit, audit | {"checkpoint": "other"}]}))
    why = one(claim_rows(made.all), "C1", "every attack")["why"]
    assert "the audit of rl says: masking found: saturation" in why
    assert "the audit of sl" not in why

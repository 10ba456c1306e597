"""K1: what one fixed attack reaches as the logits' scale changes, and the calibration beside it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import nn

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BUDGETS, ScaleBudget
from gradscope.auditing.checks.scale import temperature
from gradscope.auditing.gathering import gather
from gradscope.auditing.scale import REFERENCE, Tempered, attacks_at, temperatures
from gradscope.distributed.units import PLAIN, Work
from gradscope.functional import calibration_error
from gradscope.models.rescaling import best_factor
from gradscope.results.schemas import SCALE
from tests.conftest import first_of
from tests.masks import Behind

THREAT = ThreatModel("linf", 0.1)
IDENTITY = dict.fromkeys(["checkpoint", "mode", "dataset", "arch", "seed"], "x")


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.subset(torch.arange(60))


def gathered(model, images):
    budget = replace(BUDGETS["quick"], scale=ScaleBudget(60, 9, 20, ("pgd", "pgd-paper")))
    numbers = torch.arange(len(images))
    return gather(model, images, numbers, THREAT, budget, examples=(), work=PLAIN)


@pytest.fixture(scope="module")
def curves(zoo, images):
    """The evidence on a plain network as it is, and with its logits times 100."""
    models = {"plain": zoo(0).honest["SL"], "x 100": zoo(0).masked["logits x 100"][0]}
    return {name: gathered(model, images) for name, model in models.items()}


def test_temperatures_are_even_in_their_logarithm_with_one_among_them():
    for budget in BUDGETS.values():
        found = temperatures(budget.scale.temperatures)
        assert (len(found), found[0], found[-1]) == (budget.scale.temperatures, 0.01, 100)
        assert 1.0 in found
        assert np.diff(np.log(found)) == pytest.approx([math.log(1e4) / (len(found) - 1)] * (len(found) - 1))


def test_a_model_whose_logits_are_scaled_has_the_same_curve_shifted(curves):
    """At temperature 100 the logits times 100 are those of the plain network at 1, to rounding."""
    plain, scaled = (curves[name].scale for name in ("plain", "x 100"))
    for one, other in ((0.01, 1.0), (0.1, 10.0), (1.0, 100.0)):
        assert int((plain.standing["pgd"][one] != scaled.standing["pgd"][other]).sum()) <= 1


def test_cross_entropy_depends_on_the_scale_and_the_margin_does_not(curves):
    curve = curves["x 100"].scale
    left = {name: [int(stands.sum()) for stands in curve.standing[name].values()] for name in curve.standing}
    for name in ("pgd", "pgd-paper"):
        assert left[name][0] - min(left[name]) > 15
    assert max(left[REFERENCE]) - min(left[REFERENCE]) <= 1


def test_clean_predictions_are_alike_at_every_temperature(zoo, images):
    model = zoo(0).honest["SL"]
    pixels, _ = images.batch(torch.arange(len(images)), "cpu")
    for value in temperatures(9):
        assert torch.equal(Tempered(model, value)(pixels).argmax(dim=1), model(pixels).argmax(dim=1))


def test_the_check_fires_on_saturated_logits_alone_and_says_which_temperature_calibrates(curves):
    found = temperature(curves["x 100"])
    assert (found.state, found.accuses, found.points_to[0]) == ("fired", True, "saturation")
    fitted = curves["x 100"].scale.fitted
    assert f"temperature {fitted.temperature:.3g} calibrates it" in found.beside
    assert temperature(curves["plain"]).state == "passed"
    assert len(found.images) >= found.value * 60 > 6


def test_the_p_value_pays_for_the_choice_of_the_temperature(curves):
    """By hand: four higher temperatures, one of them chosen; a sign test of the images that differ."""
    standing = curves["x 100"].scale.standing["pgd"]
    there = min(list(standing.values())[5:], key=lambda stands: int(stands.sum()))
    only, missed = int((standing[1.0] & ~there).sum()), int((there & ~standing[1.0]).sum())
    chance = sum(math.comb(only + missed, k) for k in range(only, only + missed + 1)) / 2 ** (only + missed)
    assert temperature(curves["x 100"]).p_value == pytest.approx(4 * chance)


def test_a_lower_temperature_is_told_and_never_fires(curves, zoo, images):
    """Times 1e-2 cross-entropy weighs all wrong classes alike: an attack that is weaker, not blind."""
    evidence = gathered(Behind(zoo(0).honest["SL"], after=lambda logits: 1e-2 * logits), images)
    standing = evidence.scale.standing["pgd"]
    assert standing[1.0].sum() - standing[0.01].sum() > 3
    found = temperature(evidence)
    assert found.state == "passed"
    assert "; temperature 0.01 fools " in found.beside
    assert "; temperature 0.01 fools " not in temperature(curves["x 100"]).beside


def test_the_fitted_temperature_is_where_cross_entropy_is_smallest(zoo, images):
    """Against Newton's method on the convex loss in the factor, in NumPy."""
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    logits = zoo(0).honest["linear"](pixels).detach().double()
    z, y = logits.numpy(), labels.numpy()

    def slope(factor):
        p = special.softmax(factor * z, axis=1)
        return float(((p * z).sum(1) - z[np.arange(len(y)), y]).mean())

    assert best_factor(logits, labels) == pytest.approx(optimize.brentq(slope, 1e-3, 1e3), rel=1e-3)
    assert best_factor(100 * logits, labels) == pytest.approx(best_factor(logits, labels) / 100, rel=1e-3)
    right = logits.argmax(dim=1) == labels
    assert best_factor(logits[right], labels[right]) is None


def test_the_calibration_error_is_that_of_its_bins_one_by_one():
    stream = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 7, generator=stream)
    labels = torch.randint(0, 7, (500,), generator=stream)
    p = special.softmax(logits.double().numpy(), axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(error)


def test_a_softmax_that_knows_its_chances_has_no_calibration_error():
    """Three of four are right, each with probability 3/4."""
    logits = torch.tensor([[math.log(3.0), 0.0]]).repeat(400, 1)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1]).repeat(100)) == pytest.approx(0, abs=1e-7)
    assert calibration_error(100 * logits, torch.tensor([0, 0, 0, 1]).repeat(100)) == pytest.approx(0.25)


def test_rows_keep_to_the_schema_and_count_all_images(curves):
    curve = curves["x 100"].scale
    rows = list(curve.rows(IDENTITY))
    assert all(set(row) == set(SCALE.names) for row in rows)
    walked = [row for row in rows if row["metric"] == "robust-accuracy"]
    assert len(walked) == 2 * 9 + 3
    assert {row["n"] for row in walked} == {60}
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in walked)
    (fitted,) = (row for row in rows if row["fitted"] and row["metric"] == "calibration-error")
    given = next(row for row in rows if not row["fitted"] and row["metric"] == "calibration-error")
    assert curve.fitted.loss < curve.given.loss
    assert given["value"] == curve.given.error
    assert fitted["temperature"] == curve.fitted.temperature > 10


def test_what_falls_at_another_temperature_lowers_the_bound(curves):
    evidence = curves["x 100"]
    fallen = ~evidence.scale.standing["pgd"][evidence.scale.strongest("pgd", evidence.scale.standing["pgd"])]
    assert fallen.sum() > 20
    assert not (evidence.standing()[:60] & fallen).any()


def test_no_curve_where_no_temperature_rescales_or_one_pass_judges_nothing(zoo, images):
    for name, why in (("probabilities", "outputs are probabilities"), ("noise layer", "the output is random")):
        evidence = gathered(zoo(0).masked[name][0], images)
        found = temperature(evidence)
        assert evidence.scale is None
        assert (found.state, why in found.cause) == ("abstained", True)


def test_a_temperature_whose_rounding_moves_a_prediction_is_left_out(zoo, images):
    """Logits near 1e-43 are among the last subnormal numbers of float32; divided by 100 they tie."""
    model = Behind(zoo(0).honest["SL"], after=lambda logits: 1e-44 * logits)
    evidence = gathered(model, images)
    assert evidence.scale is None or 100.0 not in evidence.scale.standing["pgd"]


@pytest.mark.parametrize("seed", first_of([0, 1, 2]))
@pytest.mark.parametrize("threat", first_of([THREAT, ThreatModel("l2", 1.0)]), ids=["linf", "l2"])
def test_saturated_models_fire_and_no_honest_one_does(zoo, digits, seed, threat):
    """With the temperatures, steps and images of the standard budget; over-trained ones are less saturated."""
    images = digits.test.subset(torch.arange(64))
    budget = replace(BUDGETS["quick"], names=("pgd",), scale=ScaleBudget(64, 13, 20, ("pgd",)))
    models = {name: (model, "") for name, model in zoo(seed).honest.items()} | zoo(seed).masked
    for name, (model, cause) in models.items():
        if cause not in ("", "saturation") or name == "logits x 10":  # which is a little saturated
            continue
        evidence = gather(model, images, torch.arange(64), threat, budget, examples=(), work=Work(seed=seed))
        found = temperature(evidence)
        if name != "smoothed, over-trained" or threat.norm == "l2":
            assert found.fired == (cause == "saturation"), (name, found.value, found.p_value)


def test_few_right_images_make_it_abstain(curves):
    evidence = curves["plain"]
    curve = evidence.scale
    few = {attack: {at: stands[:15] for at, stands in standing.items()} for attack, standing in curve.standing.items()}
    made = temperature(replace(evidence, scale=replace(curve, right=curve.right[:15], standing=few)))
    assert made.state == "abstained"
    assert "of the first 15 images are right when clean, 20 are needed" in made.cause


def test_a_budget_runs_the_reference_at_the_ends_and_as_given():
    found = attacks_at(ScaleBudget(10, 5, 3, ("pgd", "pgd-paper")))
    assert [(temperature, REFERENCE in names) for temperature, names in found.items()] == [
        (0.01, True),
        (0.1, False),
        (1.0, True),
        (10.0, False),
        (100.0, True),
    ]
    assert all({"pgd", "pgd-paper"} <= set(names) for names in found.values())
    for budget in BUDGETS.values():
        assert sum(len(names) for names in attacks_at(budget.scale).values()) == budget.scale.runs


def test_a_tempered_model_is_a_module_around_the_model():
    inner = nn.Flatten()
    assert Tempered(inner, 2.0)(torch.ones(1, 1, 1, 2)).tolist() == [[0.5, 0.5]]


def test_as_many_images_are_taken_as_hold_twenty_that_are_right(zoo, images):
    budget = replace(BUDGETS["quick"], names=("pgd",), scale=ScaleBudget(5, 3, 2, ("pgd",)))
    everyone = torch.arange(len(images))
    right = gather(zoo(0).honest["SL"], images, everyone, THREAT, budget, examples=(), work=Work()).scale.right
    assert int(right.sum()) == 20
    assert right[-1]

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BUDGETS
from gradscope.auditing.checks import CHECKS, PASSED, check
from gradscope.auditing.checks.base import Check, adjusted
from gradscope.auditing.gathering import gather
from gradscope.auditing.outputs import flattened_by
from gradscope.auditing.verdict import examine, judge
from gradscope.config import Budget
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Work
from gradscope.errors import GradscopeError
from gradscope.results.schemas import AUDIT

THREAT = ThreatModel("linf", 0.1)
WEAK = Budget(steps=1, step_size=0.02, restarts=1, smoothing=1, queries=10, noise_points=2)


class Changed(nn.Module):
    """A classifier whose logits pass through ``change(images, logits)``."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images):
        return self.change(images, self.model(images))


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.subset(torch.arange(50))


@pytest.fixture
def plain(zoo):
    return zoo(0).honest["linear"]


def audit(model, images, threat=THREAT, **options):
    return examine(model, images, None, threat, "quick", **options)


@pytest.fixture(scope="module")
def audited(zoo, images):
    """The audit of the plain classifier, as it is."""
    return audit(zoo(0).honest["linear"], images)


def checks_of(found):
    return {made.id: made for made in found.checks}


def test_every_check_is_there_with_a_sentence_and_a_next_step(audited):
    assert [made.id for made in audited.checks] == list(CHECKS)
    for made in audited.checks:
        assert made.cause
        assert made.next_step
        assert (made.state == "abstained") == math.isnan(made.value)
    assert audited.upper_bound == pytest.approx(float(audited.standing.double().mean()))
    assert audited.interval.low <= audited.upper_bound <= audited.interval.high
    main = audited.evidence.main
    assert all(audited.upper_bound <= float(main.standing(name).double().mean()) for name in main.attacks)


def test_rows_and_json_say_the_same_and_keep_to_their_schemas(audited):
    identity = dict.fromkeys(["checkpoint", "mode", "dataset", "arch", "seed"], "x")
    rows = list(audited.rows(identity))
    document = json.loads(json.dumps(audited.to_json(), allow_nan=False))
    assert all(list(row) == AUDIT.names for row in rows)
    assert [row["check"] for row in rows] == [made["id"] for made in document["checks"]]
    assert document["robust_accuracy"]["upper_bound"] == audited.upper_bound
    assert document["verdict"] == rows[0]["verdict"]
    assert document["left_out"]["transfer"] == "no examples of another model were given"
    assert "autoattack" not in document["left_out"]


def test_the_model_and_the_random_state_are_left_as_they_were(plain, images, digest):
    plain.train()
    before = digest(plain)
    audit(plain, images)
    assert digest(plain) == before


def test_a_mask_that_more_steps_do_not_explain_is_found_though_they_gain(zoo, images):
    """Ripples on the input: gradients are exact, and lead nowhere; Square walks over them."""

    class Rippled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model(pixels + 0.03 * torch.sin(400 * pixels))

    found = audit(Rippled(zoo(0).honest["SL"]), images)
    assert checks_of(found)["C1"].fired
    assert checks_of(found)["X1"].value > 0.2
    assert (found.verdict, found.cause) == ("masking found", "shattering")


def test_a_gradient_that_was_scaled_away_is_missing_and_not_saturated(zoo, images):
    found = audit(Changed(zoo(0).honest["SL"], lambda pixels, logits: 1e-30 * logits), images)
    assert found.cause != "saturation"
    assert checks_of(found)["N1"].points_to == ("missing gradient",)


def test_a_direction_that_accuses_nobody_has_no_small_p_value(zoo, images):
    radius = checks_of(audit(zoo(0).honest["SL"], images))["M1"]
    assert radius.value < -0.05
    assert radius.p_value == 1
    assert radius.interval.low <= radius.value <= radius.interval.high


def test_a_model_that_is_hardly_defined_is_named_so(plain, images):
    def broken(pixels, logits):
        return torch.where(pixels.mean(dim=(1, 2, 3)).unsqueeze(1) < 0.9, math.nan, logits)

    found = audit(Changed(plain, broken), images)
    assert (found.verdict, found.reason) == ("set-up invalid", "the output is not finite on 100 % of the images")


def test_few_images_make_checks_abstain_and_the_verdict_inconclusive(plain, digits):
    found = audit(plain, digits.test.subset(torch.arange(8)))
    assert found.verdict == "inconclusive"
    assert checks_of(found)["X1"].state == "abstained"
    assert "30 are needed" in checks_of(found)["X1"].cause


@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes(digits, images, classes):
    few = digits.test.subset((digits.test.labels < classes).nonzero().squeeze(1)[:40])
    few = ImageSet.from_tensors("few", few.images, few.labels, [str(name) for name in range(classes)])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    pixels, labels = few.batch(torch.arange(len(few)), "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    found = audit(model, few)
    assert found.verdict == "none found within this budget"
    assert ("pgd-dlr" in found.left_out) == (classes == 2)


def test_a_model_that_cannot_be_differentiated_is_attacked_by_query_only(plain, images):
    found = audit(Changed(plain, lambda pixels, logits: logits.detach()), images)
    assert found.verdict == "inconclusive"
    assert found.cause == "missing gradient"
    assert set(found.evidence.main.attacks) == {"square", "noise"}
    assert "only attacks by query" in found.reason
    assert found.upper_bound < float(found.evidence.main.right.double().mean())


def test_logits_that_are_not_finite_are_named(plain, images):
    def broken(pixels, logits):
        return torch.where(pixels[:, :, 3, 3].mean(dim=1, keepdim=True) < 0.1, math.nan, logits)

    found = audit(Changed(plain, broken), images)
    undefined = found.evidence.main.undefined
    assert 0 < int(undefined.sum()) < len(images)
    assert "not finite" in checks_of(found)["D1"].cause
    assert set(found.evidence.numbers[undefined].tolist()) <= set(checks_of(found)["D1"].images)
    assert not found.standing[undefined].any()


def test_an_output_that_depends_on_the_batch_and_a_guess_are_set_ups_that_are_invalid(plain, images):
    batch = audit(Changed(plain, lambda pixels, logits: logits - logits.mean(dim=0)), images)
    assert (batch.verdict, batch.causes) == ("set-up invalid", ())
    rounded = audit(
        Changed(plain, lambda pixels, logits: logits + (pixels.dtype == torch.float32) * 0.01 * len(pixels)), images
    )
    assert checks_of(rounded)["D1"].state == "passed"
    guess = audit(Changed(plain, lambda pixels, logits: 0 * logits), images)
    assert guess.verdict == "set-up invalid"
    assert "chance" in guess.reason


@pytest.mark.parametrize("output", [torch.eye(10)[3], torch.arange(10.0) * (torch.arange(10) == 3)])
def test_one_class_for_every_image_is_a_set_up_that_is_invalid(plain, digits, output):
    threes = digits.test.subset((digits.test.labels == 3).nonzero().squeeze(1)[:30])
    found = audit(Changed(plain, lambda pixels, logits: 0 * logits + output), threes)
    assert (found.verdict, found.reason) == (
        "set-up invalid",
        "the model predicts one class for every image, attacked or not",
    )
    assert "the model predicts one class for every image" in checks_of(found)["D1"].cause
    few = audit(Changed(plain, lambda pixels, logits: 0 * logits + output), threes.subset(torch.arange(8)))
    assert few.reason != found.reason
    pixels, labels = threes.batch(torch.arange(30), "cpu")
    honest = audit(plain, threes.subset((plain(pixels).argmax(dim=1) == labels).nonzero().squeeze(1)))
    assert float(honest.evidence.main.right.double().mean()) == 1
    assert "one class" not in checks_of(honest)["D1"].cause


def test_checks_say_where_no_image_is_right(plain, images):
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    wrong = images.subset((plain(pixels).argmax(dim=1) != labels).nonzero().squeeze(1).repeat(12)[:12])
    made = audit(plain, wrong)
    assert (made.verdict, made.reason) == (
        "inconclusive",
        "no image is classified correctly, so there is nothing to attack",
    )
    found = checks_of(made)
    assert "no image is classified correctly" in found["D1"].cause
    for names, what in (("N1 N2 C2 G1", "no gradient was examined"), ("N3 X1 X2 M1 M2 S1", "nothing to attack")):
        for name in names.split():
            assert found[name].state == "abstained"
            assert found[name].cause.startswith("no image is classified correctly, so "), name
            assert found[name].cause.endswith(what), name


def test_examples_of_another_model_are_judged(plain, images):
    pixels, _ = images.batch(torch.arange(len(images)), "cpu")
    found = audit(plain, images, surrogate_examples=[pixels])
    assert checks_of(found)["X2"].state == "passed"
    assert "transfer" not in found.left_out
    with pytest.raises(GradscopeError, match="examples must have the shape of the images"):
        audit(plain, images, surrogate_examples=[pixels[:3]])


def test_an_interrupted_audit_goes_on_where_it_was(plain, images, audited):
    kept = {}

    class Interrupted(Exception):  # noqa: N818
        pass

    def until(most):
        def each(units):
            for name, make in units:
                if name not in kept:
                    if len(kept) == most:
                        raise Interrupted
                    kept[name] = make()
                yield kept[name]

        return each

    with pytest.raises(Interrupted):
        audit(plain, images, work=Work(each=until(9)))
    resumed = audit(plain, images, work=Work(each=until(math.inf)))
    assert resumed.to_json() == audited.to_json()


def test_a_weak_attack_is_inconclusive(plain, images):
    quick = BUDGETS["quick"]
    weak = replace(quick, attacks=WEAK)
    evidence = gather(
        plain,
        images,
        torch.arange(len(images)),
        THREAT,
        weak,
        examples=(),
        loss=None,
        work=Work(batch_size=32),
    )
    verdict, causes, reason = judge(evidence, check(evidence))
    assert (verdict, causes) == ("inconclusive", ("weak attack",))
    assert "C2" in reason


def test_a_larger_budget_leaves_out_less():
    assert set(BUDGETS["quick"].left_out) > set(BUDGETS["standard"].left_out) > set(BUDGETS["full"].left_out)


def test_wrong_arguments_are_said_in_one_line(plain, images):
    with pytest.raises(GradscopeError, match="budget: 'quik' is unknown; did you mean 'quick'"):
        examine(plain, images, None, THREAT, "quik")
    with pytest.raises(GradscopeError, match="epsilon must be above 0 in an audit"):
        audit(plain, images, ThreatModel("linf", 0.0))


def test_only_rounding_parts_the_log_odds_from_cross_entropy(zoo, images):
    """On a model that float32 can hold both take the same path, and fool the same images."""
    for name, model in zoo(0).honest.items():
        if name == "logits x 10":
            continue
        main = audit(model, images).evidence.main
        assert main.only("pgd-log-odds", "pgd") == (0, 0), name
    main = audit(zoo(0).masked["logits x 100"][0], images).evidence.main
    assert main.only("pgd-log-odds", "pgd")[0] > 10
    assert main.only("pgd-log-odds", "pgd")[1] == 0


def test_each_question_of_a_check_counts_as_a_test(audited):
    evidence = audited.evidence
    questions = [made for made in CHECKS.values() for made in [made(evidence)] if isinstance(made, list)]
    assert [len(asked) for asked in questions] == [5, 2]
    tested = [made for asked in questions for made in asked if made.p_value is not None]
    assert len(tested) == 7


def test_p_values_are_adjusted_together():
    one = Check("X1", "query", "fired", 1.0, 0.0, "", "", p_value=0.03)
    assert [(made.state, made.p_value) for made in adjusted([one, one])] == [("passed", 0.06), ("passed", 0.06)]
    assert adjusted([one])[0].fired


def test_a_claim_is_refuted_where_the_interval_lies_below_it(audited):
    assert audited.upper_bound < audited.interval.high < 1
    for claim, verdict in (
        (audited.interval.high + 1e-6, "refuted"),
        (audited.interval.high, "not refuted within this budget"),
        (audited.interval.low, "not refuted within this budget"),
    ):
        judged = replace(audited, claim=claim)
        assert judged.to_json()["claim"] == {"value": claim, "verdict": verdict}
    assert "claim" not in audited.to_json()


def test_no_claim_is_refuted_where_the_set_up_is_invalid(plain, images):
    guess = replace(audit(Changed(plain, lambda pixels, logits: 0 * logits), images), claim=0.9)
    assert guess.interval.high < 0.9
    assert guess.verdict_on_claim == "inconclusive"


def test_a_difference_that_nobody_would_claim_does_not_accuse(zoo, images, digits):
    """Cross-entropy in float32 overstates where the ball is so wide that next to nothing stands in it."""
    images = digits.test.subset(torch.arange(120))
    found = audit(Changed(zoo(0).honest["SL"], lambda pixels, logits: 12 * logits), images, ThreatModel("linf", 0.2))
    made = checks_of(found)["N3"]
    assert made.fired
    assert 0 < made.left - made.lowest < 0.1
    assert not made.accuses
    assert "too small a difference to accuse" in made.cause
    assert found.verdict == "none found within this budget"
    assert f"overstates robust accuracy by {100 * (made.left - made.lowest):.1f} points" in found.reason


def test_dead_gradients_of_every_loss_accuse_where_most_of_what_stands_has_them(zoo, images):
    """Clipped logits are equal in a ball that the clip fills: cross-entropy and margin have no slope there."""
    model = zoo(0).honest["SL"]
    found = audit(Changed(model, lambda pixels, logits: (10 * logits).log_softmax(dim=1).clamp(-16, -1e-6)), images)
    dead = checks_of(found)["N1"]
    assert dead.accuses
    assert "% of the images that no attack fooled, no loss has a gradient" in dead.beside
    assert dead.left == found.upper_bound
    assert (found.verdict, found.cause) == ("masking found", "clipped output")
    sharp = audit(Changed(model, lambda pixels, logits: 10 * logits), images)
    assert checks_of(sharp)["N1"].fired
    assert not checks_of(sharp)["N1"].accuses
    little = replace(dead, accuses=False)
    verdict, causes, reason = judge(
        found.evidence, [little if made.id == "N1" else replace(made, accuses=False) for made in found.checks]
    )
    assert (verdict, causes) == ("inconclusive", ("clipped output",))
    assert "attack the input of the clipping" in reason


@pytest.mark.parametrize("factor", [2.0, 10.0, 30.0])
def test_a_steep_tanh_is_told_from_a_clip(factor):
    logits = 3 * torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    assert flattened_by({"logits": torch.tanh(factor * logits).double()}) == "bounded output"
    assert flattened_by({"logits": (factor * logits).clamp(-2, 2).double()}) == "clipped output"
    assert flattened_by({"logits": factor * logits.double()}) is None


def test_a_check_that_passed_describes_no_fault(zoo, images):
    for made in audit(zoo(0).honest["SL"], images).checks:
        if made.state == "passed" and made.id != "D1":
            assert made.next_step == "nothing to do"
            assert made.cause == PASSED[made.id] or "not significant" in made.cause


def test_distances_give_their_share_of_the_bound_and_a_median(plain, images, monkeypatch):
    """The budget pays for them where it names fmn; who falls within the radius is in the bound like any attack's."""
    assert audit(plain, images).to_json()["median_distance"] is None
    cheap = replace(BUDGETS["quick"], names=("pgd", "pgd-margin", "fmn"), attacks=WEAK.model_copy(update={"steps": 20}))
    monkeypatch.setitem(BUDGETS, "quick", cheap)
    found = audit(plain, images)
    values = found.evidence.distances.values
    assert found.to_json()["under"]["fmn"] == float((values > THREAT.epsilon).double().mean())
    assert not found.standing[values <= THREAT.epsilon].any()
    assert "fmn" in found.evidence.white_box
    assert found.to_json()["median_distance"] == pytest.approx(float(values.quantile(0.5)))


def test_standard_and_full_budgets_pay_for_distances():
    assert [name for name, budget in BUDGETS.items() if "fmn" in budget.names] == ["standard", "full"]
    assert "fmn" in BUDGETS["quick"].left_out

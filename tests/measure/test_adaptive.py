"""Attacks that are adapted to the model, as options of Python, the command line and recipes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.errors import GradscopeError
from gradscope.measure.options import AttackOptions, AuditOptions
from gradscope.measure.options.judge import JudgeOptions
from gradscope.reporting import console

X = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
Y = X.flatten(1).argmax(dim=1)
BALL = {"norm": "linf", "epsilon": 0.4}


class Levels(nn.Module):
    """Eight levels, without a gradient."""

    def forward(self, images):
        return (images.detach() * 8).round() / 8


class Dithered(nn.Module):
    """Four levels, chosen at random by nearness; the gradient is 0."""

    def forward(self, images):
        return (images * 4 + torch.rand_like(images) - 0.5).round() / 4


class Factor(nn.Module):
    """The pixels, times 20."""

    def forward(self, images):
        return 20 * images.flatten(1)


def purified() -> nn.Module:
    return nn.Sequential(Dithered(), Factor()).eval()


def larger(logits, labels):
    """How far the wrong one of two logits lies above the right one."""
    return (logits.flip(1) - logits).gather(1, labels.unsqueeze(1)).squeeze(1)


def defended() -> nn.Module:
    return nn.Sequential(Levels(), nn.Flatten()).eval()


def test_an_attack_goes_through_the_stand_in_and_says_so(tmp_path: Path) -> None:
    model = {"levels": defended()}
    alone = gs.attack(model, X, Y, attacks="pgd", steps=10, **BALL)
    assert "cut off" in alone.manifest["checkpoints"][0]["skipped"]["pgd"]
    found = gs.attack(model, X, Y, attacks="pgd", steps=10, backward={"0": "identity"}, **BALL)
    assert found.robust_accuracy == 0
    whole = gs.attack(model, X, Y, attacks="pgd", steps=10, backward=nn.Flatten(), **BALL)
    assert whole.robust_accuracy == 0
    out = found.save(tmp_path / "results")
    assert json.loads((out / "manifest.json").read_text())["backward"] == {"0": "identity"}
    assert "gradient from a stand-in for 0 (identity)" in console.finding_lines(out)
    assert "stand-in for 0 (identity)" in gs.report(out).read_text()


def test_an_audit_with_a_stand_in_has_a_full_verdict() -> None:
    model = {"levels": defended()}
    assert gs.audit(model, X, Y, budget="quick", **BALL).verdict == "inconclusive"
    found = gs.audit(model, X, Y, budget="quick", backward={"0": "identity"}, **BALL)
    assert (found.verdict, found.upper_bound) == ("none found within this budget", 0.0)


def test_an_attack_goes_through_the_mean_of_the_draws_and_says_so(tmp_path: Path) -> None:
    def under_pgd(**given):
        model = {"dithered": purified()}
        return gs.attack(model, X, Y, attacks="pgd", steps=10, backward={"0": "identity"}, **BALL, **given)

    found, again = under_pgd(draws=8), under_pgd(draws=8)
    with pytest.warns(UserWarning, match="two passes over one image differ"):
        one_draw = under_pgd()
    rows = [one.frame().query("metric != 'seconds'") for one in (found, again)]
    assert rows[0].equals(rows[1])
    assert found.robust_accuracy < 0.1
    passes, once = (one.frame().query("metric == 'backward'")["value"].item() for one in (found, one_draw))
    assert passes >= 8 * once
    out = found.save(tmp_path / "results")
    assert json.loads((out / "manifest.json").read_text())["draws"] == 8
    assert "attacked through, and judged by, the mean of 8 draws" in console.finding_lines(out)
    assert "the mean of 8 draws" in gs.report(out).read_text()


def test_probabilities_are_not_averaged_as_if_they_were_logits() -> None:
    model = nn.Sequential(purified(), nn.Softmax(dim=1)).eval()
    with pytest.raises(GradscopeError, match=r"^draws must be left out for a model that returns probabilities"):
        gs.audit(model, X, Y, budget="quick", draws=4, **BALL)


def test_a_model_that_is_not_random_needs_no_draws() -> None:
    with pytest.warns(UserWarning, match="not random: each of the 3 draws gives the same result"):
        gs.attack({"fixed": Factor().eval()}, X, Y, attacks="pgd", steps=2, draws=3, **BALL)


def test_a_random_purifier_is_masked_until_the_attack_is_told_of_it() -> None:
    """The gradient is gone, which the mean of draws shows too; with a stand-in beside it the verdict is full."""
    model = {"dithered": purified()}
    alone = gs.audit(model, X, Y, budget="quick", **BALL)
    assert (alone.verdict, alone.causes) == ("masking found", ("shattering", "randomness"))
    averaged = gs.audit(model, X, Y, budget="quick", draws=8, **BALL)
    assert averaged.verdict == "masking found"
    assert averaged.causes[0] in ("missing gradient", "shattering")
    told = gs.audit(model, X, Y, budget="quick", draws=8, backward={"0": "identity"}, **BALL)
    assert told.verdict == "none found within this budget"
    assert told.upper_bound < 0.1
    assert "took the gradient from a stand-in and went through the mean of 8 draws" in told.reason


def test_judge_takes_a_random_model_by_the_mean_of_its_draws() -> None:
    given = {"budget": "quick", "backward": {"0": "identity"}, **BALL}
    with pytest.warns(UserWarning, match="two passes over one image differ"):
        assert gs.judge("pgd", {"dithered": purified()}, X, Y, **given).verdict == "inconclusive"
    found, again = (gs.judge("pgd", {"dithered": purified()}, X, Y, draws=8, **given) for _ in range(2))
    assert found.verdict == "the attack is sound"
    assert found.left == again.left < 0.1


def test_a_loss_of_ones_own_is_one_more_attack(tmp_path: Path) -> None:
    found = gs.attack({"pixels": Factor().eval()}, X, Y, attacks="pgd-margin", steps=4, loss=larger, **BALL)
    assert list(found.manifest["attacks"]) == ["pgd-margin", "pgd-own"]
    out = found.save(tmp_path / "results")
    assert json.loads((out / "manifest.json").read_text())["loss"] == "larger"
    assert "pgd-own climbs larger" in console.finding_lines(out)


class Decoy(nn.Module):
    """Class 2 nearly wins everywhere and never does; class 1 wins where the first pixel is dark."""

    def forward(self, images):
        first = images.flatten(1)[:, 0]
        return torch.stack([0 * first, 200 * (0.15 - first), first - 1.2], dim=1)


def towards_class_1(logits, labels):
    """Logit 1, and away from it for the images of that class."""
    return torch.where(labels == 1, -logits[:, 1], logits[:, 1])


def test_an_audit_hears_a_loss_that_finds_what_all_others_miss() -> None:
    """Every other loss follows class 2, the likeliest wrong one, away from class 1."""
    labels = torch.arange(64) // 48
    pixels = (0.5 - 0.4 * labels).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    images = gs.ImageSet.from_tensors("grey", pixels, labels, ["0", "1", "2"])
    given = {"budget": "quick", **BALL}
    alone = gs.audit({"decoy": Decoy().eval()}, images, **given)
    found = gs.audit({"decoy": Decoy().eval()}, images, loss=towards_class_1, **given)
    assert found.upper_bound == 0
    assert found.audits[0].under["pgd-own"] == 0 < 0.5 < found.audits[0].under["pgd"]
    assert "pgd-own" not in alone.audits[0].under
    assert found.verdict == "masking found"
    checks, others = (one.frame().set_index("check") for one in (found, alone))
    assert (checks["state"]["N3"], others["state"]["N3"]) == ("fired", "passed")
    assert checks["cause"]["N3"].startswith("images that only pgd-own fools")


def test_judge_hands_the_attack_the_stand_in() -> None:
    def one_step(model, x, y):
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
        return (x + 0.4 * slope.sign()).clamp(0, 1)

    found = gs.judge(one_step, {"levels": defended()}, X, Y, budget="quick", backward={"0": "identity"}, **BALL)
    assert found.left == 0


def test_texts_name_parts_as_tables_do() -> None:
    texts = ["a.b=identity", "c=code.of:mine(x=1)"]
    table = {"a.b": "identity", "c": "code.of:mine(x=1)"}
    for kind in (AttackOptions, AuditOptions, JudgeOptions):
        assert kind.parse({"backward": texts}).standins == kind.parse({"backward": table}).standins == table
        assert kind.parse({"backward": texts}).content()["backward"] == table
        assert kind.parse({"backward": "code.of:whole(x=1)"}).standins == {"": "code.of:whole(x=1)"}
        assert "backward" not in kind.parse({}).content()


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        ("identity", "must name the part that is the identity"),
        (3, "must be a function, package.module:function or identity, got int"),
        ({"a": "mine"}, "got 'mine'"),
        (["a=identity", "a=identity"], "once for each part, got a again"),
        (["a.b:whole", "a=identity"], "got both"),
    ],
)
def test_what_is_no_stand_in_is_refused(backward, words) -> None:
    with pytest.raises(GradscopeError, match=r"^backward must") as error:
        AuditOptions.parse({"backward": backward})
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loss": "margin"}, "loss must be a function or package.module:function, got 'margin'"),
        ({"loss": 3}, "got int"),
        ({"attacks": "pgd,pgd-own"}, "loss must be given for pgd-own"),
        ({"draws": 1}, "draws must be at least 2, got 1"),
    ],
)
def test_what_is_no_loss_and_no_number_of_draws_is_refused(given, words) -> None:
    with pytest.raises(GradscopeError) as error:
        AttackOptions.parse(given)
    assert words in str(error.value)


def test_judge_knows_no_attack_that_needs_a_loss() -> None:
    with pytest.raises(GradscopeError, match="got pgd-own, which needs a loss of your own"):
        gs.judge("pgd-own", {"levels": defended()}, X, Y, backward={"0": "identity"}, **BALL)


def test_what_is_not_given_changes_no_stages_name() -> None:
    """Published results stay those of their recipes, in which noise has its points as ``draws``."""
    everything = AttackOptions.parse({"attacks": "all", "noise_points": 7}).content()
    assert "pgd-own" not in everything["attacks"]
    assert everything["budget"]["draws"] == 7
    for kind in (AttackOptions, AuditOptions):
        assert not {"draws", "loss"} & kind.parse({}).content().keys()
        assert kind.parse({"loss": larger, "draws": 4}).content()["loss"] == "larger"
    for kind in (AttackOptions, AuditOptions, JudgeOptions):
        assert kind.parse({"draws": 4}).content()["draws"] == 4


def test_code_is_not_run_without_trust() -> None:
    with pytest.raises(GradscopeError, match="backward: somewhere:f runs the code of somewhere"):
        gs.attack({"levels": defended()}, X, Y, attacks="pgd", backward={"0": "somewhere:f"}, **BALL)
    with pytest.raises(GradscopeError, match="loss: somewhere:f runs the code of somewhere"):
        gs.attack({"fixed": Factor().eval()}, X, Y, attacks="pgd", loss="somewhere:f", **BALL)

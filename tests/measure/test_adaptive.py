"""Attacks that are adapted to the model, as options of Python, the command line and recipes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.errors import GradscopeError
from gradscope.measure.judge_options import JudgeOptions
from gradscope.measure.options import AttackOptions, AuditOptions
from gradscope.reporting import console

X = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
Y = X.flatten(1).argmax(dim=1)
BALL = {"norm": "linf", "epsilon": 0.4}


class Levels(nn.Module):
    """Eight levels, without a gradient."""

    def forward(self, images):
        return (images.detach() * 8).round() / 8


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


def test_code_is_not_run_without_trust() -> None:
    with pytest.raises(GradscopeError, match="backward: somewhere:f runs the code of somewhere"):
        gs.attack({"levels": defended()}, X, Y, attacks="pgd", backward={"0": "somewhere:f"}, **BALL)

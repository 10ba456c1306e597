"""Attacks of torchattacks and foolbox, given as objects: whole ones are acquitted, settings that they show repaired."""

import pytest
import torch
from torch import nn

from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.judging.attacks import attack_on_trial
from gradscope.judging.trial import judge
from tests.conftest import first_of
from tests.judging.bugs import RADII

SOUND = ("the attack is sound", "the attack is weaker")


@pytest.fixture
def judged(digits, models, work_on):
    def run(attack, name, norm, steps=100):
        images, threat = digits.test.subset(torch.arange(120)), ThreatModel(norm, RADII[norm])
        tried = attack_on_trial(attack, Budget(steps=steps))
        return judge(tried, models(name), images, None, threat, "quick", work=work_on(name, norm))

    return run


def theirs(norm, model, **given):
    from gradscope import vision  # noqa: F401, before torchattacks, which imports torchvision

    import torchattacks  # isort: skip

    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return kind(model, eps=RADII[norm], alpha=RADII[norm] / 8, steps=20, **given)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", first_of(["SL", "SL-adv"]))
def test_pgd_of_torchattacks_is_sound(judged, norm, name):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    attack = theirs(norm, other)
    found = judged(attack, name, norm)
    assert found.verdict in SOUND
    assert attack.model is other
    assert "the trial uses" not in found.finding


@pytest.mark.parametrize(("norm", "radius", "ball"), [("l2", 0.5, "linf 0.1"), ("linf", 0.2, "linf 0.1")])
def test_the_ball_of_torchattacks_is_set_beside_the_trials(models, norm, radius, ball):
    attack = attack_on_trial(theirs("linf", models("SL")), Budget())
    assert attack.other_ball(ThreatModel(norm, radius)) == ball
    assert attack.other_ball(ThreatModel("linf", 0.1)) == ""


def test_the_norm_of_foolbox_is_set_beside_the_trials():
    attacks = pytest.importorskip("foolbox.attacks")
    attack = attack_on_trial(attacks.LinfPGD(), Budget())
    assert attack.other_ball(ThreatModel("l2", 0.5)) == "linf"
    assert attack.other_ball(ThreatModel("linf", 0.5)) == ""


def test_steps_of_torchattacks_are_repaired_by_its_own_setting(judged, models):
    attack = theirs("linf", models("SL"))
    attack.alpha, attack.steps = 0.001, 20
    found = judged(attack, "SL", "linf")
    assert found.verdict == "the attack is blind"
    assert found.parts[0] == "step size"
    assert (attack.alpha, attack.steps) == (0.001, 20)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", first_of(["SL", "SL-adv"]))
def test_pgd_of_foolbox_is_sound(judged, norm, name):
    attacks = pytest.importorskip("foolbox.attacks")
    kind = {"linf": attacks.LinfPGD, "l2": attacks.L2PGD}[norm]
    assert judged(kind(rel_stepsize=0.125, steps=20), name, norm).verdict in SOUND


def test_steps_of_foolbox_are_repaired_by_its_own_setting(judged):
    attacks = pytest.importorskip("foolbox.attacks")
    attack = attacks.LinfPGD(rel_stepsize=0.01, steps=20, random_start=False)
    found = judged(attack, "SL", "linf")
    assert found.verdict == "the attack is blind"
    assert found.parts[0] == "step size"
    assert (attack.abs_stepsize, attack.steps) == (None, 20)


@pytest.mark.parametrize("name", first_of(["SL", "SL-adv"]))
def test_our_own_attack_is_sound(judged, name):
    assert judged("apgd-ce", name, "linf", 30).verdict in SOUND
    assert judged("pgd-margin", name, "l2", 30).verdict in SOUND


def test_the_papers_pgd_is_blind_by_its_floor(judged):
    """The batch's mean divides small gradients, the floor of 1e-6 stops their steps."""
    found = judged("pgd-paper", "SL x 5", "l2", 30)
    assert found.verdict == "the attack is blind"
    assert found.parts[0] == "norm floor"

"""Attacks whose one mistake is known: each is convicted of it, and no attack without one is."""

import pytest
import torch

from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.judging.attacks import attack_on_trial
from gradscope.judging.trial import judge
from tests.conftest import first_of
from tests.judging.bugs import CASES, RADII

COUNT = 120


@pytest.mark.parametrize("model", first_of([0, 1]), ids="model {}".format)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attacks_are_convicted_of_their_mistake_alone(digits, models, work_on, case, model):
    images, name = digits.test.subset(torch.arange(COUNT)), case.models[model]
    attack, threat = attack_on_trial(case.attack, Budget()), ThreatModel(case.norm, RADII[case.norm])
    found = judge(attack, models(name), images, None, threat, "quick", work=work_on(name, case.norm))
    named = next((one for one in found.repairs if one.named), None)
    p_value = "" if named is None else f"p = {named.p_value:.1g}"
    left, bound = (float("nan") if one is None else one.double().mean() for one in (found.standing, found.lowest))
    print(
        f"\n{case.name:32}{name:12}{found.verdict:22}{', '.join(found.parts) or '-':36}{p_value:12}"
        f"left {left:5.2f} bound {bound:5.2f}  {found.finding}"
    )
    for one in found.repairs:
        left = float("nan") if one.standing is None else one.standing.double().mean()
        print(f"     {one.part:14} {one.name:44} {left:5.2f} p {one.p_value}")
    assert found.verdict in case.verdicts
    assert case.part is None or case.part in found.parts

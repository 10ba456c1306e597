import subprocess
import sys
from importlib import import_module

import pytest
import torch

from gradscope.attacks.pgd import pgd, settings_inside
from gradscope.attacks.registry import ATTACKS
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD_ATTACKS, Budget, attack_settings


def test_names_are_known_without_torch():
    program = "import sys, gradscope.attacks.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_pgd_or_code_or_parts(name):
    attack = ATTACKS[name]
    assert bool(attack.pgd) + bool(attack.code) + bool(attack.parts) == 1
    if attack.code:
        module, _, function = attack.code.partition(":")
        assert callable(getattr(import_module(module), function))
    assert attack.pgd in ("", *PGD_ATTACKS)
    assert set(attack.takes) <= set(Budget.model_fields)


def test_every_pgd_is_an_attack_of_its_name():
    assert all(ATTACKS[name].pgd == name for name in PGD_ATTACKS)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("name", "step"),
    [("pgd", 2.5 / 5), ("pgd-margin", 2.5 / 5), ("pgd-paper", 0.1), ("fgsm", 1.0), ("pgd-large-steps", 2.0)],
)
def test_a_step_has_the_length_of_the_one_rule(linear, norm, name, step):
    """In a linear model of two classes every step leads straight at the boundary, so its length is the whole of it."""
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    images = torch.full((1, 3, 2, 2), 0.5)
    threat = ThreatModel(norm, 0.3, box=False)
    settings = settings_inside(threat, Budget(steps=5), name, start="none")
    assert settings == attack_settings(name, {"norm": norm, "epsilon": 0.3, "steps": 5, "start": "none", "box": False})
    seen = []
    pgd(linear(weight), images, torch.tensor([0]), settings, observe=seen.append)
    assert float(threat.distance(seen[1].images, images)) == pytest.approx(min(step, 1.0) * 0.3, rel=1e-5)

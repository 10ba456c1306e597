import pytest
import torch

from gradscope.attacks.compaction import SHRINKING, replaced, who_stays
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.registry import ATTACKS
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.distributed.units import Work
from tests.standin.device import DEVICE, stand_in

BUDGET = Budget(steps=23, queries=45, noise_points=25, restarts=2, smoothing=2, targets=2)


def test_on_a_cpu_whoever_has_fallen_leaves_at_once():
    standing = torch.tensor([True, False, True, True])
    assert who_stays(standing, 3).tolist() == [0, 2, 3]
    assert who_stays(standing[2:], 3) is None


def test_on_a_gpu_half_must_have_fallen_and_few_steps_look(monkeypatch):
    monkeypatch.setitem(SHRINKING, "cpu", SHRINKING["cuda"])
    standing = torch.tensor([True, False, True, True])
    assert who_stays(standing, 10) is None
    assert who_stays(standing[:2], 10).tolist() == [0]
    assert who_stays(standing[:2], 9) is None
    assert who_stays(standing[1:2], 20).tolist() == []


def test_only_the_chosen_are_replaced():
    into = torch.zeros(4, 2)
    replaced(into, torch.tensor([3, 1]), torch.tensor([True, False]), torch.ones(2, 2))
    assert into.tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_when_they_leave_changes_no_result(convolutional, image_set, monkeypatch, norm):
    names = [name for name in ATTACKS if not {"examples", "loss"} & ATTACKS[name].needs]
    threat = ThreatModel(norm, 0.01 if norm == "linf" else 0.2)
    given = (convolutional, image_set, names, threat, BUDGET)
    first = evaluate(*given, cascade=False, keep_images=True)
    monkeypatch.setitem(SHRINKING, "cpu", SHRINKING["cuda"])
    second = evaluate(*given, cascade=False, keep_images=True)
    for name in names:
        one, other = first.attacks[name], second.attacks[name]
        assert torch.equal(one.fooled, other.fooled), name
        apart = (one.adversarial - other.adversarial).flatten(1).abs().amax(dim=1)
        assert (apart < 1e-4).float().mean() > 0.9, name  # where a slope is 0 to rounding, its sign is anything
    assert second.attacks["apgd-ce"].forward > first.attacks["apgd-ce"].forward


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square", "noise"])
def test_no_step_waits_for_the_device(convolutional, image_set, monkeypatch, name):
    """But for the looks at the count, and a few at the beginning and the end."""
    with stand_in() as device:
        monkeypatch.setitem(SHRINKING, DEVICE.type, SHRINKING["cuda"])
        model = convolutional.to(DEVICE)
        threat = ThreatModel("linf", 1e-3)
        evaluate(model, image_set, [name], threat, BUDGET, work=Work(device=DEVICE))
    assert device.synchronisations.total() < 20

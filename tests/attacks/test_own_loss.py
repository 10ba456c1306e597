"""A loss of the user's own: ours given as one takes our own path, and what is no loss is refused in a line."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.own_loss import OwnLoss, own_loss
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy, margin_loss

THREAT = ThreatModel("l2", 0.3)
CPU = torch.device("cpu")


@pytest.fixture
def outcome_of(convolutional, image_set):
    images, _ = image_set.batch(torch.arange(len(image_set)), "cpu")
    with torch.no_grad():
        labels = convolutional.eval()(images).argmax(dim=1)
    right = ImageSet.from_tensors("right", image_set.images, labels, image_set.classes)

    def attacked(*names, loss=None):
        given = (convolutional, right, names, THREAT, Budget(steps=8))
        return evaluate(*given, cascade=False, keep_images=True, loss=loss)

    return attacked


@pytest.mark.parametrize(("name", "loss"), [("pgd", cross_entropy), ("pgd-margin", margin_loss)])
def test_our_loss_given_as_ones_own_takes_our_path(outcome_of, name, loss):
    found = outcome_of(name, "pgd-own", loss=OwnLoss(lambda logits, labels: loss(logits, labels), "mine"))
    ours, own = (found.attacks[attack] for attack in (name, "pgd-own"))
    assert torch.equal(ours.adversarial, own.adversarial)
    assert (ours.forward, ours.backward) == (own.forward, own.backward)
    assert not torch.equal(own.adversarial, outcome_of("pgd-dlr").attacks["pgd-dlr"].adversarial)


def test_without_a_loss_the_attack_is_left_out(outcome_of):
    assert outcome_of("pgd-own").skipped == {"pgd-own": "needs a loss of your own"}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda logits, labels: cross_entropy(logits, labels).mean(), "for each image, floating-point (2,), mine"),
        (lambda logits, labels: logits, "mine returned torch.float32 (2, 3)"),
        (lambda logits, labels: logits.argmax(dim=1), "mine returned torch.int64 (2,)"),
        (lambda logits, labels: 1.0, "mine returned float"),
        (lambda logits, labels: margin_loss(logits.detach(), labels), "differentiable in the logits, mine"),
        (lambda logits, labels: torch.ones(2, requires_grad=True) * 2, "differentiable in the logits, mine returned"),
        (lambda logits, labels: logits[:, 0] * math.nan, "mine returned NaN for 2 of 2"),
        (lambda logits, labels: 1 / 0, "mine raised ZeroDivisionError: division by zero"),
        (lambda logits: logits, "mine raised TypeError"),
    ],
)  # fmt: skip
def test_what_is_no_loss_is_refused_in_one_line(function, words):
    with pytest.raises(GradscopeError) as error:
        own_loss(function, "mine", 3, CPU)
    assert words in str(error.value)
    assert error.value.argument == "loss"
    assert "\n" not in str(error.value)


def test_nan_is_the_losss_fault_only_where_logits_are_finite():
    loss = OwnLoss(lambda logits, labels: logits.sum(dim=1), "mine")
    logits = torch.tensor([[1.0, math.nan], [1.0, 2.0]])
    assert loss(logits, torch.zeros(2, dtype=torch.int64)).isnan().tolist() == [True, False]


def test_a_loss_is_found_by_name_where_its_code_is_trusted(tmp_path: Path, monkeypatch):
    (tmp_path / "owned.py").write_text(
        "from gradscope.losses import margin_loss\n\n\n"
        "def scaled(logits, labels, factor=1.0):\n    return factor * margin_loss(logits, labels)\n"
    )
    monkeypatch.chdir(tmp_path)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = own_loss("owned:scaled(factor=3.0)", "owned:scaled", 3, CPU, trust_code=True)
    assert torch.equal(found(logits, labels), 3 * margin_loss(logits, labels))
    with pytest.raises(GradscopeError, match="loss: owned:scaled runs the code of owned; pass `trust_code`"):
        own_loss("owned:scaled", "owned:scaled", 3, CPU)


class Weighed(nn.Module):
    """A loss with weights."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, logits, labels):
        return self.line(logits).squeeze(1)


def test_a_module_is_a_loss_and_stays_as_it_is(digest):
    module = Weighed()
    before = digest(module)
    found = own_loss(module, "mine", 3, CPU)
    assert found(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)).shape == (2,)
    assert digest(module) == before

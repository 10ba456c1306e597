"""Audits of defences that are given a stand-in: outcomes judge them, the stand-in's slopes accuse nobody."""

import pytest
import torch
from torch import nn

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.verdict import examine
from gradscope.data.image_set import ImageSet
from gradscope.models.adaptive import Averaged, with_backward
from tests.masks import Severed, quantised

THREAT = ThreatModel("linf", 0.1)


class Part(nn.Module):
    """A function as a part of a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def median(images):
    """Of three pixels beside each other."""
    return nn.functional.pad(images, (1, 1, 0, 0), mode="replicate").unfold(3, 3, 1).median(dim=4).values


def median_by_numpy(images):
    """A denoiser without a gradient."""
    return torch.from_numpy(median(images.detach()).numpy().copy())


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.subset(torch.arange(100))


def audit(model, images, **standins):
    batch, _ = images.batch(torch.arange(2), "cpu")
    given = {name.strip("_"): standin for name, standin in standins.items()}
    return examine(with_backward(model, given, batch) if given else model, images, None, THREAT, "quick")


def behind(zoo, function):
    return nn.Sequential(Part(function), zoo(0).honest["SL"]).eval()


def checks_of(found):
    return {made.id: made for made in found.checks}


def under_pgd(found):
    return float(found.evidence.main.standing("pgd").double().mean())


@pytest.mark.parametrize(
    ("function", "standin"),
    [(quantised, "identity"), (Severed.apply, "identity"), (median_by_numpy, median)],
    ids=["levels", "severed", "median"],
)
def test_a_good_stand_in_brings_the_full_verdict(zoo, images, function, standin):
    found = audit(behind(zoo, function), images, _0=standin)
    assert found.verdict == "none found within this budget"
    assert "took the gradient from a stand-in" in found.reason
    assert not {"D1", "S1"} & {made.id for made in found.checks if made.fired}
    assert "not tested" in checks_of(found)["S1"].cause
    blind = audit(behind(zoo, function), images)
    assert blind.verdict != found.verdict
    assert found.upper_bound <= blind.upper_bound
    assert "pgd" not in blind.evidence.main.attacks or under_pgd(found) < under_pgd(blind) - 0.1


def test_with_the_identity_a_severed_model_falls_as_the_whole_one_does(zoo, images):
    plain = zoo(0).honest["SL"]
    found, honest = audit(behind(zoo, Severed.apply), images, _0="identity"), audit(plain, images)
    assert abs(found.upper_bound - honest.upper_bound) < 0.05


def test_a_poor_stand_in_is_accused_by_what_gets_past_it(zoo, images):
    found = audit(behind(zoo, median_by_numpy), images, _0=lambda pixels: pixels.flip(3))
    assert (found.verdict, found.cause) == ("masking found", "stand-in")
    assert checks_of(found)["X1"].accuses


@pytest.mark.parametrize("function", [quantised, Severed.apply], ids=["levels", "severed"])
def test_a_stand_in_without_a_gradient_is_still_masking(zoo, images, function):
    found = audit(behind(zoo, function), images, _0=lambda pixels: 0 * pixels)
    assert (found.verdict, found.cause) == ("masking found", "stand-in")
    assert "stand-in" in checks_of(found)["N1"].points_to


def test_a_stand_in_does_not_hide_another_cause(zoo, images):
    sharp = nn.Sequential(Part(quantised), zoo(0).honest["SL"], Part(lambda logits: 1000 * logits)).eval()
    found = audit(sharp, images, _0="identity")
    assert (found.verdict, found.cause) == ("masking found", "saturation")


def test_the_bound_is_what_one_attack_leaves_where_passes_differ():
    """What falls under any of a dozen attacks falls by luck: passes over the clean images differ in the class, too."""
    pixels = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    data = ImageSet.from_tensors("pixels", pixels, pixels.flatten(1).argmax(dim=1), ["0", "1"])
    wandering = nn.Sequential(nn.Flatten(), Part(lambda logits: 4 * logits + 3 * torch.randn_like(logits))).eval()
    found = examine(Averaged(wandering, 2), data, None, ThreatModel("linf", 0.05), "quick")
    main = found.evidence.main
    single = min(float(main.standing(name).double().mean()) for name in main.attacks)
    assert found.upper_bound <= single
    assert found.upper_bound > float(main.standing().double().mean()) + 0.1
    set_up = checks_of(found)["D1"]
    assert set_up.fired
    assert "the mean of 2 draws changes its class between passes" in set_up.cause

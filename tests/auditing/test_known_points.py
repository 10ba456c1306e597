"""T1: attacks are tested on adversarial points that are known to be there."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradscope.attacks.pgd import settings_inside
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BUDGETS
from gradscope.auditing.checks.strength import unit_test
from gradscope.auditing.gathering import gather
from gradscope.auditing.known_points import (
    CLOSENESS,
    Rewired,
    features_and_outputs,
    fit_readout,
    last_linear,
    look_for_known_points,
)
from gradscope.config import Budget
from gradscope.distributed.units import PLAIN
from gradscope.functional import fooled
from tests.auditing.conftest import Behind

THREAT = ThreatModel("linf", 0.1)


def gathered(model, images):
    """The evidence with the unit test, of few attacks."""
    budget = replace(BUDGETS["quick"], names=("pgd", "pgd-margin"), unit_test=True)
    return gather(model, images, torch.arange(len(images)), THREAT, budget, examples=(), work=PLAIN)


def looked(model, images, seed=0):
    """What PGD with the steps of `quick` finds on the images that are right."""
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    with torch.no_grad():
        right = (model.eval()(pixels).argmax(dim=1) == labels).nonzero().squeeze(1)
    attacks = {name: settings_inside(THREAT, Budget(steps=20), name) for name in ("pgd", "pgd-margin")}
    return look_for_known_points(model, pixels[right], labels[right], right, THREAT, attacks, seed)


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.subset(torch.arange(50))


class Heads(nn.Module):
    """Two heads on the same features, or one that is called twice."""

    def __init__(self, network, other):
        super().__init__()
        self.features, self.head, self.other = network[:-1], network[-1], other

    def forward(self, images):
        features = self.features(images)
        return self.head(features) + self.other(features)


def test_the_last_layer_is_found_where_all_goes_through_it(zoo, images):
    network = zoo(0).honest["SL"]
    image, _ = images.batch(torch.arange(1), "cpu")
    assert last_linear(network, image) is network[-1]
    assert last_linear(Behind(network, after=lambda logits: logits.softmax(dim=1)), image) is network[-1]
    assert last_linear(Heads(network, nn.Linear(64, 10)), image) is None, "the other head is a way around"
    assert last_linear(Heads(network, network[-1]), image) is None, "called twice"
    assert last_linear(nn.Sequential(network, nn.Linear(10, 10), nn.Unflatten(1, (10, 1, 1)), nn.Flatten()), image)
    assert last_linear(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), image) is None
    assert not any(part._forward_hooks for part in network.modules())


def test_a_readout_parts_the_known_point_from_the_others():
    """By hand: of least norm along the one direction that the inner points do not take."""
    inner = torch.tensor([[[0.0, 0.0, 5.0], [2.0, 0.0, 5.0], [-2.0, 0.0, 5.0]]])
    known = torch.tensor([[1.0, 4.0, 5.0]])
    labels, outputs = torch.tensor([1]), torch.tensor([[0.0, 7.0, 3.0]])
    readout = fit_readout(inner, known, labels, outputs)
    direction = readout.weight / readout.weight.norm()
    assert direction[0, 0] / direction[0, 1] == pytest.approx(0, abs=1e-6)
    assert direction[0, 2] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(readout(inner[:, 0]), outputs)
    at = lambda share: inner[:, 0] + share * (known - inner[:, 0])  # noqa: E731
    assert not fooled(readout(at(CLOSENESS - 1e-3)), labels).any()
    assert fooled(readout(at(CLOSENESS + 1e-3)), labels).all()
    assert readout(known).shape == (1, 3)


def test_the_rewired_network_has_its_readouts_in_place_of_the_last_layer(zoo, images):
    network = zoo(0).honest["SL"].eval()
    pixels, labels = images.batch(torch.arange(4), "cpu")
    features, outputs = features_and_outputs(network, network[-1], pixels)
    torch.testing.assert_close(features, network[:-1](pixels))
    torch.testing.assert_close(outputs, network(pixels))
    readout = fit_readout(features.unsqueeze(1), features + torch.rand(4, 64), labels, outputs)
    behind = Behind(network, after=torch.tanh)
    torch.testing.assert_close(Rewired(behind, network[-1], readout)(pixels), torch.tanh(readout(features)))
    torch.testing.assert_close(behind(pixels), torch.tanh(outputs))


#: What blinds cross-entropy alone, and what leaves no attack along the gradient a way.
SATURATED = ("logits x 100", "logits x 1000", "smoothed, over-trained")
BROKEN = ("input quantised", "backward zero", "backward noise", "clipped log-probabilities", "sharp probabilities")


def test_pgd_finds_the_known_points_of_honest_networks_and_misses_those_behind_masks(zoo, images):
    animals = zoo(0)

    def share_found(model, attack):
        found = looked(model, images)
        assert found["last-layer"].all()
        assert int(found["known"].sum()) > 30
        return float(found[attack][found["known"]].double().mean())

    for name in ("SL", "SL-adv", "linear", "SL smoothed"):
        assert share_found(animals.honest[name], "pgd") > 0.9, name
        assert share_found(animals.honest[name], "pgd-margin") == 1, name
    for name in SATURATED:
        assert share_found(animals.masked[name][0], "pgd") < 0.8, name
        assert share_found(animals.masked[name][0], "pgd-margin") == 1, name
    for name in BROKEN:
        assert share_found(animals.masked[name][0], "pgd-margin") < 0.7, name


def test_the_check_fires_on_a_blind_attack_alone(zoo, images):
    honest = unit_test(gathered(zoo(0).honest["linear"], images))
    assert (honest.state, honest.value) == ("passed", 0)
    blind = unit_test(gathered(zoo(0).masked["logits x 100"][0], images))
    assert (blind.fired, blind.accuses, blind.points_to) == (True, False, ("saturation",))
    broken = unit_test(gathered(zoo(0).masked["backward zero"][0], images))
    assert (broken.fired, broken.accuses, broken.points_to) == (True, False, ("weak attack",))
    assert "PGD on the margin misses" in broken.cause + broken.beside


def test_the_check_abstains_where_nothing_is_known(zoo, images):
    votes, _ = zoo(0).masked["votes"]
    assert "have a known adversarial point" in unit_test(gathered(votes, images)).cause
    noise, _ = zoo(0).masked["noise layer"]
    assert unit_test(gathered(noise, images)).cause == "the output is random"
    few = unit_test(gathered(zoo(0).honest["linear"], images.subset(torch.arange(5))))
    assert (few.state, few.next_step) == ("abstained", "give more images")


def test_the_seed_decides_and_the_company_does_not(zoo, images):
    model = zoo(0).masked["backward noise"][0]
    honest = zoo(0).honest["SL"]
    whole, half = looked(honest, images), looked(honest, images.subset(torch.arange(25)))
    for key, values in half.items():
        assert torch.equal(values, whole[key][: len(values)]), key
    assert not torch.equal(looked(model, images)["pgd"], looked(model, images, seed=1)["pgd"])

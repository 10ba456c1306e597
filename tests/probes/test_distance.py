from itertools import product

import pytest
import torch

from gradscope.attacks.distances import measure_distances
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget, attack_settings
from gradscope.distributed.units import Work
from gradscope.errors import GradscopeError
from gradscope.measure.options import AnalyzeOptions
from gradscope.probes.distance import to_linear_boundary, to_nearest_point
from gradscope.probes.trajectory import measure_trajectory
from gradscope.results.metrics import USUAL_METRICS

BOTH = frozenset(("linear-distance", "distance"))


@pytest.mark.parametrize("linf", [True, False])
def test_the_linear_distance_is_that_to_the_nearest_of_all_boundaries(linear, linf):
    """The runner-up's boundary is farther than that of a class with a steeper margin; no scale matters."""
    stream = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(6, 12, generator=stream), torch.randn(6, generator=stream)
    images = torch.rand(30, 3, 2, 2, generator=stream)
    logits = linear(weight, bias)(images).detach()
    labels = logits.argmax(dim=1)
    expected, runner_up = [], []
    for image, label in enumerate(labels.tolist()):
        ways = {}
        for other in set(range(6)) - {label}:
            slope = weight[label] - weight[other]
            ways[other] = (logits[image, label] - logits[image, other]) / (slope.abs().sum() if linf else slope.norm())
        expected.append(min(ways.values()))
        runner_up.append(ways[int(logits[image].topk(2).indices[1])])
    assert torch.stack(runner_up).gt(torch.stack(expected)).any()
    for factor in (1e-30, 1.0, 1e4):
        found = to_linear_boundary(linear(factor * weight, factor * bias), images, labels, linf=linf)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_an_image_that_is_wrong_is_on_the_boundary_and_a_flat_one_nowhere(linear):
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    found = to_linear_boundary(linear(torch.zeros(3, 12), torch.tensor([1.0, 0.0, 0.0])), images, labels, linf=False)
    assert found.isnan().tolist() == [True, False, True, False]
    assert found[1::2].tolist() == [0, 0]


@pytest.mark.parametrize(("norm", "precision"), list(product(("l2", "linf"), ("pgd", "pgd-float64"))))
def test_analyze_measures_them_at_the_clean_image(convolutional, image_set, norm, precision):
    settings = attack_settings(precision, {"norm": norm, "steps": 5})
    result = measure_trajectory(convolutional, image_set, settings, BOTH, work=Work(batch_size=16))
    found = measure_distances(convolutional, image_set, norm, Budget(steps=5))
    apart = torch.tensor(result.samples["distance", "clean"]) / found.bounded - 1
    assert apart[found.outcome.right].abs().median() < 1e-3
    assert (torch.tensor(result.samples["distance", "clean"])[~found.outcome.right] == 0).all()
    identity = {"checkpoint": "c", "mode": "sl", "dataset": "d", "arch": "a", "seed": 0, "attack": "pgd"}
    rows = {(row["metric"], row["subset"]): row for row in result.summary_rows(identity)}
    assert rows["distance", "clean/correct"]["value"] > rows["distance", "clean/all"]["value"] > 0
    assert rows["linear-distance", "clean/all"]["unit"] == "pixel units"
    assert rows["linear-distance", "clean/all"]["norm"] == norm


def test_an_image_that_is_wrong_costs_one_pass(convolutional, image_set):
    """The others keep the distances that they have alone."""
    images, labels = image_set.batch(torch.arange(40), "cpu")
    right = (convolutional.eval()(images).argmax(dim=1) == labels).nonzero().squeeze(1)
    assert 0 < len(right) < 40
    whole = ThreatModel("l2", 0.0).unbounded(images[0].numel())
    found, tallies = [], []
    for rows in (torch.arange(40), right):
        tallies.append(Tally())
        counted = Counted(convolutional, tallies[-1])
        found.append(to_nearest_point(counted, images[rows], labels[rows], rows, whole, 5, 0))
    assert tallies[0].forward == tallies[1].forward + 40 - len(right)
    torch.testing.assert_close(found[0][right], found[1], rtol=1e-6, atol=0)
    assert found[0].count_nonzero() == len(right)


def test_they_are_measured_where_they_are_named():
    assert AnalyzeOptions.parse({}).measured == set(USUAL_METRICS)
    assert AnalyzeOptions.parse({"metrics": "all,distance"}).measured == {*USUAL_METRICS, "distance"}
    assert AnalyzeOptions.parse({"metrics": "linear-distance,norm"}).measured == {"linear-distance", "norm"}
    with pytest.raises(GradscopeError, match="did you mean 'distance'"):
        AnalyzeOptions.parse({"metrics": "all,distnace"})

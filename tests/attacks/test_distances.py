import itertools

import pytest
import torch

from gradscope.attacks.distances import measure_distances
from gradscope.config import Budget
from gradscope.results.stats import simultaneous_interval

IDENTITY = {"checkpoint": "sl", "mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0}


def test_the_curve_counts_the_images_that_are_farther(case_and_norm):
    """Against the closed form, in the middle between two distances; it begins with the clean accuracy."""
    case, norm = case_and_norm
    found = measure_distances(case.model, case.image_set, norm, Budget(steps=20))
    rows = list(found.curve_rows(IDENTITY))
    assert rows[0]["epsilon"] == 0
    assert rows[0]["value"] == 1
    assert rows[-1]["value"] == 0
    ordered = case.distance.sort().values
    for below, above in itertools.pairwise(ordered):
        if above / below > 1.02:
            epsilon = float((below * above).sqrt())
            (value,) = [row["value"] for row in rows if row["epsilon"] <= epsilon][-1:]
            assert value == pytest.approx(float((case.distance > epsilon).double().mean()))
    for row in rows:
        assert (row["ci_low"], row["ci_high"]) == simultaneous_interval(row["value"], 24)


def test_an_image_that_is_wrong_has_no_way_to_go(convolutional, image_set):
    found = measure_distances(convolutional, image_set, "l2", Budget(steps=5))
    right = found.outcome.right
    assert 0 < int(right.sum()) < 40
    assert (found.values[~right] == 0).all()
    assert (found.values[right] > 0).all()
    rows = list(found.curve_rows(IDENTITY))
    assert rows[0]["value"] == float(right.double().mean())
    assert {row["value"] for row in found.sample_rows(IDENTITY)} == set(found.values.tolist())


class Dead(torch.nn.Module):
    def forward(self, images):
        return torch.tensor([1.0, 0.0, -1.0, -2.0, -3.0]) + 0 * images.flatten(1)[:, :5]


def test_an_image_that_nothing_fools_is_as_far_as_the_box_allows_and_counted(image_set):
    found = measure_distances(Dead(), image_set, "l2", Budget(steps=3))
    right = int((image_set.labels == 0).sum())
    assert found.not_fooled == right > 0
    assert sorted(found.bounded.tolist()) == [0.0] * (40 - right) + [pytest.approx(192**0.5)] * right
    assert [row["value"] for row in found.curve_rows(IDENTITY)] == [right / 40]

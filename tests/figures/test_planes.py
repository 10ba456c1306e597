import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gradscope.figures.planes import SHARE, PlaneGrid, plane, scale_of


def scale_between(*values):
    grids = [np.atleast_2d(np.asarray(value, dtype=float)) for value in values]
    return scale_of("loss", [PlaneGrid(np.arange(grid.shape[1]), np.arange(len(grid)), grid) for grid in grids])


@pytest.mark.parametrize("values", [[0, 5, 10], [0.001, 3, 7.3], [-4, 2, 9], [1000, 1001, 1002], [1e-7, 5e-8, 2e-7]])
def test_linear_where_values_are_of_one_size(values):
    scale = scale_between(values)
    assert scale.threshold is None
    assert scale.ends[0] <= min(values) < max(values) <= scale.ends[1]
    assert 8 <= len(scale.edges) - 1 <= 25
    assert len(scale.ticks) >= 3
    assert_allclose(np.diff(scale.norm()(np.array(scale.edges))), 1 / (len(scale.edges) - 1), rtol=1e-6)


def test_logarithmic_where_one_plane_is_much_smaller():
    scale = scale_between([0, 0.5, 1.5], [0, 100, 150])
    assert scale.threshold == 1
    assert scale.ends[0] == 0
    assert 150 <= scale.ends[1] < 300
    assert scale.ticks == (0, 1, 10, 100)
    assert_allclose(np.diff(scale.norm()(np.array([0, 1, 10, 100]))), np.diff(scale.norm()(np.array([1, 10])))[0])
    assert_allclose(np.diff(scale.norm()(np.array(scale.edges))), 1 / (len(scale.edges) - 1), rtol=1e-9)


def test_logarithmic_on_both_sides_of_zero():
    scale = scale_between([-40, 1, -1], [1, 0, -1])
    assert scale.threshold == 1
    assert scale.ends[0] < -40
    assert {-10, -1, 0, 1} <= set(scale.ticks)


def test_what_is_almost_nothing_does_not_take_the_colours():
    scale = scale_between([1e-12, 1e-13], [0, 100])
    assert scale.threshold == 0.1


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e30, np.nan, np.inf])
def test_a_constant_has_a_scale(value):
    scale = scale_between([value, value])
    assert (np.diff(scale.edges) > 0).all()
    if np.isfinite(value):
        assert scale.ends[0] <= value <= scale.ends[1]


def test_shares_are_on_all_of_their_range():
    assert scale_of("accuracy", [PlaneGrid(np.arange(2), np.arange(1), np.array([[0.4, 0.5]]))]) is SHARE
    assert SHARE.ends == (0, 1)


def test_words_name_the_scale_and_its_ends():
    assert scale_between([0, 5, 10]).words() == "colours linear, from 0 to 10"
    assert (
        scale_between([0, 1], [0, 1000]).words().startswith("colours linear up to 1 and logarithmic above, from 0 to")
    )
    assert scale_between([1, 2], [1, 1000]).words().startswith("colours logarithmic, from 1 to")


def test_a_plane_has_b_upward_and_a_to_the_right():
    rows = pd.DataFrame({"a": [1.0, 0.0, 1.0], "b": [5.0, 4.0, 4.0], "loss": [3.0, 1.0, 2.0]})
    a, b, grid = plane(rows, "loss")
    assert_array_equal(a, [0, 1])
    assert_array_equal(b, [4, 5])
    assert_array_equal(grid, [[1, 2], [np.nan, 3]])

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gradscope.errors import GradscopeError
from gradscope.results.landscape import QUANTILES, bands, barrier, quantiles, require_whole
from gradscope.results.schemas import BANDS, LANDSCAPE
from gradscope.results.tables import read_table, write_table

LEVELS = list(QUANTILES.values())


def rows(losses, margins, *, checkpoint="sl-0", attack="pgd", seed=0, coordinates=None, space="input"):
    """Rows of LANDSCAPE from ``losses`` and ``margins`` ``(points, images)``."""
    points, images = np.shape(losses)
    coordinates = [(float(point), 0.0) for point in range(points)] if coordinates is None else coordinates
    table = pd.DataFrame(
        {
            "checkpoint": checkpoint,
            "mode": "sl",
            "dataset": "digits",
            "arch": "small-cnn",
            "seed": seed,
            "attack": attack,
            "space": space,
            "index": np.tile(np.arange(images) * 7 + 3, points),
            "label": 1,
            "a": np.repeat([a for a, _ in coordinates], images),
            "b": np.repeat([b for _, b in coordinates], images),
            "loss": np.ravel(losses),
            "margin": np.ravel(margins),
            "predicted": 1,
        }
    )
    return table.reindex(columns=LANDSCAPE.names)


def test_quantiles_are_numpys():
    values = np.random.default_rng(0).normal(size=(40, 17))
    assert_allclose(quantiles(values, LEVELS), np.quantile(values, LEVELS, axis=1).T, rtol=1e-14, atol=1e-14)


def test_quantiles_leave_nan_out():
    values = np.random.default_rng(1).normal(size=(20, 12))
    values[np.arange(20), np.arange(20) % 12] = np.nan
    values[3, :-1] = np.nan
    assert_allclose(quantiles(values, LEVELS), np.nanquantile(values, LEVELS, axis=1).T, rtol=1e-14, atol=1e-14)
    assert_array_equal(quantiles(np.full((2, 3), np.nan), LEVELS), np.full((2, 5), np.nan))


def test_quantiles_of_infinite_values_are_values():
    values = np.array([[np.inf, 1.0, 2.0], [np.inf, np.inf, 0.0], [-np.inf, 0.0, 1.0], [np.inf, np.inf, np.inf]])
    expected = [[1.0, 1.5, 2.0, np.inf], [0.0, np.inf, np.inf, np.inf], [-np.inf, -np.inf, 0, 1.0], [np.inf] * 4]
    assert_array_equal(quantiles(values, [0.0, 0.25, 0.5, 1.0]), expected)


def test_bands_by_hand():
    table = bands(rows([[1.0, 2.0, 3.0]], [[4.0, -1.0, 0.0]]))
    assert list(table.columns) == BANDS.names
    assert table["metric"].tolist() == ["loss", "margin"]
    assert table["unit"].tolist() == ["nats", "logits"]
    loss, margin = table.to_dict("records")
    assert [loss[name] for name in QUANTILES] == pytest.approx([1.1, 1.5, 2.0, 2.5, 2.9])
    assert margin["median"] == 0
    assert loss["right"] == margin["right"] == pytest.approx(1 / 3)
    assert loss["n"] == margin["n"] == 3
    assert {name: loss[name] for name in ("checkpoint", "mode", "dataset", "arch", "seed", "attack")} == {
        "checkpoint": "sl-0",
        "mode": "sl",
        "dataset": "digits",
        "arch": "small-cnn",
        "seed": 0,
        "attack": "pgd",
    }


def test_bands_of_a_plane_do_not_depend_on_the_order_of_rows():
    random = np.random.default_rng(2)
    coordinates = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-2.0, 2.0)]
    losses, margins = random.normal(size=(2, 6, 9))
    ordered = rows(losses, margins, coordinates=coordinates)
    table = bands(ordered)
    assert list(zip(table["a"], table["b"], strict=True)) == coordinates * 2
    for metric, values in (("loss", losses), ("margin", margins)):
        found = table.loc[table["metric"] == metric, list(QUANTILES)]
        assert_allclose(found, np.quantile(values, LEVELS, axis=1).T, rtol=1e-14, atol=1e-14)
    assert_array_equal(table["right"], np.tile((margins > 0).mean(axis=1), 2))
    pd.testing.assert_frame_equal(bands(ordered.sample(frac=1, random_state=0)), table)


def test_checkpoints_and_attacks_come_in_order_of_appearance():
    tables = [
        rows([[1.0]], [[1.0]], checkpoint="z"),
        rows([[2.0]], [[1.0]], checkpoint="a", attack="pgd-paper"),
        rows([[3.0]], [[1.0]], checkpoint="a"),
    ]
    table = bands(pd.concat(tables, ignore_index=True))
    assert table["checkpoint"].tolist() == ["z", "z", "a", "a", "a", "a"]
    assert table.loc[table["metric"] == "loss", "median"].tolist() == [1.0, 2.0, 3.0]
    assert table["attack"].tolist() == ["pgd", "pgd", "pgd-paper", "pgd-paper", "pgd", "pgd"]


def test_undefined_values_are_not_counted():
    table = bands(rows([[1.0, np.nan, 3.0], [np.nan] * 3], [[1.0, np.nan, -1.0], [1.0, 2.0, np.nan]]))
    assert table["n"].tolist() == [2, 0, 2, 2]
    assert table["right"].tolist() == [0.5, 1.0, 0.5, 1.0]
    assert_array_equal(table["median"], [2.0, np.nan, 0.0, 1.5])


def test_an_image_that_was_not_measured_everywhere_counts_where_it_was():
    table = bands(rows([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]).iloc[:-1])
    assert table["n"].tolist() == [2, 1, 2, 1]
    assert table["median"].tolist()[:2] == [1.5, 3.0]


def test_weight_space_has_no_bands():
    table = bands(rows([[1.0]], [[1.0]], space="weights"))
    assert list(table.columns) == BANDS.names
    assert table.empty


def test_bands_can_be_written_and_read(tmp_path):
    foreign = rows([[0.1 + 0.2, np.inf]], [[1.0, np.nan]], checkpoint="net", seed=None)
    table = bands(pd.concat([foreign, rows([[1.0, 2.0]], [[1.0, 2.0]])], ignore_index=True))
    assert table["seed"].tolist() == [None, None, 0, 0]
    write_table(tmp_path / BANDS.file, BANDS, table.to_dict("records"))
    assert ",,pgd" in (tmp_path / BANDS.file).read_text().splitlines()[1]
    assert ",0,pgd" in (tmp_path / BANDS.file).read_text().splitlines()[3]
    found = read_table(tmp_path / BANDS.file, BANDS)
    for name in (*QUANTILES, "right", "n"):
        assert_array_equal(found[name], table[name])


def test_a_grid_that_was_cut_short_is_named():
    whole = rows(np.zeros((4, 2)), np.ones((4, 2)), coordinates=[(0, 0), (0, 1), (1, 0), (1, 1)])
    require_whole(whole)
    weights = whole[whole["index"] == 3].assign(space="weights", index=np.nan)
    require_whole(pd.concat([whole, weights]))
    with pytest.raises(GradscopeError, match="incomplete: sl-0 around image 10 has 3 of 4 points"):
        require_whole(whole.iloc[:-1])
    with pytest.raises(GradscopeError, match="incomplete: sl-0 has 3 of 4 points"):
        require_whole(weights.iloc[:-1])
    with pytest.raises(GradscopeError, match="holds no rows"):
        require_whole(whole.iloc[:0])


def test_each_way_is_a_grid_of_its_own():
    line = rows(np.zeros((4, 1)), np.ones((4, 1)), space="weights").assign(index=np.nan, way="line")
    curve = line[line["a"].between(1, 2)].assign(way="bezier")
    require_whole(pd.concat([line, curve]))
    short = pd.concat([line, curve, curve.assign(b=1.0).iloc[:-1]])
    with pytest.raises(GradscopeError, match="incomplete: sl-0 on the way bezier has 3 of 4 points"):
        require_whole(short)


def test_a_table_from_before_there_were_ways_is_read(tmp_path):
    old = rows(np.zeros((3, 1)), np.ones((3, 1)), space="weights").drop(columns="way")
    old.to_csv(tmp_path / LANDSCAPE.file, index=False)
    found = read_table(tmp_path / LANDSCAPE.file, LANDSCAPE)
    assert (found["way"] == "").all()
    require_whole(found)


def test_a_barrier_is_the_largest_distance_above_the_ends():
    shares = np.array([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    height, at = barrier(shares, shares * (1 - shares) + 3 * shares + 2)
    assert (height, at) == (pytest.approx(0.25), 3)
    convex = np.stack([np.square(shares), np.exp(2 * shares), np.abs(shares - 0.3)])
    heights, _ = barrier(shares, convex)
    assert_array_equal(heights, 0)
    beyond = np.where((shares < 0) | (shares > 1), 1e9, 0.0)
    assert barrier(shares, beyond)[0] == 0
    assert np.isnan(barrier(shares, np.where(shares == 0.5, np.nan, 0.0))[0])

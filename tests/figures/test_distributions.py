import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from numpy.testing import assert_allclose, assert_array_equal

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.distributions import distribution, draw_samples, read_samples
from gradscope.figures.style import COLOURS
from gradscope.results.schemas import SAMPLES
from gradscope.results.tables import write_table


def samples(values, *, metric="norm", point="clean", checkpoint="sl-0", mode="sl", attack="pgd", unit="-"):
    return pd.DataFrame(
        {
            "checkpoint": checkpoint,
            "mode": mode,
            "attack": attack,
            "index": np.arange(len(values)),
            "metric": metric,
            "point": point,
            "unit": unit,
            "value": np.asarray(values, dtype=float),
        }
    )


def draw(*tables):
    with style.paper():
        return draw_samples(pd.concat(tables, ignore_index=True))


def drawn(axes, index=0):
    """Values and shares of a drawn line, without the ends that take it to the edges."""
    line = axes.lines[index]
    return line.get_xdata()[1:-1], line.get_ydata()[1:-1]


def test_distribution_by_hand():
    assert distribution(np.array([3.0, 1.0, 1.0, 2.0])) == ([1.0, 2.0, 3.0], [0.5, 0.75, 1.0])
    assert distribution(np.array([np.nan, 4.0])) == ([4.0], [1.0])
    assert distribution(np.array([np.nan])) == ([], [])


def test_a_thinned_distribution_keeps_exact_points_ends_and_every_large_step():
    values = np.random.default_rng(0).normal(size=20_000)
    values[:5000] = 0.25
    at, shares = distribution(values)
    assert len(at) <= 2000
    assert at[0] == values.min()
    assert (at[-1], shares[-1]) == (values.max(), 1.0)
    exact = np.searchsorted(np.sort(values), at, side="right") / len(values)
    assert_allclose(shares, exact)
    steps = np.diff([0, *shares])
    assert np.sort(steps)[-2] <= 1.5 / 2000 + 1e-4
    assert at[int(np.argmax(steps))] == 0.25


@pytest.mark.parametrize("metric", ["alignment", "snr", "restart-spread", "distance"])
def test_what_is_measured_by_name_is_drawn(metric):
    (drawing,) = draw(samples([0.5, 0.25, 0.75], metric=metric, point="clean", unit="-"))
    assert drawing.name == f"distribution-{metric}"
    assert drawn(drawing.figure.axes[0])[0].tolist() == [0.25, 0.5, 0.75]


def test_lines_are_the_numbers_of_the_file(make_results):
    path = make_results(step_metrics=()) / "samples.csv"
    with style.paper():
        drawings = {drawing.name: drawing.figure for drawing in draw_samples(read_samples(path))}
    assert set(drawings) == {"distribution-norm", "distribution-entropy", "distribution-margin"}
    frame = pd.read_csv(path)
    for metric in ("norm", "margin"):
        axes = drawings[f"distribution-{metric}"].axes
        for panel, point in zip(axes, ("clean", "final"), strict=True):
            assert len(panel.lines) == 8
            for index, line in enumerate(panel.lines):
                checkpoint, attack = line.get_label().split(", ")
                rows = frame[(frame["checkpoint"] == checkpoint) & (frame["attack"] == attack)]
                rows = rows[(rows["metric"] == metric) & (rows["point"] == point)]
                at, shares = drawn(panel, index)
                expected = np.sort(rows["value"])
                positive = np.unique(expected[expected > 0] if metric == "norm" else expected)
                assert_allclose(at[-len(positive) :], positive, rtol=1e-12)
                assert_allclose(shares, [(expected <= x).mean() for x in np.unique(expected)])
                assert to_rgba(line.get_color()) == to_rgba(COLOURS[rows["mode"].iloc[0]])


def test_zeros_of_the_norm_are_a_step_at_the_left_edge():
    (drawing,) = draw(samples([0.0, 0.0, 1e-9, 10.0], unit="nats per unit pixel range"))
    (axes,) = drawing.figure.axes
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert 0 < left < 1e-9
    line = axes.lines[0]
    assert_array_equal(line.get_xdata(), [left, left, 1e-9, 10.0, right])
    assert_array_equal(line.get_ydata(), [0.0, 0.5, 0.75, 1.0, 1.0])
    assert line.get_drawstyle() == "steps-post"
    assert "0 drawn at the left edge" in axes.get_xlabel()
    assert "zeros drawn at the left edge" in drawing.caption


def test_without_zeros_nothing_is_said_of_them():
    (drawing,) = draw(samples([1e-9, 10.0]))
    assert "edge" not in drawing.figure.axes[0].get_xlabel() + drawing.caption


@pytest.mark.parametrize("highest", [1.3, 2.0, 4.0, 6.5, 7.5, 30.0, 500.0, 5000.0])
@pytest.mark.parametrize("lowest", [1.0, 0.6, 3.0, 2e-5])
def test_labels_of_a_log_axis_do_not_overlap(lowest, highest):
    (drawing,) = draw(samples([lowest, lowest * highest]))
    axes = drawing.figure.axes[0]
    drawing.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    labels = [
        label.get_window_extent()
        for minor in (False, True)
        for tick, label in zip(axes.get_xticks(minor=minor), axes.get_xticklabels(minor=minor), strict=True)
        if low <= tick <= high and label.get_text()
    ]
    labels.sort(key=lambda box: box.x0)
    assert len(labels) >= 1
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(labels))


def test_entropy_is_split_by_accuracy_of_the_same_point_and_image():
    (drawing,) = draw(
        samples([1.0, 2.0, 3.0], metric="entropy", unit="bits"),
        samples([1.0, 0.0, 1.0], metric="accuracy"),
        samples([0.1, 0.2, 0.3], metric="entropy", point="final", unit="bits"),
        samples([0.0, 0.0, 1.0], metric="accuracy", point="final").iloc[::-1],
    )
    clean_right, clean_wrong, final_right, final_wrong = drawing.figure.axes
    assert_array_equal(drawn(clean_right)[0], [1.0, 3.0])
    assert_array_equal(drawn(clean_wrong)[0], [2.0])
    assert_array_equal(drawn(final_right)[0], [0.3])
    assert_array_equal(drawn(final_wrong)[0], [0.1, 0.2])
    assert final_right.get_xlabel() == "entropy (bits), right predictions"
    assert final_wrong.get_xlabel() == "entropy (bits), wrong predictions"
    assert "separately for right and wrong" in drawing.caption


def test_entropy_without_accuracy_is_not_split():
    (drawing,) = draw(samples([1.0, 2.0], metric="entropy"))
    assert len(drawing.figure.axes) == 1


def test_a_panel_without_images_says_so():
    (drawing,) = draw(samples([1.0, 2.0], metric="entropy"), samples([1.0, 1.0], metric="accuracy"))
    right, wrong = drawing.figure.axes
    assert not right.texts
    assert [text.get_text() for text in wrong.texts] == ["no images"]


def test_undefined_values_are_left_out_and_said():
    (drawing,) = draw(samples([np.nan, 1.0, 3.0], metric="margin"))
    assert_array_equal(drawn(drawing.figure.axes[0])[0], [1.0, 3.0])
    assert_array_equal(drawn(drawing.figure.axes[0])[1], [0.5, 1.0])
    assert "n = 3 images; for some lines it is defined on only 2" in drawing.caption


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.inf, 1.0], [-np.inf, 0.0], [np.inf, np.inf], [5.0, 5.0]])
@pytest.mark.parametrize("metric", ["norm", "margin", "entropy"])
def test_degenerate_values_are_drawn_without_a_warning(metric, values):
    (drawing,) = draw(samples(values, metric=metric))
    with style.paper():
        drawing.figure.draw_without_rendering()


def test_metrics_without_a_defined_value_are_not_drawn():
    assert draw(samples([np.nan, np.nan]), samples([1.0, 0.0], metric="accuracy")) == []


@pytest.mark.parametrize(("factor", "scale"), [(3.0, "linear"), (1000.0, "symlog")])
def test_inflated_margins_get_a_symmetric_log_axis(factor, scale):
    values = np.linspace(-1, 5, 50)
    (drawing,) = draw(
        samples(values, metric="margin"), samples(values * factor, metric="margin", checkpoint="rl-0", mode="rl")
    )
    assert drawing.figure.axes[0].get_xscale() == scale


def test_only_what_is_drawn_is_kept(tmp_path):
    identity = {"checkpoint": "NA", "mode": "sl", "attack": "pgd", "index": 0, "label": 1, "unit": "-"}
    rows = [
        identity | {"metric": "norm", "point": "clean", "value": 0.1 + 0.2},
        identity | {"metric": "norm", "point": "path", "value": 7.0},
        identity | {"metric": "cosine", "point": "path", "value": 7.0},
        identity | {"metric": "entropy", "point": "final", "value": None},
        identity | {"metric": "margin", "point": "final", "value": float("nan")},
    ]
    write_table(tmp_path / "samples.csv", SAMPLES, rows)
    frame = read_samples(tmp_path / "samples.csv")
    assert frame["metric"].tolist() == ["norm", "entropy", "margin"]
    assert frame["checkpoint"].tolist() == ["NA"] * 3
    assert_array_equal(frame["value"], [0.1 + 0.2, np.nan, np.nan])


@pytest.mark.parametrize(
    "content",
    ["", "a,b\n1,2\n", "checkpoint,mode,attack,index,metric,point,unit,value\na,sl,pgd,0,norm,clean,-,much\n"],
)
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "samples.csv").write_text(content)
    with pytest.raises(GradscopeError, match=r"samples\.csv") as caught:
        read_samples(tmp_path / "samples.csv")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(GradscopeError, match="cannot be read"):
        read_samples(tmp_path / "samples.csv")


def test_a_label_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    cells = {column.name: 0.0 if column.kind == "number" else 0 for column in SAMPLES.columns}
    cells |= {column.name: "" for column in SAMPLES.columns if column.kind == "text"}
    cells |= {"metric": "norm", "point": "clean"}
    write_table(tmp_path / SAMPLES.file, SAMPLES, [cells | {"checkpoint": name} for name in ("=1+1", "plain")])
    assert read_samples(tmp_path / SAMPLES.file)["checkpoint"].tolist() == ["=1+1", "plain"]

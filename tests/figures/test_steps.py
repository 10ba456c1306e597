import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from numpy.testing import assert_array_equal

from gradscope.figures import style
from gradscope.figures.steps import draw_steps
from gradscope.figures.style import COLOURS
from gradscope.results.schemas import STEPS
from gradscope.results.tables import read_table


def table(means, *, metric="norm", undefined=None, checkpoint="sl-0", mode="sl", attack="pgd", half=0.1, unit="-"):
    means = np.asarray(means, dtype=float)
    count = len(means)
    undefined = np.zeros(count, dtype=int) if undefined is None else np.asarray(undefined)
    return pd.DataFrame(
        {
            "checkpoint": checkpoint,
            "mode": mode,
            "dataset": "digits",
            "arch": "small-cnn",
            "seed": 0,
            "attack": attack,
            "step": np.arange(count),
            "metric": metric,
            "unit": unit,
            "mean": means,
            "std": 1.0,
            "ci_low": means - half,
            "ci_high": means + half,
            "n": 10 - undefined,
            "undefined": undefined,
        }
    )


def draw(*tables):
    with style.paper():
        return draw_steps(pd.concat(tables, ignore_index=True))


def band_of(axes, index=0):
    """(step, low, high) of a drawn band, from the polygon's corners."""
    corners = axes.collections[index].get_paths()[0].vertices
    steps = np.unique(corners[:, 0])
    low = [corners[corners[:, 0] == step, 1].min() for step in steps]
    high = [corners[corners[:, 0] == step, 1].max() for step in steps]
    return steps, low, high


def test_lines_and_bands_are_the_numbers_of_the_file(make_results):
    steps = read_table(make_results(sample_metrics=()) / "steps.csv", STEPS)
    with style.paper():
        drawings = {drawing.name: drawing.figure for drawing in draw_steps(steps)}
    panel = drawings.pop("steps-panel")
    assert set(drawings) == {"steps-cosine", "steps-norm", "steps-accuracy"}
    assert [axes.get_title() for axes in panel.axes] == ["accuracy", "gradient cosine", "gradient norm"]
    for axes, name in zip(panel.axes, ("steps-accuracy", "steps-cosine", "steps-norm"), strict=True):
        for drawn, alone in zip(axes.lines, drawings[name].axes[0].lines, strict=True):
            assert_array_equal(drawn.get_xydata(), alone.get_xydata())
    for name, figure in drawings.items():
        axes = figure.axes[0]
        assert len(axes.lines) == len(axes.collections) == 8
        for index, line in enumerate(axes.lines):
            checkpoint, attack = line.get_label().split(", ")
            chosen = (steps["checkpoint"] == checkpoint) & (steps["attack"] == attack)
            rows = steps[chosen & (steps["metric"] == name.removeprefix("steps-"))]
            assert_array_equal(line.get_xdata(), rows["step"])
            assert_array_equal(line.get_ydata(), rows["mean"])
            assert to_rgba(line.get_color()) == to_rgba(COLOURS[rows["mode"].iloc[0]])
            drawn_steps, low, high = band_of(axes, index)
            assert_array_equal(drawn_steps, rows["step"])
            np.testing.assert_allclose(low, rows["ci_low"], rtol=1e-12)
            np.testing.assert_allclose(high, rows["ci_high"], rtol=1e-12)


def test_rows_out_of_order_are_drawn_in_order():
    (drawing,) = draw(table([1.0, 2.0, 3.0]).sample(frac=1, random_state=0))
    assert_array_equal(drawing.figure.axes[0].lines[0].get_xdata(), [0, 1, 2])


def test_undefined_values_leave_a_gap_and_their_share_is_drawn_below():
    undefined = [0, 5, 10, 2]
    (drawing,) = draw(table([0.9, 0.8, np.nan, 0.7], metric="cosine", undefined=undefined))
    main, strip = drawing.figure.axes
    assert_array_equal(main.lines[0].get_ydata(), [0.9, 0.8, np.nan, 0.7])
    np.testing.assert_allclose(strip.lines[0].get_ydata(), np.array(undefined) / 10)
    assert strip.get_ylabel().startswith("undefined")
    assert "at some steps defined on only 0 of them" in drawing.caption


def test_no_strip_where_everything_is_defined():
    (drawing,) = draw(table([0.9, 0.8], metric="cosine"))
    assert len(drawing.figure.axes) == 1


@pytest.mark.parametrize("metric", ["norm", "cosine", "loss", "accuracy", "something-new"])
def test_a_wholly_undefined_metric_is_drawn_without_a_warning(metric):
    (drawing,) = draw(table([np.nan, np.nan], metric=metric, undefined=[10, 10]))
    with style.paper():
        drawing.figure.draw_without_rendering()


@pytest.mark.parametrize("metric", ["accuracy", "sign", "zero", "dispersion"])
def test_shares_are_drawn_from_0_to_1(metric):
    (drawing,) = draw(table([0.4, 0.7], metric=metric))
    low, high = drawing.figure.axes[0].get_ylim()
    assert -0.1 < low <= 0
    assert 1 <= high < 1.1


@pytest.mark.parametrize(
    ("means", "half", "ends"),
    [
        ([0.96, 0.99], 0.01, (0.95, 1.0)),
        ([0.7, 0.85], 0.05, (0.65, 0.9)),
        ([0.0, 0.0], 0.0, (0.0, 0.02)),
        ([1.0, 1.0], 0.0, (0.98, 1.0)),
        ([0.5, 0.5], 0.0, (0.49, 0.51)),
    ],
)
def test_shares_that_lie_close_together_are_drawn_larger(means, half, ends):
    (drawing,) = draw(table(means, metric="sign", half=half))
    low, high = drawing.figure.axes[0].get_ylim()
    room = 0.08 * (ends[1] - ends[0])
    assert (low, high) == pytest.approx((ends[0] - room, ends[1] + room))
    assert f"the axis shows only {ends[0]:.2f} to {ends[1]:.2f}, not 0 to 1" in drawing.caption


def test_shares_with_wide_bands_are_drawn_from_0_to_1():
    (drawing,) = draw(table([0.5, 0.55], metric="accuracy", half=0.2))
    assert drawing.figure.axes[0].get_ylim()[1] > 1
    assert "only" not in drawing.caption


def test_the_panel_has_what_a_paper_prints_and_one_legend():
    metrics = ("entropy", "loss", "norm", "accuracy", "cosine")
    tables = [
        table([0.97, 0.96], metric=metric, half=0.01, checkpoint=name, mode=name, attack=attack, unit=unit)
        for metric, unit in zip(metrics, ("bits", "nats", "nats per unit pixel range", "-", "-"), strict=True)
        for name in ("sl", "rl")
        for attack in ("pgd", "pgd-paper")
    ]
    panel = draw(*tables)[-1]
    assert panel.name == "steps-panel"
    assert [axes.get_title() for axes in panel.figure.axes] == [
        "accuracy",
        "gradient cosine",
        "gradient norm",
        "entropy",
    ]
    assert [axes.get_ylabel() for axes in panel.figure.axes] == ["", "", "nats per unit pixel range", "bits"]
    (legend,) = panel.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sl", "rl", "pgd", "pgd-paper"]
    assert panel.figure.get_size_inches()[0] == style.PAGE
    assert "accuracy: the axis shows only 0.95 to 0.98" in panel.caption
    assert draw(*(rows for rows in tables if rows["metric"].iloc[0] in ("loss", "norm")))[-1].name == "steps-norm"


def test_norm_is_on_a_log_axis_and_zeros_reach_its_edge():
    (drawing,) = draw(table([1e-3, 1.0, 0.0], metric="norm", half=0.0, unit="nats per unit pixel range"))
    (axes,) = drawing.figure.axes
    assert axes.get_yscale() == "log"
    assert_array_equal(axes.lines[0].get_ydata(), [1e-3, 1.0, 0.0])
    low, high = axes.get_ylim()
    assert 1e-4 < low < 1e-3
    assert 1 < high < 10
    assert "0 at the edge" in axes.get_ylabel()
    drawing.figure.draw_without_rendering()


def test_norm_that_is_always_zero_is_linear():
    (drawing,) = draw(table([0.0, 0.0], metric="norm", half=0.0))
    assert drawing.figure.axes[0].get_yscale() == "linear"


def test_interval_below_zero_does_not_stretch_the_log_axis():
    (drawing,) = draw(table([1.0, 2.0], metric="norm", half=5.0))
    assert drawing.figure.axes[0].get_ylim()[0] > 0.1


@pytest.mark.parametrize(("factor", "scale"), [(2.0, "linear"), (1000.0, "symlog")])
@pytest.mark.parametrize("metric", ["loss", "margin"])
def test_losses_of_different_size_get_a_symmetric_log_axis(metric, factor, scale):
    (drawing,) = draw(
        table([0.1, -1.0], metric=metric),
        table([0.1 * factor, -factor], metric=metric, checkpoint="rl-0", mode="rl"),
    )
    assert drawing.figure.axes[0].get_yscale() == scale


def test_a_symmetric_log_axis_ends_where_its_lines_end():
    (drawing,) = draw(
        table([0.5, 3.0], metric="loss", half=0.0),
        table([0.5, 300.0], metric="loss", half=0.0, checkpoint="rl-0", mode="rl"),
    )
    low, high = drawing.figure.axes[0].get_ylim()
    assert -1 < low < 0.5
    assert 300 < high < 1000


def test_a_single_step_is_a_point_on_a_whole_number():
    (drawing,) = draw(table([0.5], metric="accuracy"))
    (axes,) = drawing.figure.axes
    assert axes.lines[0].get_marker() == "o"
    assert_array_equal(axes.get_xticks(), [0])


def test_labels_and_no_title():
    (drawing,) = draw(table([1.0, 2.0], metric="norm", unit="nats per unit pixel range"))
    (axes,) = drawing.figure.axes
    assert axes.get_ylabel() == "gradient norm\n(nats per unit pixel range)"
    assert axes.get_xlabel() == "PGD step"
    assert not axes.get_title()
    assert not drawing.figure.get_suptitle()


def test_captions_say_what_the_band_is():
    captions = {drawing.name: drawing.caption for drawing in draw(table([0.5]), table([0.5], metric="accuracy"))}
    assert "Student t" in captions["steps-norm"]
    assert "Wilson" in captions["steps-accuracy"]
    (dispersion,) = draw(table([0.5], metric="dispersion"))
    assert "jackknife" in dispersion.caption
    assert "value of the whole set of n = 10 images" in dispersion.caption


def test_a_checkpoint_without_the_metric_is_left_out_of_its_figure():
    drawings = draw(table([1.0]), table([0.5], metric="accuracy"), table([0.4], metric="accuracy", checkpoint="b"))
    assert [len(drawing.figure.axes[0].lines) for drawing in drawings] == [1, 2, 2], "the panel last"

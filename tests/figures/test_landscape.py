import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.contour import QuadContourSet
from numpy.testing import assert_allclose, assert_array_equal

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.draw import draw
from gradscope.figures.landscape import MOST_IMAGES, draw_landscapes
from gradscope.figures.planes import ColourScale, plane, scale_of
from gradscope.figures.regions import OTHER, PALETTE, palette
from gradscope.results.files import write_json
from gradscope.results.landscape import bands
from gradscope.results.schemas import LANDSCAPE, PATH
from gradscope.results.stats import wilson_interval
from tests.conftest import first_of

SETTINGS = {
    "space": "input",
    "seed": 7,
    "axes": [
        {"name": "adversarial direction", "unit": "multiples of epsilon"},
        {"name": "random direction", "unit": "multiples of epsilon"},
    ],
}
WEIGHTS = {
    "space": "weights",
    "seed": 7,
    "images": 500,
    "batch_norm": "as-is",
    "adversarial": {"norm": "l2", "epsilon": 0.5, "steps": 5},
    "custom": "made.up:trace",
    "axes": [{"name": "towards rl-0", "unit": "share of the way"}, {"name": "random direction, filter-normalised"}],
}
MODES = (("sl-0", "sl"), ("rl-0", "rl"), ("sl-adv-0", "sl-adv"))
MORE = (
    ("rl-adv-0", "rl-adv"),
    ("timm:convnextv2_base.fcmae_ft_in22k_in1k_384_and_much_more", "foreign"),
    ("x", "sl-rl"),
)
NOWHERE = pd.DataFrame()


def axis(points, span=3.0):
    return np.linspace(-span, span, points)


def identity(checkpoint, mode, attack="pgd"):
    names = {"checkpoint": checkpoint, "mode": mode, "dataset": "digits", "arch": "small-cnn"}
    return names | {"seed": 0, "attack": attack}


def around_images(checkpoints=MODES[:1], *, images=2, points=7, attacks=("pgd",)):
    """Bowls around images 10, 11, ...: right within a radius of 2, else wrong as one class or another."""
    a, b = (grid.ravel() for grid in np.meshgrid(axis(points), axis(points), indexing="ij"))
    tables = []
    for rank, (checkpoint, mode) in enumerate(checkpoints):
        for number in range(images):
            squared = (a**2 + b**2) * (1 + rank)
            margin = 4 * (1 + rank) - squared
            place = {"space": "input", "index": 10 + number, "label": 3, "a": a, "b": b}
            values = {"loss": squared + number, "margin": margin, "predicted": np.where(margin > 0, 3, 5 + 2 * (a > 0))}
            known = identity(checkpoint, mode, attacks[rank % len(attacks)])
            tables.append(pd.DataFrame(known | place | values))
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


def walks(checkpoints=MODES[:1], *, images=2, walkers=None, steps=5):
    tables = []
    for checkpoint, mode in checkpoints:
        for number in range(images):
            for rank, walker in enumerate(walkers or [checkpoint]):
                step = np.arange(steps + 1)
                place = {"space": "input", "index": 10 + number, "walker": walker, "step": step}
                points = {
                    "a": step / steps,
                    "b": 0.1 * number - rank * (step / steps) ** 2,
                    "off": 0.02 * (steps - step),
                }
                tables.append(pd.DataFrame(identity(checkpoint, mode) | place | points))
    return pd.concat(tables, ignore_index=True).reindex(columns=PATH.names)


def around_weights(checkpoints=MODES[:1], *, points=7, line=False, **columns):
    b = np.zeros(1) if line else axis(points, 1.0)
    a, b = (grid.ravel() for grid in np.meshgrid(axis(points, 1.0), b, indexing="ij"))
    tables = []
    for rank, (checkpoint, mode) in enumerate(checkpoints):
        values = {"loss": (1 + rank) * (a**2 + b**2), "accuracy": 0.9 * np.exp(-(a**2) - b**2)}
        values |= {name: made(a, b) for name, made in columns.items()}
        tables.append(pd.DataFrame(identity(checkpoint, mode, "none") | {"space": "weights", "a": a, "b": b} | values))
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


def drawn(landscape, path=NOWHERE, settings=SETTINGS):
    with style.paper():
        return {drawing.name: drawing for drawing in draw_landscapes(landscape, path, settings)}


def laid_out(drawing):
    with style.paper():
        drawing.figure.draw_without_rendering()
    return drawing


def panels_of(drawing):
    """The panels that are seen, colour bars left out."""
    return [axes for axes in drawing.figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def bars_of(drawing):
    return [axes for axes in drawing.figure.axes if axes.get_label() == "<colorbar>"]


def contours_of(axes, filled=True):
    return [found for found in axes.collections if isinstance(found, QuadContourSet) and found.filled == filled]


def legend_of(drawing):
    (legend,) = drawing.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def paths_of(axes):
    """Lines of more than one point."""
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def test_median_panels_share_one_scale_and_one_bar():
    drawing = drawn(around_images(MODES))["landscape-median"]
    panels = panels_of(drawing)
    assert [axes.get_title() for axes in panels] == ["sl-0", "rl-0", "sl-adv-0"]
    filled = [contours_of(axes)[0] for axes in panels]
    for contours in filled:
        assert_array_equal(contours.levels, filled[0].levels)
        assert contours.get_clim() == filled[0].get_clim() == (contours.levels[0], contours.levels[-1])
        assert contours.get_rasterized()
    assert filled[0].levels[-1] >= 3 * 18 + 0.5
    (bar,) = bars_of(drawing)
    assert bar.get_ylabel() == "loss (nats)"
    assert [label.get_text() for label in bar.get_yticklabels()] == [f"{tick:g}" for tick in bar.get_yticks()]


def test_the_surfaces_of_the_median_are_its_contours_on_its_scale():
    landscape = around_images(MODES, points=9)
    landscape.loc[landscape["checkpoint"] == "rl-0", "loss"] *= 100
    drawings = drawn(landscape)
    contours, surfaces = drawings["landscape-median"], drawings["landscape-median-3d"]
    panels = panels_of(surfaces)
    assert [axes.get_title() for axes in panels] == ["sl-0", "rl-0", "sl-adv-0"]
    limits = {(axes.get_xlim(), axes.get_ylim(), axes.get_zlim(), axes.elev, axes.azim) for axes in panels}
    assert len(limits) == 1
    marks = [[label.get_text() for label in axes.get_zticklabels()] for axes in panels]
    bars = [[label.get_text() for label in bars_of(one)[0].get_yticklabels()] for one in (contours, surfaces)]
    assert marks == [bars[0]] * 3
    assert bars[0] == bars[1] == ["0", "10", "100", "1000"]
    known = "linear up to 10 and logarithmic above, from 0 to 4641.6; all panels share scale and axes"
    assert f"as a surface; heights and colours {known}" in surfaces.caption
    assert known in contours.caption


def test_heights_are_linear_and_then_logarithmic():
    scale = scale_of("loss", [plane(around_images(points=9), "loss")])
    assert scale.threshold is None
    assert_array_equal(scale.height(np.array([-2.0, 3.0])), [-2.0, 3.0])
    far = ColourScale((0.0, 1000.0), (0.0,), 10.0)
    found = far.height(np.array([0.0, 5.0, -10.0, 100.0, 1000.0, np.nan]))
    assert_allclose(found, [0, 0.5, -1, 2, 3, np.nan])


def test_directions_through_weights_say_whether_they_are_normalised():
    both = [{"name": f"random direction {number}, filter-normalised"} for number in (1, 2)]
    for axes, said in ((both, ""), (WEIGHTS["axes"], ", towards rl-0 not filter-normalised"), ([], "")):
        for name in ("weights-loss", "weights-loss-3d"):
            caption = drawn(around_weights(), settings=WEIGHTS | {"axes": axes})[name].caption
            assert caption.endswith(f"from -1 to 1{said}, seed 7")


def test_the_white_line_is_where_half_are_right():
    drawing = drawn(around_images(MODES[:2], points=61))["landscape-median"]
    for axes in panels_of(drawing):
        (line,) = contours_of(axes, filled=False)
        radii = np.linalg.norm(np.concatenate([path.vertices for path in line.get_paths()]), axis=1)
        assert_allclose(radii, 2, atol=0.1)
    assert legend_of(drawing) == ["half of the images right", "the image"]


def test_a_line_that_is_nowhere_is_said():
    landscape = around_images(MODES[:2])
    landscape.loc[landscape["checkpoint"] == "rl-0", "margin"] = 1.0
    assert "half of the images are right, nowhere for rl-0;" in drawn(landscape)["landscape-median"].caption
    landscape["margin"] = 1.0
    assert legend_of(drawn(landscape)["landscape-median"]) == ["the image"]


def test_the_centre_is_marked_and_axes_are_named():
    panels = panels_of(drawn(around_images(MODES))["landscape-median"])
    for axes in panels:
        (mark,) = axes.lines
        assert (mark.get_marker(), *mark.get_xydata()[0]) == ("+", 0, 0)
        assert axes.get_xlabel() == "adversarial direction\n(multiples of epsilon)"
        assert axes.get_xlim() == axes.get_ylim() == (-3, 3)
    assert [axes.get_ylabel() for axes in panels] == ["random direction\n(multiples of epsilon)", "", ""]


def test_without_settings_the_axes_are_a_and_b():
    for settings in ({}, {"axes": None}, {"axes": [{}, 3]}, {"axes": "ab"}):
        drawing = drawn(around_images(), settings=settings)["landscape-median"]
        assert (panels_of(drawing)[0].get_xlabel(), panels_of(drawing)[0].get_ylabel()) == ("a", "b")
        assert "seed" not in drawing.caption


def test_the_medians_caption_has_the_facts():
    drawing = drawn(around_images(MODES, images=3))["landscape-median"]
    assert drawing.caption.startswith("Median over n = 3 images of the loss (nats)")
    assert "colours linear, from 0 to 55; all panels share scale and axes; values from 1 to 55;" in drawing.caption
    assert "7 x 7 points: adversarial direction (multiples of epsilon) from -3 to 3" in drawing.caption
    assert drawing.caption.endswith("seed 7")
    assert drawing.attacks == ("pgd",)


def test_paths_are_the_numbers_of_the_file_on_both_rows():
    path = walks(MODES)
    shuffled = path.sample(frac=1, random_state=0)
    drawing = drawn(around_images(MODES), shuffled)["landscape-image-11"]
    panels = panels_of(drawing)
    assert len(panels) == 6
    for axes in panels:
        (line,) = paths_of(axes)
        rows = path[(path["checkpoint"] == "sl-0") & (path["index"] == 11)]
        assert_array_equal(line.get_xydata(), rows[["a", "b"]])
        assert line.get_color() == "white"
        start, end = [mark for mark in axes.lines if mark.get_marker() in ("o", "X")]
        assert_array_equal(start.get_xydata()[0], rows[["a", "b"]].iloc[0])
        assert_array_equal(end.get_xydata()[0], rows[["a", "b"]].iloc[-1])
    assert legend_of(drawing)[-1] == "attack, o to x"
    assert "at most 0.1 off it" in drawing.caption


def test_walkers_on_shared_planes_have_their_modes_colours():
    checkpoints = (*MODES[:2], ("sl-1", "sl"))
    path = walks(checkpoints, walkers=["sl-0", "rl-0", "sl-1", "gone"])
    drawing = drawn(around_images(checkpoints), path)["landscape-image-10"]
    for axes in panels_of(drawing):
        looks = {line.get_color(): [] for line in paths_of(axes)}
        for line in paths_of(axes):
            looks[line.get_color()].append(str(line.get_linestyle()))
        assert looks.keys() == {style.COLOURS["sl"], style.COLOURS["rl"], style.FALLBACK_COLOUR}
        assert len(set(looks[style.COLOURS["sl"]])) == 2
    assert legend_of(drawing)[-4:] == [f"attack on {name}" for name in ("sl-0", "rl-0", "sl-1", "gone")]


def test_one_walker_that_is_another_checkpoint_is_named():
    drawing = drawn(around_images(MODES[:2]), walks(MODES[:2], walkers=["sl-0"]))["landscape-image-10"]
    assert legend_of(drawing)[-1] == "attack on sl-0"


def test_losses_around_an_image_share_a_scale():
    drawing = drawn(around_images(MODES))["landscape-image-10"]
    filled = [contours_of(axes)[0] for axes in panels_of(drawing) if contours_of(axes)]
    assert len(filled) == 3
    assert len({tuple(contours.levels) for contours in filled}) == 1


@pytest.mark.parametrize("points", [2, 3, 7, 51])
def test_regions_are_the_predicted_classes(points):
    landscape = around_images(points=points, images=1)
    drawing = drawn(landscape)["landscape-image-10"]
    (mesh,) = [found for axes in panels_of(drawing) for found in axes.collections if isinstance(found, QuadMesh)]
    assert mesh.get_rasterized()
    codes = mesh.get_array()
    factor = (codes.shape[0] - 1) // (points - 1)
    expected = plane(landscape, "predicted").grid
    classes = np.array(sorted({3, *landscape["predicted"]}))
    assert_array_equal(classes[np.asarray(codes)[::factor, ::factor]], expected)
    for code, number in enumerate(classes):
        assert to_hex(mesh.cmap(mesh.norm(code))) == PALETTE[number].lower()


def test_boundaries_lie_between_the_classes():
    drawing = drawn(around_images(points=61, images=1))["landscape-image-10"]
    (below,) = [axes for axes in panels_of(drawing) if not contours_of(axes)]
    lines = contours_of(below, filled=False)
    assert len(lines) == 3
    circle = np.concatenate([path.vertices for path in lines[0].get_paths()])
    assert_allclose(np.linalg.norm(circle, axis=1), 2, atol=0.15)


def test_classes_are_named_in_the_legend_and_in_their_regions():
    drawing = drawn(around_images())["landscape-image-10"]
    assert legend_of(drawing)[:3] == ["class 3 (true)", "class 5", "class 7"]
    (below,) = [axes for axes in panels_of(drawing) if not contours_of(axes)]
    assert {text.get_text() for text in below.texts} == {"3", "5", "7"}
    for text in below.texts:
        radius = np.hypot(*text.get_position())
        assert (radius < 2) == (text.get_text() == "3")


def test_classes_go_by_their_names_as_they_are_written():
    names = [f"n{number}" for number in range(10)]
    names[3], names[5], names[7] = "$cat$", "5", "<dog>"
    drawing = drawn(around_images(), settings=SETTINGS | {"classes": names})["landscape-image-10"]
    assert legend_of(drawing)[:3] == ["class 3, $cat$ (true)", "class 5", "class 7, <dog>"]
    assert "Image 10 of class 3, $cat$:" in drawing.caption
    laid_out(drawing)
    (legend,) = drawing.figure.legends
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_a_true_class_that_is_predicted_nowhere_is_named():
    landscape = around_images()
    landscape["predicted"] = 0
    assert legend_of(drawn(landscape)["landscape-image-10"])[:2] == ["class 0", "class 3 (true)"]


def test_more_classes_than_colours():
    landscape = around_images(images=1)
    landscape["predicted"] = 100 + np.arange(len(landscape))
    names = legend_of(drawn(landscape)["landscape-image-10"])
    assert "class 3 (true)" in names
    assert sum(name.startswith("class ") for name in names) == len(PALETTE)
    assert "other classes" in names


def test_at_most_eight_images_are_drawn_and_it_is_said():
    drawings = drawn(around_images(images=10, points=3))
    names = [name for name in drawings if name.startswith("landscape-image-")]
    assert names == [f"landscape-image-{10 + number}" for number in range(MOST_IMAGES)]
    assert drawings[names[0]].caption.endswith("; 8 of 10 images are drawn")


def test_a_checkpoint_without_the_image_is_left_out():
    landscape = around_images(MODES[:2])
    landscape = landscape[(landscape["checkpoint"] == "sl-0") | (landscape["index"] == 10)]
    drawings = drawn(landscape)
    assert len(panels_of(drawings["landscape-image-10"])) == 4
    assert [axes.get_title() for axes in panels_of(drawings["landscape-image-11"])] == ["sl-0", ""]


def test_slices_are_the_numbers_of_the_table():
    landscape = around_images(MODES, images=5)
    landscape["loss"] *= 1 + 0.1 * landscape["index"]
    drawing = drawn(landscape)["landscape-slices"]
    table = bands(landscape)
    grid = np.array(drawing.figure.axes).reshape(3, 2)
    for column, (along, across) in enumerate((("a", "b"), ("b", "a"))):
        for row, metric in enumerate(("loss", "margin")):
            axes = grid[row, column]
            lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
            areas = [found for found in axes.collections if isinstance(found, PolyCollection)]
            for (checkpoint, line), area in zip(lines.items(), areas, strict=True):
                chosen = (table["checkpoint"] == checkpoint) & (table["metric"] == metric) & (table[across] == 0)
                rows = table[chosen].sort_values(along)
                assert_array_equal(line.get_xdata(), rows[along])
                assert_array_equal(line.get_ydata(), rows["median"])
                assert to_rgba(line.get_color()) == to_rgba(style.COLOURS[rows["mode"].iloc[0]])
                corners = area.get_paths()[0].vertices
                for at, low, high in zip(rows[along], rows["q25"], rows["q75"], strict=True):
                    there = corners[corners[:, 0] == at, 1]
                    assert (there.min(), there.max()) == (low, high)
            assert len(lines) == 3
            assert len(axes.lines) == 9
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["loss\n(nats)", "margin\n(logits)", "images right\n(share)"]
    assert legend_of(drawing) == ["sl-0", "rl-0", "sl-adv-0"]


def test_the_share_that_is_right_has_its_wilson_interval():
    drawing = drawn(around_images(images=5))["landscape-slices"]
    axes = drawing.figure.axes[4]
    (line,) = axes.lines
    assert_array_equal(line.get_ydata(), [0, 0, 1, 1, 1, 0, 0])
    corners = axes.collections[0].get_paths()[0].vertices
    for at, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
        there = corners[corners[:, 0] == at, 1]
        assert_allclose((there.min(), there.max()), wilson_interval(int(5 * share), 5))
    assert "Wilson score interval over images, 95 %" in drawing.caption


def test_slices_of_an_even_grid_say_which_line_is_drawn():
    drawing = drawn(around_images(points=4))["landscape-slices"]
    assert "at a = -1, the grid's line nearest to 0; at b = -1" in drawing.caption
    assert_allclose(drawing.figure.axes[0].lines[-1].get_ydata(), axis(4) ** 2 + 1 + 0.5)


def test_slices_of_an_odd_grid_need_no_such_words():
    assert "nearest" not in drawn(around_images())["landscape-slices"].caption


def test_slices_have_tails_only_where_lines_are_few():
    few, many = (drawn(around_images(checkpoints))["landscape-slices"] for checkpoints in (MODES, MODES + MORE[:1]))
    assert "5 % and 95 %" in few.caption
    assert "5 % and 95 %" not in many.caption
    assert len(many.figure.axes[0].lines) == 4


def test_losses_of_very_different_size_get_a_symmetric_log_axis():
    landscape = around_images(MODES[:2])
    landscape.loc[landscape["checkpoint"] == "rl-0", "loss"] *= 100
    axes = drawn(landscape)["landscape-slices"].figure.axes[0]
    assert axes.get_yscale() == "symlog"
    assert -1 < axes.get_ylim()[0] < 0


def test_infinite_quantiles_are_left_out_and_said():
    landscape = around_images()
    landscape.loc[landscape["a"] > 2, "loss"] = np.inf
    drawing = drawn(landscape)["landscape-slices"]
    assert "infinite quantiles left out" in drawing.caption
    assert np.isfinite(drawing.figure.axes[0].get_ylim()).all()


def test_different_attacks_are_told_apart():
    drawings = drawn(around_images(MODES[:2], attacks=("pgd", "pgd-paper")))
    assert legend_of(drawings["landscape-slices"]) == ["sl-0, pgd", "rl-0, pgd-paper"]
    assert drawings["landscape-slices"].attacks == drawings["landscape-median"].attacks == ("pgd", "pgd-paper")
    assert [axes.get_title() for axes in panels_of(drawings["landscape-median"])] == [
        "sl-0, pgd",
        "rl-0, pgd-paper",
    ]


def test_weights_have_a_figure_for_every_quantity_there_is():
    landscape = around_weights(MODES, adversarial_loss=lambda a, b: 2 + a + b, custom=lambda a, b: a * b)
    drawings = drawn(landscape, settings=WEIGHTS)
    names = ["weights-loss", "weights-adversarial-loss", "weights-accuracy", "weights-custom"]
    assert list(drawings) == [f"{name}{end}" for name in names for end in ("", "-3d")]
    assert [bars_of(drawings[name])[0].get_ylabel() for name in names] == [
        *("loss (nats)", "loss under attack (nats)", "accuracy", "made.up:trace")
    ]
    assert [drawings[name].attacks for name in names] == [(), ("adversarial",), (), ()]
    caption = drawings["weights-loss"].caption
    assert caption.startswith("Loss (nats) over n = 500 images on a plane through the weights, batch norm as-is")
    assert "towards rl-0 (share of the way) from -1 to 1, random direction, filter-normalised from -1 to 1" in caption


def test_accuracy_is_drawn_from_0_to_1():
    drawing = drawn(around_weights(MODES), settings=WEIGHTS)["weights-accuracy"]
    for axes in panels_of(drawing):
        assert contours_of(axes)[0].get_clim() == (0, 1)


def test_contour_lines_are_labelled_with_their_value():
    drawing = drawn(around_weights(points=41), settings=WEIGHTS)["weights-accuracy"]
    (axes,) = panels_of(drawing)
    (lines,) = contours_of(axes, filled=False)
    assert_array_equal(lines.levels, [0.25, 0.5, 0.75])
    assert sorted(text.get_text() for text in axes.texts) == ["0.25", "0.5", "0.75"]
    for text in axes.texts:
        squared = -np.log(float(text.get_text()) / 0.9)
        assert_allclose(np.sum(np.square(text.get_position())), squared, atol=0.05)


def test_labels_keep_clear_of_the_path():
    step = np.arange(8)
    points = {"a": np.linspace(-0.9, 0, 8), "b": np.linspace(0.5, 0, 8), "off": 1.0}
    place = {"space": "weights", "walker": "sl-0", "step": step}
    path = pd.DataFrame(identity("sl-0", "sl", "none") | place | points).reindex(columns=PATH.names)
    drawing = drawn(around_weights(points=41), path, WEIGHTS)["weights-accuracy"]
    (axes,) = panels_of(drawing)
    (line,) = paths_of(axes)
    assert_array_equal(line.get_xydata(), path[["a", "b"]])
    for text in axes.texts:
        assert np.linalg.norm(np.array(text.get_position()) - line.get_xydata(), axis=1).min() > 0.15
    assert legend_of(drawing) == ["the checkpoint", "training, o to x"]
    assert "path of training from o to x, projected onto the plane, at most 1 off it" in drawing.caption


def test_points_where_a_metric_failed_are_grey_and_counted():
    def custom(a, b):
        return np.where((a > 0.5) & (b > 0.5), np.nan, a + b)

    drawing = drawn(around_weights(custom=custom), settings=WEIGHTS)["weights-custom"]
    (axes,) = panels_of(drawing)
    assert to_hex(axes.get_facecolor()) == "#bfbfbf"
    inside = [path.contains_point((0.9, 0.9)) for path in contours_of(axes)[0].get_paths()]
    assert not any(inside)
    assert "undefined at 4 points, grey" in drawing.caption


def test_a_line_between_weights_is_a_line():
    landscape = around_weights(MODES, line=True)
    drawings = drawn(landscape, settings=WEIGHTS)
    assert list(drawings) == ["weights-line-loss", "weights-line-accuracy"]
    (axes,) = drawings["weights-line-loss"].figure.axes
    for line, (checkpoint, mode) in zip(axes.lines, MODES, strict=False):
        assert_array_equal(line.get_ydata(), landscape.loc[landscape["checkpoint"] == checkpoint, "loss"])
        assert line.get_color() == style.COLOURS[mode]
    assert axes.get_xlabel() == "towards rl-0 (share of the way)"
    assert axes.get_ylabel() == "loss\n(nats)"
    (accuracy,) = drawings["weights-line-accuracy"].figure.axes
    assert accuracy.get_ylim() == pytest.approx((0, 1), abs=0.05)
    caption = drawings["weights-line-loss"].caption
    assert "on a line through the weights" in caption
    assert (
        "7 points along towards rl-0 (share of the way) from -1 to 1, towards rl-0 not filter-normalised, seed 7"
        in caption
    )
    assert "dotted at 0, the checkpoint itself;" in caption
    other = drawn(landscape, settings=WEIGHTS | {"towards": "rl-0"})["weights-line-loss"]
    assert "dotted at 0, the checkpoint itself, and at 1, rl-0;" in other.caption
    dotted = [line for line in other.figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [0, 1]


def ways(checkpoints=MODES[:1], **columns):
    """A hill of height 1 on the line, half as high where units are aligned, and a valley along the curve."""
    tables = []
    for rank, (checkpoint, mode) in enumerate(checkpoints):
        for way, height in (("line", 1.0), ("aligned", 0.5), ("bezier", -0.2)):
            a = np.linspace(-0.5, 1.5, 9) if way == "line" else np.linspace(0, 1, 5)
            hill = 4 * a * (1 - a) * height
            values = {"loss": 1 + rank + a + hill, "accuracy": 0.9 - 0.2 * a - 0.3 * hill}
            values |= {name: made(a, hill) for name, made in columns.items()}
            place = {"space": "weights", "way": way, "a": a, "b": 0.0}
            tables.append(pd.DataFrame(identity(checkpoint, mode, "none") | place | values))
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


TOWARDS = WEIGHTS | {"towards": "rl-0", "line": True, "ways": ["line", "aligned", "bezier"]}


def test_ways_are_side_by_side_with_their_barriers():
    landscape = ways(adversarial_accuracy=lambda a, hill: 0.5 - 0.1 * a - 0.2 * hill)
    drawings = drawn(landscape.sample(frac=1, random_state=0), settings=TOWARDS)
    assert list(drawings)[:2] == ["weights-ways", "weights-line-loss"]
    drawing = laid_out(drawings["weights-ways"])
    panels = panels_of(drawing)
    assert [axes.get_ylabel() for axes in panels] == ["loss (nats)", "accuracy", "accuracy under\nattack"]
    assert panels[-1].get_xlabel() == "share of the way to rl-0"
    for axes, column, sign in zip(panels, ("loss", "accuracy", "adversarial_accuracy"), (1, -1, -1), strict=True):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == ["straight line", "line, units aligned", "trained curve"]
        assert len({line.get_color() for line in lines.values()}) == 3
        assert len({str(line._unscaled_dash_pattern) for line in lines.values()}) == 3
        for line, way in zip(lines.values(), ("line", "aligned", "bezier"), strict=True):
            rows = landscape[(landscape["way"] == way) & landscape["a"].between(0, 1)]
            assert_array_equal(line.get_xdata(), rows["a"])
            assert_array_equal(line.get_ydata(), rows[column])
        upright = [line for line in axes.lines if len(line.get_xdata()) == 2]
        assert [line.get_xdata()[0] for line in upright] == [0.5, 0.5]
        scale = {"loss": 1, "accuracy": 0.3, "adversarial_accuracy": 0.2}[column]
        assert [sign * np.diff(line.get_ydata())[0] for line in upright] == pytest.approx([scale, scale / 2])
    assert legend_of(drawing) == [*lines, "between the ends", "barrier"]
    (legend,) = drawing.figure.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= drawing.figure.bbox.x1
    assert "sl-0, loss (nats): straight line 1, line, units aligned 0.5, trained curve 0;" in drawing.caption
    assert "at 5 points of each path through the weights, from the checkpoint (0) to rl-0 (1)" in drawing.caption
    assert drawing.attacks == ("adversarial",)
    line = drawings["weights-line-loss"].figure.axes[0].lines[0]
    assert_array_equal(line.get_xdata(), landscape[landscape["way"] == "line"]["a"])


def test_ways_of_many_checkpoints_are_in_several_figures():
    drawings = drawn(ways(MODES + MORE), settings=TOWARDS)
    assert [name for name in drawings if name.startswith("weights-ways")] == ["weights-ways", "weights-ways-2"]
    first, second = (laid_out(drawings[name]) for name in ("weights-ways", "weights-ways-2"))
    assert (len(panels_of(first)), len(panels_of(second))) == (8, 4)
    assert [axes.get_title() for axes in panels_of(first)[:4]] == ["sl-0", "rl-0", "sl-adv-0", "rl-adv-0"]
    (legend,) = first.figure.legends
    assert legend.get_window_extent().x1 <= first.figure.bbox.x1


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_degenerate_ways_are_drawn_without_a_warning(value):
    landscape = ways()
    landscape.loc[landscape["a"] == 0.5, "loss"] = value
    laid_out(drawn(landscape, settings=TOWARDS)["weights-ways"])
    laid_out(drawn(landscape[landscape["a"] != 0], settings={})["weights-ways"])


DAMAGE = {
    "constant": lambda rows: rows.assign(loss=0.25),
    "zero": lambda rows: rows.assign(loss=0.0, margin=1.0, predicted=3),
    "infinite": lambda rows: rows.assign(loss=np.where(rows["a"] > 1, np.inf, rows["loss"])),
    "all infinite": lambda rows: rows.assign(loss=np.inf),
    "undefined": lambda rows: rows.assign(
        **{name: rows[name].where(rows["a"] < 1) for name in ("loss", "margin", "predicted")}
    ),
    "all undefined": lambda rows: rows.assign(loss=np.nan, margin=np.nan, predicted=np.nan),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("points", first_of([2, 5]))
def test_degenerate_values_are_drawn_without_a_warning(damage, points):
    landscape = DAMAGE[damage](around_images(MODES[:2], images=1, points=points))
    assert len([laid_out(drawing) for drawing in drawn(landscape, walks(MODES[:2], images=1)).values()]) == 4


def test_infinite_and_undefined_points_are_counted():
    landscape = around_images(images=1)
    landscape.loc[landscape["a"] == 3, "loss"] = np.inf
    landscape.loc[landscape["a"] == -3, "loss"] = np.nan
    caption = drawn(landscape)["landscape-image-10"].caption
    assert "values from 0 to 13, undefined at 7 points, grey, infinite at 7 points, in the last colour" in caption


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (7, 4)])
def test_panels_wrap_into_rows_of_at_most_four(count, columns):
    checkpoints = [(f"net-{number}", "sl") for number in range(count)]
    for name, stacked in (("landscape-median", 1), ("landscape-image-10", 2)):
        drawing = laid_out(drawn(around_images(checkpoints, images=1, points=3))[name])
        panels = panels_of(drawing)
        assert len(panels) == count * stacked
        assert len({round(axes.get_position().x0, 3) for axes in panels}) == columns
        assert drawing.figure.get_size_inches()[0] <= style.PAGE


def overlap(one, other, room=1.0):
    return min(one.x1, other.x1) - max(one.x0, other.x0) > room and min(one.y1, other.y1) - max(one.y0, other.y0) > room


def _box(axes):
    return axes.get_tightbbox()


@pytest.mark.parametrize("checkpoints", [MODES[:1], MODES[:2], MODES + MORE])
def test_nothing_overlaps_and_panels_fill_the_width(checkpoints):
    for name, drawing in drawn(around_images(checkpoints, images=1), walks(checkpoints, images=1)).items():
        figure, panels = laid_out(drawing).figure, panels_of(drawing)
        if name.endswith("-3d"):
            assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in map(_box, figure.axes)), name
            continue
        (legend,) = figure.legends
        boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in [*panels, *bars_of(drawing)])]
        for place, box in enumerate(boxes):
            assert not any(overlap(box, other) for other in boxes[:place]), name
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y1 <= figure.bbox.y1 + 1
        if name != "landscape-slices":
            columns = len({round(axes.get_position().x0, 3) for axes in panels})
            sides = [axes.get_window_extent() for axes in panels]
            assert all(side.width == pytest.approx(side.height, rel=0.02) for side in sides)
            assert sum(side.width for side in sides[:1]) * columns > 0.58 * figure.bbox.width


def test_the_first_ten_classes_are_told_apart_without_red_or_green():
    """Luminance-weighted distance after dropping the red-green axis."""
    seen = [(0.5 * (red + green), blue) for red, green, blue in map(to_rgb, PALETTE[:10])]
    for index, (yellow, blue) in enumerate(seen):
        for other_yellow, other_blue in seen[:index]:
            assert abs(yellow - other_yellow) + abs(blue - other_blue) > 0.08
    assert len({*PALETTE, OTHER}) == 21


def test_a_class_has_the_colour_of_its_number():
    assert palette(np.array([4.0, 2.0, np.nan]), 7) == {2: PALETTE[2], 4: PALETTE[4], 7: PALETTE[7]}
    assert palette(np.array([500.0, 500.0, 12.0]), 12) == {12: PALETTE[0], 500: PALETTE[1]}


def test_the_mesh_is_an_image_in_a_small_pdf_and_the_text_is_not(tmp_path):
    landscape = around_images(MODES, images=1, points=51)
    with style.paper():
        for drawing in draw_landscapes(landscape, walks(MODES, images=1), SETTINGS)[:2]:
            pdf, _ = style.save(drawing.figure, tmp_path, drawing.name)
            content = pdf.read_bytes()
            assert len(content) < 300_000
            assert b"/Subtype /Image" in content
            assert b"/CIDFontType2" in content or b"/TrueType" in content
            assert b"/Type3" not in content
            widths = [int(width) for width in re.findall(rb"/Width (\d+)", content)]
            assert max(widths) > 0.9 * 200 * style.PAGE * 0.2


def directory_of(tmp_path, landscape, path, manifest):
    landscape.to_csv(tmp_path / LANDSCAPE.file, index=False)
    if path is not None:
        path.to_csv(tmp_path / PATH.file, index=False)
    if manifest is not None:
        write_json(tmp_path / "manifest.json", manifest)
    return tmp_path


ATTACKS = {"pgd": {"norm": "l2", "epsilon": 1.0, "steps": 20, "box": True}}


def test_a_directory_is_drawn_from_its_files_alone(tmp_path):
    manifest = {"attacks": ATTACKS, "landscape": SETTINGS}
    paths = draw(directory_of(tmp_path, around_images(MODES[:2]), walks(MODES[:2]), manifest))
    names = ["landscape-median", "landscape-median-3d", "landscape-image-10", "landscape-image-11", "landscape-slices"]
    expected = [f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    assert [path.name for path in paths] == [*expected, "landscape-3d.html"]
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert list(captions) == names
    for caption in captions.values():
        assert caption.endswith("; pgd: l2, epsilon 1, 20 steps, inside [0, 1].")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in paths} | {"captions.json"}


@pytest.mark.parametrize("manifest", [None, {}, {"landscape": []}])
def test_path_and_manifest_may_be_missing(tmp_path, manifest):
    assert len(draw(directory_of(tmp_path, around_images(images=1), None, manifest))) == 9


def test_weights_are_drawn_and_their_attack_is_described(tmp_path):
    landscape = around_weights(adversarial_loss=lambda a, b: a + b)
    draw(directory_of(tmp_path, landscape, None, {"landscape": WEIGHTS}))
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert captions["weights-adversarial-loss"].endswith("; adversarial: l2, epsilon 0.5, 5 steps.")
    assert "adversarial" not in captions["weights-loss"]


def test_a_line_has_no_surface(tmp_path):
    paths = draw(directory_of(tmp_path, around_weights(line=True), None, {"landscape": WEIGHTS}))
    assert [path.suffix for path in paths] == [".pdf", ".png"] * 2


def test_a_file_without_rows_or_cut_short_is_named(tmp_path):
    for rows, message in ((around_images().iloc[:0], "holds no rows"), (around_images().iloc[:-1], "is incomplete")):
        with pytest.raises(GradscopeError, match=message):
            draw(directory_of(tmp_path, rows, None, None))


def test_redrawing_gives_the_same_bytes(tmp_path):
    directory = directory_of(tmp_path, around_images(MODES[:2], images=1), walks(MODES[:2], images=1), None)
    first = {path: path.read_bytes() for path in draw(directory)}
    assert {path: path.read_bytes() for path in draw(directory)} == first

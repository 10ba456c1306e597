"""Two attacks on the plane of both their ends: the figure, its caption and its GIF."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageSequence

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.animation import MOST_FRAMES, animation, save_animation, steps_shown
from gradscope.figures.draw import draw
from gradscope.figures.landscape import draw_landscapes
from gradscope.results.files import write_json
from gradscope.results.schemas import LANDSCAPE, PATH

STEPS = 8
SETTINGS = {
    "space": "input",
    "seed": 7,
    "versus": "pgd-paper",
    "axes": [
        {"name": name, "unit": "multiples of epsilon"} for name in ("towards pgd", "towards pgd-paper, orthogonal")
    ],
}
ATTACKS = {"pgd": {"norm": "l2", "epsilon": 0.5}, "pgd-paper": {"norm": "l2", "epsilon": 0.5, "norm_floor": 1e-6}}


def identity(checkpoint):
    names = {"checkpoint": checkpoint, "mode": "sl", "dataset": "digits", "arch": "small-cnn"}
    return names | {"seed": 0, "attack": "pgd", "space": "input", "index": 10}


def around(checkpoints=("sl",), points=9):
    axis = np.linspace(-1.5, 1.5, points)
    a, b = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    tables = [
        pd.DataFrame(
            identity(checkpoint)
            | {"label": 3, "a": a, "b": b, "loss": (1 + rank) * (a + 2) ** 4, "margin": 1 - a}
            | {"predicted": np.where(a > 1, 5, 3)}
        )
        for rank, checkpoint in enumerate(checkpoints)
    ]
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


def paths(checkpoints=("sl",), steps=STEPS, *, stuck=True):
    """``pgd`` walks along a to 1; ``pgd-paper`` begins at (0, 1) and stays there, or walks back to the image's side."""
    step = np.arange(steps + 1)
    none = np.full(steps + 1, np.nan)
    walks = {
        "pgd": {"a": step / steps, "b": 0.0, "off": 0.25 * (step == 0), "loss": 1.0 + step, "gradient": 10.0**-step},
        "pgd-paper": {
            **{"a": 0.0 if stuck else 0.5 * step / steps, "b": 1.0, "off": 0.0, "loss": -0.0, "gradient": none},
            **{"gradient": np.where(step < steps - 2, 2e-8, 5e-7)},
        },
    }
    tables = [
        pd.DataFrame(identity(checkpoint) | {"walker": walker, "step": step} | columns)
        for checkpoint in checkpoints
        for walker, columns in walks.items()
    ]
    rows = pd.concat(tables, ignore_index=True)[PATH.names]
    rows.loc[rows["step"] == steps, "gradient"] = np.nan
    return rows


def drawn(checkpoints=("sl",), path=None, settings=SETTINGS, attacks=ATTACKS):
    with style.paper():
        made = draw_landscapes(around(checkpoints), paths(checkpoints) if path is None else path, settings, attacks)
    return {drawing.name: drawing for drawing in made}["landscape-image-10"]


def directory_of(folder, path=None, settings=SETTINGS):
    folder.mkdir()
    around().to_csv(folder / LANDSCAPE.file, index=False)
    (paths() if path is None else path).to_csv(folder / PATH.file, index=False)
    write_json(folder / "manifest.json", {"landscape": settings, "attacks": ATTACKS})
    return folder


def strips_of(drawing):
    return [axes for axes in drawing.figure.axes if axes.get_xlabel() == "step"]


def test_both_paths_are_the_numbers_of_the_file():
    drawing = drawn(("sl", "rl"))
    assert len(drawing.figure.axes) == 2 * 3 + 1
    rows = paths()
    for walker in ("pgd", "pgd-paper"):
        points = rows[rows["walker"] == walker][["a", "b"]]
        lines = [one for one in drawing.moving if one.trail and np.array_equal(one.points, points)]
        assert len(lines) == 2 * 2 * 2, "on two planes of two models, with an edge each"
        for one in lines:
            assert_array_equal(one.line.get_xydata(), points)
    ends = {tuple(one.points[-1]) for one in drawing.moving if not one.trail}
    assert ends == {(1.0, 0.0), (0.0, 1.0)}
    (legend,) = drawing.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[-4:] == ["pgd, o to x", "pgd-paper, o to x", "ball of radius epsilon", "floor of pgd-paper"]


def test_the_gradients_share_an_axis_with_the_floor():
    strips = strips_of(drawn(("sl", "rl")))
    assert len(strips) == 2
    assert strips[0].get_ylim() == strips[1].get_ylim()
    for axes in strips:
        exact, floored = [line for line in axes.lines if len(line.get_xdata()) == STEPS]
        assert_allclose(exact.get_ydata(), 10.0 ** -np.arange(STEPS))
        assert floored.get_ydata().max() < 1e-6
        assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [1e-6]
        assert axes.get_yscale() == "log"


def test_the_caption_says_how_far_each_went_and_why():
    caption = drawn().caption
    assert caption.startswith("Image 10 of class 3 under pgd and pgd-paper, from o to x, one mark per step:")
    assert "; pgd ends 1 epsilon from its start and 1 from the image, at loss 9; " in caption
    assert (
        "; pgd-paper stays where it starts, at loss 0, because its gradient is below its floor of 1e-06 at 8 of 8 "
        "steps, which have 0.02 of their full length (median);"
    ) in caption
    assert "at most 0.25 epsilon off it, the starts 0.25;" in caption
    assert "; all panels share scale and axes" in caption
    assert drawn(("sl", "rl")).caption.count("on rl pgd") == 2
    moved = drawn(path=paths(stuck=False)).caption
    assert "pgd-paper ends 0.5 epsilon from its start and 1.1 from the image" in moved


def test_a_direction_that_no_attack_gave_is_said():
    still = paths()
    still.loc[still["walker"] == "pgd", ["a", "b", "off"]] = 0.0
    assert "pgd ends at the image, so the first direction is a random one" in drawn(path=still).caption
    parallel = paths()
    parallel.loc[parallel["walker"] == "pgd-paper", ["a", "b"]] = [0.5, 0.0]
    assert "both ends lie on one line, so the second direction is a random one" in drawn(path=parallel).caption


def test_a_floor_means_nothing_to_steps_of_signs():
    linf = {name: settings | {"norm": "linf"} for name, settings in ATTACKS.items()}
    drawing = drawn(attacks=linf)
    assert "floor" not in drawing.caption
    assert "pgd ends 1 units of the axes from its start" in drawing.caption
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "pgd-paper, o to x"


@pytest.mark.parametrize("damage", [{"gradient": 0.0}, {"gradient": np.nan, "loss": np.nan}, {"gradient": np.inf}])
def test_gradients_that_fit_no_axis_are_drawn(damage):
    drawing = drawn(path=paths().assign(**damage))
    with style.paper():
        drawing.figure.draw_without_rendering()
    assert ("exactly 0 at 8" in drawing.caption) == (damage["gradient"] == 0)


# --- the animation ---


def frames_of(content):
    with Image.open(io.BytesIO(content)) as image:
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
        return image.info.get("loop"), frames


def test_a_gif_has_a_frame_a_step_and_ends_with_a_pause(tmp_path):
    directory = directory_of(tmp_path / "out")
    written = draw(directory, animate=True)
    path = directory / "figures" / "landscape-image-10.gif"
    assert path in written
    content = path.read_bytes()
    assert len(content) <= 3_000_000
    loop, frames = frames_of(content)
    assert (loop, len(frames)) == (0, STEPS + 1)
    assert [duration for _, duration in frames] == [250] * STEPS + [3000]
    assert all((now != before).any() for (before, _), (now, _) in itertools.pairwise(frames))
    before = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in draw(directory, animate=True)} == before


def test_the_last_frame_is_the_still():
    drawing = drawn()
    with style.paper():
        animation(drawing, 50)
    for one in drawing.moving:
        assert not one.line.get_animated()
        assert_array_equal(one.line.get_xydata(), one.points if one.trail else one.points[-1:])
    assert drawing.figure.texts == []


def test_a_walk_that_ended_waits_and_long_ones_leave_out_steps():
    short = paths()
    short = short[(short["walker"] == "pgd") | (short["step"] <= 1)]
    drawing = drawn(path=short)
    with style.paper():
        _, frames = frames_of(animation(drawing, 40))
    assert len(frames) == STEPS + 1
    long = drawn(path=paths(steps=500))
    shown = steps_shown(long)
    assert (len(shown), shown[0], shown[-1]) == (MOST_FRAMES, 0, 500)
    assert shown == sorted(set(shown))


def test_a_gif_that_is_too_large_gets_smaller(tmp_path):
    drawing = drawn()
    with style.paper():
        usual = save_animation(drawing, tmp_path).stat().st_size
        small = save_animation(drawing, tmp_path, most=usual - 1).stat().st_size
        assert small < usual
        with pytest.raises(GradscopeError, match=r"animate must be left out: landscape-image-10.gif takes \d+ bytes"):
            save_animation(drawing, tmp_path, most=1000)


def test_nothing_to_animate_is_one_line(tmp_path):
    plain = {key: value for key, value in SETTINGS.items() if key != "versus"}
    directory = directory_of(tmp_path / "out", settings=plain)
    with pytest.raises(
        GradscopeError, match=r"animate must be left out unless .* --versus ATTACK` makes them"
    ) as caught:
        draw(directory, animate=True)
    assert "\n" not in str(caught.value)
    assert not (directory / "figures").exists()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nothing_overlaps(count):
    drawing = drawn([f"net-{number}" for number in range(count)])
    with style.paper():
        drawing.figure.draw_without_rendering()
    (legend,) = drawing.figure.legends
    panels = [axes for axes in drawing.figure.axes if axes.get_visible()]
    boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in panels)]
    for place, box in enumerate(boxes):
        for other in boxes[:place]:
            wide, high = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 1, (box, other)
        assert box.y1 <= drawing.figure.bbox.y1 + 1
        assert box.x1 <= drawing.figure.bbox.x1 + 1

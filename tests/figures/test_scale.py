"""The figure of the scale of the logits, from rows whose numbers are known."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.draw import Sources, drawings
from gradscope.figures.scale import draw_scale
from gradscope.results.schemas import SCALE
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import read_table, write_table

N = 96
TEMPERATURES = [10 ** (step / 3) for step in range(-6, 7)]
#: Images left at each temperature; the margin has no scale.
LEFT = {
    "pgd": (80, 78, 70, 52, 30, 18, 15, 15, 20, 26, 30, 32, 33),
    "pgd-paper": (84, 82, 78, 66, 44, 24, 17, 16, 20, 28, 31, 33, 36),
}


def scale_rows(*checkpoints: str, fitted: float | None = 2.0, shift: int = 0) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for name in checkpoints:
        who = {"checkpoint": name, "mode": "sl", "dataset": "cifar10", "arch": "cnn4", "seed": 0}
        ball = who | {"norm": "linf", "epsilon": 8 / 255, "fitted": 0, "steps": 20, "unit": "-", "n": N}
        for attack, left in LEFT.items():
            moved = (left[0],) * shift + left[: len(left) - shift]
            for temperature, count in zip(TEMPERATURES, moved, strict=True):
                rows.append(ball | {"attack": attack, "temperature": temperature} | share(count))
        rows += [ball | {"attack": "pgd-margin", "temperature": t} | share(14) for t in (0.01, 1.0, 100.0)]
        clean = ball | {"attack": "none", "steps": None, "temperature": 1.0}
        rows.append(clean | share(86) | {"metric": "accuracy"})
        error = {"metric": "calibration-error", "ci_low": None, "ci_high": None, "n": 500}
        rows.append(clean | error | {"value": 0.123})
        if fitted is not None:
            rows.append(clean | error | {"temperature": fitted, "fitted": 1, "value": 0.045})
    return pd.DataFrame(rows)[SCALE.names]


def share(count: int) -> dict[str, Any]:
    low, high = wilson_interval(count, N)
    return {"metric": "robust-accuracy", "value": count / N, "ci_low": low, "ci_high": high}


def panels(rows: pd.DataFrame) -> tuple[list[Any], Any]:
    with style.paper():
        (drawing,) = draw_scale(rows)
        drawing.figure.draw_without_rendering()
    return [axes for axes in drawing.figure.axes if axes.get_visible()], drawing


def words(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_attack_is_a_line_of_its_values_with_its_band():
    (axes,), _ = panels(scale_rows("sl-0"))
    drawn = {line.get_color(): line for line in axes.lines if len(line.get_xdata()) > 2}
    assert len(drawn) == 3
    lines = {tuple(np.round(np.asarray(line.get_ydata()) * N).astype(int)) for line in drawn.values()}
    assert lines == {LEFT["pgd"], LEFT["pgd-paper"], (14, 14, 14)}
    assert len(axes.collections) == 3
    assert axes.get_xscale() == "log"


def test_the_marks_stand_at_one_and_at_the_fitted_temperature():
    (axes,), _ = panels(scale_rows("sl-0", fitted=12.5))
    upright = {float(line.get_xdata()[0]) for line in axes.lines if len(set(line.get_xdata())) == 1}
    assert upright == {1.0, 12.5}
    assert {"as given, T = 1", "calibrated, T = 12"} <= set(words(axes))
    (axes,), _ = panels(scale_rows("sl-0", fitted=None))
    assert {float(line.get_xdata()[0]) for line in axes.lines if len(set(line.get_xdata())) == 1} == {1.0}


@pytest.mark.parametrize("fitted", [0.0123, 0.9, 1.0, 1.4, 2000.0])
def test_words_overlap_neither_each_other_nor_the_edge(fitted):
    shown, drawing = panels(pd.concat([scale_rows("sl-0", fitted=fitted), scale_rows("a-long-name-of-a-model" * 2)]))
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    width, height = drawing.figure.bbox.size
    for axes in shown:
        texts = [*axes.texts, axes.title, axes._left_title]
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
        for box in boxes:
            assert -1 <= box.x0 <= box.x1 <= width + 1
            assert -1 <= box.y0 <= box.y1 <= height + 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_there_is_a_panel_for_each_checkpoint_and_the_last_column_names_the_lines(count):
    shown, _ = panels(scale_rows(*[f"sl-{number}" for number in range(count)]))
    assert [axes.get_title(loc="left") for axes in shown] == [f"sl-{number}" for number in range(count)]
    named = [number for number, axes in enumerate(shown) if "PGD, margin" in words(axes)]
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    assert named == list(range(columns - 1, count, columns))
    assert all(axes.get_xlim() == shown[0].get_xlim() for axes in shown)


def test_the_caption_gives_the_calibration_error_and_what_was_attacked():
    _, drawing = panels(pd.concat([scale_rows("sl-0"), scale_rows("x10", fitted=None)]))
    assert "sl-0 0.123 and 0.045" in drawing.caption
    assert "x10 0.123 (no temperature fits best)" in drawing.caption
    assert f"n = {N} images" in drawing.caption
    assert "20 steps (linf, epsilon 0.03137)" in drawing.caption


def test_an_attack_that_it_does_not_know_has_its_own_name():
    rows = scale_rows("sl-0").replace({"attack": {"pgd-paper": "mine"}})
    (axes,), _ = panels(rows)
    assert {"mine", "PGD, cross-entropy", "PGD, margin", "clean"} <= set(words(axes))


def test_no_rows_give_no_figure_and_no_temperature_is_refused():
    assert list(draw_scale(scale_rows("sl-0")[:0])) == []
    with style.paper(), pytest.raises(GradscopeError, match=r"scale.csv must hold temperatures above 0, got none"):
        list(draw_scale(scale_rows("sl-0").assign(temperature=np.nan)))


def test_a_directory_draws_it_from_the_file(tmp_path):
    write_table(tmp_path / SCALE.file, SCALE, scale_rows("sl-0").to_dict("records"))
    rows = read_table(tmp_path / SCALE.file, SCALE)
    with style.paper():
        assert [drawing.name for drawing in drawings(Sources({SCALE.file: rows}))] == ["audit-scale"]

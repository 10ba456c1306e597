"""The figures of attacks and transfer, from rows whose numbers are known."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.attack import draw_attacks
from gradscope.figures.draw import draw
from gradscope.figures.transfer import draw_similarity, draw_transfer
from gradscope.results.files import write_json
from gradscope.results.schemas import ATTACKS, TRANSFER
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import write_table

N = 200
MODES = (("sl-0", "sl"), ("rl-0", "rl"), ("sl-adv-0", "sl-adv"), ("rl-adv-0", "rl-adv"), ("sl-1", "sl"))
NAMES = ("fgsm", "pgd", "apgd-ce", "apgd-t", "square")


def share(count: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(count, n)
    return {"value": count / n if n else np.nan, "ci_low": low, "ci_high": high, "n": n, "unit": "-"}


def attack_rows(modes=MODES, names=NAMES, radii=(0.5,), cascade=True) -> pd.DataFrame:
    """Each attack fells a quarter of what stands, half as much again at twice the radius."""
    rows = []
    for rank, (checkpoint, mode) in enumerate(modes):
        who = {"checkpoint": checkpoint, "mode": mode, "dataset": "digits", "arch": "cnn2", "seed": 0, "norm": "l2"}
        for epsilon in radii:
            stands = N - 5 * rank
            of = who | {"epsilon": epsilon}
            rows.append(of | {"attack": "none", "metric": "accuracy", "subset": "all"} | share(stands, N))
            rows.append(of | {"attack": "none", "metric": "undefined", "subset": "all"} | share(0, N))
            for name in names:
                left = int(stands * max(0.0, 1 - 0.25 * (1 + epsilon)))
                alone = of | {"attack": name, "metric": "accuracy"}
                rows.append(alone | {"subset": "attacked"} | share(left, stands))
                if not cascade:
                    rows.append(alone | {"subset": "all"} | share(left, N))
                stands = left
                rows.append(of | {"attack": name, "metric": "robust-accuracy", "subset": "all"} | share(stands, N))
    return pd.DataFrame(rows)


def transfer_rows(names: list[str]) -> pd.DataFrame:
    rows = []
    for source in ["", *names]:
        for place, target in enumerate(names):
            count = 190 - place if not source else 20 if source == target else 90 + 10 * place
            who = {"source": source, "checkpoint": target, "mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0}
            known = {"attack": "pgd" if source else "none", "norm": "l2", "epsilon": 1.0}
            found = share(count, N)
            rows.append(who | known | {key: found[key] for key in ("ci_low", "ci_high", "n")} | {"accuracy": count / N})
    return pd.DataFrame(rows)


def drawn(make, *arguments):
    with style.paper():
        return {drawing.name: drawing for drawing in make(*arguments)}


class Panel(NamedTuple):
    """What is drawn of a checkpoint: its staircase, the numbers beside it, and its dots."""

    title: str
    stairs: list[float]
    numbers: list[str]
    dots: list[float]


def panels(drawing) -> list[Panel]:
    found = []
    for axes in drawing.figure.axes:
        if axes.axison:
            stairs, *dots = [line for line in axes.lines if line.get_linestyle() == "-" or line.get_marker() == "o"]
            heights = stairs.get_ydata()
            assert list(heights[1::2] - heights[::2]) == [1.0] * (len(heights) // 2), "a row each"
            found.append(
                Panel(
                    axes.get_title(loc="left"),
                    list(stairs.get_xdata()[::2]),
                    [text.get_text() for text in axes.texts],
                    list(dots[0].get_xdata()) if dots else [],
                )
            )
    return found


def test_what_stands_after_each_attack_is_a_staircase():
    rows = attack_rows(MODES[:1])
    (drawing,) = drawn(draw_attacks, rows).values()
    assert drawing.name == "attacks-accuracy"
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", *NAMES]
    (panel,) = panels(drawing)
    left = rows[rows["metric"] == "robust-accuracy"]["value"].tolist()
    assert panel.stairs == [1.0, *left]
    assert panel.numbers == ["100", *(f"{100 * value:.0f}" for value in left)]
    assert panel.dots == [], "shares of what others left are not drawn beside shares of all"
    assert "of all n = 200 images" in drawing.caption
    assert (
        f"{', '.join(NAMES)}: run only on the images that no earlier attack fooled, so without a dot" in drawing.caption
    )
    assert "Wilson" in drawing.caption


def test_without_a_cascade_a_dot_shows_each_attack_alone():
    rows = attack_rows(MODES[:2], cascade=False)
    (drawing,) = drawn(draw_attacks, rows).values()
    alone = rows[(rows["metric"] == "accuracy") & (rows["subset"] == "all") & (rows["attack"] != "none")]
    for panel, (checkpoint, _) in zip(panels(drawing), MODES, strict=False):
        assert panel.title == checkpoint
        assert panel.dots == alone[alone["checkpoint"] == checkpoint]["value"].tolist()
    assert "right under this attack alone, of all n = 200 images" in drawing.caption


def test_attacks_on_what_others_left_have_no_dot_among_shares_of_all():
    rows = attack_rows(MODES[:1], cascade=False)
    last = str(rows["attack"].iloc[-1])
    rows = rows[~((rows["attack"] == last) & (rows["metric"] == "accuracy") & (rows["subset"] == "all"))]
    (drawing,) = drawn(draw_attacks, rows).values()
    (panel,) = panels(drawing)
    assert (len(panel.stairs), len(panel.dots)) == (1 + len(NAMES), len(NAMES) - 1)
    assert f"{last}: run only on the images that no earlier attack fooled, so without a dot" in drawing.caption


def test_a_number_is_written_only_where_it_changes():
    rows = attack_rows(MODES[:1])
    rows.loc[rows["metric"] == "robust-accuracy", ["value", "ci_low", "ci_high"]] = (0.5, 0.4, 0.6)
    (drawing,) = drawn(draw_attacks, rows).values()
    assert panels(drawing)[0].numbers == ["100", "50"]


@pytest.mark.parametrize(("models", "shape", "width"), [(1, 1, 3.4), (2, 2, 4.25), (4, 4, 4.25), (5, 8, 7.0)])
def test_each_checkpoint_has_a_panel_with_its_name_and_its_modes_colour(models, shape, width):
    (drawing,) = drawn(draw_attacks, attack_rows(MODES[:models])).values()
    assert len(drawing.figure.axes) == shape
    shown = [axes for axes in drawing.figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in shown] == [name for name, _ in MODES[:models]]
    assert [axes.lines[0].get_color() for axes in shown] == [style.COLOURS[mode] for _, mode in MODES[:models]]
    assert drawing.figure.get_size_inches()[0] == width
    below = [axes.get_title(loc="left") for axes in shown if axes.get_xlabel()]
    assert below == [name for name, _ in MODES[:models]][-4 if models > 4 else -2 :], "the lowest of each column"


def test_several_radii_are_a_curve_from_the_clean_accuracy():
    rows = attack_rows(MODES[:2], radii=(0.25, 0.5, 1.0))
    drawings = drawn(draw_attacks, rows)
    balls = [f"attacks-accuracy-l2-{radius}" for radius in ("0.25", "0.5", "1")]
    assert list(drawings) == [*balls, "attacks-epsilon"]
    (axes,) = drawings["attacks-epsilon"].figure.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 0.25, 0.5, 1.0]] * 2
    last = rows[(rows["metric"] == "robust-accuracy") & (rows["attack"] == "square") & (rows["checkpoint"] == "rl-0")]
    assert list(axes.lines[1].get_ydata()) == [0.975, *last["value"]]
    assert "fgsm, pgd, apgd-ce, apgd-t, square" in drawings["attacks-epsilon"].caption


def test_an_attack_that_the_first_checkpoint_skipped_keeps_its_place():
    rows = attack_rows(MODES[:2])
    rows = rows[(rows["checkpoint"] == "rl-0") | ~rows["attack"].isin(["fgsm", "apgd-ce"])]
    (drawing,) = drawn(draw_attacks, rows).values()
    assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == ["clean", *NAMES]
    skipping, whole = panels(drawing)
    assert (len(skipping.stairs), len(whole.stairs)) == (4, 6)


def test_where_no_attack_was_run_nothing_is_drawn():
    assert drawn(draw_attacks, attack_rows(names=())) == {}


@pytest.mark.parametrize("models", [2, 8])
def test_the_matrix_is_written_into_its_cells(models):
    names = [f"model-{place}" for place in range(models)]
    (drawing,) = drawn(draw_transfer, transfer_rows(names)).values()
    axes = drawing.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean images", *names]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    texts = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert len(texts) == models * (models + 1)
    assert texts[0, 0] == "95.0"
    assert texts[1, 0] == texts[2, 1] == "10.0"
    assert texts[1, 1] == "50.0"
    assert axes.collections[0].get_clim() == (0, 1)
    assert len(axes.patches) == models, "the diagonal is framed"
    assert "n = 200 images" in drawing.caption


def test_similarity_is_a_matrix_with_undefined_cells_empty_and_the_curvatures_in_the_caption():
    names = ["sl", "rl", "flat"]
    who = {"mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0, "attack": "none", "n": 200, "undefined": 3}
    rows = [
        {"other": one, "checkpoint": other, **who, "metric": "gradient-cosine", "unit": "-"}
        | {"value": value, "ci_low": value - 0.02, "ci_high": value + 0.02}
        for one, values in zip(names, ([1, -0.5, np.nan], [-0.5, 1, np.nan], [np.nan] * 3), strict=True)
        for other, value in zip(names, values, strict=True)
    ]
    bent = {"other": "", "checkpoint": "sl", **who, "metric": "relative-curvature", "value": 12.5}
    (drawing,) = drawn(draw_similarity, pd.DataFrame([*rows, bent])).values()
    axes = drawing.figure.axes[0]
    texts = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "1.00", (0, 1): "-0.50", (1, 0): "-0.50", (1, 1): "1.00"}
    assert len(axes.patches) == 3, "the diagonal is framed"
    assert "undefined on up to 3 images" in drawing.caption
    assert drawing.caption.endswith("relative curvature, median, per unit pixel range: sl 12.5")
    assert draw_similarity(pd.DataFrame(rows[:0], columns=pd.DataFrame(rows).columns)) == []


def test_drawn_from_the_files_alone_with_the_budget_in_the_caption(tmp_path: Path):
    write_table(tmp_path / ATTACKS.file, ATTACKS, attack_rows(MODES[:2], radii=(0.5, 1.0)).to_dict("records"))
    write_table(tmp_path / TRANSFER.file, TRANSFER, transfer_rows(["a", "b"]).to_dict("records"))
    paths = {path: path.read_bytes() for path in draw(tmp_path)}
    assert len(paths) == 2 * 4
    assert {path: path.read_bytes() for path in draw(tmp_path)} == paths
    write_json(tmp_path / "manifest.json", {"budget": {"steps": 20, "step_size": None, "queries": 500}})
    assert {path: path.read_bytes() for path in draw(tmp_path)} == paths
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert captions["attacks-epsilon"].endswith("budget: 20 steps, 500 queries.")


def test_a_source_and_target_twice_are_refused():
    rows = transfer_rows(["a", "b"])
    with pytest.raises(GradscopeError, match=r"^directory: transfer.csv must have one row for each source and"):
        draw_transfer(pd.concat([rows, rows.head(1)]))

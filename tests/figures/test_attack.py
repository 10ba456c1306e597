"""The figures of attacks and transfer, from rows whose numbers are known."""

import json
from pathlib import Path
from typing import Any

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


def marks(drawing) -> list[tuple[str, list[float]]]:
    """What each row of marks is filled with, and where its marks lie."""
    (axes,) = drawing.figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) and line.get_marker() not in ("", "None", None)]
    return [(str(line.get_markerfacecolor()), list(line.get_xdata())) for line in lines]


def test_a_mark_for_each_attack_alone_and_so_far():
    rows = attack_rows(MODES[:1])
    (drawing,) = drawn(draw_attacks, rows).values()
    assert drawing.name == "attacks-accuracy"
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", *NAMES]
    filled, opened = (found for _, found in marks(drawing))
    assert filled == rows[(rows["metric"] == "accuracy")]["value"].tolist()
    assert opened == rows[(rows["metric"] == "robust-accuracy")]["value"].tolist()
    assert "of those it was run on" in drawing.caption
    assert "of all n = 200 images" in drawing.caption
    assert "Wilson" in drawing.caption


def test_without_a_cascade_every_mark_is_of_all_images():
    rows = attack_rows(MODES[:2], cascade=False)
    (drawing,) = drawn(draw_attacks, rows).values()
    filled = marks(drawing)[0][1]
    alone = rows[(rows["metric"] == "accuracy") & (rows["subset"] == "all") & (rows["checkpoint"] == "sl-0")]
    assert filled == alone["value"].tolist()
    assert "right under this attack, of all n = 200 images" in drawing.caption


def test_attacks_on_what_others_left_have_no_mark_among_shares_of_all():
    rows = attack_rows(MODES[:1], cascade=False)
    last = str(rows["attack"].iloc[-1])
    rows = rows[~((rows["attack"] == last) & (rows["metric"] == "accuracy") & (rows["subset"] == "all"))]
    (drawing,) = drawn(draw_attacks, rows).values()
    filled, opened = (found for _, found in marks(drawing))
    assert len(opened) == rows[rows["metric"] == "robust-accuracy"]["attack"].nunique()
    assert len(filled) == len(opened)  # the clean images, and every attack but the last
    assert f"{last}: run on what the others left alone, no mark" in drawing.caption


def test_checkpoints_of_one_mode_have_one_colour_and_marks_of_their_own():
    (drawing,) = drawn(draw_attacks, attack_rows()).values()
    legend = drawing.figure.legends[0]
    looks = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert looks["sl-0"].get_color() == looks["sl-1"].get_color() == style.COLOURS["sl"]
    assert looks["sl-0"].get_marker() != looks["sl-1"].get_marker()


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
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", *NAMES]


def test_where_no_attack_was_run_nothing_is_drawn():
    assert drawn(draw_attacks, attack_rows(names=())) == {}


def test_an_attack_that_nobody_was_left_for_has_no_mark():
    rows = attack_rows(MODES[:1])
    rows.loc[(rows["attack"] == "square") & (rows["metric"] == "accuracy"), ["value", "ci_low", "ci_high"]] = np.nan
    (drawing,) = drawn(draw_attacks, rows).values()
    assert [len(found) for _, found in marks(drawing)] == [5, 5]


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

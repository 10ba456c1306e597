import gzip
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest

from gradscope.config import PGD
from gradscope.errors import GradscopeError
from gradscope.report import style
from gradscope.report.curves import draw_steps
from gradscope.report.distributions import draw_samples, read_samples
from gradscope.report.figures import describe_attack, draw
from gradscope.results.rows import STEPS
from gradscope.results.tables import read_table

FOUR_MODES = (("sl-0", "sl"), ("rl-0", "rl"), ("sl-adv-0", "sl-adv"), ("rl-adv-0", "rl-adv"))


def test_everything_there_is_drawn(make_results):
    directory = make_results(step_metrics=("cosine", "norm"), sample_metrics=("norm", "accuracy"))
    before = dict(matplotlib.rcParams)
    paths = draw(directory)
    assert dict(matplotlib.rcParams) == before
    names = ["steps-cosine", "steps-norm", "distribution-norm"]
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    assert all(path.parent == directory / "figures" and path.stat().st_size > 1000 for path in paths)
    captions = json.loads((directory / "figures" / "captions.json").read_text())
    assert list(captions) == names
    for caption in captions.values():
        assert caption.endswith(".")
        assert "n = 50 images" in caption
        assert "pgd: l2, epsilon 1, step size 0.1, 20 steps, inside [0, 1], summed loss" in caption
        assert "pgd-paper: l2, epsilon 1, step size 0.1, 20 steps, step's norm floored at 1e-06, no box" in caption
    assert {path.name for path in (directory / "figures").iterdir()} == {p.name for p in paths} | {"captions.json"}


def test_compressed_tables_give_the_same_figures(make_results):
    directory = make_results(FOUR_MODES[:2], ["pgd"], step_metrics=("norm",), sample_metrics=("entropy", "accuracy"))
    first = {path: path.read_bytes() for path in draw(directory)}
    for name in ("steps.csv", "samples.csv"):
        (directory / f"{name}.gz").write_bytes(gzip.compress((directory / name).read_bytes()))
        (directory / name).unlink()
    assert {path: path.read_bytes() for path in draw(directory)} == first
    raw = (directory / "samples.csv.gz").read_bytes()
    (directory / "samples.csv.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(GradscopeError, match=r"samples\.csv\.gz is damaged"):
        draw(directory)


@pytest.mark.parametrize("kept", ["steps", "samples"])
def test_one_file_is_enough(make_results, kept):
    directory = make_results(
        FOUR_MODES[:1],
        ["pgd"],
        step_metrics=("accuracy",) if kept == "steps" else (),
        sample_metrics=("margin",) if kept == "samples" else (),
    )
    (directory / "manifest.json").unlink()
    assert len(draw(directory)) == 2


def test_redrawing_gives_the_same_bytes(make_results):
    directory = make_results(FOUR_MODES[:2], ["pgd"], step_metrics=("norm",), sample_metrics=("entropy", "accuracy"))
    first = {path: path.read_bytes() for path in draw(directory)}
    assert {path: path.read_bytes() for path in draw(directory)} == first


def test_a_checkpoint_looks_alike_in_every_figure(make_results):
    checkpoints = (*FOUR_MODES, ("sl-1", "sl"), ("odd", "made-up"), ("net", "foreign"))
    directory = make_results(checkpoints, images=20, steps=3)
    with style.paper():
        drawings = draw_steps(read_table(directory / "steps.csv", STEPS))
        drawings += draw_samples(read_samples(directory / "samples.csv"))
    looks: dict[str, set[object]] = {}
    modes = dict(checkpoints)
    for drawing in drawings:
        for axes in drawing.figure.axes:
            for line in axes.lines:
                look = (line.get_color(), str(line.get_linestyle()), line.get_marker())
                looks.setdefault(line.get_label(), set()).add(look)
                mode = modes[line.get_label().split(", ")[0]]
                assert line.get_color() == style.COLOURS.get(mode, style.FALLBACK_COLOUR)
    assert len(looks) == 14
    assert all(len(found) == 1 for found in looks.values())
    assert len({found for group in looks.values() for found in group}) == 14


def test_nothing_to_draw_from_is_one_line(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GradscopeError, match=r"steps\.csv or samples\.csv") as caught:
            draw(directory)
        assert "\n" not in str(caught.value)
        assert not (directory / "figures").exists()


def test_a_file_of_rows_without_a_figure_draws_nothing(tmp_path):
    pd.DataFrame(columns=STEPS.names).to_csv(tmp_path / "steps.csv", index=False)
    assert draw(tmp_path) == []


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_manifest_is_one_line(make_results, content):
    directory = make_results(FOUR_MODES[:1], ["pgd"], step_metrics=("norm",), sample_metrics=())
    (directory / "manifest.json").write_text(content)
    with pytest.raises(GradscopeError, match=r"manifest\.json") as caught:
        draw(directory)
    assert "\n" not in str(caught.value)


def test_settings_of_every_form_are_described():
    assert describe_attack(PGD().model_dump()) == (
        "l2, epsilon 1, step size 0.1, 100 steps, start ball, loss cross-entropy, float32, inside [0, 1], summed loss"
    )
    assert describe_attack({"epsilon": "8/255", "step_size": None}) == "epsilon 8/255"
    assert describe_attack({"restarts": 2, "norm_floor": 1e-6}) == "restarts 2, step's norm floored at 1e-06"
    assert describe_attack(None) == describe_attack({}) == describe_attack({"other": 1}) == ""
    assert describe_attack({"epsilon": np.float64(8 / 255)}) == "epsilon 0.03137"

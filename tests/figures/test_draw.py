import gzip
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from gradscope.config import PGD
from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.distributions import draw_samples, read_samples
from gradscope.figures.draw import Sources, compose, describe_attack, draw, figure, read_sources
from gradscope.figures.steps import draw_steps
from gradscope.results.schemas import STEPS
from gradscope.results.tables import read_table

FOUR_MODES = (("sl-0", "sl"), ("rl-0", "rl"), ("sl-adv-0", "sl-adv"), ("rl-adv-0", "rl-adv"))


def test_everything_there_is_drawn(make_results):
    directory = make_results(step_metrics=("cosine", "norm"), sample_metrics=("norm", "accuracy"))
    before = dict(matplotlib.rcParams)
    paths = draw(directory)
    assert dict(matplotlib.rcParams) == before
    names = ["steps-cosine", "steps-norm", "steps-panel", "distribution-norm"]
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
    assert describe_attack(PGD(step_size=0.1).model_dump()) == (
        "l2, epsilon 1, step size 0.1, 100 steps, start ball, loss cross-entropy, float32, inside [0, 1], summed loss"
    )
    assert describe_attack({"epsilon": "8/255", "step_size": None}) == "epsilon 8/255"
    assert describe_attack({"reduction": ["mean"], "box": True}) == "inside [0, 1]"
    assert describe_attack({"restarts": 2, "norm_floor": 1e-6}) == "restarts 2, step's norm floored at 1e-06"
    assert describe_attack(None) == describe_attack({}) == describe_attack({"other": 1}) == ""
    assert describe_attack({"epsilon": np.float64(8 / 255)}) == "epsilon 0.03137"


def test_a_figure_is_made_from_tables_in_memory(make_results, tmp_path):
    """The same figure as from files, whatever pandas types the text."""
    directory = make_results(FOUR_MODES[:2], ["pgd"], step_metrics=("norm", "cosine"), sample_metrics=("entropy",))
    manifest = json.loads((directory / "manifest.json").read_text())
    tables = {name: pd.read_csv(directory / name) for name in ("steps.csv", "samples.csv")}
    sources = Sources(tables, manifest)
    draw(directory)
    before = dict(matplotlib.rcParams)
    for name in ("steps-norm", "distribution-entropy"):
        made, _ = style.save(figure(sources, name), tmp_path, name)
        assert made.read_bytes() == (directory / "figures" / made.name).read_bytes()
    main, _ = style.save(figure(sources), tmp_path, "main")
    assert main.read_bytes() == (directory / "figures" / "steps-cosine.pdf").read_bytes()
    assert dict(matplotlib.rcParams) == before
    with style.paper():
        captions = compose(sources).captions
    assert captions == json.loads((directory / "figures" / "captions.json").read_text())
    with pytest.raises(GradscopeError, match="name: 'steps-nrm' is unknown; did you mean 'steps-norm'"):
        figure(sources, "steps-nrm")
    with pytest.raises(GradscopeError, match=r"no figure of summary\.csv"):
        figure(Sources({"summary.csv": pd.DataFrame()}))


@pytest.mark.parametrize(
    ("kind", "main"),
    [
        ("analysis", "steps-accuracy"),
        ("landscape", "landscape-median"),
        ("attack", "attacks-accuracy"),
        ("transfer", "transfer-accuracy"),
        ("audit", "audit-robustness"),
    ],
)
def test_the_main_figure_of_each_measurement(make_study, kind, main):
    sources = read_sources(make_study(kind) / kind)
    main_texts, texts = (
        [text.get_text() for text in made.findobj(Text)] for made in (figure(sources), figure(sources, main))
    )
    assert main_texts == texts

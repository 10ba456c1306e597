"""The plan of a study: what a stage's name depends on, and what it does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gradscope
from gradscope.errors import GradscopeError
from gradscope.study.expansion import read_study
from gradscope.study.plan import Plan, TrainTask, make_plan

RECIPE = """
[grid]
modes = ["sl", "rl"]
[training]
epochs = 2
[[scale]]
models = "rl"
factors = [10]
[[measure]]
command = "analyze"
models = "sl"
[[measure]]
name = "both"
command = "transfer"
models = "*"
"""
MODELS = ("model-sl-s0", "model-rl-s0", "model-rl-x10-s0")


def plan(tmp_path: Path, text: str = RECIPE, **changes: object) -> Plan:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return make_plan(read_study(path, **changes))  # type: ignore[arg-type]


def names(made: Plan) -> dict[str, str]:
    return {stage.label: stage.name for stage in made.stages}


def changed(first: Plan, second: Plan) -> set[str]:
    """The stages whose name is another, but for claims and report, which any of the others changes."""
    before, after = names(first), names(second)
    assert before.keys() == after.keys()
    found = {label for label in before if before[label] != after[label]}
    assert found >= {"claims", "report"} & before.keys() if found else not found
    return found - {"claims", "report"}


def test_stages_come_after_those_they_need(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert [(stage.label, stage.kind, stage.needs, stage.place) for stage in made.stages] == [
        ("model-sl-s0", "train", (), "checkpoints/sl-s0.pt"),
        ("measure-analyze", "measure", ("model-sl-s0",), "results/analyze"),
        ("model-rl-s0", "train", (), "checkpoints/rl-s0.pt"),
        ("model-rl-x10-s0", "scale", ("model-rl-s0",), "checkpoints/rl-x10-s0.pt"),
        ("measure-both", "measure", ("model-sl-s0", "model-rl-s0", "model-rl-x10-s0"), "results/both"),
        (
            *("claims", "claims"),
            ("model-sl-s0", "measure-analyze", "model-rl-s0", "model-rl-x10-s0", "measure-both"),
            "results/claims.csv",
        ),
        ("report", "report", ("measure-analyze", "measure-both", "claims"), "results/report.html"),
    ]


def test_claims_and_report_take_what_there_is_and_no_gpu(tmp_path: Path) -> None:
    made = plan(tmp_path, RECIPE + "[resources]\ngpus = 1\n")
    assert [stage.label for stage in made.stages if stage.gathers] == ["claims", "report"]
    assert [stage.label for stage in made.stages if stage.reads_manifest] == ["report"]
    assert {stage.label: stage.resources.gpus for stage in made.stages} == {
        **dict.fromkeys((*MODELS, "measure-analyze", "measure-both"), 1.0),
        **dict.fromkeys(("claims", "report"), 0.0),
    }
    without = plan(tmp_path, RECIPE.partition("[[measure]]")[0])
    assert [stage.label for stage in without.stages] == list(MODELS), "nothing is measured: nothing to conclude"


def test_equal_recipes_have_equal_names(tmp_path: Path) -> None:
    assert not changed(plan(tmp_path), plan(tmp_path, "description = 'x'\n" + RECIPE))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.epochs=3", {"model-sl-s0", "model-rl-s0", "model-rl-x10-s0", "measure-analyze", "measure-both"}),
        ("modes.rl={epochs = 3}", {"model-rl-s0", "model-rl-x10-s0", "measure-both"}),
        ("modes.rl={set = ['phases.0.exploration=0.3']}", {"model-rl-s0", "model-rl-x10-s0", "measure-both"}),
        ("modes.rl={set = ['phases.0.exploration=0.1']}", set()),
        ("resources={cpus = 1}", set()),
        # Training in two processes gives other weights.
        ("resources={devices = 2}", {*MODELS, "measure-analyze", "measure-both"}),
    ],
)
def test_a_change_changes_what_depends_on_it(tmp_path: Path, setting: str, expected: set[str]) -> None:
    text = RECIPE + ("[modes]\n" if setting.startswith("modes") else "")
    assert changed(plan(tmp_path, text), plan(tmp_path, text, settings=[setting])) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('command = "analyze"', 'command = "analyze"\nsteps = 7', {"measure-analyze"}),
        ('command = "analyze"', 'command = "analyze"\nsteps = 100', set()),
        ('command = "analyze"', 'command = "analyze"\nepsilon = "4/4"', set()),
    ],
)
def test_options_count_as_they_are_resolved(tmp_path: Path, old: str, new: str, expected: set[str]) -> None:
    assert changed(plan(tmp_path), plan(tmp_path, RECIPE.replace(old, new))) == expected


def test_gradscopes_version_counts_and_torchs_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(tmp_path)
    monkeypatch.setattr(torch, "__version__", "9.9.9+cu999")
    assert not changed(first, plan(tmp_path))
    monkeypatch.setattr(gradscope, "__version__", "9")
    assert len(changed(first, plan(tmp_path))) == 5


def write_npz(path: Path, brightness: int) -> Path:
    images, labels = np.full((40, 8, 8), brightness, dtype=np.uint8), np.arange(40) % 10
    np.savez(path, X_train=images, y_train=labels, X_test=images, y_test=labels)
    return path


def test_images_count_and_where_they_lie_does_not(tmp_path: Path) -> None:
    text = '[grid]\ndata = ["npz"]\nmodes = ["sl"]\n'
    (tmp_path / "moved").mkdir()
    first = plan(tmp_path, text, data_root=write_npz(tmp_path / "a.npz", 7))
    # The file's name is the data set's, and results carry it.
    assert not changed(first, plan(tmp_path, text, data_root=write_npz(tmp_path / "moved" / "a.npz", 7)))
    assert changed(first, plan(tmp_path, text, data_root=write_npz(tmp_path / "b.npz", 8))) == {"model-sl-s0"}


def test_the_models_configuration_is_resolved(tmp_path: Path) -> None:
    made = plan(tmp_path, '[grid]\nmodes = []\n[models.long]\nmode = "sl"\nepochs = 5\nset = ["shift=0.1"]\n')
    (stage,) = made.stages
    assert isinstance(stage.task, TrainTask)
    training = stage.task.training
    assert (training.mode, training.epochs, training.shift, training.seed) == ("long", 5, 0.1, 0)
    assert training.architecture == "cnn2"


def test_what_no_run_could_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"model sl-s0: set: 'phasse' is unknown; did you mean 'phases'"):
        plan(tmp_path, '[grid]\nmodes = ["sl"]\n[training]\nset = ["phasse.0.epochs=1"]\n')
    text = '[models.a]\nphases = [{objective = "cross-entropy", epochs = 1, learning_rate = 0.1, rate = 1}]\n'
    with pytest.raises(GradscopeError, match=r"model a-s0: phases\.0\.rate: 'rate' is unknown"):
        plan(tmp_path, text)


def test_more_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"measure analyze: samples must be from 1 to 359 \(digits .* got 360"):
        plan(tmp_path, RECIPE.replace('command = "analyze"', 'command = "analyze"\nsamples = 360'))


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    text = '[grid]\nmodes = ["sl"]\n[[measure]]\ncommand = "landscape"\nindex = "17,359"\n'
    with pytest.raises(GradscopeError, match=r"measure landscape: index must be from 0 to 358 \(digits .* got 359"):
        plan(tmp_path, text)


def test_images_that_are_missing_leave_out_what_needs_them(tmp_path: Path) -> None:
    text = RECIPE.replace("[grid]", '[grid]\ndata = ["digits", "npz"]')
    made = plan(tmp_path, text)
    assert list(made.images) == ["digits"]
    assert "must be given" in made.absent["npz"]
    assert {stage.label for stage in made.stages} == {
        *("model-digits-sl-s0", "model-digits-rl-s0", "model-digits-rl-x10-s0"),
        *("measure-analyze-digits", "measure-both-digits", "claims", "report"),
    }
    assert set(made.left_out) == {
        *("model-npz-sl-s0", "model-npz-rl-s0", "model-npz-rl-x10-s0"),
        *("measure-analyze-npz", "measure-both-npz"),
    }


def test_where_all_images_are_missing_nothing_is_planned(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="data_root must be given for 'npz'"):
        plan(tmp_path, '[grid]\ndata = ["npz"]\nmodes = ["sl"]\n')

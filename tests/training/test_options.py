"""The options of training: declared once, and the same in Python, on the command line and in a recipe."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import gradscope as gs
from gradscope.api import training
from gradscope.cli import app, main
from gradscope.config import Phase
from gradscope.errors import GradscopeError
from gradscope.options import RunOptions
from gradscope.study.expansion import read_study
from gradscope.training.options import TrainingData, TrainingOptions, TrainOptions
from gradscope.training.request import TrainingRequest

#: Every option of all three doors at another value than its default.
OPTIONS: dict[str, Any] = {
    **{"epochs": 7, "batch_size": 32, "precision": "bf16", "paper": True, "train_samples": 90, "keep_epochs": True},
    "selection": "last",
    **{"set": ["shift=0.2", "batch_size=16"], "phases": [{"epochs": 3, "learning_rate": 0.01}]},
}
#: What only one model has, which a recipe says in its grid.
ONE_MODEL = {"seed": 4, "architecture": "cnn4", "trust_code": True}
MISTAKES: dict[str, Any] = {"epochs": 0, "batch_size": 1, "train_samples": 1, "precision": "16", "selection": "first"}


class ReadError(Exception):
    """Carries a request that was read, in the place of a training."""

    def __init__(self, request: TrainingRequest) -> None:
        super().__init__()
        self.request = request


def stop(request: TrainingRequest, *_: object, **__: object) -> None:
    raise ReadError(request)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingRequest]:
    """The request that a command line makes."""
    monkeypatch.setattr(TrainingRequest, "check", stop)

    def read(**options: Any) -> TrainingRequest:
        with pytest.raises(ReadError) as read:
            main(["train", "--mode", "rl", *(part for one in options.items() for part in flags(*one))])
        return read.value.request

    return read


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., TrainingRequest]:
    """The request that keyword arguments make."""
    monkeypatch.setattr(training, "configure_training", stop)

    def read(**options: Any) -> TrainingRequest:
        with pytest.raises(ReadError) as read:
            gs.train("rl", out=tmp_path / "m.pt", **options)
        return read.value.request

    return read


def flags(name: str, value: Any) -> list[str]:
    """A value as it is typed."""
    flag = "--arch" if name == "architecture" else f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] * value
    return [part for one in (value if isinstance(value, list) else [value]) for part in (flag, str(one))]


def toml(value: Any) -> str:
    """A value as a recipe says it: JSON but for tables."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(one)}' for key, one in value.items())}}}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def of_recipe(folder: Path, **options: Any) -> TrainingOptions:
    """The options of a recipe's only model."""
    keys = "\n".join(f"training.{name} = {toml(value)}" for name, value in options.items())
    (folder / "study.toml").write_text(f'{keys}\n[grid]\nmodes = ["rl"]\n')
    (model,) = read_study(folder / "study.toml").models
    return model.options


def test_every_option_is_tried_here() -> None:
    assert set(OPTIONS) == set(TrainingOptions.model_fields)
    assert set(OPTIONS) | set(ONE_MODEL) == set(TrainOptions.model_fields) - {"mode"}


def test_the_command_has_an_option_for_each_field() -> None:
    command: Any = typer.main.get_command(app)
    options = {one.name: one for one in command.commands["train"].params}
    fields = TrainOptions.model_fields | TrainingData.model_fields | RunOptions.model_fields
    assert set(options) == {*fields, "config", "out"} - {"phases"}
    for name in set(options) - {"config", "out"}:
        assert options[name].help == fields[name].description
    assert options["architecture"].opts == ["--arch"]
    assert [one.name for one in options.values() if one.required] == ["mode"]


def test_the_function_has_a_keyword_for_each_field() -> None:
    keywords = inspect.signature(gs.train).parameters
    expected = {
        *TrainOptions.model_fields,
        *TrainingData.model_fields,
        "data",
        "y",
        "test",
        "out",
        "device",
        "progress",
    }
    assert set(keywords) == expected - {"dataset"}
    document = gs.train.__doc__ or ""
    for name in keywords:
        assert f"\n{name}\n    " in document or f", {name}\n    " in document or f"\n{name}, " in document
    with pytest.raises(GradscopeError, match="'epoch' is unknown; did you mean 'epochs'"):
        gs.train("sl", epoch=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_the_same_in_all_three_doors(
    name: str, typed: Callable[..., TrainingRequest], called: Callable[..., TrainingRequest], tmp_path: Path
) -> None:
    given = {name: OPTIONS[name]}
    expected = TrainingOptions.parse(given)
    asked = called(**given).options
    assert asked == TrainOptions.parse({"mode": "rl", **given})
    assert of_recipe(tmp_path, **given) == expected != TrainingOptions()
    if name != "phases":  # on the command line in the file of --config
        assert typed(**given).options == asked


@pytest.mark.parametrize("name", ONE_MODEL)
def test_a_model_is_the_same_typed_and_in_python(
    name: str, typed: Callable[..., TrainingRequest], called: Callable[..., TrainingRequest]
) -> None:
    given = {name: ONE_MODEL[name]}
    assert typed(**given).options == called(**given).options == TrainOptions.parse({"mode": "rl", **given})


def test_the_images_are_the_same_typed_and_in_python(
    typed: Callable[..., TrainingRequest], called: Callable[..., TrainingRequest]
) -> None:
    given = {"data_root": "x.npz", "image_size": 16, "download": True}
    expected = TrainingData.parse({"dataset": "npz", **given})
    assert typed(dataset="npz", **given).data == called(data="npz", **given).data == expected


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_in_all_three_doors(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: MISTAKES[name]}
    with pytest.raises(GradscopeError) as of_python:
        gs.train("rl", **given)
    assert str(of_python.value).startswith(name)
    with pytest.raises(GradscopeError) as of_the_recipe:
        of_recipe(tmp_path, **given)
    assert str(of_the_recipe.value) == f"training.{of_python.value}"
    with pytest.raises(SystemExit):
        main(["train", "--mode", "rl", *flags(name, MISTAKES[name])])
    message = str(of_python.value).replace(name, flags(name, 0)[0], 1)
    assert capsys.readouterr().err == f"gradscope: {message}\n"


def test_what_is_given_is_laid_over_a_preset() -> None:
    options = TrainOptions(mode="rl", **{**OPTIONS, "paper": False}, **ONE_MODEL)
    training = options.resolved(TrainingRequest(options=options).source, 8, {"vertical_flip": True, "seed": 9})
    assert (training.batch_size, training.precision, training.train_samples) == (32, "bf16", 90)
    assert (training.seed, training.architecture, training.shift, training.vertical_flip) == (4, "cnn4", 0.2, True)
    assert [(phase.epochs, phase.learning_rate) for phase in training.phases] == [(7, 0.01)]
    assert options.phases == tuple(OPTIONS["phases"])


def test_settings_change_no_phases_but_their_own() -> None:
    phase = Phase(epochs=2, learning_rate=0.1)
    options = TrainOptions.parse({"mode": "mine", "phases": [phase], "set": "phases.0.epochs=5"})
    source = TrainingRequest(options=options).source
    assert [options.resolved(source, 8).epochs for _ in range(2)] == [5, 5]
    assert options.phases == (phase.model_dump(),)


def test_a_table_may_say_no_to_what_all_others_do() -> None:
    base = TrainingOptions(paper=True, epochs=3, set=("shift=0.1",))
    assert TrainingOptions(paper=False, set=("seed=1",)).over(base) == TrainingOptions(
        paper=False, epochs=3, set=("shift=0.1", "seed=1")
    )


def test_kept_epochs_need_a_file() -> None:
    with pytest.raises(GradscopeError, match=r"^out must be given with `keep_epochs`"):
        gs.train("sl", keep_epochs=True)

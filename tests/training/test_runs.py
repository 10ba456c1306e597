"""Trainings from what a command asks for to a judged checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gradscope.config import Data, Training
from gradscope.data.image_set import Splits
from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.errors import GradscopeError
from gradscope.results.files import atomic
from gradscope.results.stats import wilson_interval
from gradscope.training.options import TrainingData, TrainOptions
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, count_right, run_training

CPU = Hardware("cpu")


def configure(
    mode: str = "sl", data: Mapping[str, Any] | None = None, table: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Training, Splits]:
    asked = TrainOptions(mode=mode, **options)
    return configure_training(TrainingRequest(options=asked, data=TrainingData(**data or {}), table=dict(table or {})))


@pytest.mark.parametrize(("mode", "epochs", "rate"), [("sl", 100, 2e-4), ("rl", 600, 1e-4)])
def test_the_papers_numbers(mode: str, epochs: int, rate: float) -> None:
    training, _ = configure(mode, paper=True)
    assert (training.architecture, training.batch_size, training.epochs) == ("cnn6", 256, epochs)
    assert training.phases[0].learning_rate == rate
    assert training.vertical_flip


def test_the_data_are_of_the_command_before_a_setting_before_the_file(tmp_path: Path) -> None:
    table = {"data": {"dataset": "npz", "data_root": str(tmp_path / "none.npz")}}
    with pytest.raises(GradscopeError, match=r"none\.npz"):
        configure(table=table)
    kept = json.dumps(table)
    with pytest.raises(GradscopeError, match=r"other\.npz"):
        configure(table=table, set=[f"data.data_root={tmp_path / 'other.npz'}"])
    training, splits = configure(data={"dataset": "digits"}, table=table, set=["data.dataset=cifar10"])
    assert (training.data.dataset, splits.train.name) == ("digits", "digits")
    assert json.dumps(table) == kept
    whole, _ = configure(set=["data={dataset = 'digits', image_size = 8}"])
    assert whole.data == Data(image_size=8)


def test_a_key_that_only_begins_like_data_is_refused() -> None:
    with pytest.raises(GradscopeError, match="'dataset' is unknown"):
        configure(set=["dataset=cifar10"])


@pytest.mark.parametrize("table", [{"mode": "rl"}, {}])
def test_the_mode_is_the_commands(table: dict[str, str]) -> None:
    training, _ = configure("sl", table=table, set=[] if table else ["mode=rl"])
    assert training.mode == "sl"
    assert training.phases[0].mix == {"cross-entropy": 1.0}


def test_a_trained_checkpoint_is_judged_on_the_test_images(tmp_path: Path, digits: Splits) -> None:
    training, splits = configure(epochs=1)
    made = run_training(training, splits, tmp_path / "c.pt", CPU, resume=False, overwrite=False)
    images, labels = digits.test.batch(torch.arange(359), "cpu")
    with torch.no_grad():
        right = int((made.checkpoint.build()(images).argmax(1) == labels).sum())
    assert right == count_right(made.checkpoint.build(), digits.test, torch.device("cpu"))
    assert (made.test_accuracy, made.test_images) == (right / 359, 359)
    assert made.test_interval == wilson_interval(right, 359)


def test_a_run_sweeps_what_a_killed_run_of_its_name_left(tmp_path: Path) -> None:
    (tmp_path / "a.epochs").mkdir()
    with (
        atomic(tmp_path / "a.pt") as own,
        atomic(tmp_path / "b.pt") as other,
        atomic(tmp_path / "a.epochs/1.pt") as epoch,
    ):
        left = [path.with_name(path.name[:-4] + "0.pt") for path in (own, other, epoch)]
    for path in left:
        path.touch()
    training, splits = configure(epochs=1)
    run_training(training, splits, tmp_path / "a.pt", CPU, resume=False, overwrite=True)
    assert [path.exists() for path in left] == [False, True, False]


def test_a_device_is_named() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(GradscopeError, match="device must be auto, cpu or cuda, got 'mps'"):
        resolve_device("mps")

"""``gradscope train``, as a user types it, on real small data: what it prints and what it writes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradscope.cli import main
from gradscope.config import Data
from gradscope.data import sources
from gradscope.models import checkpoint as checkpoints
from gradscope.results.stats import wilson_interval
from gradscope.training.phases import MODES
from gradscope.training.state import RunState

Done = Callable[..., str]
Run = Callable[..., Any]
Content = Callable[[Path], dict[str, bytes]]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_trained(tmp_path: Path, mode: str, done: Done, content: Content) -> None:
    out = tmp_path / "new" / "c.pt"
    printed = done("train", "--mode", mode, "--epochs", 2, "--seed", 5, "--out", out)
    trained = checkpoints.load(out)
    assert (trained.mode, trained.dataset, trained.config["seed"]) == (mode, "digits", 5)
    assert [row["epoch"] for row in trained.history] == [1, 2]
    test = sources.load(Data()).test
    images, labels = test.batch(torch.arange(len(test)), "cpu")
    with torch.no_grad():
        right = int((trained.build()(images).argmax(1) == labels).sum())
    low, high = (100 * end for end in wilson_interval(right, 359))
    accuracy = f"clean accuracy {100 * right / 359:.1f} % [{low:.1f}, {high:.1f}] on 359 test images"
    assert printed == f"{out}  {accuracy}; epoch {trained.kept_epoch} of 2 was kept\n"
    assert sorted(content(tmp_path)) == ["new/c.history.csv", "new/c.pt"]


def test_the_checkpoint_is_named_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("train", "--mode", "sl", "--epochs", 1, "--seed", 2)
    assert ended.out.startswith("checkpoints/digits-cnn2-sl-s2.pt  ")
    assert ended.err.splitlines() == [
        "next:    gradscope analyze checkpoints/digits-cnn2-sl-s2.pt  # gradients and accuracy along an attack",
        "         gradscope audit checkpoints/digits-cnn2-sl-s2.pt  # is its robustness real?",
    ]
    assert (tmp_path / "checkpoints" / "digits-cnn2-sl-s2.pt").exists()


def test_an_absurd_adversary_and_a_model_at_chance_are_warned_of_once(tmp_path: Path, run: Run) -> None:
    rates = [f"phases.{phase}.{end}learning_rate=1e-9" for phase in (0, 1) for end in ("", "final_")]
    options = [word for setting in ["phases.1.adversary.epsilon=8", *rates] for word in ("--set", setting)]
    ended = run("train", "--mode", "sl-adv", "--epochs", 2, "--seed", 1, *options, "--out", tmp_path / "still.pt")
    assert ended.code == 0
    first, second, *_ = (line for line in ended.err.splitlines() if "caution" in line)
    assert first.startswith("gradscope: caution: adversary: epsilon 8 in linf reaches every image")
    assert first.endswith('did you mean "8/255"?')
    assert second.startswith("gradscope: caution: still: ")
    assert second.endswith("check the labels, train for longer, or lower the learning rate")
    assert ended.err.count("caution: still") == ended.err.count("caution: adversary") == 1


def test_the_command_line_beats_set_beats_the_file_beats_the_preset(tmp_path: Path, done: Done) -> None:
    (tmp_path / "c.toml").write_text('mode = "rl"\nbatch_size = 32\nshift = 0.1\nseed = 4\n[data]\nimage_size = 8\n')
    settings = ("--set", "shift=0.2", "--set", "batch_size=48", "--set", "phases.0.weight_decay=0.5")
    arguments = ("--config", tmp_path / "c.toml", *settings, "--batch-size", 64, "--epochs", 1)
    done("train", "--mode", "sl", *arguments, "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    config = trained.config
    assert (config["batch_size"], config["shift"], config["seed"]) == (64, 0.2, 4)
    assert config["phases"][0]["weight_decay"] == 0.5
    assert config["phases"][0]["objective"] == "cross-entropy"
    assert config["data"]["image_size"] == 8
    assert (config["mode"], trained.mode) == ("sl", "sl"), "a label that is not what was trained"


@pytest.mark.parametrize("mode", ["../../x", "..", "a\\b", "m" * 101])
def test_a_mode_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, run: Run, content: Content
) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    (tmp_path / "c.toml").write_text("[[phases]]\nepochs = 1\nlearning_rate = 1e-3\nobjective = 'cross-entropy'\n")
    ended = run("train", "--mode", mode, "--config", tmp_path / "c.toml")
    assert ended.code == 2
    assert ended.err == f"gradscope: --mode must be a plain name of at most 100 characters, not a path, got {mode!r}\n"
    assert list(content(tmp_path)) == ["c.toml"]


def test_phases_of_ones_own(tmp_path: Path, done: Done) -> None:
    (tmp_path / "c.toml").write_text(
        "[[phases]]\nepochs = 1\nlearning_rate = 1e-3\nobjective = {cross-entropy = 1.0, expected-reward = 0.5}\n"
    )
    done("train", "--mode", "mine", "--config", tmp_path / "c.toml", "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert trained.mode == "mine"
    assert trained.config["phases"][0]["objective"] == {"cross-entropy": 1.0, "expected-reward": 0.5}


def test_a_setting_chooses_the_data(tmp_path: Path, world: Path, done: Done) -> None:
    settings = ("--set", "data.dataset=npz", "--set", f"data.data_root={world / 'grey.npz'}")
    done("train", "--mode", "sl", "--epochs", 1, *settings, "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert trained.dataset == "grey"
    assert trained.config["data"]["dataset"] == "npz"


def test_bf16_on_an_image_folder_is_quiet(tmp_path: Path, world: Path, done: Done) -> None:
    data = ("--dataset", "folder", "--data-root", world / "tree", "--image-size", 12)
    done("train", "--mode", "sl", "--epochs", 1, "--precision", "bf16", *data, "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert (trained.dataset, trained.classes) == ("tree", ("cat", "dog"))
    assert (trained.spec.channels, trained.spec.image_size) == (3, 12)


def test_an_unfinished_run_is_named_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done, run: Run, content: Content
) -> None:
    arguments = ("train", "--mode", "sl", "--epochs", 3)
    done(*arguments, "--out", tmp_path / "whole.pt")
    store = RunState._store

    def stop(self: RunState) -> None:
        store(self)
        if self.epochs_done == 1:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "_store", stop)
        with pytest.raises(StoppedError):
            main([*map(str, arguments), "--out", str(tmp_path / "c.pt")])
    before = content(tmp_path)
    refused = run(*arguments, "--out", tmp_path / "c.pt")
    assert refused.code == 2
    assert "c.pt, which exists" in refused.err
    assert "--resume to continue it" in refused.err
    other = run(*arguments, "--seed", 9, "--resume", "--out", tmp_path / "c.pt")
    assert other.code == 2
    assert "differs in seed" in other.err
    assert content(tmp_path) == before
    done(*arguments, "--resume", "--out", tmp_path / "c.pt")
    resumed, whole = (checkpoints.load(tmp_path / name) for name in ("c.pt", "whole.pt"))
    assert all(torch.equal(value, whole.state_dict[name]) for name, value in resumed.state_dict.items())
    again = run(*arguments, "--resume", "--out", tmp_path / "c.pt")
    assert again.code == 2
    assert "is complete" in again.err


def test_overwrite_replaces_a_checkpoint(tmp_path: Path, world: Path, done: Done) -> None:
    shutil.copy(world / "rl.pt", tmp_path / "c.pt")
    done("train", "--mode", "sl", "--epochs", 1, "--overwrite", "--out", tmp_path / "c.pt")
    assert checkpoints.load(tmp_path / "c.pt").mode == "sl"


def test_a_training_that_sigterm_ends_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    store = RunState._store

    def told(self: RunState) -> None:
        store(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunState, "_store", told)
    ended = run("train", "--mode", "sl", "--epochs", 3, "--out", tmp_path / "c.pt")
    assert ended.code == 143
    assert "interrupted; results so far are kept, and --resume continues" in ended.err
    assert checkpoints.load(tmp_path / "c.pt").epochs == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_fabric_announces_nothing(tmp_path: Path) -> None:
    """Neither a precision nor processes; in a process of its own, for loading Fabric lets it speak."""
    options = ["--epochs", "1", "--train-samples", "200", "--precision", "bf16", "--devices", "2"]
    command = ["train", "--mode", "sl", *options, "--device", "cpu", "--out", str(tmp_path / "c.pt")]
    done = subprocess.run([sys.executable, "-m", "gradscope", *command], capture_output=True, text=True, check=True)
    assert "Automatic Mixed Precision" not in done.stderr + done.stdout
    assert "distributed" not in done.stderr + done.stdout

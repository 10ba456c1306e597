"""The commands, as a user types them, on real small data; what they print, what they write and what they refuse."""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import gradscope
from gradscope.attacks.battery import BATTERY
from gradscope.cli import main
from gradscope.config import OBJECTIVES, Data
from gradscope.data import sources
from gradscope.data.sources import DATASETS
from gradscope.models import checkpoint as checkpoints
from gradscope.models.architectures import ARCHITECTURES
from gradscope.results.rows import ATTACK_SAMPLES, ATTACKS, METRICS, SAMPLES, STEPS, SUMMARY, TRANSFER
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import read_table
from gradscope.study import attacks, input_landscapes, stages, transfer, weight_landscapes
from gradscope.training import loop
from gradscope.training.phases import MODES
from gradscope.vision import torchvision

TABLES = (STEPS, SAMPLES, SUMMARY)
OF_THE_PATH = ("path-variance", "displacement")
QUICK = ("--steps", 2, "--samples", 6, "--metrics", "loss")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """What a command prints and its exit code; an error that is ours passes."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main([str(argument) for argument in arguments])
    code = left.value.code or 0
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> str:
    """The output of a command that succeeds and leaves stderr alone."""
    ended = run(*arguments)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def shell(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def rows(directory: Path, table=SUMMARY) -> pd.DataFrame:
    return read_table(directory / table.file, table)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def draw_tree(root: Path, train=("cat", "dog"), test=("cat", "dog"), count=12, side=8) -> Path:
    """Classes of different brightness, in random pixels."""
    random = np.random.default_rng(0)
    for split, classes in (("train", train), ("test", test)):
        (root / split).mkdir(parents=True)
        for label, name in enumerate(classes):
            (root / split / name).mkdir()
            for index in range(count):
                pixels = random.integers(0, 128, (side, side, 3)) + 120 * (label % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.png")
    return root


def write_npz(path: Path, classes: int, channels: int, count: int) -> Path:
    random = np.random.default_rng(1)
    shape = (count, 8, 8) if channels == 1 else (count, 8, 8, channels)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"X_{split}"] = random.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % classes
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, data, results, and things that are wrong; no refused command may change a byte of it."""
    root = tmp_path_factory.mktemp("world")
    (root / "other").mkdir()
    done("train", "--mode", "sl", "--epochs", 2, "--out", root / "sl.pt")
    done("train", "--mode", "rl", "--epochs", 4, "--out", root / "rl.pt")
    shutil.copy(root / "rl.pt", root / "other" / "sl.pt")
    draw_tree(root / "tree")
    draw_tree(root / "lacking", test=("cat", "dog", "zebra"))
    draw_tree(root / "corrupt")
    (root / "corrupt" / "train" / "dog" / "7.png").write_bytes(b"no image")
    draw_tree(root / "hollow", count=0)
    (root / "empty").mkdir()
    write_npz(root / "hundred.npz", 100, 1, 200)
    write_npz(root / "colour.npz", 10, 3, 40)
    write_npz(root / "grey.npz", 10, 1, 40)
    npz = ("--dataset", "npz", "--data-root")
    done("train", "--mode", "sl", "--epochs", 1, *npz, root / "grey.npz", "--out", root / "grey.pt")
    whole = (root / "sl.pt").read_bytes()
    (root / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": Malicious(root / "ran")}, root / "code.pt")
    (root / "pickle.pt").write_bytes(pickle.dumps({"state_dict": Malicious(root / "ran")}))
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, root / "weights.pt")
    (root / "key.toml").write_text("batchsize = 3\n")
    (root / "below.toml").write_text("[[phases]]\nepochs = 1\nlearning_rate = 1e-3\nlearning_rat = 2\n")
    (root / "malformed.toml").write_text("seed = \n")
    (root / "data.toml").write_text("data = 3\n")
    (root / "file").write_text("a regular file\n")
    done("analyze", root / "sl.pt", *QUICK, "--out", root / "results")
    return root


@pytest.fixture(scope="module")
def analysis(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, two attacks, every metric."""
    out = tmp_path_factory.mktemp("analysis") / "deep" / "results"
    options = ("--attack", "pgd,pgd-paper", "--steps", 4, "--samples", 20, "--seed", 3)
    printed = done("analyze", world / "sl.pt", world / "rl.pt", *options, "--out", out)
    *accuracies, path = printed.splitlines()
    assert path == str(out)
    assert [line.split()[:2] for line in accuracies] == [[m, a] for m in ("sl", "rl") for a in ("pgd", "pgd-paper")]
    return out


# --- train ---


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_trained(tmp_path: Path, mode: str) -> None:
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
    assert printed == f"{out}  clean accuracy {100 * right / 359:.1f} % [{low:.1f}, {high:.1f}] on 359 test images\n"
    assert sorted(content(tmp_path)) == ["new/c.history.csv", "new/c.pt"]


def test_the_checkpoint_is_named_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = done("train", "--mode", "sl", "--epochs", 1, "--seed", 2)
    assert printed.startswith("checkpoints/digits-cnn2-sl-s2.pt  ")
    assert (tmp_path / "checkpoints" / "digits-cnn2-sl-s2.pt").exists()


def test_the_command_line_beats_set_beats_the_file_beats_the_preset(tmp_path: Path) -> None:
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


def test_phases_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "[[phases]]\nepochs = 1\nlearning_rate = 1e-3\nobjective = {cross-entropy = 1.0, expected-reward = 0.5}\n"
    )
    done("train", "--mode", "mine", "--config", tmp_path / "c.toml", "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert trained.mode == "mine"
    assert trained.config["phases"][0]["objective"] == {"cross-entropy": 1.0, "expected-reward": 0.5}


def test_a_setting_chooses_the_data(tmp_path: Path, world: Path) -> None:
    settings = ("--set", "data.dataset=npz", "--set", f"data.data_root={world / 'grey.npz'}")
    done("train", "--mode", "sl", "--epochs", 1, *settings, "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert trained.dataset == "grey"
    assert trained.config["data"]["dataset"] == "npz"


def test_bf16_on_an_image_folder_is_quiet(tmp_path: Path, world: Path) -> None:
    data = ("--dataset", "folder", "--data-root", world / "tree", "--image-size", 12)
    done("train", "--mode", "sl", "--epochs", 1, "--precision", "bf16", *data, "--out", tmp_path / "c.pt")
    trained = checkpoints.load(tmp_path / "c.pt")
    assert (trained.dataset, trained.classes) == ("tree", ("cat", "dog"))
    assert (trained.spec.channels, trained.spec.image_size) == (3, 12)


class StoppedError(Exception):
    pass


def test_an_unfinished_run_is_named_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("train", "--mode", "sl", "--epochs", 3)
    done(*arguments, "--out", tmp_path / "whole.pt")
    store = loop.Run._store

    def stop(self: loop.Run) -> None:
        store(self)
        if self.progress.epochs_done == 1:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_store", stop)
        with pytest.raises(StoppedError):
            main([*map(str, arguments), "--out", str(tmp_path / "c.pt")])
    before = content(tmp_path)
    refused = run(*arguments, "--out", tmp_path / "c.pt")
    assert refused.code == 2
    assert "c.pt exists" in refused.err
    assert "--resume continues it" in refused.err
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


def test_overwrite_replaces_a_checkpoint(tmp_path: Path, world: Path) -> None:
    shutil.copy(world / "rl.pt", tmp_path / "c.pt")
    done("train", "--mode", "sl", "--epochs", 1, "--overwrite", "--out", tmp_path / "c.pt")
    assert checkpoints.load(tmp_path / "c.pt").mode == "sl"


# --- analyze ---


def test_an_analysis_writes_every_file(analysis: Path) -> None:
    figures = [f"steps-{name}" for name, metric in METRICS.items() if name not in OF_THE_PATH]
    figures += [f"distribution-{name}" for name in ("norm", "entropy", "margin")]
    expected = {table.file for table in TABLES} | {"manifest.json", "figures/captions.json"}
    expected |= {f"figures/{name}.{kind}" for name in figures for kind in ("pdf", "png")}
    assert set(content(analysis)) == expected
    for table in TABLES:
        with (analysis / table.file).open() as file:
            assert next(csv.reader(file)) == table.names
    for name in figures:
        pdf = (analysis / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/Subtype /Image" not in pdf, "a picture, not a drawing"
        assert (analysis / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((analysis / "figures" / "captions.json").read_text())) == set(figures)


def test_every_checkpoint_attack_metric_and_step_has_its_rows(analysis: Path) -> None:
    who = {("sl", "sl", "pgd"), ("sl", "sl", "pgd-paper"), ("rl", "rl", "pgd"), ("rl", "rl", "pgd-paper")}
    for table in TABLES:
        frame = rows(analysis, table)
        assert set(frame[["checkpoint", "mode", "attack"]].itertuples(index=False, name=None)) == who
        assert set(frame["dataset"]) == {"digits"}
        assert set(frame["arch"]) == {"cnn2"}
        assert set(frame["seed"]) == {0}
    steps = rows(analysis, STEPS)
    for metric in METRICS:
        first, last = (1, 3) if metric in ("cosine", "sign", "zero") else (0, 4)
        last = 3 if metric in ("norm", "dispersion") else last
        found = steps[(steps["metric"] == metric) & (steps["checkpoint"] == "sl") & (steps["attack"] == "pgd")]
        assert found["step"].tolist() == (list(range(first, last + 1)) if metric not in OF_THE_PATH else [])
        assert (found["n"] + found["undefined"] == 20).all()
    assert set(rows(analysis)["metric"]) == set(METRICS)


def test_the_files_agree_with_each_other(analysis: Path) -> None:
    steps, samples, summary = rows(analysis, STEPS), rows(analysis, SAMPLES), rows(analysis)
    keys = ["checkpoint", "attack", "metric"]
    final = samples[samples["point"] == "final"].groupby(keys)["value"].mean()
    for metric in ("accuracy", "loss", "margin", "entropy"):
        for checkpoint in ("sl", "rl"):
            for attack in ("pgd", "pgd-paper"):
                key = (checkpoint, attack, metric)
                last = steps.query("checkpoint == @key[0] and attack == @key[1] and metric == @key[2] and step == 4")
                whole = summary.query("checkpoint == @key[0] and attack == @key[1] and metric == @key[2]")
                whole = whole[whole["subset"] == "final/all"]
                assert last["mean"].item() == pytest.approx(final[key])
                assert whole["value"].item() == pytest.approx(final[key])
                assert (last["ci_low"].item(), last["n"].item()) == (pytest.approx(whole["ci_low"].item()), 20)
    accuracy = samples[samples["metric"] == "accuracy"].pivot_table(
        index=["checkpoint", "attack", "index"], columns="point", values="value"
    )
    assert (accuracy["worst"] <= accuracy[["clean", "final"]].min(axis=1)).all()
    assert accuracy["final"].mean() < accuracy["clean"].mean() - 0.2, "the attack did nothing"


def test_the_clean_values_are_those_of_the_checkpoint_on_the_images_named(analysis: Path, world: Path) -> None:
    test = sources.load(Data()).test
    samples = rows(analysis, SAMPLES)
    for name in ("sl", "rl"):
        mine = samples[(samples["checkpoint"] == name) & (samples["point"] == "clean") & (samples["attack"] == "pgd")]
        loss = mine[mine["metric"] == "loss"]
        images, labels = test.batch(torch.tensor(loss["index"].tolist()), "cpu")
        assert loss["label"].tolist() == labels.tolist()
        assert loss["index"].is_unique
        with torch.no_grad():
            logits = checkpoints.load(world / f"{name}.pt").build()(images)
        assert loss["value"].tolist() == pytest.approx(F.cross_entropy(logits, labels, reduction="none").tolist(), 1e-4)
        right = (logits.argmax(1) == labels).double()
        assert mine[mine["metric"] == "accuracy"]["value"].tolist() == right.tolist()


def test_the_manifest_says_how_it_was_made(analysis: Path, world: Path) -> None:
    said = manifest(analysis)
    assert set(said["attacks"]) == {"pgd", "pgd-paper"}
    exact, paper = said["attacks"]["pgd"], said["attacks"]["pgd-paper"]
    assert (exact["norm"], exact["epsilon"], exact["step_size"], exact["steps"]) == ("l2", 1.0, 0.1, 4)
    assert (exact["box"], exact["reduction"], exact["norm_floor"]) == (True, "sum", 0)
    assert (paper["box"], paper["reduction"], paper["norm_floor"], paper["start"]) == (False, "mean", 1e-6, "cube")
    assert said["seed"] == 3
    assert set(said["intervals"]) >= {"accuracy", "dispersion"}
    test = sources.load(Data()).test
    ours = checkpoints.load(world / "sl.pt")
    for one, name in zip(said["checkpoints"], ("sl", "rl"), strict=True):
        assert (one["label"], one["source"]) == (name, str(world / f"{name}.pt"))
        assert (one["data"]["images"], one["data"]["of"], one["data"]["name"]) == (20, 359, "digits")
        indices = rows(analysis, SAMPLES).query("checkpoint == @name and metric == 'loss' and point == 'final'")
        chosen = test.subset(torch.tensor(indices[indices["attack"] == "pgd"]["index"].tolist()))
        assert one["data"]["fingerprint"] == chosen.fingerprint
        assert set(one["seconds"]) == {"pgd", "pgd-paper"}
        assert all(0 < seconds < 120 for seconds in one["seconds"].values())
    config = said["checkpoints"][0]["config"]
    assert {key: value for key, value in config.items() if key != "data"} == {
        key: value for key, value in ours.config.items() if key != "data"
    }
    assert config["data"]["dataset"] == "digits"
    assert said["provenance"]["gradscope"] == gradscope.__version__
    assert said["provenance"]["packages"]["torch"] == torch.__version__
    assert said["provenance"]["device"]


def test_figures_are_redrawn_from_the_csv_files_alone(analysis: Path, tmp_path: Path) -> None:
    for table in TABLES:
        shutil.copy(analysis / table.file, tmp_path)
    printed = done("figures", tmp_path).splitlines()
    drawn = {name: data for name, data in content(analysis / "figures").items() if name != "captions.json"}
    assert sorted(printed) == [str(tmp_path / "figures" / name) for name in sorted(drawn)]
    assert {name: (tmp_path / "figures" / name).read_bytes() for name in drawn} == drawn


def test_only_what_was_asked_for_is_measured(world: Path, tmp_path: Path) -> None:
    done("analyze", world / "sl.pt", "--metrics", "norm, entropy", "--steps", 2, "--samples", 5, "--out", tmp_path)
    for table in TABLES:
        assert set(rows(tmp_path, table)["metric"]) == {"norm", "entropy", "accuracy"}
    names = {path.stem for path in (tmp_path / "figures").glob("*.pdf")}
    assert names == {"steps-norm", "steps-entropy", "steps-accuracy", "distribution-norm", "distribution-entropy"}
    assert set(rows(tmp_path)["n"]) <= set(range(6))


def test_all_images_are_analysed_where_there_are_fewer_than_500(world: Path, tmp_path: Path) -> None:
    done("analyze", world / "sl.pt", "--metrics", "accuracy", "--steps", 1, "--out", tmp_path)
    whole = rows(tmp_path).query("metric == 'accuracy' and subset == 'clean/all'")
    assert whole["n"].item() == 359


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("0", 0.0)])
def test_a_radius_is_a_fraction_or_a_number(world: Path, tmp_path: Path, text: str, value: float) -> None:
    options = ("--norm", "linf", "--epsilon", text, "--step-size", "2/255")
    done("analyze", world / "sl.pt", *options, *QUICK, "--out", tmp_path)
    settings = manifest(tmp_path)["attacks"]["pgd"]
    assert (settings["norm"], settings["epsilon"], settings["step_size"]) == ("linf", value, 2 / 255)
    loss = rows(tmp_path, SAMPLES).query("metric == 'loss'").pivot_table(index="index", columns="point", values="value")
    assert loss["final"].equals(loss["clean"]) == (value == 0)


def test_numerics_restarts_and_loss_are_the_users(world: Path, tmp_path: Path) -> None:
    options = ("--loss", "margin", "--restarts", 3, "--precision", "float64", "--norm", "linf", "--no-box")
    measure = ("--metrics", "norm", "--steps", 3, "--samples", 30)
    done("analyze", world / "sl.pt", *options, *measure, "--out", tmp_path)
    settings = manifest(tmp_path)["attacks"]["pgd"]
    assert (settings["loss"], settings["restarts"], settings["precision"]) == ("margin", 3, "float64")
    assert (settings["box"], settings["epsilon"], settings["step_size"]) == (False, 8 / 255, 2 / 255)
    norms = rows(tmp_path, STEPS).query("metric == 'norm'")
    assert set(norms["unit"]) == {"logits per unit pixel range"}
    values = rows(tmp_path, SAMPLES).query("metric == 'norm'")["value"]
    assert (values.astype("float32").astype("float64") != values).any(), "float32 would have done"


def test_a_users_checkpoint_on_other_data(world: Path, tmp_path: Path) -> None:
    data = ("--dataset", "npz", "--data-root", world / "grey.npz")
    done("analyze", world / "sl.pt", *data, *QUICK, "--out", tmp_path)
    assert set(rows(tmp_path)["dataset"]) == {"grey"}
    assert manifest(tmp_path)["checkpoints"][0]["data"]["of"] == 40


def test_a_torchvision_model_on_an_image_folder(world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=2)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "weights.pth")
    normalisation = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.5")
    data = ("--dataset", "folder", "--data-root", world / "tree", "--image-size", 32)
    weights = ("--weights", tmp_path / "weights.pth")
    out = tmp_path / "out"
    done("analyze", "torchvision:resnet18", *weights, *normalisation, *data, *QUICK, "--out", out)
    frame = rows(out, SAMPLES)
    assert set(frame[["checkpoint", "mode", "arch"]].itertuples(index=False, name=None)) == {
        ("torchvision:resnet18", "foreign", "resnet18")
    }
    assert frame["seed"].isna().all()
    clean = frame.query("metric == 'loss' and point == 'clean'")
    test = sources.load(Data(dataset="folder", data_root=world / "tree", image_size=32)).test
    images, labels = test.batch(torch.tensor(clean["index"].tolist()), "cpu")
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    with torch.no_grad():
        expected = F.cross_entropy(theirs.eval()((images - mean) / std), labels, reduction="none")
    assert clean["value"].tolist() == pytest.approx(expected.tolist(), 1e-3)
    assert manifest(out)["checkpoints"][0]["weights"] == str(tmp_path / "weights.pth")


def test_a_model_from_the_users_own_code(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_models.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('ran').touch()\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    arguments = ("analyze", "their_models:make", "--dataset", "digits", "--weights", world / "weights.pt", *QUICK)
    refused = run(*arguments, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "--trust-code" in refused.err
    assert not (tmp_path / "ran").exists()
    done(*arguments, "--trust-code", "--out", tmp_path / "out")
    loss = rows(tmp_path / "out", SAMPLES).query("metric == 'loss' and point == 'clean'")
    assert loss["value"].tolist() == pytest.approx([np.log(10)] * 6)


def test_two_weights_of_one_foreign_model_side_by_side(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_twins.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.eye(10)[0] * 100}, tmp_path / "b.pt")
    files = ("--weights", world / "weights.pt", "--weights", tmp_path / "b.pt")
    monkeypatch.chdir(tmp_path)
    models = ("their_twins:make", "their_twins:make", "--trust-code", "--dataset", "digits")
    done("analyze", *models, *files, *QUICK, "--out", "out")
    clean = rows(tmp_path / "out").query("metric == 'loss' and subset == 'clean/all'")
    labels = [f"their_twins:make@{path}" for path in (world / "weights.pt", tmp_path / "b.pt")]
    assert clean["checkpoint"].tolist() == labels
    assert clean["value"].iloc[0] == pytest.approx(np.log(10))
    assert clean["value"].iloc[1] > 50


def test_checkpoints_of_one_name_keep_apart(world: Path, tmp_path: Path) -> None:
    done("analyze", world / "sl.pt", world / "other" / "sl.pt", *QUICK, "--out", tmp_path)
    labels = [str(world / "sl.pt"), str(world / "other" / "sl.pt")]
    assert list(rows(tmp_path)["checkpoint"].unique()) == labels
    assert [one["label"] for one in manifest(tmp_path)["checkpoints"]] == labels


def test_results_are_named_after_the_first_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert done("analyze", world / "rl.pt", *QUICK).splitlines()[-1] == "reports/rl"
    assert (tmp_path / "reports" / "rl" / "summary.csv").exists()


def test_overwriting_leaves_no_figure_of_the_old_results(world: Path, tmp_path: Path) -> None:
    done("analyze", world / "sl.pt", *QUICK, "--out", tmp_path)
    (tmp_path / "figures" / "mine.txt").write_text("a note")
    done("analyze", world / "rl.pt", *QUICK[:-1], "margin", "--overwrite", "--out", tmp_path)
    assert set(rows(tmp_path)["checkpoint"]) == {"rl"}
    names = {path.stem for path in (tmp_path / "figures").glob("*.p*")}
    assert names == {"steps-margin", "steps-accuracy", "distribution-margin"}
    assert (tmp_path / "figures" / "mine.txt").exists()


# --- list, help, version ---


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("datasets", DATASETS),
        ("architectures", ARCHITECTURES),
        ("metrics", METRICS),
        ("attacks", BATTERY),
        ("objectives", OBJECTIVES),
        ("modes", MODES),
    ],
)
def test_list_names_each_with_its_meaning(what: str, names: dict[str, object]) -> None:
    lines = done("list", what).splitlines()
    assert [line.split()[0] for line in lines] == list(names)
    assert all(len(line.split()) > 1 for line in lines)


def test_list_says_what_each_attack_needs() -> None:
    lines = {line.split()[0]: line for line in done("list", "attacks").splitlines()}
    assert lines["square"].endswith("[logits]")
    assert lines["pgd-dlr"].endswith("[logits, gradient; 3 classes or more]")
    assert lines["transfer"].endswith("[logits, examples]")


def test_version_and_help() -> None:
    assert done("--version") == f"gradscope {gradscope.__version__}\n"
    overview = done("--help")
    assert all(
        command in overview for command in ("train", "analyze", "landscape", "attack", "transfer", "figures", "list")
    )
    assert done() == overview


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--mode", "--paper", "--set", "KEY=VALUE", "phases.0.exploration=0.3", "--resume", "--device"]),
        ("analyze", ["CKPT", "--metrics", "8/255", "pgd-paper", "--trust-code", "--weights", "reports/FIRST-CKPT"]),
        ("landscape", ["CKPT", "input|weights", "--towards", "--epochs", "re-estimated", "shared", "--resume"]),
        ("attack", ["CKPT", "--queries", "--epsilons", "--surrogate", "--no-cascade", "--save-images", "--resume"]),
        ("transfer", ["CKPT", "pgd-paper", "8/255", "--samples", "--resume", "reports/FIRST-CKPT-transfer"]),
        ("figures", ["DIR", "CSV"]),
        ("list", ["datasets", "architectures", "metrics", "attacks", "objectives", "modes"]),
    ],
)
def test_each_command_explains_itself(command: str, words: list[str]) -> None:
    text = done(command, "--help")
    assert all(word in text for word in words)


def test_help_imports_neither_torch_nor_the_drawing() -> None:
    script = (
        "import sys\nfrom gradscope.cli import main\n"
        "for arguments in (['--help'], ['analyze', '--help'], ['--version'], ['list', 'metrics']):\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'scipy', 'sklearn') if name in sys.modules])\n"
    )
    ended = shell("-c", script)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_shell_completes_commands_and_options() -> None:
    environment = {"_GRADSCOPE_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "gradscope ana"}
    ended = shell(
        "-c", "from gradscope.cli import main; main()", **environment, COMP_WORDS="gradscope ana", COMP_CWORD="1"
    )
    assert ended.stdout.split() == ["analyze"]


def test_the_shell_completes_the_names_of_attacks() -> None:
    words = "gradscope attack --attacks pgd,apgd-"
    environment = {"_GRADSCOPE_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": words}
    ended = shell("-c", "from gradscope.cli import main; main()", **environment, COMP_WORDS=words, COMP_CWORD="3")
    assert ended.stdout.split() == ["pgd,apgd-ce", "pgd,apgd-dlr", "pgd,apgd-t"]


def test_a_process_of_its_own(world: Path, tmp_path: Path) -> None:
    """No word on stderr, no progress where there is no terminal, and the path at the end."""
    ended = shell("-m", "gradscope", "analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "a")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "a")
    ended = shell("-m", "gradscope", "train", "--mode", "sl", "--epochs", 0)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1


def test_our_own_fault_is_a_traceback_and_exit_code_1(world: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom gradscope.cli import main\nfrom gradscope.study import stages\n"
        "def fail(*arguments):\n    raise RuntimeError('a fault of ours')\n"
        "stages.choose = fail\nmain(sys.argv[1:])\n"
    )
    ended = shell("-c", script, "analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "a")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.splitlines()[-1] == "RuntimeError: a fault of ours"
    assert ended.stdout == ""


# --- landscape ---


def test_a_landscape_around_images_is_drawn_and_redrawn(world: Path, tmp_path: Path) -> None:
    quick = ("--points", 9, "--images", 2, "--steps", 4)
    printed = done("landscape", world / "sl.pt", world / "rl.pt", *quick, "--out", tmp_path / "a")
    *numbers, path = printed.splitlines()
    assert path == str(tmp_path / "a")
    assert [line.split()[:3] for line in numbers[::9]] == [[m, "around", "radius-adversarial"] for m in ("sl", "rl")]
    drawn = content(tmp_path / "a" / "figures")
    indices = manifest(tmp_path / "a")["landscape"]["indices"]
    names = ["landscape-median", "landscape-slices", *(f"landscape-image-{index}" for index in indices)]
    assert set(drawn) >= {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"landscape-3d.html"}
    captions = json.loads(drawn["captions.json"])
    assert all("seed 0" in captions[name] for name in names)
    shutil.rmtree(tmp_path / "a" / "figures")
    done("figures", tmp_path / "a")
    assert content(tmp_path / "a" / "figures") == drawn


def test_a_landscape_around_weights_is_drawn(world: Path, tmp_path: Path) -> None:
    quick = ("--space", "weights", "--points", 5, "--images", 20)
    done("landscape", world / "sl.pt", *quick, "--adversarial", "--steps", 2, "--out", tmp_path / "plane")
    names = content(tmp_path / "plane" / "figures")
    wanted = ("loss", "accuracy", "adversarial-loss", "adversarial-accuracy")
    assert {f"weights-{name}.pdf" for name in wanted} <= set(names)
    assert (
        manifest(tmp_path / "plane")["attacks"]["pgd"] | {"steps": 2, "step_size": 1.25}
        == (manifest(tmp_path / "plane")["attacks"]["pgd"])
    )
    done("landscape", world / "sl.pt", *quick, "--towards", world / "rl.pt", "--line", "--out", tmp_path / "line")
    assert "weights-line-loss.pdf" in content(tmp_path / "line" / "figures")


# --- attack, transfer ---


def test_an_attack_prints_the_lowest_robust_accuracy_and_is_drawn(world: Path, tmp_path: Path) -> None:
    quick = ("--attacks", "pgd,square,transfer", "--steps", 3, "--queries", 10, "--samples", 30, "--save-images")
    out = tmp_path / "a"
    printed = done("attack", world / "sl.pt", world / "rl.pt", *quick, "--epsilons", "0.5,1", "--out", out).splitlines()
    assert printed[-1] == str(out)
    table = rows(out, ATTACKS)
    lowest = [line for line in printed if "lowest robust accuracy, an upper bound" in line]
    assert [line.split()[:3] for line in lowest] == [[m, "l2", e] for m in ("sl", "rl") for e in ("0.5", "1")]
    values = table[(table["attack"] == "square") & (table["metric"] == "robust-accuracy")]
    for line, row in zip(lowest, values.to_dict("records"), strict=True):
        interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
        assert f"{100 * row['value']:.1f} % {interval}  n = 30" in line
    assert sum("transfer was skipped, it needs adversarial examples" in line for line in printed) == 2
    assert sum("0 of" in line and "saved images do not fool it" in line for line in printed) == 2
    assert len(rows(out, ATTACK_SAMPLES)) > 0
    names = ("attacks-accuracy-l2-0.5", "attacks-accuracy-l2-1", "attacks-epsilon")
    drawn = content(out / "figures")
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"captions.json"}
    assert "3 steps" in json.loads(drawn["captions.json"])["attacks-epsilon"]
    assert manifest(out)["budget"]["queries"] == 10
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


def test_a_transfer_prints_the_matrix_and_is_drawn(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    printed = done("transfer", world / "sl.pt", world / "rl.pt", "--steps", 3, "--samples", 30, "--out", out)
    *lines, path = printed.splitlines()
    assert path == str(out)
    assert len(lines) == len(rows(out, TRANSFER)) == 6
    assert [line.endswith("white-box") for line in lines] == [False, False, True, False, False, True]
    drawn = content(out / "figures")
    assert set(drawn) == {"transfer-accuracy.pdf", "transfer-accuracy.png", "captions.json"}
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


# --- bad input ---

#: Command, and what its one line must say. Every command would replace what is there if it ran.
TRAIN = "train --overwrite --out {world}/sl.pt --epochs 1 "
ANALYZE = "analyze --overwrite --out {world}/results --steps 1 --metrics loss "
ON = ANALYZE + "{world}/sl.pt "
WEIGHTS = "landscape --overwrite --out {world}/results --images 2 --space weights {world}/sl.pt "
BATTLE = "attack --overwrite --attacks pgd --out {world}/results {world}/sl.pt "
SHOWN = "transfer --overwrite --out {world}/results {world}/sl.pt "
AROUND = "landscape --overwrite --out {world}/results --images 2 --steps 2 {world}/sl.pt "
BAD = {
    "data set": (TRAIN + "--mode sl --dataset digit", ["--dataset", "did you mean 'digits'", "'digit'", "cifar10"]),
    "data set to analyse": (ON + "--dataset cifar1", ["--dataset", "did you mean 'cifar10'"]),
    "architecture": (TRAIN + "--mode sl --arch resnet-18", ["--arch", "did you mean 'resnet18'", "'resnet-18'"]),
    "mode": (TRAIN + "--mode rl-avd", ["--mode", "did you mean 'rl-adv'", "'rl-avd'", "sl-adv"]),
    "metric": (ON + "--metrics cosin,norm", ["--metrics", "did you mean 'cosine'", "'cosin'", "entropy"]),
    "no metric": (ON + "--metrics ,", ["--metrics", "at least one", "cosine"]),
    "attack": (ON + "--attack pgd,pgd-papr", ["--attack", "did you mean 'pgd-paper'", "'pgd-papr'"]),
    "loss": (ON + "--loss margins", ["loss", "did you mean 'margin'", "'margins'", "dlr"]),
    "norm": (ON + "--norm linfty", ["norm", "did you mean 'linf'", "'linfty'", "l2"]),
    "epsilon of words": (ON + "--epsilon abc", ["epsilon", "8/255", "'abc'"]),
    "negative epsilon": (ON + "--epsilon -1", ["epsilon", "not below 0", "'-1'"]),
    "negative epsilon, joined": (ON + "--epsilon=-8/255", ["epsilon", "not below 0", "'-8/255'"]),
    "nan epsilon": (ON + "--epsilon nan", ["epsilon", "8/255", "'nan'"]),
    "infinite epsilon": (ON + "--epsilon inf", ["epsilon", "8/255", "'inf'"]),
    "epsilon over nothing": (ON + "--epsilon 8/0", ["epsilon", "8/255", "'8/0'"]),
    "step size": (ON + "--step-size x", ["step_size", "8/255", "'x'"]),
    "steps": (ON + "--steps 0", ["steps", "1", "got 0"]),
    "start": (ON + "--start zero", ["start", "ball", "'zero'"]),
    "restarts": (ON + "--restarts 0", ["restarts", "1", "got 0"]),
    "restarts from one point": (ON + "--restarts 2 --start none", ["restarts", "random start", "'none'"]),
    "reduction": (ON + "--reduction max", ["reduction", "sum", "'max'"]),
    "precision": (ON + "--precision float16", ["precision", "did you mean 'float64'", "'float16'"]),
    "precision of training": (TRAIN + "--mode sl --precision 16", ["precision", "did you mean 'bf16'", "'16'"]),
    "classes": (
        ON + "--dataset npz --data-root {world}/hundred.npz",
        ["CKPT: sl", "10 classes", "hundred has 100"],
    ),
    "channels": (
        ON + "--dataset npz --data-root {world}/colour.npz",
        ["CKPT: sl", "1 channel", "colour has 3"],
    ),
    "folder missing": (TRAIN + "--mode sl --dataset folder --data-root {world}/none", ["--data-root", "{world}/none"]),
    "folder empty": (TRAIN + "--mode sl --dataset folder --data-root {world}/empty", ["--data-root", "train/"]),
    "folder hollow": (TRAIN + "--mode sl --dataset folder --data-root {world}/hollow", ["--data-root", "cat", ".png"]),
    "class in test alone": (
        TRAIN + "--mode sl --dataset folder --data-root {world}/lacking",
        ["--data-root", "{world}/lacking/test", "zebra"],
    ),
    "corrupt image": (
        TRAIN + "--mode sl --dataset folder --data-root {world}/corrupt",
        ["--data-root", "{world}/corrupt/train/dog/7.png"],
    ),
    "no folder given": (TRAIN + "--mode sl --dataset folder", ["--data-root", "'folder' needs it"]),
    "image size": (TRAIN + "--mode sl --image-size 16", ["--image-size", "8 pixels", "got 16"]),
    "too many samples": (ON + "--samples 360", ["--samples", "1 to 359", "got 360"]),
    "too many for the second": (
        ON + "{world}/grey.pt --samples 41",
        ["--samples", "1 to 40", "grey", "got 41"],
    ),
    "no samples": (ON + "--samples 0", ["--samples", "1 to 359", "got 0"]),
    "fewer than no samples": (ON + "--samples -3", ["--samples", "1 to 359", "got -3"]),
    "samples in words": (ON + "--samples ten", ["--samples", "integer"]),
    "analysis below a file": (ON + "--out {world}/file/results", ["--out", "{world}/file/results", "not writable"]),
    "analysis to a file": (ON + "--out {world}/file", ["--out", "{world}/file", "not writable"]),
    "training below a file": (TRAIN + "--mode sl --out {world}/file/c.pt", ["--out", "{world}/file", "not writable"]),
    "training to a directory": (TRAIN + "--mode sl --out {world}/other", ["--out", "{world}/other", "directory"]),
    "key in the file": (
        TRAIN + "--mode sl --config {world}/key.toml",
        ["batchsize", "did you mean 'batch_size'", "seed"],
    ),
    "key of a phase in the file": (
        TRAIN + "--mode sl --config {world}/below.toml",
        ["phases.0.learning_rat", "did you mean 'learning_rate'"],
    ),
    "key set": (TRAIN + "--mode sl --set batchsize=3", ["batchsize", "did you mean 'batch_size'"]),
    "key of a phase set": (TRAIN + "--mode sl --set phases.0.epoch=3", ["phases.0.epoch", "did you mean 'epochs'"]),
    "phase that is not there": (TRAIN + "--mode sl --set phases.1.epochs=3", ["--set", "'1'", "0 to 0"]),
    "table that is not there": (TRAIN + "--mode sl --set phase.0.epochs=3", ["--set", "did you mean 'phases'"]),
    "key of the data set": (TRAIN + "--mode sl --set data.root=x", ["root", "data_root"]),
    "no value": (TRAIN + "--mode sl --set seed", ["--set", "KEY=VALUE", "'seed'"]),
    "data that are no table": (TRAIN + "--mode sl --config {world}/data.toml", ["data", "table", "dataset", "got 3"]),
    "malformed file": (TRAIN + "--mode sl --config {world}/malformed.toml", ["--config", "malformed.toml", "line 1"]),
    "missing file": (TRAIN + "--mode sl --config {world}/no.toml", ["--config", "{world}/no.toml", "No such file"]),
    "existing checkpoint": ("train --mode sl --out {world}/sl.pt", ["--out", "{world}/sl.pt exists", "--overwrite"]),
    "existing results": (
        "analyze {world}/rl.pt --out {world}/results",
        ["--out", "{world}/results", "--overwrite"],
    ),
    "nothing to resume": ("train --mode sl --resume --out {world}/no.pt", ["--resume", "{world}/no.pt"]),
    "complete run": ("train --mode sl --resume --out {world}/sl.pt", ["--resume", "{world}/sl.pt", "complete"]),
    "missing checkpoint": (ANALYZE + "{world}/no.pt", ["CKPT", "{world}/no.pt", "No such file"]),
    "directory as checkpoint": (ANALYZE + "{world}/other", ["CKPT", "{world}/other", "directory"]),
    "truncated checkpoint": (ANALYZE + "{world}/truncated.pt", ["CKPT", "truncated.pt", "is truncated"]),
    "code in a checkpoint": (ANALYZE + "{world}/code.pt", ["CKPT", "code.pt", "refused", "never runs code"]),
    "code in a bare pickle": (ANALYZE + "{world}/pickle.pt", ["CKPT", "pickle.pt", "no file of tensors"]),
    "bare weights": (ANALYZE + "{world}/weights.pt", ["CKPT", "weights.pt", "torchvision:NAME", "--weights"]),
    "checkpoint twice": (ON + "{world}/rl.pt {world}/sl.pt", ["CKPT", "once", "{world}/sl.pt"]),
    "checkpoint twice, otherwise written": (ON + "{world}/other/../sl.pt", ["CKPT", "once", "other/../sl.pt"]),
    "bad second checkpoint": (ON + "{world}/truncated.pt", ["CKPT", "truncated.pt"]),
    "second checkpoint that does not fit": (
        ON + "{world}/colour.pt --dataset digits",
        ["CKPT: colour", "3 channel", "digits has 1"],
    ),
    "weights of no foreign model": (ON + "--weights {world}/weights.pt", ["--weights", "(0)", "got 1"]),
    "too few weights": (
        ANALYZE + "a:b torchvision:resnet18 --dataset digits --weights {world}/weights.pt",
        ["--weights", "(2)", "got 1"],
    ),
    "foreign model without weights": (
        ANALYZE + "torchvision:resnet18 --dataset digits",
        ["--weights", "torchvision:resnet18"],
    ),
    "foreign model without data": (
        ANALYZE + "torchvision:resnet18 --weights {world}/weights.pt",
        ["--dataset", "torchvision:resnet18"],
    ),
    "foreign model that is unknown": (
        ANALYZE + "torchvision:resnet19 --dataset digits --weights {world}/weights.pt",
        ["CKPT", "'resnet19'", "did you mean 'resnet18'"],
    ),
    "weights of another model": (
        ANALYZE + "torchvision:resnet18 --dataset digits --weights {world}/weights.pt",
        ["--weights", "weights.pt does not fit torchvision:resnet18", "missing", "unexpected"],
    ),
    "mean in words": (ON + "--mean a,b", ["--mean", "numbers", "'a,b'"]),
    "mean without std": (
        ANALYZE + "torchvision:resnet18 --dataset digits --weights {world}/weights.pt --mean 0.5",
        ["--mean", "--std", "both"],
    ),
    "mean for our own": (ON + "--mean 0.5 --std 0.5", ["--mean", "foreign"]),
    "code without trust": (ANALYZE + "a.b:make --dataset digits", ["CKPT", "a.b:make", "--trust-code"]),
    "batch size": (ON + "--batch-size 0", ["--batch-size", "1"]),
    "batch size of training": (TRAIN + "--mode sl --batch-size 0", ["batch_size", "2", "got 0"]),
    "epochs": (TRAIN + "--mode sl --epochs 0", ["--epochs", "1"]),
    "fewer epochs than phases": (TRAIN + "--mode sl-adv", ["--epochs", "2", "got 1"]),
    "device": (ON + "--device gpu", ["--device", "auto, cpu or cuda", "'gpu'"]),
    "device of training": (TRAIN + "--mode sl --device gpu", ["--device", "auto, cpu or cuda", "'gpu'"]),
    "seed": (ON + "--seed -1", ["--seed", "0"]),
    "seed of training": (TRAIN + "--mode sl --seed -1", ["seed", "0", "got -1"]),
    "no mode": (TRAIN, ["--mode"]),
    "no checkpoint": (ANALYZE, ["CKPT"]),
    "option": (TRAIN + "--mode sl --epoch 3", ["--epoch", "train --help"]),
    "command": ("analyse {world}/sl.pt", ["'analyse'", "--help"]),
    "listing": ("list metric", ["'metric'", "metrics", "architectures"]),
    "space": (AROUND + "--space input-space", ["--space", "'input-space'", "weights"]),
    "one point": (AROUND + "--points 1", ["points", "greater than or equal to 2", "got 1"]),
    "no span": (AROUND + "--span 0", ["span", "greater than 0", "got 0"]),
    "no radius": (AROUND + "--epsilon 0", ["--epsilon", "above 0", "got 0"]),
    "index in words": ("landscape --overwrite --out {world}/results {world}/sl.pt --index a,b", ["--index", "'a,b'"]),
    "index that is not there": (
        "landscape --overwrite --out {world}/results {world}/sl.pt --index 3,359",
        ["--index", "0 to 358", "got 359"],
    ),
    "index and images": (AROUND + "--index 3", ["--index", "--images"]),
    "shared plane of one": (AROUND + "--plane shared", ["--plane", "two checkpoints", "got 1"]),
    "two data sets": (AROUND + "{world}/grey.pt", ["CKPT", "one data set", "digits", "grey", "--dataset"]),
    "weights' option around images": (AROUND + "--line", ["--line", "--space weights", "input"]),
    "images' option around weights": (WEIGHTS + "--right", ["--right", "--space input", "weights"]),
    "towards itself": (WEIGHTS + "--towards {world}/sl.pt", ["CKPT", "once"]),
    "towards another shape": (
        WEIGHTS + "--dataset digits --ignore-class-names --towards {world}/large.pt",
        ["CKPT", "the same parameters", "network.6.weight"],
    ),
    "attack that is not made": (WEIGHTS + "--epsilon 0.5", ["--epsilon", "--adversarial"]),
    "metric without a factory": (
        WEIGHTS + "--trust-code --metric make",
        ["--metric", "package.module:factory", "'make'"],
    ),
    "no epochs": (WEIGHTS + "--epochs {world}/tree", ["--epochs", "--keep-epochs", "{world}/tree"]),
    "metric without trust": (WEIGHTS + "--metric a.b:make", ["--metric", "a.b:make", "--trust-code"]),
    "landscape attack": (AROUND + "--attack pgd-papr", ["--attack", "did you mean 'pgd-paper'"]),
    "attack of the battery": (BATTLE + "--attacks pgd,sqare", ["--attacks", "did you mean 'square'", "'sqare'", "fab"]),
    "no attack": (BATTLE + "--attacks ,", ["--attacks", "at least one", "square"]),
    "norm of the battery": (BATTLE + "--norm l1", ["norm", "'l1'", "linf"]),
    "radius of the battery": (BATTLE + "--epsilon x", ["epsilon", "8/255", "'x'"]),
    "a ball that is a point": (BATTLE + "--epsilon 0", ["epsilon", "above 0", "got 0"]),
    "radius of the curve": (BATTLE + "--epsilons 0.5,,1", ["epsilons.1", "8/255", "''"]),
    "queries": (BATTLE + "--queries 0", ["queries", "1", "got 0"]),
    "step of the battery": (BATTLE + "--step-size -1", ["step_size", "not below 0", "'-1'"]),
    "samples of the battery": (BATTLE + "--samples 360", ["--samples", "1 to 359", "got 360"]),
    "surrogate for nobody": (BATTLE + "--surrogate {world}/rl.pt", ["--surrogate", "pgd-from, transfer", "got pgd"]),
    "surrogate with other channels": (
        BATTLE + "--attacks transfer --surrogate {world}/colour.pt",
        ["CKPT: colour", "3 channel", "digits has 1"],
    ),
    "transfer of one": (SHOWN, ["CKPT", "two or more", "got 1"]),
    "transfer between data sets": (SHOWN + "{world}/grey.pt", ["CKPT", "one data set", "digits", "grey", "--dataset"]),
    "transfer between shapes": (
        SHOWN + "{world}/colour.pt --dataset digits",
        ["CKPT: colour", "3 channel", "digits has 1"],
    ),
    "attack of the transfer": (SHOWN + "{world}/rl.pt --attack pdg", ["--attack", "did you mean 'pgd'", "'pdg'"]),
    "existing results of an attack": ("attack {world}/rl.pt --out {world}/results", ["{world}/results", "--overwrite"]),
    "no results to draw": ("figures {world}/tree", ["DIR", "steps.csv", "{world}/tree"]),
    "no directory to draw": ("figures {world}/no", ["DIR", "steps.csv", "{world}/no"]),
}


@pytest.fixture(scope="module")
def before(world: Path) -> dict[str, bytes]:
    """The world with a checkpoint for colour images, before anything is refused."""
    data = ("--dataset", "npz", "--data-root", world / "colour.npz")
    done("train", "--mode", "sl", "--epochs", 1, *data, "--out", world / "colour.pt")
    done("train", "--mode", "sl", "--epochs", 1, "--arch", "cnn4", "--out", world / "large.pt")
    return content(world)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_loses_nothing(
    world: Path, before: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def work(*arguments: object, **options: object) -> None:
        pytest.fail("the work began before the mistake was found")

    monkeypatch.setattr(loop.Run, "_epoch", work)
    monkeypatch.setattr(stages, "measure_trajectory", work)
    monkeypatch.setattr(input_landscapes, "attack_walk", work)
    monkeypatch.setattr(weight_landscapes, "evaluate_plane", work)
    monkeypatch.setattr(attacks, "run_battery", work)
    monkeypatch.setattr(transfer, "make_examples", work)
    line, expected = BAD[case]
    ended = run(*line.format(world=world).split())
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("gradscope: ")
    assert ended.err.endswith("\n")
    assert len(ended.err.splitlines()) == 1
    missing = [words for words in expected if words.format(world=world) not in ended.err]
    assert not missing, ended.err
    assert content(world) == before


def test_an_absent_cuda_device_is_named(world: Path, before: dict[str, bytes]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for line in (TRAIN + "--mode sl --device cuda", ON + "--device cuda"):
        ended = run(*line.format(world=world).split())
        assert ended.code == 2
        assert "--device: cuda" in ended.err
        assert len(ended.err.splitlines()) == 1
    assert content(world) == before


def test_results_without_a_manifest_are_results(world: Path, tmp_path: Path) -> None:
    shutil.copy(world / "results" / "steps.csv", tmp_path)
    kept = content(tmp_path)
    ended = run("analyze", world / "sl.pt", *QUICK, "--out", tmp_path)
    assert ended.code == 2
    assert "--overwrite" in ended.err
    assert content(tmp_path) == kept


def test_an_interrupted_analysis_keeps_what_was_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = stages.measure_trajectory
    measured = []

    def stop_at_the_second(model: object, *arguments: object, **options: object) -> object:
        if measured:
            raise StoppedError
        measured.append(model)
        return measure(model, *arguments, **options)  # type: ignore[arg-type]

    arguments = [str(part) for part in ("analyze", world / "sl.pt", world / "rl.pt", *QUICK, "--out", tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "measure_trajectory", stop_at_the_second)
        with pytest.raises(StoppedError):
            main(arguments)
    for table in TABLES:
        assert set(rows(tmp_path, table)["checkpoint"]) == {"sl"}
    assert [one["label"] for one in manifest(tmp_path)["checkpoints"]] == ["sl"]
    first = {table.file: (tmp_path / table.file).read_bytes() for table in TABLES}
    done("analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "alone")
    assert {name: (tmp_path / "alone" / name).read_bytes() for name in first} == first
    assert str(tmp_path / "figures" / "steps-loss.pdf") in done("figures", tmp_path).splitlines()
    assert run(*arguments).code == 2
    done(*arguments, "--overwrite")
    assert set(rows(tmp_path)["checkpoint"]) == {"sl", "rl"}


def test_an_interrupt_while_overwriting_keeps_the_old_results(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world / "results", tmp_path / "results")
    kept = content(tmp_path)

    def stop(*arguments: object, **options: object) -> None:
        raise StoppedError

    monkeypatch.setattr(stages, "measure_trajectory", stop)
    with pytest.raises(StoppedError):
        main(["analyze", str(world / "rl.pt"), "--overwrite", "--out", str(tmp_path / "results")])
    assert content(tmp_path) == kept


@pytest.mark.cifar10
def test_real_photographs_from_training_to_figures(cifar10_folder: Path, tmp_path: Path) -> None:
    source = ("--dataset", "folder", "--data-root", cifar10_folder)
    checkpoint, results = tmp_path / "rl-adv.pt", tmp_path / "results"
    assert str(checkpoint) in done("train", "--mode", "rl-adv", *source, "--epochs", 2, "--out", checkpoint)
    assert checkpoints.load(checkpoint).spec.architecture == "cnn4"
    asked = ("--attack", "pgd,pgd-paper", "--metrics", "cosine,norm,entropy", "--steps", 3, "--samples", 40)
    done("analyze", checkpoint, *asked, "--out", results)
    steps = rows(results, STEPS)
    assert set(steps["dataset"]) == {"cifar10-jpeg"}
    assert set(steps["attack"]) == {"pgd", "pgd-paper"}
    assert set(steps["metric"]) == {"cosine", "norm", "entropy", "accuracy"}
    assert (steps["n"] + steps["undefined"] == 40).all()
    assert (results / "figures" / "steps-cosine.pdf").read_bytes().startswith(b"%PDF")

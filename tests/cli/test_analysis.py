"""``gradscope analyze`` and ``gradscope figures``, as a user types them: what they print, write and keep."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import gradscope
from gradscope.cli import main
from gradscope.config import Data
from gradscope.data import sources
from gradscope.measure import analyze
from gradscope.models import checkpoint as checkpoints
from gradscope.probes import trajectory
from gradscope.results.metrics import GRADIENT_METRICS, USUAL_METRICS
from gradscope.results.schemas import SAMPLES, STEPS, SUMMARY
from gradscope.results.tables import read_table
from gradscope.vision import torchvision

Done = Callable[..., str]
Run = Callable[..., Any]
Content = Callable[[Path], dict[str, bytes]]
TABLES = (STEPS, SAMPLES, SUMMARY)
OF_THE_PATH = ("path-variance", "displacement")
QUICK = ("--steps", 2, "--samples", 6, "--metrics", "loss")


class StoppedError(Exception):
    pass


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def rows(directory: Path, table=SUMMARY) -> pd.DataFrame:
    return read_table(directory / table.file, table)


@pytest.fixture(scope="module")
def analysis(world: Path, tmp_path_factory: pytest.TempPathFactory, done: Done) -> Path:
    """Two checkpoints, two attacks, every metric."""
    out = tmp_path_factory.mktemp("analysis") / "deep" / "results"
    options = ("--attack", "pgd,pgd-paper", "--steps", 4, "--samples", 20, "--seed", 3)
    printed = done("analyze", world / "sl.pt", world / "rl.pt", *options, "--out", out)
    *accuracies, path = printed.splitlines()
    assert path == str(out)
    assert [line.split()[:2] for line in accuracies] == [[m, a] for m in ("sl", "rl") for a in ("pgd", "pgd-paper")]
    return out


def test_an_analysis_writes_every_file(analysis: Path, content: Content) -> None:
    figures = [f"steps-{name}" for name in USUAL_METRICS if name not in OF_THE_PATH]
    figures += ["steps-panel", *(f"distribution-{name}" for name in ("norm", "entropy", "margin"))]
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
    for metric in USUAL_METRICS:
        first, last = (1, 3) if metric in ("cosine", "sign", "zero") else (0, 4)
        last = 3 if metric in ("norm", "dispersion", "fosc") else last
        found = steps[(steps["metric"] == metric) & (steps["checkpoint"] == "sl") & (steps["attack"] == "pgd")]
        assert found["step"].tolist() == (list(range(first, last + 1)) if metric not in OF_THE_PATH else [])
        assert (found["n"] + found["undefined"] == 20).all()
    assert set(rows(analysis)["metric"]) == {*USUAL_METRICS, *GRADIENT_METRICS}


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
    assert (exact["norm"], exact["epsilon"], exact["step_size"], exact["steps"]) == ("l2", 1.0, 2.5 / 4, 4)
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


def test_figures_are_redrawn_from_the_csv_files_alone(
    analysis: Path, tmp_path: Path, done: Done, content: Content
) -> None:
    for table in TABLES:
        shutil.copy(analysis / table.file, tmp_path)
    printed = done("figures", tmp_path).splitlines()
    drawn = {name: data for name, data in content(analysis / "figures").items() if name != "captions.json"}
    assert sorted(printed) == [str(tmp_path / "figures" / name) for name in sorted(drawn)]
    assert {name: (tmp_path / "figures" / name).read_bytes() for name in drawn} == drawn


def test_only_what_was_asked_for_is_measured(world: Path, tmp_path: Path, done: Done) -> None:
    done("analyze", world / "sl.pt", "--metrics", "norm, entropy", "--steps", 2, "--samples", 5, "--out", tmp_path)
    for table in TABLES:
        always = set() if table is STEPS else set(GRADIENT_METRICS)
        assert set(rows(tmp_path, table)["metric"]) == {"norm", "entropy", "accuracy"} | always
    names = {path.stem for path in (tmp_path / "figures").glob("*.pdf")}
    steps = {"steps-norm", "steps-entropy", "steps-accuracy", "steps-panel"}
    assert names == steps | {"distribution-norm", "distribution-entropy"}
    assert set(rows(tmp_path)["n"]) <= set(range(6))


def test_all_images_are_analysed_where_there_are_fewer_than_500(world: Path, tmp_path: Path, done: Done) -> None:
    done("analyze", world / "sl.pt", "--metrics", "accuracy", "--steps", 1, "--out", tmp_path)
    whole = rows(tmp_path).query("metric == 'accuracy' and subset == 'clean/all'")
    assert whole["n"].item() == 359


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("0", 0.0)])
def test_a_radius_is_a_fraction_or_a_number(world: Path, tmp_path: Path, text: str, value: float, done: Done) -> None:
    options = ("--norm", "linf", "--epsilon", text, "--step-size", "2/255")
    done("analyze", world / "sl.pt", *options, *QUICK, "--out", tmp_path)
    settings = manifest(tmp_path)["attacks"]["pgd"]
    assert (settings["norm"], settings["epsilon"], settings["step_size"]) == ("linf", value, 2 / 255)
    loss = rows(tmp_path, SAMPLES).query("metric == 'loss'").pivot_table(index="index", columns="point", values="value")
    assert loss["final"].equals(loss["clean"]) == (value == 0)


def test_numerics_restarts_and_loss_are_the_users(world: Path, tmp_path: Path, done: Done) -> None:
    options = ("--loss", "margin", "--restarts", 3, "--precision", "float64", "--norm", "linf", "--no-box")
    measure = ("--metrics", "norm", "--steps", 3, "--samples", 30)
    done("analyze", world / "sl.pt", *options, *measure, "--out", tmp_path)
    settings = manifest(tmp_path)["attacks"]["pgd"]
    assert (settings["loss"], settings["restarts"], settings["precision"]) == ("margin", 3, "float64")
    assert (settings["box"], settings["epsilon"], settings["step_size"]) == (False, 8 / 255, 2.5 * (8 / 255) / 3)
    norms = rows(tmp_path, STEPS).query("metric == 'norm'")
    assert set(norms["unit"]) == {"logits per unit pixel range"}
    values = rows(tmp_path, SAMPLES).query("metric == 'norm'")["value"]
    assert (values.astype("float32").astype("float64") != values).any(), "float32 would have done"


def test_a_users_checkpoint_on_other_data(world: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    data = ("--dataset", "npz", "--data-root", world / "grey.npz")
    ended = run("analyze", world / "sl.pt", *data, *QUICK, "--out", tmp_path)
    assert ended.code == 0
    assert "caution" not in ended.out  # said once, before it began
    assert ended.err.startswith("gradscope: caution: sl: 0 of 6 images are right")
    assert set(rows(tmp_path)["dataset"]) == {"grey"}
    assert manifest(tmp_path)["checkpoints"][0]["data"]["of"] == 40


def test_a_torchvision_model_on_an_image_folder(world: Path, tmp_path: Path, done: Done) -> None:
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


def test_a_model_from_the_users_own_code(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done, run: Run
) -> None:
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
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done
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


def test_checkpoints_of_one_name_keep_apart(world: Path, tmp_path: Path, done: Done) -> None:
    done("analyze", world / "sl.pt", world / "other" / "sl.pt", *QUICK, "--out", tmp_path)
    labels = [str(world / "sl.pt"), str(world / "other" / "sl.pt")]
    assert list(rows(tmp_path)["checkpoint"].unique()) == labels
    assert [one["label"] for one in manifest(tmp_path)["checkpoints"]] == labels


def test_results_are_named_after_the_first_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done
) -> None:
    monkeypatch.chdir(tmp_path)
    assert done("analyze", world / "rl.pt", *QUICK).splitlines()[-1] == "reports/rl"
    assert (tmp_path / "reports" / "rl" / "summary.csv").exists()


def test_overwriting_leaves_no_figure_of_the_old_results(world: Path, tmp_path: Path, done: Done) -> None:
    done("analyze", world / "sl.pt", *QUICK, "--out", tmp_path)
    (tmp_path / "figures" / "mine.txt").write_text("a note")
    done("analyze", world / "rl.pt", *QUICK[:-1], "margin", "--overwrite", "--out", tmp_path)
    assert set(rows(tmp_path)["checkpoint"]) == {"rl"}
    names = {path.stem for path in (tmp_path / "figures").glob("*.p*")}
    assert names == {"steps-margin", "steps-accuracy", "distribution-margin"}
    assert (tmp_path / "figures" / "mine.txt").exists()


def test_results_without_a_manifest_are_results(world: Path, tmp_path: Path, run: Run, content: Content) -> None:
    shutil.copy(world / "results" / "steps.csv", tmp_path)
    kept = content(tmp_path)
    ended = run("analyze", world / "sl.pt", *QUICK, "--out", tmp_path)
    assert ended.code == 2
    assert "--overwrite" in ended.err
    assert content(tmp_path) == kept


def test_an_interrupted_analysis_keeps_what_was_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done, run: Run
) -> None:
    measure = analyze.measure_trajectory
    measured = []

    def stop_at_the_second(model: object, *arguments: object, **options: object) -> object:
        if measured:
            raise StoppedError
        measured.append(model)
        return measure(model, *arguments, **options)  # type: ignore[arg-type]

    arguments = [str(part) for part in ("analyze", world / "sl.pt", world / "rl.pt", *QUICK, "--out", tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "measure_trajectory", stop_at_the_second)
        with pytest.raises(StoppedError):
            main(arguments)
    for table in TABLES:
        assert set(rows(tmp_path, table)["checkpoint"]) == {"sl"}
    assert [bool(one["seconds"]) for one in manifest(tmp_path)["checkpoints"]] == [True, False]
    first = {table.file: (tmp_path / table.file).read_bytes() for table in TABLES}
    done("analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "alone")
    assert {name: (tmp_path / "alone" / name).read_bytes() for name in first} == first
    assert str(tmp_path / "figures" / "steps-loss.pdf") in done("figures", tmp_path).splitlines()
    assert run(*arguments).code == 2
    done(*arguments, "--overwrite")
    assert set(rows(tmp_path)["checkpoint"]) == {"sl", "rl"}


def test_an_interrupted_analysis_goes_on_where_it_stopped(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Done, run: Run
) -> None:
    few = ("--steps", 2, "--samples", 6, "--batch-size", 2)
    arguments = ("analyze", world / "sl.pt", world / "rl.pt", *few)
    monkeypatch.setattr("gradscope.figures.draw.draw", lambda directory: [])
    monkeypatch.setattr(analyze, "KEEP_EVERY", 0.0)
    done(*arguments, "--out", tmp_path / "whole")
    measure, batches = trajectory._measure_batch, []

    def stop_at_the_fifth(*arguments: Any) -> Any:
        batches.append(1)
        if len(batches) == 5:
            raise StoppedError
        return measure(*arguments)

    monkeypatch.setattr(trajectory, "_measure_batch", stop_at_the_fifth)
    out = ("--out", tmp_path / "out")
    with pytest.raises(StoppedError):
        main([str(part) for part in (*arguments, *out)])
    for more, message in (
        ((), "holds an unfinished analysis; --resume continues it, --overwrite drops it"),
        (("--resume", "--seed", 1), "was begun with another image, seed"),
        (("--resume", "--metrics", "loss"), "was begun with another metrics"),
    ):
        refused = run(*arguments, *more, *out)
        assert refused.code == 2
        assert message in refused.err
    done(*arguments, "--resume", *out)
    assert len(batches) == 7, "what was kept is not made again"
    for table in TABLES:
        assert (tmp_path / "out" / table.file).read_bytes() == (tmp_path / "whole" / table.file).read_bytes()
    assert not (tmp_path / "out" / ".tiles").exists()
    again = run(*arguments, "--resume", *out)
    assert (again.code, "holds results" in again.err) == (2, True)


def test_an_interrupt_while_overwriting_keeps_the_old_results(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
) -> None:
    shutil.copytree(world / "results", tmp_path / "results")
    kept = content(tmp_path)

    def stop(*arguments: object, **options: object) -> None:
        raise StoppedError

    monkeypatch.setattr(analyze, "measure_trajectory", stop)
    with pytest.raises(StoppedError):
        main(["analyze", str(world / "rl.pt"), "--overwrite", "--out", str(tmp_path / "results")])
    shutil.rmtree(tmp_path / "results" / ".tiles")
    assert content(tmp_path) == kept

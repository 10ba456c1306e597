"""Landscapes as a request asks for them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure import epochs, input_landscape, weight_landscape
from gradscope.models import checkpoint as checkpoints
from gradscope.models.inspection import laid_out
from gradscope.probes.comparison import RAY_REACH
from gradscope.results.metrics import LANDSCAPE_METRICS
from gradscope.results.schemas import BANDS, EIGENVALUES, EPOCHS, LANDSCAPE, PATH, SAMPLES, SPECTRUM, SUMMARY
from gradscope.results.tables import read_table
from tests.measure.requests import measured

METRIC = """
import torch
import loss_landscapes.metrics


def loss(images, labels):
    return loss_landscapes.metrics.Loss(torch.nn.CrossEntropyLoss(), images, labels)


def flaky(images, labels):
    inner, calls = loss(images, labels), []

    def metric(network):
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("no")
        return inner(network)

    return metric


def broken(images, labels):
    return lambda network: "many"


def rude(images, labels):
    inner = loss(images, labels)

    def metric(network):
        value = inner(network)
        for module in network.modules:
            module.train()
            for parameter in module.parameters():
                parameter.data.mul_(0.5)
        return value + float(torch.rand(()))

    return metric
"""


def around_images(texts: list[str], out: Path, **given: Any) -> Path:
    values = {"steps": 4, "step_size": 0.4, "points": 5, "span": 2.0, "images": 3}
    return measured("landscape", texts, out, **values | given)


def around_weights(texts: list[str], out: Path, **given: Any) -> Path:
    return measured("landscape", texts, out, **{"space": "weights", "points": 5, "images": 30, **given})


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def contents(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(out.glob("*.csv"))}


def test_planes_of_two_checkpoints_around_the_same_images(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = around_images(trained, tmp_path / "out")
    rows = read_table(out / LANDSCAPE.file, LANDSCAPE)
    assert len(rows) == 2 * 3 * 25
    chosen = manifest(out)["landscape"]["indices"]
    assert rows.groupby("checkpoint", sort=False)["index"].unique().map(list).to_dict() == {"sl": chosen, "rl": chosen}
    for text, label in zip(trained, ("sl", "rl"), strict=True):
        model = checkpoints.load(Path(text)).build()
        centre = rows[rows["checkpoint"] == label].query("a == 0 and b == 0").set_index("index")
        for index in chosen:
            images, labels = digits.test.batch(torch.tensor([index]), "cpu")
            with torch.no_grad():
                loss = F.cross_entropy(model(laid_out(images)), labels)
            assert centre.loc[index, "loss"] == float(str(loss.numpy())), "bit for bit, as it is written"
            assert centre.loc[index, "label"] == labels.item()
    path = read_table(out / PATH.file, PATH)
    assert path.groupby(["checkpoint", "index"]).size().tolist() == [5] * 6
    assert (path["walker"] == path["checkpoint"]).all()
    assert path[path["step"] == 4][["b", "off"]].abs().max().max() < 1e-4
    assert len(read_table(out / BANDS.file, BANDS)) == 2 * 2 * 25
    assert manifest(out)["complete"]
    assert not (out / ".tiles").exists()


def test_the_numbers_are_means_over_the_images(trained: list[str], tmp_path: Path) -> None:
    out = around_images(trained[:1], tmp_path / "out", images=8)
    samples, summary = read_table(out / SAMPLES.file, SAMPLES), read_table(out / SUMMARY.file, SUMMARY)
    assert list(samples["metric"].unique()) == list(LANDSCAPE_METRICS)
    for metric, values in samples.groupby("metric")["value"]:
        row = summary[(summary["metric"] == metric) & (summary["subset"] == "around/all")].iloc[0]
        assert (row["norm"], row["epsilon"]) == ("l2", 1.0)
        assert (row["value"], row["n"]) == (pytest.approx(values.mean()), 8)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        if metric.startswith("radius"):
            assert row["ci_high"] <= RAY_REACH == LANDSCAPE_METRICS[metric].high
    assert (samples[samples["metric"] == "curvature-residual"]["value"] < 1e-3).mean() > 0.5


def test_images_by_index_and_those_that_all_are_right_about(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = around_images(trained[:1], tmp_path / "index", index=(17, 3), images=None)
    assert manifest(out)["landscape"]["indices"] == [17, 3]
    out = around_images(trained, tmp_path / "right", right=True, images=12)
    chosen = torch.tensor(manifest(out)["landscape"]["indices"])
    images, labels = digits.test.batch(chosen, "cpu")
    for text in trained:
        with torch.no_grad():
            assert torch.equal(checkpoints.load(Path(text)).build()(images).argmax(dim=1), labels)
    with pytest.raises(GradscopeError, match=r"images must be from 1 to .* with `right`"):
        around_images(trained, tmp_path / "many", right=True, images=359)


def test_a_shared_plane_has_both_attacks_on_it(trained: list[str], tmp_path: Path) -> None:
    out = around_images(trained, tmp_path / "out", plane="shared")
    path = read_table(out / PATH.file, PATH)
    assert path.groupby("checkpoint")["walker"].unique().map(list).to_dict() == {"sl": ["sl", "rl"], "rl": ["sl", "rl"]}
    assert path[path["step"] == 4]["off"].max() < 1e-4
    ours, theirs = (path[path["checkpoint"] == label].reset_index(drop=True) for label in ("sl", "rl"))
    pd.testing.assert_frame_equal(ours[["a", "b", "off"]], theirs[["a", "b", "off"]])
    assert manifest(out)["landscape"]["axes"][0]["name"] == "adversarial direction of sl"


def test_the_plane_of_two_attacks_holds_both_ends(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = around_images(trained, tmp_path / "out", versus="pgd-paper")
    path = read_table(out / PATH.file, PATH)
    assert path.groupby("checkpoint")["walker"].unique().map(list).tolist() == [["pgd", "pgd-paper"]] * 2
    last = path[path["step"] == 4]
    assert last["off"].max() < 1e-4
    exact = last[last["walker"] == "pgd"]
    assert exact["b"].abs().max() < 1e-4
    assert path[path["step"] < 4]["gradient"].notna().all()
    assert last["gradient"].isna().all()
    facts = manifest(out)
    assert list(facts["attacks"]) == ["pgd", "pgd-paper"]
    assert (facts["landscape"]["versus"], facts["attacks"]["pgd-paper"]["step_size"]) == ("pgd-paper", 0.4)
    # The numbers are of the exact attack's direction, as without the other.
    plain = around_images(trained, tmp_path / "plain")
    numbers = [read_table(one / SAMPLES.file, SAMPLES) for one in (out, plain)]
    ours, theirs = (rows[rows["metric"].str.startswith(("radius", "curvature"))] for rows in numbers)
    pd.testing.assert_frame_equal(ours, theirs)
    exactly = read_table(plain / PATH.file, PATH)
    assert exact["loss"].tolist() == exactly[exactly["step"] == 4]["loss"].tolist()
    # The loss is that of the first iterate, which the attack starts from, on the model itself.
    text, index = trained[0], facts["landscape"]["indices"][0]
    still = around_images([text], tmp_path / "still", versus="fgsm", start="none")
    begun = read_table(still / PATH.file, PATH).query("step == 0 and index == @index")
    images, labels = digits.test.batch(torch.tensor([index]), "cpu")
    with torch.no_grad():
        loss = F.cross_entropy(checkpoints.load(Path(text)).build()(images), labels).item()
    assert begun["loss"].tolist() == pytest.approx([loss, loss], rel=1e-4)


@pytest.mark.parametrize("space", ["input", "two attacks", "weights"])
def test_an_interrupted_run_is_resumed_to_the_same_files(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    run, module, name = {
        "input": (around_images, input_landscape, "evaluate_planes"),
        "two attacks": (partial(around_images, versus="pgd-paper"), input_landscape, "evaluate_planes"),
        "weights": (around_weights, weight_landscape, "evaluate_plane"),
    }[space]
    monkeypatch.setattr(input_landscape, "_TILE_POINTS", 10)
    monkeypatch.setattr(weight_landscape, "_TILE_POINTS", 10)
    evaluate, calls, fresh = getattr(module, name), [], []
    monkeypatch.setattr(module, name, lambda *a, **o: fresh.append(1) or evaluate(*a, **o))
    whole = run(trained, tmp_path / "whole")

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(module, name, interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(trained, out)
    kept = len(list((out / ".tiles").glob("*.pt")))
    assert kept >= 4
    with pytest.raises(GradscopeError, match=r"`resume` continues it, `overwrite` drops it"):
        run(trained, out)
    with pytest.raises(GradscopeError, match=r"resume: .* was begun with another .*points"):
        run(trained, out, resume=True, points=7)
    with pytest.raises(GradscopeError, match=r"resume: .* was begun with another .*checkpoint"):
        run(trained[:1], out, resume=True)
    short, flipped = sorted((out / ".tiles").glob("*.pt"))[:2]
    short.write_bytes(short.read_bytes()[:100])
    content = flipped.read_bytes()
    values = content.index(b"/data/0") + 200  # inside the first tensor
    flipped.write_bytes(content[:values] + bytes([content[values] ^ 0x40]) + content[values + 1 :])
    told = len(calls)
    run(trained, out, resume=True)
    assert contents(out) == contents(whole)
    assert not (out / ".tiles").exists()
    assert len(calls) - told < len(fresh), "what was kept is not evaluated again"


def test_what_is_refused_around_images(trained: list[str], tmp_path: Path) -> None:
    for options, message in (
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"span": 0.0}, "span must be above 0, got 0"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"index": (1, 359), "images": None}, "index must be from 0 to 358.* got 359"),
        ({"index": (1,)}, "index must be left out together with `images` or `right`"),
        ({"images": 360}, "images must be from 1 to 359.* got 360"),
        ({"images": 0}, "images must be .*.* got 0"),
        (
            {"plane": "shared"},
            "plane must be 'own' with fewer than two checkpoints, because 'shared' takes directions of two; got 1",
        ),
        ({"plane": "shared", "versus": "fgsm"}, "versus must be left out where `plane` is shared.*; got fgsm"),
        ({"versus": "pgd"}, "versus must be another attack than `attack`, got pgd twice"),
        ({"versus": "pdg"}, "versus: 'pdg' is unknown; did you mean 'pgd'"),
    ):
        with pytest.raises(GradscopeError, match=message):
            around_images(trained[:1], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unasked(trained: list[str], tmp_path: Path) -> None:
    out = around_images(trained[:1], tmp_path / "out", images=1)
    with pytest.raises(GradscopeError, match=r"out must be .* holds results; pass `overwrite`"):
        around_weights(trained[:1], out)
    around_weights(trained[:1], out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["landscape.csv", "manifest.json", "summary.csv"]


def test_a_weight_plane_with_its_attack_and_a_metric(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tested_metric.py").write_text(METRIC)
    attack: dict[str, Any] = {"adversarial": True, "steps": 2, "step_size": 0.5}
    out = around_weights(trained[:1], tmp_path / "out", trust_code=True, metric="tested_metric:flaky", **attack)
    rows = read_table(out / LANDSCAPE.file, LANDSCAPE)
    assert len(rows) == 25
    assert rows["custom"].isna().sum() == 1
    known = rows[rows["custom"].notna()]
    assert known["custom"].to_numpy() == pytest.approx(known["loss"].to_numpy(), rel=1e-5)
    assert (rows["adversarial_loss"] > rows["loss"]).all()
    entry = manifest(out)["checkpoints"][0]
    assert (entry["custom_failed"], entry["custom_failure"]) == (1, "ValueError: no")
    centre = rows.query("a == 0 and b == 0").iloc[0]
    summary = read_table(out / SUMMARY.file, SUMMARY).set_index(["metric", "subset"])
    assert summary.loc[("loss", "clean/all"), "value"] == centre["loss"]
    assert summary.loc[("accuracy", "attacked/all"), "value"] == centre["adversarial_accuracy"]
    assert summary.loc[("loss", "attacked/all"), ["norm", "epsilon"]].tolist() == ["l2", 1.0]
    assert summary.loc[("loss", "clean/all"), "norm"] == ""
    assert summary["epsilon"].isna().sum() == len(summary) - 2
    for reference, message in (
        ("tested_metric:broken", "metric: .* must give a number .* for sl ValueError"),
        ("tested_metric:absent", "metric: .*has no absent"),
        ("no_such_module:loss", "metric: .* cannot be imported"),
    ):
        with pytest.raises(GradscopeError, match=message):
            around_weights(trained[:1], tmp_path / "bad", trust_code=True, metric=reference)
    with pytest.raises(GradscopeError, match=r"metric: .* pass `trust_code`"):
        around_weights(trained[:1], tmp_path / "bad", metric="tested_metric:loss")


def test_the_line_to_another_checkpoint_passes_through_both(trained: list[str], tmp_path: Path) -> None:
    out = around_weights(trained[:1], tmp_path / "out", towards=trained[1], line=True, points=7, images=60)
    rows = read_table(out / LANDSCAPE.file, LANDSCAPE)
    assert (len(rows), rows["b"].abs().max()) == (7, 0)
    plain = {
        text: read_table(
            around_weights([text], tmp_path / Path(text).stem, points=3, images=60) / LANDSCAPE.file, LANDSCAPE
        )
        for text in trained
    }
    ends = [rows[rows["a"] == end]["loss"].iloc[0] for end in (0, 1)]
    centres = [table.query("a == 0 and b == 0")["loss"].iloc[0] for table in plain.values()]
    assert ends == pytest.approx(centres, rel=1e-5)
    assert manifest(out)["landscape"]["axes"] == [{"name": "towards rl", "unit": "share of the way"}]


def test_the_plane_of_the_saved_epochs_has_their_path(trained: list[str], tmp_path: Path) -> None:
    folder = Path(trained[0]).with_suffix(".epochs")
    assert [path.name for path in sorted(folder.iterdir())] == ["0000.pt", "0001.pt", "0002.pt", "0003.pt"]
    half = folder / ".0123456789abcdef.pt"  # of a training that was killed
    half.touch()
    out = around_weights(trained[:1], tmp_path / "out", epochs=str(folder), steps=2)
    half.unlink()
    path = read_table(out / PATH.file, PATH)
    assert path["step"].tolist() == [0, 1, 2, 3]
    rows = read_table(out / LANDSCAPE.file, LANDSCAPE)
    for axis in ("a", "b"):
        assert rows[axis].min() <= path[axis].min()
        assert rows[axis].max() >= path[axis].max()
    assert 0.5 < sum(manifest(out)["checkpoints"][0]["explained"]) <= 1


def test_sharpness_and_accuracy_of_the_saved_epochs(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last epoch is the checkpoint: its numbers are those that `spectrum` and `attack` give of it."""
    monkeypatch.setattr(epochs, "PROBES", 4)
    folder = str(Path(trained[0]).with_suffix(".epochs"))
    given: dict[str, Any] = {"points": 2, "epochs": folder, "epsilon": 0.5, "steps": 3}
    out = around_weights(trained[:1], tmp_path / "out", **given)
    rows = read_table(out / EPOCHS.file, EPOCHS)
    assert sorted(rows["epoch"].unique()) == [0, 1, 2, 3]
    at = rows.set_index(["epoch", "metric", "attack"])["value"]
    spectrum = measured("spectrum", trained[:1], tmp_path / "spectrum", images=30, eigenvalues=3, probes=4)
    values = read_table(spectrum / EIGENVALUES.file, EIGENVALUES)["value"]
    assert at[3, "eigenvalue", "none"] == pytest.approx(values[0], rel=1e-3)
    assert rows[rows["metric"] == "residual"]["value"].max() < 0.01 * values[0]
    numbers = read_table(spectrum / SPECTRUM.file, SPECTRUM).fillna({"layer": ""}).set_index(["metric", "layer"])
    (trace,) = (row for row in rows.to_dict("records") if (row["epoch"], row["metric"]) == (3, "trace"))
    whole = numbers.loc["trace", ""]
    assert abs(trace["value"] - whole["value"]) < 4 * (trace["error"] + whole["error"])
    attacked = measured("analyze", trained[:1], tmp_path / "attacked", samples=30, epsilon=0.5, steps=3)
    summary = read_table(attacked / SUMMARY.file, SUMMARY).set_index(["metric", "subset"])["value"]
    assert at[3, "accuracy", "none"] == pytest.approx(summary["accuracy", "clean/all"])
    assert at[3, "accuracy", "pgd"] == pytest.approx(summary["accuracy", "final/all"])
    assert at[0, "accuracy", "none"] < at[3, "accuracy", "none"]
    assert set(rows[rows["attack"] == "pgd"]["epsilon"]) == {0.5}


def test_what_is_refused_around_weights(trained: list[str], tmp_path: Path) -> None:
    folder = Path(trained[0]).with_suffix(".epochs")
    narrow = checkpoints.load(Path(trained[0]))
    spec = checkpoints.ModelSpec("cnn4", 10, 1, 8, narrow.spec.mean, narrow.spec.std)
    torch.manual_seed(0)
    state = checkpoints.build(spec).state_dict()
    other = tmp_path / "other.pt"
    values = {
        key: getattr(narrow, key) for key in ("mode", "dataset", "classes", "data_fingerprint", "config", "history")
    }
    checkpoints.save(other, checkpoints.Checkpoint(spec=spec, state_dict=state, provenance=narrow.provenance, **values))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(trained[0]).read_bytes())
    single = tmp_path / "single"
    single.mkdir()
    (single / "0001.pt").write_bytes((folder / "0001.pt").read_bytes())
    for options, message in (
        ({"versus": "pgd-paper"}, "versus must be left out unless `space` is input, got 'pgd-paper'"),
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"span": -1.0}, "span must be above 0, got -1"),
        ({"towards": str(other)}, "towards must be of the architecture of sl, cnn2, got other, which is cnn4"),
        ({"towards": str(copy)}, "towards must have other weights than sl, got copy"),
        ({"towards": trained[1], "epochs": str(folder)}, "towards must be left out together with `epochs`"),
        ({"epochs": str(tmp_path / "none")}, "epochs must be a folder of checkpoints"),
        ({"epochs": str(folder), "line": True}, "epochs must be left out together with `line`"),
        ({"epochs": str(single)}, "epochs must hold weights that span a plane, of three epochs or more, got 1 on"),
        ({"images": 400}, "images must be from 1 to 359.* got 400"),
    ):
        with pytest.raises(GradscopeError, match=message):
            around_weights(trained[:1], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_metric_cannot_change_what_is_measured(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rude_metric.py").write_text(METRIC)
    plain = read_table(around_weights(trained[:1], tmp_path / "plain") / LANDSCAPE.file, LANDSCAPE)
    state = torch.get_rng_state()
    out = around_weights(trained[:1], tmp_path / "rude", trust_code=True, metric="rude_metric:rude")
    assert torch.equal(torch.get_rng_state(), state)
    rude = read_table(out / LANDSCAPE.file, LANDSCAPE)
    pd.testing.assert_series_equal(rude["loss"], plain["loss"])
    drawn = rude["custom"] - rude["loss"]
    assert drawn.max() - drawn.min() < 1e-5, "the same random numbers at every point"


def test_results_are_whole_before_their_pieces_go(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(directory: Path) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradscope.figures.draw.draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        around_images(trained[:1], tmp_path / "out", no_figures=False)
    drawn: list[Path] = []
    monkeypatch.setattr("gradscope.figures.draw.draw", lambda directory: drawn.append(directory) or [])
    around_images(trained[:1], tmp_path / "out", resume=True, no_figures=False)
    assert drawn == [tmp_path / "out"]
    assert not (tmp_path / "out" / ".tiles").exists()


def test_batch_norm_is_taken_anew_for_the_curvature_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is of the network whose loss is given."""
    monkeypatch.chdir(tmp_path)
    Path("normed_model.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))\n"
        "    model[1].running_var.fill_(0.01)\n    return model\n"
    )
    found = []
    foreign: dict[str, Any] = {"trust_code": True, "dataset": "digits"}
    for batch_norm in ("as-is", "re-estimated"):
        out = around_weights(
            *(["normed_model:make"], tmp_path / batch_norm), points=2, line=True, batch_norm=batch_norm, **foreign
        )
        found.append(read_table(out / SUMMARY.file, SUMMARY).set_index("metric")["value"])
    assert found[0]["loss"] > 1.1 * found[1]["loss"]
    assert found[0]["curvature"] > 1.1 * found[1]["curvature"]


def test_an_image_whose_attack_did_not_move_has_no_adversarial_radius(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flat_model.py").write_text(
        "import torch\n\n\nclass Flat(torch.nn.Module):\n    def forward(self, images):\n"
        "        return 0 * images.flatten(1)[:, :10] + torch.eye(10)[0]\n\n\ndef make():\n    return Flat()\n"
    )
    attack: dict[str, Any] = {"steps": 2, "start": "none", "step_size": 0.1}
    foreign: dict[str, Any] = {"trust_code": True, "dataset": "digits"}
    out = around_images(*(["flat_model:make"], tmp_path / "out"), points=3, span=1.0, images=4, **attack, **foreign)
    summary = read_table(out / SUMMARY.file, SUMMARY).set_index(["metric", "subset"])
    assert summary.loc[("radius-adversarial", "around/all"), "n"] == 0
    assert summary.loc[("beyond-adversarial", "around/all"), "n"] == 0
    assert summary.loc[("curvature", "around/all"), "value"] == 0
    labels = set(read_table(out / SAMPLES.file, SAMPLES)["label"])
    subsets = {"around/all"} | {"around/correct" if label == 0 else "around/wrong" for label in labels}
    assert set(summary.index.get_level_values("subset")) == subsets, "a subset without images has no rows"
    assert len(manifest(out)["checkpoints"][0]["random_instead_of_adversarial"]["first"]) == 4
    assert not read_table(out / LANDSCAPE.file, LANDSCAPE)[["loss", "margin"]].isna().any().any()

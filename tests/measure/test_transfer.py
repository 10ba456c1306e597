"""Transfer: its matrix against what the models make of the examples, image by image."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from gradscope import transfer
from gradscope.attacks.transfer import make_examples
from gradscope.config import PGD
from gradscope.data.image_set import Splits
from gradscope.errors import Caution, GradscopeError
from gradscope.measure.partial_results import PartialResults
from gradscope.models import checkpoint as checkpoints
from gradscope.probes.similarity import gradient_cosines, relative_curvature
from gradscope.results.schemas import SIMILARITY, TRANSFER, TRANSFER_SAMPLES
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import read_table
from tests.measure.requests import measured

SETTINGS = PGD(steps=6, step_size=0.3)


def transferred(texts: list[str], out: Path, **given: Any) -> Path:
    return measured("transfer", texts, out, **{"steps": 6, "step_size": 0.3, "samples": 50, **given})


def tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_table(out / TRANSFER.file, TRANSFER), read_table(out / TRANSFER_SAMPLES.file, TRANSFER_SAMPLES)


def test_every_source_on_every_target(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = transferred(trained, tmp_path / "out")
    matrix, samples = tables(out)
    order = [(source, target) for source in ("", "sl", "rl") for target in ("sl", "rl")]
    assert list(matrix[["source", "checkpoint"]].itertuples(index=False, name=None)) == order
    models = {Path(text).stem: checkpoints.load(Path(text)).build().eval() for text in trained}
    numbers = torch.tensor(samples[(samples["source"] == "") & (samples["checkpoint"] == "sl")]["index"].tolist())
    chosen = digits.test.subset(numbers)
    images, labels = digits.test.batch(numbers, "cpu")
    points = {"": images} | {
        name: make_examples(model, chosen, SETTINGS, numbers=numbers) for name, model in models.items()
    }
    for row in matrix.to_dict("records"):
        with torch.no_grad():
            right = models[row["checkpoint"]](points[row["source"]]).argmax(dim=1) == labels
        ours = samples[(samples["source"] == row["source"]) & (samples["checkpoint"] == row["checkpoint"])]
        assert ours["value"].tolist() == right.double().tolist(), "image by image"
        assert set(ours["point"]) == {"final" if row["source"] else "clean"}
        low, high = wilson_interval(int(right.sum()), 50)
        assert (row["accuracy"], row["n"]) == (pytest.approx(float(right.double().mean())), 50)
        assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    accuracy = matrix.set_index(["source", "checkpoint"])["accuracy"]
    for name in models:
        assert accuracy[name, name] == min(accuracy[source, name] for source in ("", "sl", "rl")), "white-box"


def test_models_are_compared_at_the_clean_images(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = transferred(trained, tmp_path / "out", batch_size=16)
    rows = read_table(out / SIMILARITY.file, SIMILARITY)
    samples = tables(out)[1]
    numbers = torch.tensor(samples[(samples["source"] == "") & (samples["checkpoint"] == "sl")]["index"].tolist())
    images, labels = digits.test.batch(numbers, "cpu")
    models = [checkpoints.load(Path(text)).build().eval() for text in trained]
    wanted = gradient_cosines(models, images, labels)
    pairs = rows[rows["metric"] == "gradient-cosine"].set_index(["other", "checkpoint"])
    assert list(pairs.index) == [("sl", "sl"), ("sl", "rl"), ("rl", "sl"), ("rl", "rl")]
    between = pairs.loc[("sl", "rl")]
    assert between["value"] == pytest.approx(float(wanted[0, 1].mean()), abs=1e-5)
    assert between["ci_low"] < between["value"] < between["ci_high"] < 1
    assert pairs.loc[("rl", "sl")]["value"] == between["value"]
    assert pairs.loc[("sl", "sl")]["value"] == pytest.approx(1, abs=1e-6)
    assert set(pairs["n"] + pairs["undefined"]) == {50}
    bent = rows[rows["metric"] == "relative-curvature"]
    assert bent["checkpoint"].tolist() == ["sl", "rl"]
    assert bent["other"].tolist() == ["", ""]
    found = relative_curvature(models[0], images, labels, numbers=numbers)
    assert bent["value"].iloc[0] == pytest.approx(float(found.nanquantile(0.5)), rel=0.05)


def test_a_flat_model_is_compared_with_none(digits: Splits) -> None:
    """Its gradient is 0: undefined for every image and counted, in the matrix NaN."""

    class Flat(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0 * images.flatten(1)[:, :10]

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    few = digits.test.subset(torch.arange(20))
    with pytest.warns(Caution):
        found = transfer({"net": net, "flat": Flat().eval()}, few, steps=2)
    rows = found.frame("similarity").set_index(["other", "checkpoint"])
    assert rows.loc[("net", "flat"), ["n", "undefined"]].tolist() == [0, 20]
    assert rows.loc[("", "flat"), ["n", "undefined"]].tolist() == [0, 20]
    assert rows.loc[("net", "net"), "undefined"] == 0
    assert found.similarity.isna().to_numpy().tolist() == [[False, True], [True, True]]


def test_the_papers_attack_leaves_the_box(trained: list[str], tmp_path: Path) -> None:
    out = transferred(trained, tmp_path / "out", attack="pgd-paper", steps=3)
    assert set(tables(out)[0]["attack"]) == {"none", "pgd-paper"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["batch_size"], manifest["attacks"]["pgd-paper"]["box"], manifest["complete"]) == (128, False, True)


@pytest.mark.parametrize("stop", [4, 10, 14], ids=["attacking", "comparing", "bending"])
def test_an_interrupted_run_is_resumed_to_the_same_files(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = transferred(trained, tmp_path / "whole", batch_size=16)
    get, made = PartialResults.get, []

    def interrupted(self: Any, name: str, make: Any) -> Any:
        def counted() -> Any:
            made.append(name)
            if len(made) == stop:
                raise KeyboardInterrupt
            return make()

        return get(self, name, counted)

    monkeypatch.setattr(PartialResults, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transferred(trained, tmp_path / "out", batch_size=16)
    with pytest.raises(GradscopeError, match=r"unfinished transfer; `resume` continues it"):
        transferred(trained, tmp_path / "out", batch_size=16)
    with pytest.raises(GradscopeError, match=r"resume: .* was begun with another checkpoint"):
        transferred(trained[::-1], tmp_path / "out", batch_size=16, resume=True)
    out = transferred(trained, tmp_path / "out", batch_size=16, resume=True)
    assert len(made) == len(set(made)) + 1, "what was kept is not made again"
    for table in (TRANSFER, TRANSFER_SAMPLES, SIMILARITY):
        assert (out / table.file).read_bytes() == (whole / table.file).read_bytes()
    assert not (out / ".tiles").exists()


def test_what_is_refused(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="model must be at least two models in a transfer, got 1"):
        transferred(trained[:1], tmp_path / "out")
    with pytest.raises(GradscopeError, match=r"epsilon must be above 0 .*got 0"):
        transferred(trained, tmp_path / "out", epsilon=0)
    with pytest.raises(GradscopeError, match=r"samples must be from 1 to 359, .* got 360"):
        transferred(trained, tmp_path / "out", samples=360)
    assert not (tmp_path / "out").exists()


def test_a_foreign_model_among_ours(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "linear_model.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    models = [trained[0], "linear_model:make"]
    out = transferred(models, tmp_path / "out", trust_code=True, dataset="digits")
    matrix = tables(out)[0]
    assert matrix["checkpoint"].unique().tolist() == ["sl", "linear_model:make"]
    assert matrix["mode"].unique().tolist() == ["sl", "foreign"]
    assert len(matrix) == 6

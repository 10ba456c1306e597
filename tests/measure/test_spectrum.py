"""Spectra as a request asks for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure import spectrum
from gradscope.models import checkpoint as checkpoints
from gradscope.models.inspection import laid_out
from gradscope.reporting.console import spectrum_lines
from gradscope.results.schemas import DENSITY, EIGENVALUES, SAMPLES, SPECTRUM, Table
from gradscope.results.tables import read_table
from gradscope.seeding import generator
from tests.measure.requests import measured

FOREIGN = '''
import torch
from torch import nn


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context, images):
        return images.round()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient


class Once(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images):
        return self.last(Rounded.apply(images.flatten(1)).square())


def once():
    return Once()


def steps():
    """Its gradient in the image is 0 everywhere."""
    class Steps(Once):
        def forward(self, images):
            return self.last(images.flatten(1).round())
    return Steps()


def bare():
    class Pixels(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10] ** 2
    return Pixels()


class Attending(nn.Module):
    """A patch is a token."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

    def forward(self, images):
        tokens = images.flatten(1, 2)
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1))


def attending():
    return Attending()


def smooth():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10, bias=False))


def frozen():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)


def single():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
'''


@pytest.fixture(autouse=True)
def _with_foreign_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curved.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def spectra(texts: list[str], out: Path, **given: Any) -> Path:
    values = {"images": 20, "eigenvalues": 3, "probes": 3, "iterations": 12}
    return measured("spectrum", texts, out, **values | given)


def foreign(name: str, out: Path, **given: Any) -> Path:
    return spectra([f"curved:{name}"], out, dataset="digits", trust_code=True, **given)


def table(out: Path, table: Table) -> pd.DataFrame:
    return read_table(out / table.file, table).fillna({"layer": ""})


def contents(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(out.glob("*.csv"))}


def rows_of(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows


def numbers(out: Path) -> pd.Series:
    return table(out, SPECTRUM).set_index(["checkpoint", "matrix", "layer", "metric"])["value"]


def test_a_network_of_one_tensor_has_the_exact_spectrum(tmp_path: Path, digits: Splits) -> None:
    """Softmax regression, whose Hessian is the mean of (diag p - p p') x x' (Kronecker), is its Gauss-Newton matrix."""
    out = foreign("single", tmp_path / "out", eigenvalues=20, iterations=200, probes=2, matrix="hessian,gauss-newton")
    chosen = json.loads((out / "manifest.json").read_text())["spectrum"]
    assert (chosen["images"], chosen["space"]) == (20, "weights")
    from curved import single  # type: ignore[import-not-found]  # written above

    drawn, _ = torch.randperm(len(digits.test), generator=generator(0, "images"))[:20].sort()
    images, _ = digits.test.batch(drawn, "cpu")
    with torch.no_grad():
        chances = single()(images).softmax(dim=1).double()
    pixels = images.flatten(1).double()
    exact = sum(
        torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x)) / 20
        for p, x in zip(chances, pixels, strict=True)
    )
    largest = torch.linalg.eigvalsh(exact).flip(0)[:20]
    values = table(out, EIGENVALUES)
    for _, own in values.groupby("matrix"):
        assert own["rank"].tolist() == list(range(1, 21))
        np.testing.assert_allclose(own["value"], largest.numpy(), rtol=1e-3, atol=1e-5)
        assert own["residual"].max() < 1e-4
    assert numbers(out)["curved:single", "hessian", "", "negative-mass"] < 1e-3


def test_the_spectrum_of_a_trained_network(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    """Against the Hessian of the last layer's block, entry by entry."""
    out = spectra(trained[:1], tmp_path / "out", layers=True, iterations=20, probes=2)
    model = checkpoints.load(Path(trained[0])).build().eval()
    last = [name for name, _ in model.named_parameters()][-2:]
    layer = last[0].rpartition(".")[0].removeprefix("network.")
    test = digits.test
    drawn, _ = torch.randperm(len(test), generator=generator(0, "images"))[:20].sort()
    images, labels = test.batch(drawn, "cpu")
    known = {name: value.detach().clone() for name, value in model.named_parameters() if name in last}
    loss = lambda values: F.cross_entropy(functional_call(model, values, (laid_out(images),)), labels)  # noqa: E731
    second = jacrev(jacrev(loss))(known)
    rows = [torch.cat([second[one][two].reshape(known[one].numel(), -1) for two in last], dim=1) for one in last]
    exact = torch.linalg.eigvalsh(torch.cat(rows).double())
    of_layer = {"layer": layer, "checkpoint": "sl"}
    values = rows_of(table(out, EIGENVALUES), **of_layer)["value"].to_numpy()
    np.testing.assert_allclose(values, exact.flip(0)[:3].detach().numpy(), rtol=1e-3)
    found = rows_of(table(out, SPECTRUM), **of_layer).set_index("metric")
    trace = found.loc["trace"]
    assert abs(trace["value"] - float(exact.sum().detach())) < 4 * trace["error"] + 1e-3 * abs(trace["value"])
    assert found.loc["negative-mass", "value"] < 0.01, "cross-entropy is convex in the last layer"


def test_layers_traces_add_up_to_the_whole(trained: list[str], tmp_path: Path) -> None:
    found = (
        numbers(spectra(trained[:1], tmp_path / "out")).xs("trace", level="metric").droplevel(["checkpoint", "matrix"])
    )
    assert len(found) > 2
    assert found.drop("").sum() == pytest.approx(found[""], rel=1e-6)


def test_a_density_has_area_1_and_a_band(trained: list[str], tmp_path: Path) -> None:
    rows = table(spectra(trained, tmp_path / "out"), DENSITY)
    for _, own in rows.groupby("checkpoint"):
        assert (own["density"] * np.gradient(own["eigenvalue"])).sum() == pytest.approx(1, abs=1e-2)
        assert (own["ci_low"] <= own["density"]).all()
        assert (own["density"] <= own["ci_high"]).all()
        assert own["ci_low"].min() == 0


@pytest.mark.parametrize("space", ["weights", "input"])
def test_an_interrupted_run_is_resumed_to_the_same_files(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    given: dict[str, Any] = {"space": space, "batch_size": 8, "adversarial": True, "steps": 2, "iterations": 4}
    whole = spectra(trained, tmp_path / "whole", **given)
    real, calls = spectrum.probe, []

    def stops(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(spectrum, "probe", stops)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        spectra(trained, out, **given)
    kept = len(list((out / ".tiles").glob("*.pt")))
    assert kept >= 3
    with pytest.raises(GradscopeError, match=r"resume: .* was begun with another .*spectrum"):
        spectra(trained, out, resume=True, **given | {"probes": 4})
    spectra(trained, out, resume=True, **given)
    assert contents(out) == contents(whole)
    assert set(table(out, SPECTRUM)["attack"]) == {"pgd"}
    assert table(out, SPECTRUM)["epsilon"].eq(1.0).all()


def test_a_model_has_the_same_numbers_alone(trained: list[str], tmp_path: Path) -> None:
    both, alone = (spectra(texts, tmp_path / f"{len(texts)}", iterations=4) for texts in (trained, trained[1:]))
    pd.testing.assert_series_equal(numbers(both).loc[["rl"]], numbers(alone))


def test_batches_only_round(trained: list[str], tmp_path: Path) -> None:
    for space in ("weights", "input"):
        found = [
            numbers(spectra(trained[:1], tmp_path / f"{space}-{size}", space=space, batch_size=size))
            for size in (7, 64)
        ]
        left = found[0].index.get_level_values("metric") != "residual"
        np.testing.assert_allclose(found[0][left], found[1][left], rtol=2e-3, atol=2e-4)


def test_each_image_has_a_matrix_in_input_space(trained: list[str], tmp_path: Path) -> None:
    out = spectra(trained[:1], tmp_path / "out", space="input", eigenvalues=12, iterations=64)
    values = table(out, EIGENVALUES)
    by_image = values.groupby("index")["value"]
    assert len(by_image) == 20
    found = numbers(out)["sl", "hessian", ""]
    assert found["eigenvalue"] == pytest.approx(by_image.first().mean(), rel=1e-6)
    # ReLU and max-pooling bend nowhere: the logits are linear around an image, so that at most 9 eigenvalues of ten
    # classes are not 0, none is negative, and those found are the trace.
    assert found["negative-mass"] < 1e-3
    assert values[values["rank"] > 9]["value"].abs().max() < 1e-4 * values["value"].max()
    assert found["trace"] == pytest.approx(by_image.sum().mean(), rel=1e-3)
    assert found["flat"] == 0


def test_images_that_a_model_rounds_are_counted_as_flat(tmp_path: Path) -> None:
    out = foreign("steps", tmp_path / "out", space="input")
    found = numbers(out)["curved:steps", "hessian", ""]
    assert (found["flat"], found["trace"], found["eigenvalue"]) == (1, 0, 0)
    assert np.isnan(found["negative-mass"])
    assert "caution: flat on 100.0 % of the images: the matrix is 0, or rounding" in spectrum_lines(out)


def test_attention_is_differentiated_twice(tmp_path: Path) -> None:
    for space in ("weights", "input"):
        assert numbers(foreign("attending", tmp_path / space, space=space, images=4))["curved:attending"].any()


def test_eigenvalues_of_images_do_not_cancel_by_their_signs(tmp_path: Path) -> None:
    out = foreign("smooth", tmp_path / "out", space="input", iterations=64, eigenvalues=4)
    first = rows_of(table(out, EIGENVALUES).astype({"rank": str}), rank="1")["value"]
    assert (first < 0).any()
    assert (first > 0).any()
    assert numbers(out)["curved:smooth", "hessian", "", "eigenvalue"] == pytest.approx(first.abs().mean())
    samples = read_table(out / SAMPLES.file, SAMPLES)
    assert samples[samples["metric"] == "hessian-eigenvalue"]["value"].tolist() == pytest.approx(first.abs().tolist())


def test_frozen_parameters_count_like_others(tmp_path: Path) -> None:
    out = foreign("frozen", tmp_path / "out")
    assert numbers(out)["curved:frozen", "hessian", "", "trace"] > 0
    assert "curved:frozen: 650 of its parameters are frozen; they count like the others" in spectrum_lines(out)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bare", {}, "space must be input for a model without parameters, got weights of curved:bare"),
        (
            "once",
            {"space": "input"},
            "model must have second derivatives, got curved:once: a function of it",
        ),
        ("single", {"iterations": 10_000, "eigenvalues": 900}, None),
        ("single", {"layers": True, "space": "input"}, "layers must be left out in input space, got True"),
        ("single", {"steps": 3}, "steps must be left out without `adversarial`"),
        ("single", {"norm": "linf"}, "norm must be left out without `adversarial`"),
        ("single", {"attack": "pgd-paper"}, "attack must be left out without `adversarial`"),
        ("single", {"matrix": "fisher"}, "matrix: 'fisher' is unknown; known: gauss-newton, hessian"),
        ("single", {"probes": 1}, "probes must be at least 2, got 1"),
        ("single", {"images": 360}, "images must be from 1 to 359"),
    ],
)
def test_what_cannot_be_measured_is_said(
    name: str, options: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message is None:  # in a machine of one megabyte
        monkeypatch.setattr(spectrum, "memory", lambda: 2**20)
        options, message = (
            {"iterations": 500},
            "iterations must be at most 402 for curved:single, as each keeps a vector of its 640 param",
        )
    with pytest.raises(GradscopeError, match=message):
        foreign(name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

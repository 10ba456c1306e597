"""The public interface: models and images in memory, the command's numbers, results that are kept, and every misuse."""

import contextlib
import copy
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope as gs
from gradscope.cli import main
from gradscope.measure.result import Result

COUNT = 40
Digest = Callable[[nn.Module], str]


@pytest.fixture(scope="module")
def digits_tensors() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)


@pytest.fixture(scope="module")
def x(digits_tensors: tuple[Tensor, Tensor]) -> Tensor:
    return digits_tensors[0][-COUNT:]


@pytest.fixture(scope="module")
def y(digits_tensors: tuple[Tensor, Tensor]) -> Tensor:
    return digits_tensors[1][-COUNT:]


@pytest.fixture(scope="module")
def net(digits_tensors: tuple[Tensor, Tensor]) -> nn.Module:
    """A model of a user's own, who trained it."""
    x, y = digits_tensors
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[:-COUNT]), y[:-COUNT]).backward()
        optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def other(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return other


#: Each measurement, small: what it is called with beside model, x and y.
SMALL: dict[str, dict[str, Any]] = {
    "trace": {"steps": 3},
    "landscape": {"points": 3, "images": 2, "steps": 3},
    "spectrum": {"images": 8, "eigenvalues": 2, "iterations": 6, "probes": 2},
    "attack": {"attacks": ["pgd", "square"], "queries": 10, "steps": 3, "epsilon": 0.5},
    "transfer": {"steps": 3},
    "audit": {"budget": "quick", "norm": "linf", "epsilon": 0.1, "allow_inconclusive": True},
}


def measured(name: str, net: nn.Module, other: nn.Module, x: Any, y: Any, **options: Any) -> Result:
    models = {"net": net, "other": other} if name == "transfer" else {"net": net}
    result: Result = getattr(gs, name)(models, x, y, **{**SMALL[name], **options})
    return result


@pytest.fixture(scope="module")
def results(net: nn.Module, other: nn.Module, x: Tensor, y: Tensor) -> dict[str, Result]:
    return {name: measured(name, net, other, x, y) for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_measuring_leaves_no_trace(
    name: str, net: nn.Module, other: nn.Module, x: Tensor, y: Tensor, digest: Digest
) -> None:
    before, pixels = digest(net), x.clone()
    measured(name, net, other, x, y)
    assert digest(net) == before
    assert torch.equal(x, pixels)


@pytest.fixture(scope="module")
def models(digits_tensors: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    x, y = digits_tensors
    return {mode: gs.train(mode, (x[:400], y[:400]), epochs=2, progress=False) for mode in ("sl", "rl")}


@pytest.fixture(scope="module")
def saved(
    models: dict[str, Any], x: Tensor, y: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("saved")
    images = {"X_train": x.numpy(), "y_train": y.numpy(), "X_test": x.numpy(), "y_test": y.numpy()}
    np.savez(folder / "own.npz", **images)
    return folder, [str(model.save(folder / f"{name}.pt")) for name, model in models.items()]


class TestTheCommandGivesTheSame:
    """A model saved and images in a file, measured by the command."""

    @pytest.mark.parametrize("name", SMALL)
    def test_the_same_numbers(
        self, name: str, models: dict[str, nn.Module], saved: tuple[Path, list[str]], x: Tensor, y: Tensor
    ) -> None:
        folder, paths = saved
        command, count = ("analyze" if name == "trace" else name), (2 if name == "transfer" else 1)
        flags = []
        for key, value in SMALL[name].items():
            flags.append(f"--{key.replace('_', '-')}")
            flags += [] if value is True else [",".join(value) if isinstance(value, list) else str(value)]
        given = ["--dataset", "npz", "--data-root", str(folder / "own.npz"), "--no-figures"]
        arguments = [command, *paths[:count], *given, *flags, "--out", str(folder / name)]
        with contextlib.redirect_stdout(None), pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        ours = getattr(gs, name)(dict(list(models.items())[:count]), x, y, **SMALL[name])
        theirs = gs.read(folder / name)
        assert ours.tables == theirs.tables
        for table in ours.tables:
            first, second = (
                _timeless(result.frame(table)).drop(columns=["checkpoint", "source", "dataset"], errors="ignore")
                for result in (ours, theirs)
            )
            pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_pixels_between_two_bytes_are_measured_as_they_are() -> None:
    """Both images of a pair would round to the byte 128; the model sees the sign of what is between."""

    class Fine(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rest = 1000 * (images.flatten(1)[:, :1] - 128 / 255)
            return torch.cat([rest, -rest], dim=1)

    x = torch.full((20, 1, 2, 2), 128 / 255) + torch.tensor([1 / 1024, -1 / 1024] * 10)[:, None, None, None]
    y = torch.tensor([0, 1] * 10)
    found = gs.trace(Fine().eval(), x, y, metrics="loss", steps=1, start="none")
    assert found.mean("accuracy").loc["Fine", "pgd", 0] == 1


@pytest.fixture(scope="module")
def bytes_of(x: Tensor) -> Tensor:
    return (255 * x).round().byte()


@pytest.fixture(scope="module")
def expected(net: nn.Module, bytes_of: Tensor, y: Tensor) -> Result:
    return gs.trace(net, bytes_of / 255, y, steps=2)


def test_a_model_of_images_in_memory_asks_for_data(saved: tuple[Path, list[str]]) -> None:
    with pytest.raises(
        gs.GradscopeError, match=r"^dataset must be given for sl, trained on your-data, which is not a known data"
    ):
        gs.trace(saved[1][0])


class TestWhatImagesMayBe:
    def test_an_image_set_names_its_results(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        found = gs.trace(net, gs.ImageSet.from_tensors("scans", x, y), steps=1)
        assert set(found.frame()["dataset"]) == {"scans"}

    @pytest.mark.parametrize(
        "form",
        ["numpy", "uint8", "uint8 numpy", "float64", "pair", "loader", "dataset", "image set", "int32", "uint8 labels"],
    )
    def test_every_form_gives_the_same(
        self, form: str, net: nn.Module, bytes_of: Tensor, y: Tensor, expected: Result
    ) -> None:
        floats = bytes_of / 255
        given: dict[str, tuple[Any, ...]] = {
            "numpy": (floats.numpy(), y.numpy()),
            "uint8": (bytes_of, y),
            "uint8 numpy": (bytes_of.numpy(), y.tolist()),
            "float64": (bytes_of.double() / 255, y),
            "pair": ((floats, y),),
            "loader": (DataLoader(TensorDataset(floats, y), batch_size=7),),
            "dataset": (TensorDataset(floats, y),),
            "image set": (gs.ImageSet.from_tensors("your-data", floats, y, [str(digit) for digit in range(10)]),),
            "int32": (floats, y.int()),
            "uint8 labels": (floats, y.byte().numpy()),
        }
        found = gs.trace(net, *given[form], steps=2)
        for table in expected.tables:
            pd.testing.assert_frame_equal(found.frame(table), expected.frame(table), check_exact=True)


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class WithLogits(nn.Module):
    """A model that returns an object, as those of Hugging Face do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        return Output(self.network(images))


@pytest.mark.parametrize("name", SMALL)
def test_an_output_with_logits_is_read(
    name: str, net: nn.Module, other: nn.Module, x: Tensor, y: Tensor, results: dict[str, Result]
) -> None:
    found = measured(name, WithLogits(net).eval(), WithLogits(other).eval(), x, y)
    first, second = (_timeless(result.frame()).drop(columns="arch") for result in (found, results[name]))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4)


def test_a_weight_landscape_of_an_output_with_logits(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = gs.landscape(WithLogits(net).eval(), x, y, space="weights", points=3)
    rows = found.frame()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(net(x), y))
    assert float(rows[(rows["a"] == 0) & (rows["b"] == 0)]["loss"].iloc[0]) == pytest.approx(loss, rel=1e-5)


def test_mean_and_std_go_in_front_of_the_model(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            return self.net((images - 0.1) / 0.9)  # type: ignore[no-any-return]

    within = gs.trace({"net": Normalised().eval()}, x, y, steps=2).frame()
    for mean, std in ((0.1, 0.9), ([0.1], [0.9])):
        found = gs.trace({"net": net}, x, y, steps=2, mean=mean, std=std).frame()
        pd.testing.assert_frame_equal(found.drop(columns="arch"), within.drop(columns="arch"), rtol=1e-4)


def test_a_radius_may_be_a_fraction(net: nn.Module, x: Tensor, y: Tensor) -> None:
    first, second = (gs.trace(net, x, y, norm="linf", epsilon=radius, steps=2) for radius in ("8/255", 8 / 255))
    assert first.frame().equals(second.frame())
    assert first.frame()["epsilon"].iloc[0] == 8 / 255


def _scripted(model: nn.Module) -> nn.Module:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        return torch.jit.script(model)  # type: ignore[no-any-return]


def _traced(model: nn.Module) -> nn.Module:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        return torch.jit.trace(model, torch.zeros(2, 1, 8, 8))  # type: ignore[no-any-return]


def _exported(model: nn.Module) -> nn.Module:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(batch,)).module()


@pytest.mark.parametrize("form", [_scripted, _traced, _exported])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("audit", SMALL["audit"]),
        ("landscape", {"space": "weights", "points": 3, "adversarial": True, "images": 8}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_are_measured_as_what_they_were_made_of(
    form: Callable[[nn.Module], nn.Module], name: str, options: dict[str, Any], x: Tensor, y: Tensor, digest: Digest
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    model = form(plain)
    before = digest(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained model is at chance
        ours, expected = (getattr(gs, name)({"net": one}, x, y, **options).frame() for one in (model, plain))
    pd.testing.assert_frame_equal(
        _timeless(ours).drop(columns="arch"), _timeless(expected).drop(columns="arch"), rtol=1e-4
    )
    assert digest(model) == before


class TestResults:
    @pytest.mark.parametrize("name", SMALL)
    def test_saved_and_read_back_they_are_the_same(self, name: str, results: dict[str, Result], tmp_path: Path) -> None:
        result = results[name]
        directory = result.save(tmp_path / "out")
        again = gs.read(directory)
        assert again == result
        assert again.plots == result.plots
        assert sorted(path.stem for path in (directory / "figures").glob("*.png")) == sorted(result.plots)
        for each in (again, pickle.loads(pickle.dumps(result))):
            assert type(each) is type(result)
            for table in result.tables:
                pd.testing.assert_frame_equal(each.frame(table), result.frame(table))
        first, second = (np.asarray(_drawn(each.plot())) for each in (result, again))
        assert np.array_equal(first, second)
        assert gs.report(directory).read_text().startswith("<!DOCTYPE html>")

    @pytest.mark.parametrize("name", SMALL)
    def test_what_a_person_sees_first(self, name: str, results: dict[str, Result]) -> None:
        result = results[name]
        assert repr(result).startswith(f"<{type(result).__name__} net: ")
        assert "\n" not in repr(result)
        page = result._repr_html_()
        finding = repr(result).strip("<>").replace("'", "&#x27;")
        assert page.index(finding) < page.index("<pre>") < page.index("<table")

    def test_their_figures_have_names(self, results: dict[str, Result]) -> None:
        assert "steps-cosine" in results["trace"].plots
        for name in ("steps-cosine", "cosine", None):
            assert results["trace"].plot(name).axes
        with pytest.raises(gs.GradscopeError, match="name: 'cosin' is unknown; did you mean 'steps-cosine'"):
            results["trace"].plot("cosin")

    def test_their_tables_have_names(self, results: dict[str, Result]) -> None:
        assert results["trace"].tables == ["steps", "samples", "summary"]
        assert len(results["trace"].frame("samples")) > COUNT
        with pytest.raises(gs.GradscopeError, match="table: 'step' is unknown; did you mean 'steps'"):
            results["trace"].frame("step")

    def test_the_headlines(self, results: dict[str, Any], x: Tensor, y: Tensor, net: nn.Module) -> None:
        audit, attack, transfer, trace = (results[name] for name in ("audit", "attack", "transfer", "trace"))
        assert audit.verdict == audit.audits[0].verdict
        assert audit.interval.low < audit.upper_bound < audit.interval.high
        assert attack.interval.low <= attack.robust_accuracy <= attack.interval.high
        with torch.no_grad():
            clean = float((net(x).argmax(dim=1) == y).float().mean())
        assert list(transfer.matrix.index) == ["", "net", "other"]
        assert transfer.matrix.loc["", "net"] == pytest.approx(clean)
        assert list(transfer.similarity.index) == list(transfer.similarity.columns) == ["net", "other"]
        assert transfer.similarity.loc["net", "net"] == pytest.approx(1, abs=1e-5)
        assert transfer.similarity.loc["net", "other"] == transfer.similarity.loc["other", "net"] < 1
        summary = trace.frame("summary").set_index(["metric", "subset"])["value"]
        assert summary["accuracy", "clean/all"] == pytest.approx(clean)
        assert trace.mean("cosine").loc["net", "pgd"].index.tolist() == [1, 2]
        with pytest.raises(gs.GradscopeError, match="metric: 'cosin' is unknown; did you mean 'cosine'"):
            trace.mean("cosin")
        spectrum = results["spectrum"]
        assert spectrum.eigenvalues.shape == (2,)
        assert abs(spectrum.eigenvalues[0]) >= abs(spectrum.eigenvalues[1])
        assert spectrum.trace_error > 0
        assert spectrum.trace == spectrum.frame().query("metric == 'trace'")["value"].iloc[0]
        assert list(spectrum.density) == ["eigenvalue", "density", "ci_low", "ci_high"]
        by_image = gs.spectrum(net, x, y, space="input", **SMALL["spectrum"])
        assert by_image.eigenvalues.shape == (8, 2)
        both = gs.spectrum(net, x, y, matrix=["hessian", "gauss-newton"], **SMALL["spectrum"])
        with pytest.raises(gs.GradscopeError, match="trace must be of one matrix, got hessian, gauss-newton"):
            both.trace  # noqa: B018

    def test_adversarial_images_on_request(self, results: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor) -> None:
        found = gs.attack(net, x, y, attacks="pgd", epsilon=2.0, steps=5, save_images=True)
        images = torch.from_numpy(found.adversarial["images"])
        assert len(images)
        with pytest.raises(gs.GradscopeError, match=r"^save_images must be True .*got False"):
            results["attack"].adversarial  # noqa: B018

    def test_results_are_not_replaced_unasked(self, results: dict[str, Result], tmp_path: Path) -> None:
        results["trace"].save(tmp_path, figures=False)
        with pytest.raises(gs.GradscopeError, match=r"^out must be another directory: .* holds results; pass `over"):
            results["attack"].save(tmp_path)
        results["attack"].save(tmp_path, overwrite=True, figures=False)
        assert gs.read(tmp_path) == results["attack"]

    @pytest.mark.parametrize("name", ["figures/my-own.png", "report.html", "manifest.json"])
    def test_files_of_others_are_not_replaced_unasked(
        self, name: str, results: dict[str, Result], tmp_path: Path
    ) -> None:
        own = tmp_path / name
        own.parent.mkdir(exist_ok=True)
        own.write_text("mine")
        with pytest.raises(gs.GradscopeError, match=r"^out must be another directory: .* holds .*pass `overwrite`"):
            results["trace"].save(tmp_path)
        assert own.read_text() == "mine"
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]

    def test_results_may_lie_beside_other_files(self, results: dict[str, Result], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        results["trace"].save(tmp_path, figures=False)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert gs.read(tmp_path) == results["trace"]

    def test_what_holds_no_results_is_not_read(self, tmp_path: Path) -> None:
        with pytest.raises(gs.GradscopeError, match=r"^directory must hold manifest\.json, got .*: No such file"):
            gs.read(tmp_path / "none")
        (tmp_path / "file").write_text("")
        with pytest.raises(
            gs.GradscopeError, match=r"^directory must hold manifest\.json, got .*/file: Not a directory"
        ):
            gs.read(tmp_path / "file")
        for name in "abcdefg":
            (tmp_path / "study" / name).mkdir(parents=True)
            (tmp_path / "study" / name / "manifest.json").write_text("{}")
        with pytest.raises(gs.GradscopeError, match=r"; read the results .* one by one: a, b, c, d, e and 2 more$"):
            gs.read(tmp_path / "study")
        (tmp_path / "manifest.json").write_text("[]")
        with pytest.raises(gs.GradscopeError, match=r"^directory must hold a manifest\.json of gradscope"):
            gs.read(tmp_path)
        (tmp_path / "manifest.json").write_text('{"kind": "study"}')
        with pytest.raises(gs.GradscopeError, match=r"^directory must hold one measurement, got a study"):
            gs.read(tmp_path)

    @pytest.mark.filterwarnings("ignore:.*has changed since it was written:gradscope.errors.Caution")
    def test_files_that_do_not_fit_are_one_line(self, results: dict[str, Result], tmp_path: Path) -> None:
        for name, result in results.items():
            table = result.save(tmp_path / name, figures=False) / f"{result.main}.csv"
            table.write_text(table.read_text().splitlines()[0] + "\n")
            again = gs.read(tmp_path / name)
            assert again.frame().empty
            for show in (repr, type(again).summary):
                try:
                    said = show(again)
                except gs.GradscopeError as error:
                    said = repr(str(error))
                assert "\\n" not in said

    @pytest.mark.filterwarnings("ignore:.*has changed since it was written:gradscope.errors.Caution")
    def test_damaged_evidence_is_one_line(self, results: dict[str, Result], tmp_path: Path) -> None:
        results["audit"].save(tmp_path, figures=False)
        (tmp_path / "evidence.npz").write_bytes(b"PK")
        with pytest.raises(gs.GradscopeError, match=r"^directory: .*evidence\.npz is not an evidence\.npz"):
            gs.read(tmp_path)
        (tmp_path / "evidence.npz").unlink()
        (tmp_path / "audit.json").write_text("[" * 100_000)
        with pytest.raises(gs.GradscopeError, match=r"^directory: .*audit\.json is not JSON: it is nested"):
            gs.read(tmp_path)


def _drawn(figure: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.buffer_rgba()


def _timeless(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that no clock decides."""
    return frame[frame["metric"] != "seconds"].reset_index(drop=True) if "metric" in frame else frame


class TestTheNames:
    def test_importing_the_package_is_light(self) -> None:
        program = (
            "import sys, gradscope as gs; assert set(gs.__all__) <= set(dir(gs)), dir(gs)\n"
            "sys.exit(', '.join({'torch', 'pandas', 'pydantic', 'matplotlib'} & set(sys.modules)) or None)"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(gs.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert (done.stderr.strip(), done.returncode) == ("", 0)

    def test_every_name_is_what_it_says_whatever_was_imported(self) -> None:
        for module in ("attacks.transfer", "auditing.verdict", "measure.landscape", "reporting.page"):
            importlib.import_module(f"gradscope.{module}")
        assert len(set(gs.__all__)) == len(gs.__all__)
        for name in gs.__all__:
            value = getattr(gs, name)
            assert callable(value)
            assert value.__name__ == name
        with pytest.raises(AttributeError, match="no attribute 'adit'"):
            gs.adit  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'analyze'; did you mean 'trace'"):
            gs.analyze  # noqa: B018
        assert [name for name in dir(gs) if not name.startswith("__")] == sorted(gs.__all__)

    @pytest.mark.parametrize("name", SMALL)
    def test_help_shows_every_option(self, name: str) -> None:
        function = getattr(gs, name)
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:3] == ["model", "x", "y"]
        assert {*SMALL[name], "seed", "mean", "std", "device", "progress"} <= set(parameters)
        text = inspect.getdoc(function) or ""
        for parameter in parameters:
            assert f"\n{parameter}" in text or parameter == "y"
        for heading in ("Parameters", "Returns", "Raises", "Examples"):
            assert f"\n{heading}\n---" in text
        assert "--seed" not in text
        assert issubclass(inspect.signature(function).return_annotation, Result)


class TestModels:
    def test_several_have_their_names(self, net: nn.Module, other: nn.Module, x: Tensor, y: Tensor) -> None:
        found = gs.trace({"mine": net, "theirs": other}, x, y, metrics="loss", steps=1)
        assert found.models == ["mine", "theirs"]
        assert repr(found).count(": accuracy") == 2
        assert set(found.frame()["checkpoint"]) == {"mine", "theirs"}

    def test_a_surrogate_may_be_a_module(self, net: nn.Module, other: nn.Module, x: Tensor, y: Tensor) -> None:
        for given in (other, {"surrogate": other}):
            found = gs.attack(net, x, y, attacks=["pgd", "transfer"], surrogate=given, steps=2)
            assert found.manifest["surrogates"][0]["label"] == "surrogate"
        assert set(found.frame()["checkpoint"]) == {"Sequential"}
        named = gs.attack({"a": net, "b": other}, x, y, attacks=["pgd", "transfer"], surrogate="b", steps=2)
        assert named.models == ["a", "b"]

    def test_our_own_are_loaded_and_know_what_they_are(self, x: Tensor, y: Tensor, tmp_path: Path) -> None:
        model = gs.train("rl", (x, y), epochs=2, seed=3, out=tmp_path / "own.pt", progress=False)
        assert not model.training
        assert list(model.history["epoch"]) == [1, 2]
        again = gs.load(tmp_path / "own.pt")
        assert torch.equal(again(x), model(x))
        frames = [gs.trace({"m": each}, x, y, metrics="loss", steps=1).frame() for each in (model, again)]
        frames.append(gs.trace({"m": tmp_path / "own.pt"}, x, y, metrics="loss", steps=1).frame())
        for frame in frames:
            assert frame.iloc[0][["mode", "seed"]].tolist() == ["rl", 3]
            pd.testing.assert_frame_equal(frame, frames[0])

    def test_images_of_a_data_set_are_found_by_its_name(self, net: nn.Module) -> None:
        model = gs.train("sl", "digits", epochs=1, progress=False)
        own = gs.trace({"m": model}, metrics="loss", steps=1)
        assert own.manifest["checkpoints"][0]["data"]["images"] == 359
        named = gs.trace({"m": model}, dataset="digits", samples=20, metrics="loss", steps=1)
        assert named.manifest["checkpoints"][0]["data"] | {"images": 359, "fingerprint": None} == {
            **own.manifest["checkpoints"][0]["data"],
            "fingerprint": None,
        }
        assert gs.trace(net, dataset="digits", samples=20, metrics="loss", steps=1).models == ["Sequential"]

    def test_one_at_chance_is_warned_of_where_it_is_measured(self, x: Tensor, y: Tensor) -> None:
        torch.manual_seed(2)
        blank = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
        with pytest.warns(UserWarning, match=r"Sequential: .* no more than guessing among 10 classes") as warned:
            gs.trace(blank, x, y, metrics="loss", steps=1)
        assert warned[0].filename == __file__

    @pytest.mark.filterwarnings("ignore:Blinded. at some step of pgd:gradscope.errors.Caution")
    def test_a_masked_one_is_warned_of_before_its_accuracy_misleads(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        class Blinded(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return 1e4 * net(images)

        with pytest.warns(UserWarning, match=r"^Blinded: the gradient of the cross-entropy is exactly 0 on \d+ of"):
            blinded = gs.trace(Blinded().eval(), x, y, metrics="accuracy", steps=2)
        assert "caution: Blinded: the gradient" in blinded.summary()
        assert "caution: Blinded: the gradient" in blinded._repr_html_()

    def test_progress_is_drawn_or_not(
        self, net: nn.Module, x: Tensor, y: Tensor, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for progress in (False, None):
            gs.trace(net, x, y, metrics="loss", steps=1, progress=progress)
            assert capsys.readouterr().err == ""
        gs.trace(net, x, y, metrics="loss", steps=1, progress=True)
        assert "100%" in capsys.readouterr().err


#: What is done wrong, and the sentence that says so.
MISUSE: dict[str, tuple[Callable[..., Any], str]] = {
    "normalised images": (
        lambda net, x, y: gs.trace(net, (x - 0.5) / 0.5, y),
        r"^x must be in \[0, 1\], got -1 to 1; .*mean=.*std=",
    ),
    "images in 0..255": (lambda net, x, y: gs.trace(net, 255 * x, y), r"^x must be in \[0, 1\], got .*255"),
    "epsilon in 0..255": (
        lambda net, x, y: gs.audit(net, x, y, norm="linf", epsilon=8),
        r'^epsilon must be in pixel units of images in \[0, 1\], .* 0\.03 or "8/255"; got 8; did you mean "8/255"\?$',
    ),
    "epsilons in 0..255": (
        lambda net, x, y: gs.attack(net, x, y, norm="linf", epsilons=[2, 4]),
        r"^epsilons must be in pixel units of images in \[0, 1\], e\.g\. .*; got 2; did you mean \"2/255\"\?$",
    ),
    "epsilon past the diameter": (
        lambda net, x, y: gs.trace(net, x, y, epsilon=128),
        r"^epsilon must be .* at most 8 in l2 for 1 x 8 x 8 pixels, .*; got 128; did you mean \"128/255\"\?$",
    ),
    "epsilon past the diameter around images": (
        lambda net, x, y: gs.landscape(net, x, y, epsilon=9, images=2),
        r"^epsilon must be in pixel units .* at most 8 in l2 .*; got 9; did you mean \"9/255\"\?$",
    ),
    "epsilon below 0": (lambda net, x, y: gs.trace(net, x, y, epsilon=-1), "^epsilon must be a number of at least 0.*"),
    "a metric with a typo": (
        lambda net, x, y: gs.trace(net, x, y, metrics=["norm", "cosin"]),
        "^metrics: 'cosin' is unknown; did you mean 'cosine'",
    ),
    "an attack with a typo": (
        lambda net, x, y: gs.attack(net, x, y, attacks="sqare"),
        "^attacks: 'sqare' is unknown; did you mean 'square'",
    ),
    "an unknown keyword": (
        lambda net, x, y: gs.trace(net, x, y, epsilom=0.1),
        r"^trace\(\): 'epsilom' is unknown; did you mean 'epsilon'",
    ),
    "no images": (
        lambda net, x, y: gs.trace(net, x[:0], y[:0]),
        r"^x must hold at least one image, got the shape \(0, 1, 8, 8\)",
    ),
    "one image without its dimension": (lambda net, x, y: gs.trace(net, x[0], y[:1]), r"^x must have the shape .*None"),
    "labels beyond the classes": (
        lambda net, x, y: gs.trace(net, x, y + 5),
        r"^y must be labels from 0 to 9 \(10 classes of the model\), got 14",
    ),
    "labels one-hot": (lambda net, x, y: gs.trace(net, x, nn.functional.one_hot(y)), r"^y must be labels .*argmax"),
    "labels of a column": (lambda net, x, y: gs.trace(net, x, y[:, None]), r"^y must be labels .*; pass y\[:, 0\]$"),
    "labels that are floats": (
        lambda net, x, y: gs.trace(net, x, y.float()),
        r"^y must be integers, got float32; pass y\.long\(\)$",
    ),
    "a model in float64": (
        lambda net, x, y: gs.trace(copy.deepcopy(net).double(), x, y),
        r"^model must take float32 images, got float64 parameters; call model\.float\(\)$",
    ),
    "fewer labels than images": (lambda net, x, y: gs.trace(net, x, y[:3]), r"^y must have a label .*\(40\), got 3"),
    "a model in training mode": (
        lambda net, x, y: gs.trace(copy.deepcopy(net).train(), x, y),
        r"^model must be in evaluation mode, got training mode; call model\.eval\(\)",
    ),
    "images without labels": (lambda net, x, y: gs.trace(net, x), "^y must be given if x is a tensor"),
    "no images for a model in memory": (
        lambda net, x, y: gs.trace(net),
        "^x must be given where a model is in memory, or `dataset`; got None",
    ),
    "a model that is none": (
        lambda net, x, y: gs.trace(lambda images: images, x, y),
        r"^model must be a torch\.nn\.Module, a path, .* got function",
    ),
    "a model among others that is none": (
        lambda net, x, y: gs.transfer({"a": net, "b": 3}, x, y),
        r"^model must be a torch\.nn\.Module, .* got int",
    ),
    "no model": (lambda net, x, y: gs.trace({}, x, y), "^model must be one model or several by name, got none"),
    "one model in a transfer": (
        lambda net, x, y: gs.transfer(net, x, y),
        "^model must be at least two models in a transfer, got 1",
    ),
    "a file that is not there": (lambda net, x, y: gs.trace("no.pt", x, y), "^model: no.pt cannot be read: No such"),
    "the name of a network": (
        lambda net, x, y: gs.load("resnet18"),
        "^model must be a file of a model, got resnet18; write torchvision:resnet18 for a model of torchvision",
    ),
    "the name of a module": (lambda net, x, y: gs.load("this"), "^model must be .* got this; write this:F"),
    "a model that takes other images": (
        lambda net, x, y: gs.trace(net, x[:, :, :4], y),
        r"^model must take the data's 1 x 4 x 8 images",
    ),
    "two models where a verdict is of one": (
        lambda net, x, y: (
            gs.audit({"a": net, "b": net}, x, y, budget="quick", samples=20, allow_inconclusive=True).verdict
        ),
        r"^verdict must be of a result of one model, got a, b; see \.audits",
    ),
    "two radii where robust accuracy is of one": (
        lambda net, x, y: gs.attack(net, x, y, attacks="pgd", steps=1, epsilons=[0.5, 1]).robust_accuracy,
        r"^robust_accuracy must be of attacks that ran at one radius, got 0\.5, 1; see \.frame\(\)",
    ),
    "more images than there are": (
        lambda net, x, y: gs.trace(net, x, y, samples=41),
        "^samples must be from 1 to 40, the number of test images of your-data, got 41",
    ),
    "an image that is not there": (
        lambda net, x, y: gs.landscape(net, x, y, index=[40]),
        "^index must be from 0 to 39, the test images of your-data, got 40",
    ),
    "mean without std": (lambda net, x, y: gs.trace(net, x, y, mean=0.5), "^std must be given with `mean`"),
    "a mean of three for one channel": (
        lambda net, x, y: gs.trace(net, x, y, mean=[0.5] * 3, std=[0.5] * 3),
        r"^mean must be one number, as there is one channel, got 3 numbers",
    ),
    "a data set beside images": (
        lambda net, x, y: gs.trace(net, x, y, dataset="digits"),
        "^dataset must be left out where x is given, got 'digits'",
    ),
    "a device beside a model": (
        lambda net, x, y: gs.trace(net, x, y, device="cpu"),
        r"^device must be left out where a model is in memory: call model\.to\(\.\.\.\)",
    ),
    "a metric's option of the other space": (
        lambda net, x, y: gs.landscape(net, x, y, adversarial=True),
        "^adversarial must be left out unless `space` is weights, got True",
    ),
    "weights beside a model in memory": (
        lambda net, x, y: gs.trace(net, x, y, weights="no.pt"),
        "^weights must be left out where models are in memory",
    ),
    "a surrogate that is a number": (
        lambda net, x, y: gs.attack(net, x, y, surrogate=3),
        "^surrogate must be a model, a path, or several by name, got int",
    ),
    "another loss in an attack named after one": (
        lambda net, x, y: gs.trace(net, x, y, attack="pgd,pgd-margin", loss="dlr"),
        "^loss must be margin in pgd-margin, got dlr",
    ),
    "a step in 0..255": (
        lambda net, x, y: gs.attack(net, x, y, norm="linf", step_size=2),
        r"^step_size must be in pixel units of images in \[0, 1\], .*got 2",
    ),
    "one step for the cosine of two": (
        lambda net, x, y: gs.trace(net, x, y, metrics="cosine", steps=1),
        "^steps must be at least 2 for the cosine of consecutive gradients, got 1",
    ),
    "one start for the spread of several": (
        lambda net, x, y: gs.trace(net, x, y, metrics="loss,restart-spread"),
        "^restarts must be at least 2 for restart-spread, got 1",
    ),
    "a metric that was not measured": (
        lambda net, x, y: gs.trace(net, x, y, metrics="loss", steps=1).mean("margin"),
        "^metric must be one of the measured accuracy, loss, got 'margin'",
    ),
    "another command's option": (
        lambda net, x, y: gs.landscape(net, x, y, samples=3),
        r"^landscape\(\): 'samples' is unknown; did you mean 'images'",
    ),
    "a tensor where a number is meant": (
        lambda net, x, y: gs.landscape(net, x, y, images=x),
        "^images must be a whole number, got <class 'torch.Tensor'>",
    ),
    "text in a list of numbers": (
        lambda net, x, y: gs.landscape(net, x, y, index="1,x"),
        "^index must be a whole number in every entry, got 'x'",
    ),
    "labels beside the name of a data set": (
        lambda net, x, y: gs.train("sl", "digits", y),
        "^y must be left out where data is the name",
    ),
    "a mode with a typo": (lambda net, x, y: gs.train("rl-avd", (x, y)), "^mode: 'rl-avd' is unknown; did you mean 'r"),
    "an architecture with a typo": (
        lambda net, x, y: gs.train("sl", (x, y), architecture="cnn22"),
        "^architecture: 'cnn22' is unknown; did you mean 'cnn2'",
    ),
    "training on one class": (
        lambda net, x, y: gs.train("sl", (x, 0 * y), epochs=1, progress=False),
        "^y must hold at least 2 classes, got 1$",
    ),
    "training on an image of each class": (
        lambda net, x, y: gs.train("sl", (x, torch.arange(COUNT)), epochs=1, progress=False),
        "^y must have a class with at least 2 training images, one to validate on; your-data has none$",
    ),
    "training on too few images": (
        lambda net, x, y: gs.train("sl", (x, y), epochs=1, train_samples=9, progress=False),
        "^train_samples must include 2 images of some class, .*: at least 11 for your-data, got 9$",
    ),
    "a file in the place of a data set": (
        lambda net, x, y: gs.train("sl", "mine/cifar10.npz"),
        "^dataset must be a name .*; for this file give dataset 'npz' with `data_root` mine/cifar10.npz",
    ),
    "nothing to report": (lambda net, x, y: gs.report("nowhere"), "^directory must be a directory with results, got n"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_gets_a_sentence_that_names_the_argument(
    case: str, net: nn.Module, x: Tensor, y: Tensor, digest: Digest
) -> None:
    misuse, sentence = MISUSE[case]
    before = digest(net)
    with pytest.raises(gs.GradscopeError, match=sentence) as caught:
        misuse(net, x, y)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert "CKPT" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert digest(net) == before


def test_logits_without_a_gradient_are_refused(x: Tensor, y: Tensor) -> None:
    class Cut(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10].detach()

    sentence = r"^model: Cut must have a gradient in the image"
    with pytest.raises(gs.GradscopeError, match=sentence):
        gs.trace(Cut().eval(), x, y)


@pytest.mark.parametrize("name", ["attack", "trace", "transfer"])
def test_no_pass_takes_more_images_than_a_batch(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Nor does the look at the model before. (An audit has the paper's attack too, of which the batch is a part.)"""

    class Small(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert len(images) <= 8
            return net(images)

    attacks = {"attacks": ["apgd-t", "fab-t", "square"], "queries": 20} if name == "attack" else {}
    models = {"a": Small().eval(), "b": Small().eval()} if name == "transfer" else Small().eval()
    found = getattr(gs, name)(models, x, y, steps=2, batch_size=8, progress=False, **attacks)
    assert found.tables

"""What a notebook hands to the library: images and labels, options, directories of results; of every odd kind."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import gradscope as gs
from gradscope.api.keywords import of_kind
from gradscope.config import Data
from gradscope.data import sources
from gradscope.measure.options import COMMANDS
from tests.soak import models, networks
from tests.soak.trials import Input, Make

_MEASURES: dict[str, Callable[..., Any]] = {
    "analyze": gs.trace,
    "attack": gs.attack,
    "transfer": gs.transfer,
    "audit": gs.audit,
    "landscape": gs.landscape,
}
#: Quick options of each, over which odd ones are laid.
_QUICK: dict[str, dict[str, Any]] = {
    "analyze": {"steps": 2},
    "attack": {"attacks": "fgsm", "norm": "linf", "epsilon": 0.1},
    "transfer": {"steps": 2},
    "audit": {"budget": "quick", "allow_inconclusive": True, "norm": "linf", "epsilon": 0.1},
    "landscape": {"points": 3, "images": 2, "steps": 2},
}
_MATERIAL: list[Path] = []


def prepare(material: Path) -> None:
    """Train the network, and save a result of each kind, in the process whose forks try the hostile inputs."""
    models.prepare(material)
    x, y = _sound()
    for name, measure in _MEASURES.items():
        saved = measure(_model(name), x, y, **_QUICK[name]).save(material / name, figures=False)
        assert (saved / "manifest.json").exists()
    _MATERIAL[:] = [material]


def _sound(count: int = 8) -> tuple[Tensor, Tensor]:
    return sources.load(Data()).test.batch(torch.arange(count), "cpu")


def _model(command: str = "analyze") -> Any:
    net: nn.Module = networks.make()
    return {"one": net, "other": networks.make()} if command == "transfer" else net


class _Pairs(Dataset[Any]):
    """A data set of these items; ``length`` is what it says of its size."""

    def __init__(self, items: Any, length: Any = None, classes: Any = None) -> None:
        self.items, self.length = items, len(items) if length is None else length
        if classes is not None:
            self.classes = classes

    def __len__(self) -> Any:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = _sound()
        yield from zip(x, y, strict=True)


class _Raising:
    """Raises wherever it is looked at."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("no array")

    def __len__(self) -> int:
        raise ZeroDivisionError("no length")

    def __getitem__(self, index: Any) -> Any:
        raise ZeroDivisionError("no item")

    def __repr__(self) -> str:
        raise ZeroDivisionError("no text")


_IMAGES: dict[str, Callable[[Tensor], Any]] = {
    "as it is": lambda x: x,
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x > 0.5,
    "int64": lambda x: (x * 255).long(),
    "int8": lambda x: (x * 100).to(torch.int8),
    "uint16": lambda x: (x * 255).to(torch.uint16),
    "uint8": lambda x: (x * 255).to(torch.uint8),
    "0 to 255": lambda x: x * 255,
    "-1 to 1": lambda x: x * 2 - 1,
    "nan": lambda x: x.where(x > 0, torch.nan),
    "infinite": lambda x: x.where(x > 0, torch.inf),
    "-0.01": lambda x: x - 0.01,
    "huge": lambda x: x * 1e38,
    "one image": lambda x: x[0],
    "one of a batch": lambda x: x[:1],
    "no image": lambda x: x[:0],
    "no channel": lambda x: x[:, :0],
    "no height": lambda x: x[:, :, :0],
    "flat": lambda x: x.flatten(1),
    "five axes": lambda x: x[None],
    "a number": lambda x: x.sum(),
    "channels last": lambda x: x.movedim(1, 3),
    "channels last in memory": lambda x: x.to(memory_format=torch.channels_last),
    "three channels": lambda x: x.repeat(1, 3, 1, 1),
    "larger": lambda x: x.repeat(1, 1, 2, 2),
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(8, -1, -1, -1),
    "a zillion": lambda x: x[:1, :, :1, :1].expand(8, 1, 10**7, 10**7),
    "many": lambda x: x[:1].expand(10**9, -1, -1, -1),
    "huge strides": lambda x: torch.zeros(8, 1, 8, 800)[:, :, :, ::100].copy_(x),
    "overlapping": lambda x: x.flatten().as_strided((8, 1, 8, 8), (1, 1, 1, 1)),
    "needs gradients": lambda x: x.clone().requires_grad_(),
    "has a history": lambda x: x.clone().requires_grad_() * 1,
    "in inference": lambda x: _in_inference(x),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "quantised": lambda x: torch.quantize_per_tensor(x, 1 / 255, 0, torch.quint8),
    "conjugate": lambda x: torch.conj(x.to(torch.complex64)),
    "a parameter": nn.Parameter,
    "a subclass": lambda x: x.as_subclass(networks._Subclass),
    "array": lambda x: x.numpy(),
    "read-only": lambda x: _read_only(x),
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "backwards": lambda x: x.numpy()[::-1],
    "fortran": lambda x: np.asfortranarray(x.numpy()),
    "long double": lambda x: x.numpy().astype(np.longdouble),
    "objects": lambda x: x.numpy().astype(object),
    "texts": lambda x: x.numpy().astype(str),
    "records": lambda x: np.zeros((8, 1, 8, 8), dtype=[("a", "f4")]),
    "dates": lambda x: np.zeros((8, 1, 8, 8), dtype="M8[s]"),
    "masked": lambda x: np.ma.masked_less(x.numpy(), 0.5),
    "matrix": lambda x: np.asmatrix(x.flatten(1).numpy()),
    "memory map": lambda x: _mapped(x),
    "list": lambda x: x.tolist(),
    "ragged": lambda x: [*x.tolist()[:-1], [[[0.0]]]],
    "list of tensors": list,
    "list of odd tensors": lambda x: [*x[:-1], x[0, 0]],
    "tuple": tuple,
    "generator": lambda x: (one for one in x),
    "dictionary": lambda x: {"x": x},
    "frame": lambda x: pd.DataFrame(x.flatten(1).numpy()),
    "series": lambda x: pd.Series(list(x.numpy())),
    "text": lambda x: "images",
    "bytes": lambda x: x.numpy().tobytes(),
    "none": lambda x: None,
    "raising": lambda x: _Raising(),
    "module": lambda x: nn.Identity(),
    "path": lambda x: Path("images"),
    "set": lambda x: {1, 2},
    "class": lambda x: Tensor,
    "fractions": lambda x: np.full((8, 1, 8, 8), Fraction(1, 2)),
}
_LABELS: dict[str, Callable[[Tensor], Any]] = {
    "as they are": lambda y: y,
    "int8": lambda y: y.to(torch.int8),
    "uint64": lambda y: y.numpy().astype(np.uint64),
    "uint64 beyond": lambda y: y.numpy().astype(np.uint64) + np.uint64(2**63),
    "float": lambda y: y.float(),
    "halves": lambda y: y + 0.5,
    "nan": lambda y: y * torch.nan,
    "infinite": lambda y: y + torch.inf,
    "bool": lambda y: y > 4,
    "complex": lambda y: y.to(torch.complex64),
    "negative": lambda y: y - 3,
    "large": lambda y: y + 10**6,
    "larger": lambda y: y + 2**40,
    "largest": lambda y: y * 0 + 2**63 - 1,
    "one class": lambda y: y * 0,
    "one-hot": lambda y: nn.functional.one_hot(y, 10),
    "a column": lambda y: y[:, None],
    "a number": lambda y: y[0],
    "none of them": lambda y: y[:0],
    "fewer": lambda y: y[:-1],
    "more": lambda y: torch.cat([y, y]),
    "list": lambda y: y.tolist(),
    "texts": lambda y: [str(label) for label in y],
    "mixed": lambda y: [1, "2", None, 4, 5, 6, 7, 8],
    "ragged": lambda y: [[1], [2, 3]],
    "objects": lambda y: y.numpy().astype(object),
    "numbers too large": lambda y: [10**30] * 8,
    "masked": lambda y: np.ma.masked_equal(y.numpy(), 3),
    "series": lambda y: pd.Series(y.numpy(), index=range(3, 11)),
    "categories": lambda y: pd.Categorical(y.numpy()),
    "missing": lambda y: pd.array([1, None, 3, 4, 5, 6, 7, 8], dtype="Int64"),
    "read-only": lambda y: _read_only(y),
    "generator": lambda y: (label for label in y),
    "meta": lambda y: y.to("meta"),
    "sparse": lambda y: y.to_sparse(),
    "none": lambda y: None,
    "raising": lambda y: _Raising(),
    "dictionary": lambda y: {"y": y},
    "text": lambda y: "01234567",
    "expanded": lambda y: y[:1].expand(8),
}
#: In the place of both.
_BOTH: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list of both": lambda x, y: [x, y],
    "pair of arrays": lambda x, y: (x.numpy(), y.numpy()),
    "three": lambda x, y: (x, y, y),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3),
    "loader of odd batches": lambda x, y: DataLoader(_Pairs([(x[0], 1), (x[1, :, :4], 2)] * 4), batch_size=1),
    "loader of a stream": lambda x, y: DataLoader(_Stream(), batch_size=3),
    "loader of three": lambda x, y: DataLoader(TensorDataset(x, y, y), batch_size=3),
    "loader of texts": lambda x, y: DataLoader(_Pairs([(one, "cat") for one in x]), batch_size=3),
    "loader of dictionaries": lambda x, y: DataLoader(_Pairs([{"x": one, "y": 1} for one in x]), batch_size=3),
    "raising loader": lambda x, y: DataLoader(_Pairs(_Raising(), 8), batch_size=3),
    "loader without batches": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=None),
    "empty loader": lambda x, y: DataLoader(TensorDataset(x[:0], y[:0]), batch_size=3),
    "stream": lambda x, y: _Stream(),
    "set": lambda x, y: _Pairs(list(zip(x, y, strict=True))),
    "set of arrays": lambda x, y: _Pairs([(one.numpy(), np.int32(label)) for one, label in zip(x, y, strict=True)]),
    "set of pictures": lambda x, y: _Pairs([(Image.new("L", (8, 8)), 1), (Image.new("L", (8, 8)), 0)] * 4),
    "set of odd pictures": lambda x, y: _Pairs([(Image.new("CMYK", (8, 8)), 1), (Image.new("I;16", (8, 8)), 0)]),
    "set of wide pictures": lambda x, y: _Pairs([(Image.new("L", (8, 8)), 1), (Image.new("L", (9, 8)), 0)]),
    "set of float labels": lambda x, y: _Pairs([(one, 1.0) for one in x]),
    "set of bool labels": lambda x, y: _Pairs([(one, True) for one in x]),
    "set of large labels": lambda x, y: _Pairs([(one, 10**30) for one in x]),
    "set of images alone": lambda x, y: _Pairs(list(x)),
    "set that lies": lambda x, y: _Pairs(list(zip(x, y, strict=True)), 100),
    "set of length 0": lambda x, y: _Pairs([], 0),
    "set of odd length": lambda x, y: _Pairs([], -1),
    "set of textual length": lambda x, y: _Pairs([], "eight"),
    "set of odd classes": lambda x, y: _Pairs(list(zip(x, y, strict=True)), None, [f"c{n}\n" for n in range(10)]),
    "set of few classes": lambda x, y: _Pairs(list(zip(x, y, strict=True)), None, ["a"]),
    "set of long classes": lambda x, y: _Pairs(list(zip(x, y, strict=True)), None, ["x" * 10**6] * 10),
    "set of raising classes": lambda x, y: _Pairs(list(zip(x, y, strict=True)), None, [_Raising()] * 10),
    "set of itself": lambda x, y: _containing_itself(),
    "raising": lambda x, y: _Raising(),
    "dictionary": lambda x, y: {"x": x, "y": y},
    "image set": lambda x, y: gs.ImageSet.from_tensors("a", x, y, [str(number) for number in range(10)]),
    "image set with an odd name": lambda x, y: gs.ImageSet.from_tensors("../a\n\ud800", x, y, list("0123456789")),
    "image set of no name": lambda x, y: gs.ImageSet.from_tensors("", x, y),
    "image set of equal classes": lambda x, y: gs.ImageSet.from_tensors("a", x, y, ["a"] * 10),
    "image set of float16": lambda x, y: gs.ImageSet.from_tensors("a", x.half(), y),
    "image set of negative labels": lambda x, y: gs.ImageSet.from_tensors("a", x, y - 5),
    "image set without images": lambda x, y: gs.ImageSet.from_tensors("a", x[:0], y[:0]),
}


def _in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _read_only(values: Tensor) -> Any:
    array = values.numpy().copy()
    array.flags.writeable = False
    return array


def _mapped(x: Tensor) -> Any:
    np.save("x.npy", x.numpy())
    return np.load("x.npy", mmap_mode="r")


def _containing_itself() -> Any:
    found = _Pairs([])
    found.items, found.length, found.dataset = [(found, 1)], 1, found  # type: ignore[attr-defined]
    return found


def _arrays(random: Random, folder: Path) -> Input:
    command = random.choice(("analyze", "analyze", "attack", "landscape", "train"))
    both = random.choice((None, None, *_BOTH))
    images, labels = random.choice(list(_IMAGES)), "as they are"
    if random.random() < 0.5:
        images, labels = random.choice(("as it is", images)), random.choice(list(_LABELS))

    def run() -> None:
        tempfile.tempdir = str(folder)
        x, y = _sound()
        before = x.clone(), y.clone()
        if both is None:
            given: tuple[Any, ...] = _IMAGES[images](x), _LABELS[labels](y)
        else:
            given = (_BOTH[both](x, y),)
        if command == "train":
            gs.train("sl", *given, epochs=1, batch_size=4, progress=False)
        else:
            _MEASURES[command](_model(), *given, **_QUICK[command])
        assert torch.equal(x, before[0]), "the images have changed"
        assert torch.equal(y, before[1]), "the labels have changed"

    return Input(f"{command} of {both or (images, labels)}", run)


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


#: Values of the wrong kind, and extremes.
_VALUES: list[Callable[[], Any]] = [
    *(
        (lambda value=value: value)
        for value in (
            0, 1, -1, 2, 3, 10**9, 2**31, 2**63, 10**400, -(2**63), 0.0, -0.0, 0.5, 1.5, 1e-300, 1e-45, 1e308,
            float("inf"), float("-inf"), float("nan"), True, False, None, "", " ", ",", ",,", "a", "all", "pgd", "linf",
            "8/255", "1/0", "0/1", "-1/2", "1e400", "nan", "inf", "0x10", "1_000", "½", "9" * 5000, "x" * 10**5,
            "\ud800", "\x00", "a\nb", "../..", "/", "~", "torchvision:resnet18", "a:b()", "os:system('true')",
            b"bytes", [], (), {}, set(), [None], [[]], ["pgd", "pgd"], ["pgd", 3], [0.1, 0.1], [0.1, "8/255"], [-1],
            (1, 2, 3), {"a": 1}, {1: 2}, {None: None}, range(3), 1 + 2j, Ellipsis, NotImplemented, object, print,
        )
    ),
    object,
    lambda: Fraction(1, 3),
    lambda: np.float32(0.1),
    lambda: np.int64(3),
    lambda: np.array([0.1, 0.2]),
    lambda: np.array(3),
    lambda: np.nan,
    lambda: torch.tensor(0.1),
    lambda: torch.tensor([3]),
    lambda: torch.zeros(2, 2),
    lambda: Path("x"),
    lambda: Path("x") / ("y" * 300),
    lambda: networks.make(),
    lambda: {"a": networks.make()},
    lambda: [networks.make()],
    lambda: (number for number in range(3)),
    lambda: pd.Series([1, 2]),
    lambda: pd.NA,
    lambda: _nested(2000),
    lambda: _Raising(),
    lambda: type("Text", (str,), {})("pgd"),
]  # fmt: skip


def _is_long(place: int) -> bool:
    value = _VALUES[place]() if place < len(_VALUES) - 1 else None
    return isinstance(value, int) and value > 10**6


_EVEN_LONG = list(range(len(_VALUES)))
_SHORT = [place for place in _EVEN_LONG if not _is_long(place)]
#: What takes as long as is asked.
_AS_LONG_AS_ASKED = {"steps", "restarts", "queries", "noise_points", "draws", "smoothing"}


def _keywords(command: str) -> list[str]:
    kind = COMMANDS[command]
    names = [*kind.model_fields, "dataset", "data_root", "image_size", "download", "device", "progress"]
    return [*names, "weights", "mean", "std", "trust_code", "ignore_class_names", "x", "y", "model"]


def _options(random: Random, folder: Path) -> Input:
    command = random.choices(list(_MEASURES), (4, 4, 3, 1, 4))[0]
    names = random.sample(_keywords(command), random.choice((1, 1, 1, 2)))
    chosen = {name: random.choice(_EVEN_LONG if name not in _AS_LONG_AS_ASKED else _SHORT) for name in names}
    assert not of_kind(COMMANDS[command], {"no such": 1})

    def run() -> None:
        tempfile.tempdir = str(folder)
        x, y = _sound()
        given: dict[str, Any] = {"model": _model(command), "x": x, "y": y, **_QUICK[command]}
        _MEASURES[command](**given | {name: _VALUES[place]() for name, place in chosen.items()})

    said = ", ".join(f"{name}={_described(place)}" for name, place in chosen.items())
    return Input(f"{command} with {said}", run)


def _described(place: int) -> str:
    try:
        return repr(_VALUES[place]())[:80]
    except Exception:
        return "what raises"


_JSON = (None, True, 0, -1, 1e308, 10**40, "", "x" * 1000, "<script>", [], {}, [[]], {"a": {}}, "nan", "\ud800")


def _results(random: Random, folder: Path) -> Input:
    command = random.choice(list(_MEASURES))
    directory = folder / "results"
    shutil.copytree(_MATERIAL[0] / command, directory)
    done = [_harm(random, directory) for _ in range(random.choice((1, 1, 2)))]
    use = random.choice(("read", "frames", "findings", "plot", "save", "report"))

    def run() -> None:
        tempfile.tempdir = str(folder)
        if use == "report":
            gs.report(directory)
            return
        result = gs.read(directory)
        if use == "frames":
            for table in result.tables:
                result.frame(table)
        elif use == "findings":
            for find in (repr, type(result).summary, type(result)._repr_html_):
                find(result)
            for name in ("robust_accuracy", "interval", "matrix", "verdict", "causes", "upper_bound", "models"):
                getattr(result, name, None)
        elif use == "plot":
            result.plot(random.choice([None, *result.plots]))
        elif use == "save":
            result.save(folder / "again", figures=random.random() < 0.3)

    return Input(f"{command}: {'; '.join(done)}; {use}", run, opens=True)


def _harm(random: Random, directory: Path) -> str:
    """Change one file of results, inside what its container checks; say how."""
    files = sorted(path for path in directory.glob("*.*") if path.suffix in (".json", ".csv"))
    path = random.choice(files) if files else directory / "none"
    if not files or random.random() < 0.05:
        shutil.rmtree(directory, ignore_errors=True)
        if random.random() < 0.5 and not directory.exists():
            directory.write_text("no directory")
        return "no directory"
    if random.random() < 0.1:
        path.unlink()
        return f"{path.name} removed"
    return f"{path.name}: {_harm_json(random, path) if path.suffix == '.json' else _harm_table(random, path)}"


def _harm_json(random: Random, path: Path) -> str:
    try:
        content = json.loads(path.read_text())
    except ValueError:  # harmed before
        content = None
    at, place = content, "."
    while isinstance(at, dict | list) and at:
        key: Any = random.choice(list(at)) if isinstance(at, dict) else random.randrange(len(at))
        place += f"{key}."
        inner = at[key]
        if random.random() < 0.4 or not isinstance(inner, dict | list) or not inner:
            value = random.choice(_JSON)
            at[key] = value
            path.write_text(json.dumps(content))
            return f"{place} is {value!r:.30}"
        at = inner
    path.write_text("[" * 100_000)
    return "nested deeply"


def _harm_table(random: Random, path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() or [""]
    kind = random.choice(
        ("cell", "cell", "cell", "column", "row", "rows", "names", "empty", "bytes", "quotes", "again")
    )
    row = random.randrange(1, len(lines)) if len(lines) > 1 else 0
    cells = lines[row].split(",")
    place = random.randrange(len(cells))
    if kind == "cell":
        cells[place] = random.choice(("", "nan", "inf", "-1", "1e999", "x", "=1+1", "<b>", "9" * 400, "None", "0.5.5"))
        lines[row] = ",".join(cells)
    elif kind == "column":
        lines = [",".join(line.split(",")[:place] + line.split(",")[place + 1 :]) for line in lines]
    elif kind == "row":
        lines[row] = ",".join(cells[: random.randrange(len(cells))])
    elif kind == "rows":
        lines = lines[: random.randrange(len(lines))]
    elif kind == "names":
        lines[0] = random.choice(("", "a,b", lines[0].upper(), lines[0] + "," + lines[0], "\x00"))
    elif kind == "quotes":
        lines[row] = '"' + lines[row]
    elif kind == "again":
        lines.append(lines[row])
    text = "" if kind == "empty" else "\n".join(lines) + "\n"
    path.write_bytes(text.encode() if kind != "bytes" else random.randbytes(300))
    return f"{kind} {place} of row {row}"


MAKES: dict[str, Make] = {
    "library: arrays": _arrays,
    "library: options": _options,
    "library: results": _results,
}

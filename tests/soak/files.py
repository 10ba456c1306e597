"""Files that gradscope reads, changed at random, and the commands that read them."""

import contextlib
import gzip
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from gradscope.cli import main
from gradscope.config import Data
from gradscope.data import sources
from tests.soak import containers
from tests.soak.containers import Change, opens
from tests.soak.mutation import TEXTS, mutate_bytes
from tests.soak.trials import Input, Make

#: A user's own module with a network for the weights.
NETS = """
from gradscope.models.architectures import ModelSpec, build


def make():
    return build(ModelSpec("cnn2", classes=10, channels=1, image_size=8, mean=(0.5,), std=(0.5,)))
"""
TRAIN = ("train", "--mode", "sl", "--arch", "cnn2", "--epochs", "2", "--batch-size", "16", "--train-samples", "60")
MEASURE = ("--samples", "4", "--steps", "1", "--no-figures")
#: Every measurement, small.
RECIPE = """
[grid]
data = ["digits"]
architectures = ["cnn2"]
modes = ["sl", "rl"]

[training]
epochs = 1
batch_size = 16
train_samples = 60

[[measure]]
name = "analysis"
command = "analyze"
samples = 4
steps = 2

[[measure]]
name = "landscape"
command = "landscape"
images = 1
points = 3

[[measure]]
name = "attack"
command = "attack"
attacks = "fgsm"
samples = 4

[[measure]]
name = "transfer"
command = "transfer"
samples = 4
steps = 1

[[measure]]
name = "audit"
command = "audit"
samples = 4
allow_inconclusive = true
"""
#: What lies over a mode's preset.
CONFIG = """
batch_size = 16
architecture = "cnn2"

[[phases]]
epochs = 1
objective = "cross-entropy"
learning_rate = 0.001
"""
#: Runs that are killed before their last step, for `--resume`: folder and command.
UNFINISHED = {
    "analysis": ("analyze", "a.pt", "b.pt", "--attack", "pgd,pgd-paper", *MEASURE),
    "landscape": ("landscape", "a.pt", "b.pt", "--images", "1", "--points", "3", "--no-figures"),
    "attack": ("attack", "a.pt", "b.pt", "--attacks", "fgsm,pgd", "--save-images", *MEASURE),
}


def quietly(*arguments: str) -> None:
    """Run a command in this process, without a word; it must succeed."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.chdir(Path.cwd()):
        try:
            main(list(arguments))
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"{' '.join(arguments)} exits with {ended.code}") from None


def prepare(material: Path) -> None:
    """Write sound files of every kind to the folder ``material``."""
    with contextlib.chdir(material):
        Path("nets.py").write_text(NETS)
        for seed, name in enumerate(("a.pt", "b.pt")):
            quietly(*TRAIN, "--epochs", "5", "--train-samples", "400", "--seed", str(seed), "--out", name)
        state = torch.load("a.pt")["state_dict"]
        torch.save(state, "weights.pt")
        from safetensors.torch import save_file

        save_file(state, "weights.safetensors")
        images = sources.load(Data()).train
        _write_arrays(images.images[:80].numpy(), images.labels[:80].numpy())
        Path("study.toml").write_text(RECIPE)
        quietly("study", "study.toml", "--checkpoints", "trained", "--out", "study", "--no-figures")
        shutil.copytree("study/attack", "drawn")
        quietly("report", "drawn")
        shutil.rmtree("drawn")
        Path("config.toml").write_text(CONFIG)
        _interrupted("half", (*TRAIN, "--out", "half/half.pt"), after="half.history.csv")
        for folder, command in UNFINISHED.items():
            _interrupted(folder, (*command, "--out", folder), after="manifest.json")


def _write_arrays(images: Any, labels: Any) -> None:
    parts = {"train": slice(60), "test": slice(60, None)}
    np.savez(
        "digits.npz",
        **{f"x_{name}": images[part] for name, part in parts.items()},
        **{f"y_{name}": labels[part] for name, part in parts.items()},
        classes=np.array([f"digit {digit}" for digit in range(10)]),
    )
    for name, part in parts.items():
        for number, (image, label) in enumerate(zip(images[part], labels[part], strict=True)):
            if label < 3:
                place = Path("tree", name, f"{label}", f"{number}.png")
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0]).save(place)
    Path("tree/classes.txt").write_text("0\n1\n2\n")
    Path("fashion").mkdir()
    for name, part in (("train", slice(60)), ("t10k", slice(60, None))):
        for what, array in (("images-idx3", images[part, 0]), ("labels-idx1", labels[part].astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            Path("fashion", f"{name}-{what}-ubyte").write_bytes(head + array.tobytes())


def _interrupted(folder: str, command: Sequence[str], after: str) -> None:
    """Run ``command`` in a fork that is killed before it replaces a file called ``after`` for the second time."""
    Path(folder).mkdir()
    child = os.fork()
    if not child:
        times = 0

        def kill(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal times
            if event == "os.rename" and str(arguments[1]).endswith(after):
                times += 1
                if times == 2:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        with contextlib.suppress(BaseException):
            quietly(*command)
        os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        raise RuntimeError(f"{' '.join(command)} was not interrupted")


def _bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    return mutate_bytes(content, random)


def _nested(content: bytes, random: Random) -> tuple[bytes, str]:
    start, end = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"a = [", b"]")))
    depth = random.choice((500, 100_000))
    return start * depth + end * depth, f"nested {depth} deep"


#: Changes by the name's ending; the first, of bytes, need not open.
_CHANGES: dict[str, tuple[Change, ...]] = {
    ".json": (_bytes, *[containers.json_changed] * 5, _nested),
    ".toml": (_bytes, *[containers.toml_changed] * 5, _nested),
    ".csv": (_bytes, *[containers.csv_changed] * 4),
    ".npz": (_bytes, *[containers.npz_changed] * 3, containers.zip_changed),
    ".pt": (_bytes, *[containers.torch_changed] * 3, containers.zip_changed, containers.hostile_pickle),
    ".resume": (_bytes, *[containers.torch_changed] * 3, containers.zip_changed, containers.hostile_pickle),
    ".safetensors": (_bytes, *[containers.safetensors_changed] * 2),
    ".gz": (_bytes, *[containers.gzip_changed] * 2),
    ".png": (_bytes, *[containers.png_changed] * 2, containers.odd_image, containers.program_image),
    ".txt": (_bytes,),
    "": (_bytes, *[containers.idx_changed] * 2),
}


def _spoil(path: Path, random: Random) -> tuple[str, bool | None]:
    """Change the file at ``path``, or put something else in its place; what was done, and whether it opens."""
    name = path.name
    if random.random() < 0.06:
        path.unlink()
        other = random.choice(("a folder", "a pipe", "a link to itself", "an endless file", "nothing", "an empty file"))
        if other == "a folder":
            path.mkdir()
        elif other == "a pipe":
            os.mkfifo(path)
        elif other == "a link to itself":
            path.symlink_to(path)
        elif other == "an endless file":
            path.symlink_to("/dev/zero")
        elif other == "an empty file":
            path.touch()
        return f"{name}: {other}", False
    if name == "classes.txt":
        names = [random.choice((*TEXTS, "0", "1", "2")) for _ in range(random.choice((1, 2, 3, 1000)))]
        path.write_text("\n".join(names), errors="replace")
        return f"{name}: {names[:3]!r:.80}", None
    content, done = random.choice(_CHANGES[path.suffix])(path.read_bytes(), random)
    path.write_bytes(content)
    return f"{name}: {done}", opens(path) if path.suffix != ".txt" else None


def _copy(material: Path, folder: Path, *names: str) -> None:
    for name in names:
        if (material / name).is_dir():
            shutil.copytree(material / name, folder / name)
        else:
            shutil.copy(material / name, folder / name)


def _compress(path: Path) -> Path:
    compressed = path.with_name(f"{path.name}.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes(), 1))
    path.unlink()
    return compressed


def _run(*arguments: str) -> Callable[[], object]:
    return partial(main, list(arguments))


def _said(done: str, *arguments: str) -> str:
    return f"{done} | gradscope {' '.join(arguments)}"


def _input(path: Path, random: Random, *arguments: str) -> Input:
    if random.random() < 0.03:
        return Input(_said("as it is", *arguments), _run(*arguments), sound=True)
    done, opened = _spoil(path, random)
    return Input(_said(done, *arguments), _run(*arguments), opened)


def _checkpoints(material: Path) -> Make:
    measures = (
        ("analyze", "a.pt", "--metrics", "norm,entropy", *MEASURE, "--out", "out"),
        ("analyze", "a.pt", "--metrics", "norm,entropy", *MEASURE, "--out", "out"),
        ("attack", "a.pt", "--attacks", "fgsm", *MEASURE, "--out", "out"),
        ("landscape", "a.pt", "--images", "1", "--points", "2", "--no-figures", "--out", "out"),
        ("transfer", "a.pt", "b.pt", *MEASURE, "--out", "out"),
    )

    def make(random: Random, folder: Path) -> Input:
        _copy(material, folder, "a.pt", "b.pt")
        return _input(folder / "a.pt", random, *random.choice(measures))

    return make


def _weights(material: Path) -> Make:
    def make(random: Random, folder: Path) -> Input:
        name = random.choice(("weights.pt", "weights.safetensors"))
        _copy(material, folder, name, "nets.py")
        measure = ("--dataset", "digits", "--metrics", "norm", *MEASURE, "--out", "out")
        return _input(folder / name, random, "analyze", "nets:make", "--trust-code", "--weights", name, *measure)

    return make


def _training(material: Path) -> Make:
    def make(random: Random, folder: Path) -> Input:
        _copy(material, folder, "half")
        name = random.choice(("half.pt.resume", "half.pt.resume", "half.pt", "half.history.csv"))
        return _input(folder / "half" / name, random, *TRAIN, "--resume", "--out", "half/half.pt")

    return make


def _data(material: Path, dataset: str, name: str, pattern: str, *options: str) -> Make:
    train = ("train", "--arch", "cnn2", "--mode", "sl", "--epochs", "1", "--batch-size", "16", "--dataset", dataset)

    def make(random: Random, folder: Path) -> Input:
        _copy(material, folder, name)
        root = folder / name
        path = root if root.is_file() else random.choice(sorted(root.glob(pattern)))
        if dataset == "fashion-mnist" and random.random() < 0.4:
            path = _compress(path)
        return _input(path, random, *train, "--data-root", name, *options, "--out", "out.pt")

    return make


def _images(material: Path) -> Make:
    sizes = ((), (), ("--image-size", "8"), ("--image-size", "16"))
    makes = [_data(material, "folder", "tree", "*/*/*.png", *size) for size in sizes]

    def make(random: Random, folder: Path) -> Input:
        return random.choice(makes)(random, folder)

    return make


def _results(material: Path) -> Make:
    def make(random: Random, folder: Path) -> Input:
        _copy(material, folder, "study")
        files = [path for path in (folder / "study").rglob("*") if path.suffix in (".json", ".csv", ".npz")]
        path = random.choice(sorted(files))
        if path.suffix == ".csv" and random.random() < 0.2:
            path = _compress(path)
        place = str(path.parent.relative_to(folder))
        commands = [("report", "study"), ("claims", "study")]
        if path.parent.parent == folder / "study" and not path.parent.name.startswith("."):
            commands += [("figures", place), ("report", place)]
        return _input(path, random, *random.choice(commands))

    return make


def _unfinished(material: Path) -> Make:
    def make(random: Random, folder: Path) -> Input:
        name, command = random.choice(list(UNFINISHED.items()))
        _copy(material, folder, name, "a.pt", "b.pt")
        files = [path for path in (folder / name).rglob("*") if path.is_file() and path.suffix in _CHANGES]
        return _input(random.choice(sorted(files)), random, *command, "--resume", "--out", name)

    return make


def _studies(material: Path) -> Make:
    command = ("study", "study.toml", "--checkpoints", "trained", "--out", "study", "--no-figures")

    def make(random: Random, folder: Path) -> Input:
        _copy(material, folder, "study", "study.toml", "a.pt", "b.pt")
        files = [path for path in (folder / "study").rglob("*") if path.is_file() and path.suffix in _CHANGES]
        return _input(random.choice(sorted(files)), random, *command)

    return make


def _recipes(material: Path) -> Make:
    def make(random: Random, folder: Path) -> Input:
        if random.random() < 0.3:
            _copy(material, folder, "config.toml")
            train = ("--dataset", "digits", "--train-samples", "40", "--out", "out.pt")
            return _input(folder / "config.toml", random, "train", "--mode", "rl", "--config", "config.toml", *train)
        _copy(material, folder, "study.toml", "a.pt", "b.pt")
        return _input(folder / "study.toml", random, "study", "study.toml", "--dry-run", "--out", "study")

    return make


def makes(material: Path) -> dict[str, Make]:
    """A category of inputs a name."""
    return {
        "checkpoints": _checkpoints(material),
        "weights": _weights(material),
        "training state": _training(material),
        "images": _images(material),
        "class lists": _data(material, "imagenet100", "tree", "classes.txt", "--image-size", "32"),
        ".npz": _data(material, "npz", "digits.npz", ""),
        "IDX": _data(material, "fashion-mnist", "fashion", "*"),
        "results": _results(material),
        "unfinished results": _unfinished(material),
        "finished studies": _studies(material),
        "recipes": _recipes(material),
    }

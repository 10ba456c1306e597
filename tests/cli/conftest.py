"""Commands run in this process, and a world of small real data for them to work on."""

import contextlib
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from gradscope.cli import main

QUICK = ("--steps", 2, "--samples", 6, "--metrics", "loss")


#: How the lines begin that a command writes to stderr where all went well.
WELL = ("gradscope: caution: ", "figures: ", "next: ", "         ")


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def mistakes(self) -> str:
        """What stderr says beside what every command says there."""
        return "".join(line for line in self.err.splitlines(keepends=True) if not line.startswith(WELL))


def run_command(*arguments: object) -> Ended:
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


def output_of(*arguments: object) -> str:
    """The output of a command that succeeds and leaves stderr alone."""
    ended = run_command(*arguments)
    assert (ended.code, ended.mistakes) == (0, "")
    return ended.out


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def run() -> Callable[..., Ended]:
    return run_command


@pytest.fixture(scope="session")
def done() -> Callable[..., str]:
    return output_of


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    return content_of


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


def make_world(root: Path) -> None:
    (root / "other").mkdir()
    output_of("train", "--mode", "sl", "--epochs", 2, "--out", root / "sl.pt")
    output_of("train", "--mode", "rl", "--epochs", 4, "--out", root / "rl.pt")
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
    output_of("train", "--mode", "sl", "--epochs", 1, *npz, root / "grey.npz", "--out", root / "grey.pt")
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
    output_of("train", "--mode", "sl", "--epochs", 1, *npz, root / "colour.npz", "--out", root / "colour.pt")
    output_of("train", "--mode", "sl", "--epochs", 1, "--arch", "cnn4", "--out", root / "large.pt")
    output_of("analyze", root / "sl.pt", *QUICK, "--out", root / "results")
    for name, file, content in (("cut", "steps.csv", "checkpoint,mode\n"), ("unsaid", "manifest.json", "{")):
        shutil.copytree(root / "results", root / name)
        (root / name / file).write_text(content)
    (root / "later").mkdir()
    (root / "later" / "manifest.json").write_text('{"kind": "analysis", "schema": 2}')


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _cache(cache_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADSCOPE_CACHE", str(cache_folder))
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """Checkpoints, data, results, and things that are wrong; no refused command may change a byte of it."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADSCOPE_CACHE", str(cache_folder))
        make_world(root)
    return root

"""Measurements shared by two processes: the same files as one process writes, whatever goes wrong."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import gradscope
from gradscope.measure import analyze
from gradscope.measure.partial_results import PartialResults
from gradscope.models.checkpoint import load

Arguments = tuple[object, ...]
Run = Callable[..., Any]

#: Runs each list of arguments in turn, in every process that there is, and says how each ended.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from gradscope.cli import main
from gradscope.figures import draw

if __name__ == "__main__":
    torch.set_num_threads(1)
    draw.draw = lambda directory: []  # takes longer than all else here; where main starts processes, they do draw
    ended = []
    for arguments in json.loads(Path("calls.json").read_text()):
        try:
            main(arguments)
        except SystemExit as left:
            ended.append(left.code or 0)
        except RuntimeError as error:
            ended.append(str(error).splitlines()[0])
    Path(f"ended-{os.environ.get('RANK', 'spawning')}.json").write_text(json.dumps(ended))
"""

#: The model is ``sl.pt``, but for what the second of two processes meets in a batch of 16 images.
OUTSIDERS = """
import os
from pathlib import Path
import torch
from gradscope.errors import GradscopeError
from gradscope.models.checkpoint import load

FLAG = Path({flag!r})
SECOND = os.environ.get("LOCAL_RANK") == "1"


class Model(torch.nn.Module):
    def __init__(self, fails):
        super().__init__()
        self.inner, self.fails, self.calls = load(Path({text!r})).build(), fails, 0

    def forward(self, images):
        if len(images) == 16 and SECOND:
            self.calls += 1
            self.fails(self.calls)
        return self.inner(images)


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = load(Path({text!r})).build()

    def forward(self, images):
        return self.inner(images + 0.05 * torch.randn_like(images))


def refusing():
    def fails(calls):
        raise GradscopeError("CKPT: the second process does not like it")
    return Model(fails)


def breaking():
    def fails(calls):
        if calls == 2 and FLAG.exists():
            FLAG.unlink()
            raise RuntimeError("the second process broke")
    return Model(fails)


def noisy():
    return Noisy()


def metric(images, labels):
    def value(network):
        loss = float(torch.nn.functional.cross_entropy(network.forward(images), labels).detach())
        if loss > 1:
            raise ValueError(f"a loss of {{loss}}")
        return loss
    return value
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    (root / "two.py").write_text(SCRIPT)
    (root / "fails").touch()
    (root / "outsiders.py").write_text(OUTSIDERS.format(text=str(world / "sl.pt"), flag=str(root / "fails")))
    return root


@pytest.fixture(scope="module")
def commands(world: Path) -> dict[str, Arguments]:
    """40 images in batches of 16: three for two processes, the last one uneven; planes and tiles likewise."""
    sl, rl = world / "sl.pt", world / "rl.pt"
    few = ("--samples", 40, "--batch-size", 16)
    foreign = ("--trust-code", "--dataset", "digits")
    attack = ("attack", "--attacks", "pgd,transfer,square", "--steps", 3, "--queries", 9, *few)
    weights = ("landscape", sl, "--space", "weights", "--points", 9, "--images", 20, "--trust-code")
    return {
        "analyze": ("analyze", sl, rl, "--attack", "pgd,pgd-paper", "--steps", 3, *few),
        "one batch": ("analyze", sl, "--steps", 3, "--samples", 5, "--restarts", 2, "--metrics", "loss,cosine"),
        "noisy": ("analyze", "outsiders:noisy", "--steps", 3, *few, *foreign),
        "attack": (*attack, sl, rl, "--surrogate", sl, "--epsilons", "0.4,0.8", "--save-images"),
        "transfer": ("transfer", sl, rl, "--steps", 3, *few),
        "audit": ("audit", sl, "--budget", "quick", "--samples", 20, "--batch-size", 8, "--allow-inconclusive"),
        "input": ("landscape", sl, rl, "--right", "--images", 3, "--points", 5, "--steps", 3, "--plane", "shared"),
        "weights": (*weights, "--metric", "outsiders:metric"),
        "ways": (*weights, "--towards", rl, "--line", "--align", "--curve", "bezier", "--curve-updates", 3),
        "spectrum": ("spectrum", sl, "--images", 20, "--iterations", 4, "--probes", 3, "--eigenvalues", 2),
        "long": ("analyze", sl, rl, "--steps", 3, *few),
        "resumed": ("attack", "--attacks", "pgd", *few, "--steps", 5, "outsiders:breaking", *foreign),
    }


def contents(out: Path) -> dict[str, Any]:
    """Everything in a directory of results, but for times and how the work was shared."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.iterdir() if path.is_file()):
        name = path.name
        if name == "attacks.csv":
            frame = pd.read_csv(path)
            found[name] = frame[frame["metric"] != "seconds"].to_csv()
        elif name == "manifest.json":
            manifest = json.loads(path.read_text())
            del manifest["provenance"], manifest["sha256"]
            for entry in manifest["checkpoints"]:
                del entry["seconds"]
            found[name] = manifest
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                found[name] = {member: archive.read(member) for member in archive.namelist()}
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def alone(place: Path, commands: dict[str, Arguments], run: Run) -> dict[str, Path]:
    """The results of one process."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscope.figures.draw.draw", lambda directory: [])
        patch.syspath_prepend(place)
        torch.set_num_threads(1)
        try:
            outs = {}
            for name, arguments in commands.items():
                outs[name] = place / "alone" / name
                ended = run(*arguments, "--out", outs[name])
                assert ended.code == 0, ended.err
        finally:
            torch.set_num_threads(threads)
    return outs


def in_two_processes(place: Path, *launcher: str, calls: list[Arguments]) -> subprocess.CompletedProcess[str]:
    (place / "calls.json").write_text(json.dumps([[str(one) for one in call] for call in calls]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    command = [sys.executable, *launcher, "two.py"]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=900)


def ended(place: Path, name: str) -> list[Any]:
    found: list[Any] = json.loads((place / f"ended-{name}.json").read_text())
    return found


REFUSED = ("attack", "outsiders:refusing", "--attacks", "pgd", "--samples", 40, "--batch-size", 16, "--steps", 2)
FOREIGN = ("--trust-code", "--dataset", "digits")


@pytest.fixture(scope="module")
def unfinished(place: Path, commands: dict[str, Arguments], run: Run) -> Path:
    """An analysis that one process leaves after the second model's first batch."""
    write, written, out = PartialResults.write, [], place / "two" / "long"

    def stops(self: PartialResults, name: str, values: Any) -> None:
        write(self, name, values)
        written.append(name)
        if len(written) == 4:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialResults, "write", stops)
        patch.setattr(analyze, "KEEP_EVERY", 0.0)
        with pytest.raises(InterruptedError):
            run(*commands["long"], "--out", out)
    return out


@pytest.fixture(scope="module")
def interrupted(place: Path, commands: dict[str, Arguments], alone: dict[str, Path], run: Run) -> Path:
    """What one process leaves when it is interrupted at the fifth piece."""
    get, made, out = PartialResults.get, [], place / "two" / "continued"

    def stops(self: PartialResults, name: str, make: Any) -> Any:
        made.append(name)
        if len(made) == 5:
            raise InterruptedError
        return get(self, name, make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialResults, "get", stops)
        patch.syspath_prepend(place)
        with pytest.raises(InterruptedError):
            run(*commands["resumed"], "--out", out)
    return out


@pytest.fixture(scope="module")
def torchrun(
    place: Path, commands: dict[str, Arguments], interrupted: Path, unfinished: Path
) -> tuple[dict[str, Path], subprocess.CompletedProcess[str]]:
    """The results of two processes that ``torchrun`` starts, then what is refused, breaks, and is resumed."""
    outs = {name: place / "two" / name for name in commands}
    calls = [
        (*arguments, "--out", outs[name]) for name, arguments in commands.items() if name not in ("resumed", "long")
    ]
    calls += [
        (*commands["transfer"], "--out", outs["transfer"]),
        (*REFUSED, *FOREIGN, "--out", place / "two" / "refused"),
        (*commands["resumed"], "--out", outs["resumed"]),
        (*commands["resumed"], "--resume", "--out", interrupted),
        (*commands["long"], "--resume", "--out", unfinished),
    ]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return outs, in_two_processes(place, *launcher, calls=calls)


def test_every_process_of_torchrun_ends_alike(place: Path, torchrun: Any) -> None:
    _, done = torchrun
    assert done.returncode == 0, done.stderr
    first, second = ended(place, "0"), ended(place, "1")
    assert first == [*[0] * 10, 2, 2, 2, 0, 0], done.stderr
    assert second == [*[0] * 10, 2, 2, 2, 0, 0], done.stderr


@pytest.mark.parametrize(
    "name", ["analyze", "one batch", "noisy", "attack", "transfer", "audit", "input", "weights", "ways", "spectrum"]
)
def test_two_processes_write_the_files_of_one(alone: dict[str, Path], torchrun: Any, name: str) -> None:
    outs, done = torchrun
    assert done.returncode == 0, done.stderr
    ours, theirs = contents(outs[name]), contents(alone[name])
    assert ours.keys() == theirs.keys()
    assert len(ours) > 2
    for file, content in theirs.items():
        assert ours[file] == content, file
    manifest = json.loads((outs[name] / "manifest.json").read_text())
    assert (manifest["complete"], manifest["provenance"]["processes"]) == (True, 2)
    assert done.stdout.splitlines().count(str(outs[name])) == 1, "the first process speaks for all"
    assert not (outs[name] / ".tiles").exists()


def test_a_mistake_of_one_process_is_told_once_and_ends_all(place: Path, torchrun: Any) -> None:
    _, done = torchrun
    assert done.stderr.count("gradscope: CKPT: the second process does not like it\n") == 1
    assert done.stderr.count("holds results; pass --overwrite") == 1


def test_what_two_processes_left_one_completes(
    place: Path,
    commands: dict[str, Arguments],
    alone: dict[str, Path],
    torchrun: Any,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = torchrun[0]["resumed"]
    pieces = {path.name: path.stat().st_mtime_ns for path in (out / ".tiles").glob("*.pt")}
    assert len(pieces) == 4, "three of the clean images, and what the first made when the second broke"
    get, read = PartialResults.get, []

    def seen(self: PartialResults, name: str, make: Any) -> Any:
        path = self.folder / f"{name}.pt"
        if path.exists():
            read.append((path.name, path.stat().st_mtime_ns))
        return get(self, name, make)

    monkeypatch.setattr(PartialResults, "get", seen)
    monkeypatch.setattr("gradscope.figures.draw.draw", lambda directory: [])
    monkeypatch.syspath_prepend(place)
    refused = run(*commands["resumed"], "--out", out)
    assert (refused.code, "--resume continues it" in refused.err) == (2, True)
    assert run(*commands["resumed"], "--resume", "--out", out).code == 0
    assert dict(read) == pieces
    assert contents(out) == contents(alone["resumed"])


def test_what_one_process_left_two_complete(
    interrupted: Path, unfinished: Path, alone: dict[str, Path], torchrun: Any
) -> None:
    for out, name in ((interrupted, "resumed"), (unfinished, "long")):
        assert contents(out) == contents(alone[name])
        assert not (out / ".tiles").exists()


def test_the_command_starts_the_processes_itself(
    place: Path, commands: dict[str, Arguments], alone: dict[str, Path], run: Run
) -> None:
    out = place / "two" / "spawned"
    done = in_two_processes(place, calls=[(*commands["one batch"], "--devices", 2, "--out", out)])
    assert ended(place, "spawning") == [0], done.stderr
    assert done.stderr.splitlines()[0].startswith(f"figures: {out / 'figures'} (")
    assert done.stdout.splitlines()[-1] == str(out)
    assert contents(out) == contents(alone["one batch"])
    assert (out / "figures").is_dir()


@pytest.mark.slow
def test_fabric_run_starts_the_processes_too(tmp_path: Path) -> None:
    start = [Path(sys.executable).with_name("fabric"), "run", "--accelerator", "cpu", "--devices", "2"]
    command = [
        Path(gradscope.__file__).parent / "__main__.py",
        "train",
        "--mode",
        "sl",
        "--epochs",
        "1",
        "--train-samples",
        "200",
    ]
    out = tmp_path / "sl.pt"
    done = subprocess.run(
        [*start, *command, "--device", "cpu", "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{out}  clean accuracy ") == 1
    assert load(out).provenance["processes"] == 2

"""Runs of a command that SIGKILL ends, before a file operation or at a moment, and that are resumed until complete.

What they leave is compared with what an undisturbed run leaves. A run is a fork of this process, which has imported
what it needs; so this process may have no threads.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from gradscope.cli import main
from gradscope.measure import analyze
from gradscope.training import state
from tests.study.contents import content

#: Events of Python that precede a file operation.
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
#: Flags of a file that is opened to be written.
WRITING = os.O_WRONLY | os.O_RDWR
#: Exit code of a command that was refused.
REFUSED = 2

RECIPE = """
[grid]
modes = ["sl"]
architectures = ["cnn2"]
[training]
epochs = 2
train_samples = 60
keep_epochs = true
[models.longer]
mode = "sl"
from = "sl"
epochs = 1
[[scale]]
models = "sl"
factors = [10]
[[measure]]
command = "transfer"
steps = 2
samples = 8
[[measure]]
command = "analyze"
models = "longer*"
steps = 2
samples = 8
"""
_TRAIN = "train --mode {mode} --arch cnn2"
_QUICK = "sl.pt rl.pt --no-figures --batch-size 8 --steps 2"
_LINES = {
    "train": f"{_TRAIN} --epochs 2 --train-samples 60 --keep-epochs",
    "analyze": f"analyze {_QUICK} --samples 20 --attack pgd,pgd-paper",
    "attack": f"attack {_QUICK} --samples 12 --attacks pgd,apgd-ce,transfer,square --queries 4 --surrogate rl.pt "
    "--epsilons 0.5,1 --save-images",
    "transfer": f"transfer {_QUICK} --samples 16",
    "audit": "audit sl.pt rl.pt --no-figures --budget quick --samples 4 --allow-inconclusive",
    "landscape": "landscape sl.pt rl.pt --no-figures --images 2 --points 3 --steps 2",
    "landscape --space weights": "landscape sl.pt --space weights --no-figures --images 8 --points 5 --line",
    "study": "study tiny.toml --no-figures",
}
COMMANDS = tuple(_LINES)


class Kill(NamedTuple):
    """When a run is killed: before a file operation, counted from 1, or after seconds."""

    operation: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"after {self.seconds:.3f} s" if self.operation is None else f"before operation {self.operation}"


class Kills:
    """One command, which reads tiny models in the folder ``material`` and makes them where there are none yet.

    ``kills``: how many runs SIGKILL has ended. ``every``: seconds between two times that a run keeps how far it is.
    ``operations`` and ``seconds``: of an undisturbed run that keeps it always. ``other``: what a run of other options
    has left.
    """

    def __init__(self, command: str, material: Path) -> None:
        self.command, self.material, self.kills, self.every = command, material, 0, -1.0
        material.mkdir(parents=True, exist_ok=True)
        (material / "tiny.toml").write_text(RECIPE)
        for mode in () if command in ("train", "study") else ("sl", "rl"):
            if not (material / f"{mode}.pt").exists():
                made = f"{_TRAIN.format(mode=mode)} --epochs 8"
                _silently(*made.split(), "--out", str(material / f"{mode}.pt"))
        self.other = material / command / "other"
        if not self.other.exists():
            self.other.mkdir(parents=True)
            _silently(
                *self._line(self.other, ("--set", "training.epochs=1") if command == "study" else ("--seed", "1"))
            )
        with tempfile.TemporaryDirectory(dir=material) as temporary:
            folder = Path(temporary) / "here"
            _silently(*self._line(folder))  # here, so that no fork has to import what it imports
            self.content = content(folder)
            forked = Path(temporary) / "forked"
            started = time.perf_counter()
            status, said = self._run(forked, None, count=True)
            self.seconds = time.perf_counter() - started
            if status or content(forked) != self.content:
                raise AssertionError(f"{command}: a fork ended with {status} and other files than this process: {said}")
            self.operations = int(said.rpartition(" ")[2])

    def kill(self, random: random.Random, folder: Path) -> str | None:
        """Kill runs in the empty ``folder`` up to three times; one line where what is resumed is not as undisturbed.

        Now and then they overwrite what another run has left.
        """
        self.every = random.choice((-1.0, 10.0))
        kills = [self._some(random) for _ in range(random.randint(1, 3))]
        if random.random() < 0.3:
            shutil.copytree(self.other, folder, dirs_exist_ok=True)
            return self._killed_at(kills, folder, () if self.command == "study" else ("--overwrite",))
        return self._killed_at(kills, folder)

    def everywhere(self, folder: Path) -> Iterator[str]:
        """Kill a run before each of its file operations; a line for each that is not resumed as undisturbed."""
        self.every = -1.0
        for operation in range(1, self.operations + 1):
            if failure := self._killed_at([Kill(operation)], folder / str(operation)):
                yield failure

    def _some(self, random: random.Random) -> Kill:
        if random.random() < 0.5:
            return Kill(random.randint(1, self.operations))
        return Kill(seconds=random.uniform(0.0, self.seconds))

    def _killed_at(self, kills: Sequence[Kill], folder: Path, first: Sequence[str] = ()) -> str | None:
        """Run with the options ``first``, then with ``--resume``, killed at each of ``kills``, until complete."""
        resume = () if self.command == "study" else ("--resume",)
        story: list[str] = [*first]
        for number, kill in enumerate([*kills, None]):
            status, said = self._run(folder, kill, resume if number else first)
            if number and status == REFUSED and self._is_as_before(folder, first):
                status, said = self._run(folder, kill, first)
            if number and status == REFUSED and ("there is nothing to do" in said or "nothing to resume" in said):
                status = 0
            if status not in (0, -signal.SIGKILL):
                return f"{self.command}: {', '.join(story)}: exit {status}: {' '.join(said.split())[-500:]}"
            self.kills += status < 0
            if not status:
                break
            story.append(f"killed {kill}")
        different = self._differences(folder)
        return f"{self.command}: {', '.join(story)}: {different}" if different else None

    def _is_as_before(self, folder: Path, first: Sequence[str]) -> bool:
        """Whether nothing has been begun."""
        seen = {name: what for name, what in content(folder).items() if "/." not in f"/{name}"}
        return seen == (content(self.other) if first else {})

    def _differences(self, folder: Path) -> str:
        """What differs between ``folder`` and what an undisturbed run leaves; empty where nothing does."""
        hidden = [path for path in folder.rglob(".*") if path.name != ".stages"]
        if hidden:
            return f"left behind: {', '.join(str(path.relative_to(folder)) for path in hidden)}"
        found = content(folder)
        names = sorted(found.keys() | self.content.keys())
        different = [f"{name} differs" for name in names if found.get(name) != self.content.get(name)]
        records = [json.loads(path.read_text()) for path in folder.glob("results/.stages/*.json")]
        undone = [record["label"] for record in records if record["state"] != "done"]
        return ", ".join([*different, *(f"{label} is not done" for label in undone)])

    def _line(self, folder: Path, options: Sequence[str] = ()) -> list[str]:
        """The command that writes to ``folder``."""
        inputs = (self.material / "sl.pt", self.material / "rl.pt", self.material / "tiny.toml")
        read = {path.name: str(path) for path in inputs}
        line = [read.get(word, word) for word in _LINES[self.command].format(mode="sl").split()]
        if self.command == "study":
            places = ["--out", str(folder / "results"), "--checkpoints", str(folder / "checkpoints")]
            return [*line, *places, "--device", "cpu", *options]
        out = folder / "c.pt" if self.command == "train" else folder / "results"
        return [*line, "--out", str(out), "--device", "cpu", *options]

    def _run(
        self, folder: Path, kill: Kill | None, options: Sequence[str] = (), *, count: bool = False
    ) -> tuple[int, str]:
        """How a fork that runs the command, until it is killed, ended, and what it printed; then its operations."""
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile("w+") as printed:
            child = os.fork()
            if not child:
                status = 1
                try:
                    state.STORE_EVERY = analyze.KEEP_EVERY = self.every
                    operations = _counted(folder, kill)
                    with redirect_stdout(printed), redirect_stderr(printed):
                        status = _command(*self._line(folder, options))
                    if count:
                        printed.write(f" {operations[0]}")
                    printed.flush()
                finally:
                    os._exit(status)
            if kill is not None and kill.operation is None:
                time.sleep(kill.seconds)
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            printed.seek(0)
            return status, printed.read()


def _silently(*line: str) -> None:
    """Run a command in this process; it has to succeed."""
    with tempfile.TemporaryFile("w+") as printed:
        with redirect_stdout(printed), redirect_stderr(printed):
            status = _command(*line)
        printed.seek(0)
        assert status == 0, printed.read()


def _command(*line: str) -> int:
    """Run a command in this process; its exit code, 1 with a traceback on stderr where it breaks."""
    try:
        main(list(line))
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _counted(folder: Path, kill: Kill | None) -> list[int]:
    """Count this process's file operations in ``folder`` from now on; have SIGKILL end it before that of ``kill``."""
    counted = [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and not isinstance(arguments[0], int) and _changes(event, folder, *arguments):
            counted[0] += 1
            if kill is not None and counted[0] == kill.operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return counted


def _changes(event: str, folder: Path, name: Any, *others: Any) -> bool:
    """Whether the operation on ``name`` changes anything in ``folder``; its name is relative in an open directory."""
    path = Path(os.fsdecode(name))
    if event == "open":
        return path.is_relative_to(folder) and bool(others[1] & WRITING) and not path.is_dir()
    return not path.is_absolute() or (path.is_relative_to(folder) and path.exists() == (event != "os.mkdir"))

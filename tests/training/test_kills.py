"""A training that is killed before any of its file operations is resumed to the files of an undisturbed one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.errors import CannotResumeError
from gradscope.models.checkpoint import load
from gradscope.results.schemas import HISTORY
from gradscope.results.tables import read_table
from gradscope.training import state
from gradscope.training.loop import train
from gradscope.training.phases import resolve

#: Events of Python that precede a file operation.
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}


def train_once(images: ImageSet, out: Path, *, resume: bool = False) -> None:
    training = resolve("sl", Data(), 8, epochs=2, settings=["architecture='cnn2'"])
    train(training, images, out, Hardware("cpu"), resume=resume, keep_epochs=True)


def train_or_resume(images: ImageSet, out: Path) -> None:
    """What a user does after a kill: resume, and begin anew where the error says that nothing was begun."""
    try:
        train_once(images, out, resume=True)
    except CannotResumeError as error:
        if "no unfinished run" in str(error):
            train_once(images, out)
        elif "is complete" not in str(error):
            raise


def forked(work: Callable[[], None]) -> int:
    """The exit status of ``work`` in a process of its own."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before(number: int, folder: Path) -> None:
    """Have SIGKILL end this process before its file operation ``number`` in ``folder``."""
    count = 0

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)


def content(folder: Path) -> dict[str, Any]:
    """What lies in ``folder``, without times and without the temporary files that a kill leaves."""
    timings = ["images_per_second", "seconds"]
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pt" and not path.name.startswith("."):
            read = load(path)
            rows = [{key: row[key] for key in row if key not in timings} for row in read.history]
            found[str(path.relative_to(folder))] = (read.fingerprint, rows)
        elif path.suffix == ".csv" and not path.name.startswith("."):
            found[path.name] = read_table(path, HISTORY).drop(columns=timings).to_csv()
        elif path.suffix == ".resume" and not path.name.startswith("."):
            found[path.name] = "left"
    return found


def kill_everywhere(folder: Path) -> None:
    """Print the operations after whose kill the files differ, then how many kills there were."""
    state.STORE_EVERY = -1
    images = sources.load(Data()).train.subset(torch.arange(60))
    whole = folder / "whole"
    train_once(images, whole / "c.pt")  # here, so that no fork has to import what training imports
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        place = folder / str(number)
        place.mkdir()

        def work(number: int = number, place: Path = place) -> None:
            killed_before(number, place)
            train_once(images, place / "c.pt")

        status = forked(work)
        resumed = forked(lambda place=place: train_or_resume(images, place / "c.pt"))  # type: ignore[misc]
        if resumed or content(place) != content(whole):
            print(f"killed before operation {number}: exit {resumed}, other files")
    print(f"{number - 1} kills, then exit {status}")


def test_a_run_killed_before_any_file_operation_is_resumed_to_the_same_files(tmp_path: Path) -> None:
    # In a process without threads, which can fork.
    script = "import sys, pathlib; from tests.training.test_kills import *; kill_everywhere(pathlib.Path(sys.argv[1]))"
    command, root = [sys.executable, "-c", script, tmp_path], Path(__file__).parents[2]
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, check=False)
    *failures, last = ended.stdout.splitlines() or [ended.stderr]
    assert failures == []
    kills, _, status = last.partition(" kills, then ")
    assert int(kills) > 40
    assert status == "exit 0"

"""One process writes at a time, wherever its temporary files lie; what a kill leaves is swept."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.measure.directory import PARTIAL, results_directory
from gradscope.results import files
from gradscope.results.files import atomic, exclusive, require_idle, sweep, write_json
from gradscope.results.tables import find_tables

_HOLD = """
import pathlib, sys
from gradscope.errors import GradscopeError
from gradscope.results.files import exclusive
try:
    with exclusive(pathlib.Path(sys.argv[1]), directory=sys.argv[2] == "True"):
        print("held", flush=True)
        sys.stdin.read()
except GradscopeError as error:
    print(error)
"""
_KILLED = """
import os, pathlib, signal, sys
from gradscope.results.files import atomic
with atomic(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def holder(path: Path, directory: bool, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``path`` for as long as it lives, with its own folder of temporary files."""
    temporary.mkdir()
    command = [sys.executable, "-c", _HOLD, str(path), str(directory)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def leave_half_written(path: Path) -> Path:
    """The temporary file of a writer of ``path`` that was killed."""
    before = names(path.parent) if path.parent.exists() else set()
    assert subprocess.run([sys.executable, "-c", _KILLED, path]).returncode == -signal.SIGKILL
    (name,) = names(path.parent) - before
    return path.parent / name


@pytest.mark.parametrize("directory", [False, True])
def test_another_temporary_folder_does_not_open_the_lock(tmp_path: Path, directory: bool) -> None:
    out = tmp_path / "out"
    with holder(out, directory, tmp_path / "theirs"):
        for hold in (
            lambda: exclusive(out, directory=directory).__enter__(),
            lambda: require_idle(out, directory=directory),
        ):
            with pytest.raises(GradscopeError, match=f"^out: another gradscope is writing to {out}"):
                hold()


@pytest.mark.parametrize("directory", [False, True])
def test_the_lock_of_a_killed_process_is_taken_over_and_goes(tmp_path: Path, directory: bool) -> None:
    out = tmp_path / "out"
    with holder(out, directory, tmp_path / "theirs") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.rglob("*.lock"))
        require_idle(out, directory=directory)
    assert not list(tmp_path.rglob("*.lock"))


def test_the_lock_of_a_live_process_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".of-a-killed-one.pt.lock").touch()
    with holder(tmp_path / "a.pt", False, tmp_path / "theirs"):
        sweep(tmp_path)
        assert names(tmp_path) >= {".a.pt.lock"}
        assert ".of-a-killed-one.pt.lock" not in names(tmp_path)


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(files.FileLock):
        def _acquire(self) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "FileLock", Refusing)
    with pytest.raises(GradscopeError, match=r"^out: .* cannot be locked: No locks available"):
        exclusive(tmp_path / "a").__enter__()


def test_what_a_kill_left_of_a_file_is_swept_and_nothing_else(tmp_path: Path) -> None:
    mine, other = leave_half_written(tmp_path / "a.pt"), leave_half_written(tmp_path / "b.pt")
    (tmp_path / ".mine.pt").touch()
    sweep(tmp_path, ["a.pt"])
    assert names(tmp_path) == {other.name, ".mine.pt"}
    assert mine != other
    sweep(tmp_path)
    assert names(tmp_path) == {".mine.pt"}


def test_a_directory_of_results_is_swept_by_its_next_writer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for place in ("manifest.json", "figures/steps-norm.pdf", "paper/a.tex", f"{PARTIAL}/a.pt"):
        leave_half_written(out / place)
    kept = leave_half_written(out / "checkpoint.pt")
    with results_directory(out, "analysis", resume=True, overwrite=False):
        pass
    assert [path for path in out.rglob("*") if path.is_file()] == [kept]


def test_half_a_table_is_no_table(tmp_path: Path) -> None:
    leave_half_written(tmp_path / "steps.csv")
    assert find_tables(tmp_path) == []


def test_a_refused_measurement_leaves_no_new_directory(tmp_path: Path) -> None:
    def refuse() -> None:
        with results_directory(tmp_path / "out", "analysis", resume=False, overwrite=False):
            raise GradscopeError("no")

    with pytest.raises(GradscopeError, match="no"):
        refuse()
    assert names(tmp_path) == set()


def test_atomic_names_say_which_file_they_are_of(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.pt") as first, atomic(tmp_path / "a.pt") as second:
        assert first != second
        assert first.name[:9] == second.name[:9]


@pytest.mark.parametrize("command", ["analyze", "train"])
def test_a_second_run_is_told_of_the_first_and_not_to_overwrite(tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    with holder(out, command == "analyze", tmp_path / "theirs"):
        given = ["x.pt"] if command == "analyze" else ["--mode", "sl"]
        (out / "manifest.json" if command == "analyze" else out).touch()
        ran = subprocess.run(
            [sys.executable, "-m", "gradscope", command, *given, "--out", out], capture_output=True, text=True
        )
    assert ran.returncode == 2
    assert (
        ran.stderr == f"gradscope: --out: another gradscope is writing to {out}; wait for it or choose another path\n"
    )


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, Path("b")], "c": {"d": -math.inf}})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": [None, 1.5, "b"],
        "c": {"d": None},
    }

"""One hostile input is tried in a process of its own, which may write into its folder and nowhere else."""

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from gradscope.errors import GradscopeError

#: Seconds, and bytes of memory above what the process has, that no input may take.
SECONDS, MEMORY = 60, 3 << 30
#: Exit codes by which the process says how a trial ended.
ACCEPTED, REFUSED, FAILED = 0, 2, 70


@dataclass(frozen=True)
class Input:
    """A hostile input: what was ``done`` to what, and what is ``run`` on it, in the folder that holds it.

    ``run`` returns, or exits with 0, where it is accepted; it raises :class:`GradscopeError`, or exits with 2 and one
    line, where it is refused. Everything else is a failure. ``opens``: whether its container (a zip, a picture, JSON)
    lets it through, so that it is gradscope that has to notice; None where it has no container. ``sound``: nothing was
    done to it, so it must be accepted: what refuses everything tests nothing.
    """

    done: str
    run: Callable[[], object]
    opens: bool | None = None
    sound: bool = False


#: Writes what it needs into an empty folder and says what to run there.
Make = Callable[[Random, Path], Input]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``accepted``, ``refused`` or ``failed``, and what it said."""

    ended: str
    said: str


def attempt(hostile: Input, folder: Path) -> Outcome:
    """Run ``hostile`` in a fork of this process, which must have no threads, in ``folder``; what it prints is kept."""
    said = folder.with_name(f"{folder.name}.said")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _run(hostile, folder, said)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(errors="replace")
    said.unlink()
    spoken = [line for line in text.splitlines() if line.startswith("gradscope: ")]
    lines = [line for line in spoken if not line.startswith("gradscope: caution: ")]
    if status == REFUSED and not hostile.sound and len(lines) == 1 and text.rstrip().endswith(lines[0].rstrip()):
        return Outcome("refused", text)
    if status == ACCEPTED and not lines:
        return Outcome("accepted", text)
    if status < 0:
        text += f"\nended by {signal.Signals(-status).name}"
    return Outcome("failed", f"{text}\nexit {status}")


def _run(hostile: Input, folder: Path, said: Path) -> None:
    """The child: never returns."""
    status = FAILED
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        os.environ["GRADSCOPE_CACHE"] = str(folder / "cache")
        tempfile.tempdir = str(folder)
        _limit()
        broken = _watch(folder)
        try:
            hostile.run()
            status = ACCEPTED
        except GradscopeError as error:
            print(f"gradscope: {error}")
            status = REFUSED
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else FAILED
        if broken:
            print("\n".join(broken))
            status = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.alarm(SECONDS)


#: Events of Python that precede a program's start.
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
#: Events of Python that precede a change of a file, with how many paths they name first.
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _watch(folder: Path) -> list[str]:
    """Note programs that are started and files that are changed outside of ``folder``, as they come."""
    noted: list[str] = []
    inside = (str(folder.resolve()), "/dev")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        paths: tuple[Any, ...] = ()
        if event in _PROGRAMS:
            noted.append(f"started a program: {event} {arguments[:2]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            paths = arguments[:1]
        elif event in _CHANGES:
            paths = arguments[: _CHANGES[event]]
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                # Not the path itself where it is a link: what is removed is the link.
                place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
                if not place.startswith(inside):
                    noted.append(f"{event} outside of the folder: {place}")

    sys.addaudithook(watch)
    return noted

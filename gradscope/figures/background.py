"""Draw figures in a process of their own while the caller goes on measuring.

That process loads matplotlib and pandas, no torch. It reads directories from its standard input, one JSON string a
line, and answers each with one line: null, or why its figures could not be drawn.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradscope
from gradscope.errors import GradscopeError

Log = logging.getLogger(__name__)


class Drawer:
    """A process that draws the figures of one directory after the other, in the order in which they are given.

    If it dies, for lack of memory perhaps, only the directory it was at is lost: a new process draws the rest.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: deque[Path] = deque()

    @property
    def pid(self) -> int | None:
        """The id of the process; None before there is something to draw."""
        return None if self._process is None else self._process.pid

    def draw(self, directory: Path) -> None:
        """Take a directory and return at once."""
        self._pending.append(directory.resolve())
        if self._process is None:
            self._start()
        else:
            self._send(self._pending[-1])

    def wait(self) -> list[str]:
        """Wait until all that was given is drawn; one line for each directory whose figures could not be."""
        failures = []
        while self._pending:
            assert self._process is not None
            assert self._process.stdout is not None
            answer = self._process.stdout.readline()
            directory = self._pending.popleft()
            if not answer.endswith(b"\n"):
                failures.append(f"{directory}: the process that draws its figures died ({self._end()})")
                self._start()
            elif error := json.loads(answer):
                failures.append(f"{directory}: its figures could not be drawn: {error}")
        return failures

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._pending.clear()
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self) -> None:
        """Start a process, if anything is left to draw.

        In a process group of its own, so that Ctrl-C reaches it only through :meth:`close`. Where this process is
        killed it ends with the directory it is at.
        """
        if self._pending:
            path = [str(Path(gradscope.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                process_group=0,
            )
            for directory in self._pending:
                self._send(directory)

    def _send(self, directory: Path) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, and `wait` will see it
            self._process.stdin.write(json.dumps(str(directory)).encode() + b"\n")

    def _end(self) -> str:
        """Wait for the end of the process; how it ended."""
        assert self._process is not None
        with self._process as process:
            code = process.wait()
        self._process = None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


#: What draws while the caller goes on, inside :func:`in_background`.
_drawer: Drawer | None = None


@contextmanager
def in_background() -> Iterator[Drawer]:
    """Let :func:`draw` return at once; at the end of the block wait for what is left, after an error end it.

    Failures of directories that nobody has waited for are logged.
    """
    global _drawer
    before, _drawer = _drawer, Drawer()
    drawer = _drawer
    try:
        yield drawer
        for failure in drawer.wait():
            Log.warning(failure)
    finally:
        _drawer = before
        drawer.close()


def draw(directory: Path) -> None:
    """Draw the figures of ``directory`` from its files: now, or inside :func:`in_background` while the caller goes on.

    Drawn now, whatever is wrong raises.
    """
    if (drawer := _own_drawer()) is not None:
        drawer.draw(directory)
    else:
        from gradscope.figures.draw import draw as draw_now

        draw_now(directory)


def wait() -> list[str]:
    """Wait for what :func:`draw` has left to the background; one line for each directory that failed."""
    drawer = _own_drawer()
    return [] if drawer is None else drawer.wait()


def _own_drawer() -> Drawer | None:
    """The drawer, unless this process was forked from the one it belongs to."""
    return _drawer if _drawer is not None and _drawer.owner == os.getpid() else None


def _serve() -> None:
    """Draw the directories that come in, until there are no more."""
    from gradscope.figures.draw import draw

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not answer
    for line in sys.stdin:
        try:
            draw(Path(json.loads(line)))
            error = None
        except Exception as failure:
            name = "" if isinstance(failure, GradscopeError) else f"{type(failure).__name__}: "
            error = name + " ".join(str(failure).split())
        answers.write(json.dumps(error) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()

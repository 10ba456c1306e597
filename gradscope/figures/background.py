"""Draw figures in a second process while the caller continues to measure.

The second process loads matplotlib and pandas, not torch. It reads directories from standard input, one JSON string
per line, and answers each with one line: null, or why it could not draw the figures.
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
    """A process that draws the figures of one directory after the other, in the order given.

    If it dies (out of memory, say), only the current directory has no figures: a new process draws the rest.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: deque[Path] = deque()

    @property
    def pid(self) -> int | None:
        """The id of the process; None before the first directory."""
        return None if self._process is None else self._process.pid

    def draw(self, directory: Path) -> None:
        """Queue a directory and return at once."""
        self._pending.append(directory.resolve())
        if self._process is None:
            self._start()
        else:
            self._send(self._pending[-1])

    def wait(self) -> list[str]:
        """Wait until all queued directories are drawn; return one line for each that failed."""
        failures = []
        while self._pending:
            assert self._process is not None
            assert self._process.stdout is not None
            answer = self._process.stdout.readline()
            directory = self._pending.popleft()
            if not answer.endswith(b"\n"):
                failures.append(f"{directory}: the process that drew its figures died ({self._end()})")
                self._start()
            elif error := json.loads(answer):
                failures.append(f"{directory}: its figures could not be drawn: {error}")
        return failures

    def close(self) -> None:
        """End the process at once, even while it draws."""
        self._pending.clear()
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self) -> None:
        """Start a process if any directory is left to draw.

        It has its own process group, so Ctrl-C reaches it only through :meth:`close`. If the parent is killed, it ends
        after the current directory.
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
        with suppress(BrokenPipeError):  # the process has died; `wait` reports it
            self._process.stdin.write(json.dumps(str(directory)).encode() + b"\n")

    def _end(self) -> str:
        """Wait for the process to end; return its signal or exit code in words."""
        assert self._process is not None
        with self._process as process:
            code = process.wait()
        self._process = None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


#: The drawer of the current :func:`in_background` block.
_drawer: Drawer | None = None


@contextmanager
def in_background() -> Iterator[Drawer]:
    """Make :func:`draw` return at once in this block.

    The end of the block waits until all figures are drawn; after an error it ends the drawing instead. Failures that
    no caller has waited for are logged as warnings.
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
    """Draw the figures of ``directory`` from its files: at once, or in the background inside :func:`in_background`.

    Drawn at once, any error is raised.
    """
    if (drawer := _own_drawer()) is not None:
        drawer.draw(directory)
    else:
        from gradscope.figures.draw import draw as draw_now

        draw_now(directory)


def wait() -> list[str]:
    """Wait for the figures that :func:`draw` queued; return one line for each directory that failed."""
    drawer = _own_drawer()
    return [] if drawer is None else drawer.wait()


def _own_drawer() -> Drawer | None:
    """Return the drawer, or None if it belongs to the parent that this process was forked from."""
    return _drawer if _drawer is not None and _drawer.owner == os.getpid() else None


def _serve() -> None:
    """Draw each directory read from standard input until it ends."""
    from gradscope.figures.draw import draw

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # other prints must not look like answers
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

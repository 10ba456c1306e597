"""Show progress on stderr: bars on a terminal; elsewhere commands write one line a minute, and Python none."""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from math import inf
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gradscope.errors import Caution, GradscopeError, described

#: Moves a bar: call it with the number of items done since the last call, and a note to show after the bar.
Advance = Callable[[int, str], None]

#: Seconds between two reports of a bar to another process.
_OFTEN = 0.2
#: Seconds between two lines where stderr is not a terminal, and between two checks of the clock.
_LINE_EVERY, _LOOK_EVERY = 60.0, 5.0
#: Lines estimate the time left from the speed over this many seconds.
_SPEED_OVER = 600.0


class Bar(NamedTuple):
    """The state of a bar that another process draws."""

    description: str
    done: int
    total: int
    note: str
    unit: str = ""


class _Lines:
    """Write the state of all bars to stderr, one line a minute: at :meth:`tick`, which a thread calls as well."""

    def __init__(self, clock: Callable[[], float], look_every: float) -> None:
        self.clock, self._look_every = clock, look_every
        self._last = clock()
        self._lock = threading.Lock()
        self._displays: list[Progress] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, display: Progress) -> Iterator[None]:
        """Write about the bars of ``display`` in this block."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._displays.append(display)
        try:
            yield
        finally:
            self._displays.remove(display)

    def tick(self) -> None:
        """Write a line if the last line, or the start, was a minute ago."""
        with self._lock:
            bars = [bar for display in self._displays for bar in display.tasks]
            if self.clock() - self._last < _LINE_EVERY or not bars:
                return
            self._last = self.clock()
            sys.stderr.write(f"gradscope: {'; '.join(map(_line, bars))}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Stop writing."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._look_every):
            self.tick()


#: Whether to draw bars on any stderr; None: draw them on a terminal.
_wanted: ContextVar[bool | None] = ContextVar("bars wanted", default=None)
#: The display that all bars share, if there is one.
_shared: ContextVar[Progress | None] = ContextVar("shared display", default=None)
#: Receives reports of bars instead of drawing them, if set.
_report: ContextVar[Callable[[Bar], None] | None] = ContextVar("reports of bars", default=None)
#: Writes lines where stderr is not a terminal; None: write nothing there.
_lines: ContextVar[_Lines | None] = ContextVar("lines instead of bars", default=None)


@contextmanager
def progress_bar(description: str, total: int, unit: str = "", *, visible: bool = True) -> Iterator[Advance]:
    """Show a bar of ``total`` items with the time left; yield the function that moves it.

    Lines count the items in ``unit`` ("images"); without a unit they give the share that is done.
    """
    report = _report.get()
    if report is not None:
        yield _reporting(report, description, total, unit)
        return
    shared = _shared.get()
    if shared is None:
        with _display(visible) as progress:
            yield _advance(progress, description, total, unit)
        return
    before = set(shared.task_ids)
    advance = _advance(shared, description, total, unit)
    try:
        yield advance
    finally:
        for task in set(shared.task_ids) - before:
            shared.remove_task(task)


@contextmanager
def overall_progress(description: str, total: int, unit: str = "") -> Iterator[Advance]:
    """Show a bar of ``total`` items; every :func:`progress_bar` in this block appears below it, in one display."""
    with _display(True) as progress:
        token = _shared.set(progress)
        try:
            yield _advance(progress, description, total, unit)
        finally:
            _shared.reset(token)


@contextmanager
def reported(report: Callable[[Bar], None]) -> Iterator[None]:
    """Send bars in this block to ``report``, which passes them to the process that draws them."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


class BarsOfOthers:
    """Show the bars of other processes in the shared display, one for each owner."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, TaskID]] = {}

    def show(self, owner: str, bar: Bar) -> None:
        """Draw the owner's bar instead of its earlier one."""
        shared = _shared.get()
        if shared is None:
            return
        if owner not in self._lines or self._lines[owner][0] != bar.description:
            self.remove(owner)
            task = shared.add_task(f"{owner}: {bar.description}", total=bar.total, note="", unit=bar.unit)
            self._lines[owner] = bar.description, task
        shared.update(self._lines[owner][1], completed=bar.done, note=bar.note)

    def remove(self, owner: str) -> None:
        """Remove the owner's bar if it has one."""
        shared, line = _shared.get(), self._lines.pop(owner, None)
        if shared is not None and line is not None:
            shared.remove_task(line[1])


@contextmanager
def shown(wanted: bool | None) -> Iterator[None]:
    """Draw bars in this block or not; None draws them if stderr is a terminal."""
    if not isinstance(wanted, bool | None):
        raise GradscopeError(f"progress must be true, false or None, got {described(wanted)}")
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def lines_a_minute(clock: Callable[[], float] = time.monotonic, look_every: float = _LOOK_EVERY) -> Iterator[None]:
    """Write one line a minute about the bars in this block if stderr is not a terminal; the command line uses this.

    ``clock`` gives seconds. A thread reads it every ``look_every`` real seconds, in case a bar does not move.
    """
    lines = _Lines(clock, look_every)
    token = _lines.set(lines)
    try:
        yield
    finally:
        _lines.reset(token)
        lines.end()


@contextmanager
def _display(visible: bool) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    wanted = _wanted.get()
    drawn = visible and (sys.stderr.isatty() if wanted is None else wanted)
    lines = _lines.get() if visible and not drawn and wanted is None else None
    console = Console(stderr=True, force_terminal=wanted)
    if lines is None:
        progress = Progress(*columns, console=console, transient=True, disable=not drawn)
    else:
        progress = Progress(disable=True, get_time=lines.clock, speed_estimate_period=_SPEED_OVER)
    with progress, nullcontext() if lines is None else lines.watching(progress):
        yield progress


def _advance(progress: Progress, description: str, total: int, unit: str) -> Advance:
    task, lines = progress.add_task(description, total=total, note="", unit=unit), _lines.get()

    def advance(done: int, note: str = "") -> None:
        progress.update(task, advance=done, note=note)
        if lines is not None:
            lines.tick()

    return advance


def _line(bar: Task) -> str:
    """Write the state of a bar: "sl pgd: 40 of 200 images, 3 min left"."""
    unit, note = bar.fields["unit"], bar.fields["note"]
    done = f"{bar.completed:.0f} of {bar.total:.0f} {unit}" if unit else f"{bar.percentage:.0f} %"
    left = _left(bar)
    time_left = f"{duration(left)} left" if left else ""
    return f"{bar.description}: {', '.join(part for part in (done, note, time_left) if part)}"


def _left(bar: Task) -> float:
    """Estimate the seconds left from the recent or the overall speed, whichever is lower: work may have stalled."""
    if not bar.completed or bar.elapsed is None or bar.total is None:
        return 0.0
    return max(bar.time_remaining or 0.0, bar.elapsed * (bar.total - bar.completed) / bar.completed)


def duration(seconds: float) -> str:
    """Write a duration in seconds, minutes, hours or days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def printed_cautions() -> Iterator[None]:
    """Print cautions in this block as lines on stderr; only the first of several ranks prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Caution)
        show = warnings.showwarning

        def show_caution(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if not issubclass(category, Caution):
                show(message, category, *where, **options)
            elif os.environ.get("RANK", "0") == "0":
                sys.stderr.write(f"gradscope: caution: {message}\n")

        warnings.showwarning = show_caution
        yield


def _reporting(report: Callable[[Bar], None], description: str, total: int, unit: str) -> Advance:
    done, last = 0, -inf

    def advance(more: int, note: str = "") -> None:
        nonlocal done, last
        done += more
        if done >= total or time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            report(Bar(description, done, total, note, unit))

    return advance

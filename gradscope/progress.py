"""Progress bars: on anything that may take seconds, on stderr, silent where that is no terminal."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gradscope.errors import Caution, GradscopeError, described

#: Call with how many are done since the last call, and a note shown after the bar.
Advance = Callable[[int, str], None]

#: Seconds between two reports of one bar to another process.
_OFTEN = 0.2


class Bar(NamedTuple):
    """How far a bar is that another process draws."""

    description: str
    done: int
    total: int
    note: str


#: Whether bars are drawn whatever stderr is; None: on a terminal.
_wanted: ContextVar[bool | None] = ContextVar("bars wanted", default=None)
#: The display of the whole, where there is one: every bar is a line of it.
_shared: ContextVar[Progress | None] = ContextVar("shared display", default=None)
#: Where bars are reported to instead of being drawn, if anywhere.
_report: ContextVar[Callable[[Bar], None] | None] = ContextVar("reports of bars", default=None)


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Advance]:
    """A bar of ``total`` items with the time left; yields the function that moves it."""
    report = _report.get()
    if report is not None:
        yield _reporting(report, description, total)
        return
    shared = _shared.get()
    if shared is None:
        with _display(visible) as progress:
            yield _advance(progress, description, total)
        return
    before = set(shared.task_ids)
    advance = _advance(shared, description, total)
    try:
        yield advance
    finally:
        for task in set(shared.task_ids) - before:
            shared.remove_task(task)


@contextmanager
def overall_progress(description: str, total: int) -> Iterator[Advance]:
    """A bar of ``total`` items under which every :func:`progress_bar` is drawn until it ends: one display for all."""
    with _display(True) as progress:
        token = _shared.set(progress)
        try:
            yield _advance(progress, description, total)
        finally:
            _shared.reset(token)


@contextmanager
def reported(report: Callable[[Bar], None]) -> Iterator[None]:
    """Report bars in this block to ``report``, which brings them to the process that draws them."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


class BarsOfOthers:
    """Lines of the display of the whole that show the bars of other processes, one for each owner."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, TaskID]] = {}

    def show(self, owner: str, bar: Bar) -> None:
        """Draw the owner's bar, in place of an earlier one."""
        shared = _shared.get()
        if shared is None:
            return
        if owner not in self._lines or self._lines[owner][0] != bar.description:
            self.remove(owner)
            task = shared.add_task(f"{owner}: {bar.description}", total=bar.total, note="")
            self._lines[owner] = bar.description, task
        shared.update(self._lines[owner][1], completed=bar.done, note=bar.note)

    def remove(self, owner: str) -> None:
        """Remove the owner's bar, if there is one."""
        shared, line = _shared.get(), self._lines.pop(owner, None)
        if shared is not None and line is not None:
            shared.remove_task(line[1])


@contextmanager
def shown(wanted: bool | None) -> Iterator[None]:
    """Draw bars in this block, or none; None leaves it to whether stderr is a terminal."""
    if not isinstance(wanted, bool | None):
        raise GradscopeError(f"progress must be true, false or None, got {described(wanted)}")
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def _display(visible: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    wanted = _wanted.get()
    silent = not (visible and (sys.stderr.isatty() if wanted is None else wanted))
    return Progress(*columns, console=Console(stderr=True, force_terminal=wanted), transient=True, disable=silent)


def _advance(progress: Progress, description: str, total: int) -> Advance:
    task = progress.add_task(description, total=total, note="")

    def advance(done: int, note: str = "") -> None:
        progress.update(task, advance=done, note=note)

    return advance


@contextmanager
def printed_cautions() -> Iterator[None]:
    """Print cautions inside as lines of the command line; of processes that share the work the first does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Caution)
        show = warnings.showwarning

        def said(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if not issubclass(category, Caution):
                show(message, category, *where, **options)
            elif os.environ.get("RANK", "0") == "0":
                sys.stderr.write(f"gradscope: caution: {message}\n")

        warnings.showwarning = said
        yield


def _reporting(report: Callable[[Bar], None], description: str, total: int) -> Advance:
    done, last = 0, -inf

    def advance(more: int, note: str = "") -> None:
        nonlocal done, last
        done += more
        if done >= total or time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            report(Bar(description, done, total, note))

    return advance

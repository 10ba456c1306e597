"""Progress bars: on anything that may take seconds, on stderr, silent where that is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Call with how many are done since the last call, and a note shown after the bar.
Advance = Callable[[int, str], None]

#: Whether bars are drawn whatever stderr is; None: on a terminal.
_wanted: ContextVar[bool | None] = ContextVar("bars wanted", default=None)
#: The display of the whole, where there is one: every bar is a line of it.
_shared: ContextVar[Progress | None] = ContextVar("shared display", default=None)


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Advance]:
    """A bar of ``total`` items with the time left; yields the function that moves it."""
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
def shown(wanted: bool | None) -> Iterator[None]:
    """Draw bars in this block, or none; None leaves it to whether stderr is a terminal."""
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

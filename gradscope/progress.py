"""Progress bars: on anything that may take seconds, on stderr, silent where that is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Call with how many are done since the last call, and a note shown after the bar.
Advance = Callable[[int, str], None]


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Advance]:
    """A bar of ``total`` items with the time left; yields the function that moves it."""
    console = Console(stderr=True)
    silent = not (visible and sys.stderr.isatty())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            progress.update(task, advance=done, note=note)

        yield advance

"""``gradscope figures`` and ``gradscope report``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.afterwards import say_after_drawing, say_after_report
from gradscope.cli.shared import require_directory


def figures(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a directory of results")],
    animate: Annotated[
        bool,
        typer.Option("--animate", help="also write each plane of two attacks as a GIF, at most 3 MB"),
    ] = False,
) -> None:
    """Redraw the figures of a directory of results from its files alone."""
    require_directory(directory)
    from gradscope.figures.draw import draw

    for path in draw(directory, animate=animate):
        print(path, flush=True)
    say_after_drawing(directory)


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="a directory of results, or one whose sub-directories are")
    ],
) -> None:
    """Write one self-contained report.html, and the figures and LaTeX tables for a paper."""
    require_directory(directory)
    from gradscope.reporting.page import write_report

    page = write_report(directory)
    print(page, flush=True)
    say_after_report(page)

"""``gradscope figures`` and ``gradscope report``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.afterwards import say_after_drawing, say_after_report
from gradscope.cli.shared import require_directory, require_place


def figures(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a directory of results")],
    animate: Annotated[
        bool,
        typer.Option("--animate", help="also write each plane of two attacks as a GIF of at most 3 MB"),
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
        Path, typer.Argument(metavar="DIR", help="a directory of results, or a directory of such directories")
    ],
    card: Annotated[
        bool,
        typer.Option("--card", help="write card.md instead: the robustness of each model, for its model card"),
    ] = False,
    sarif: Annotated[
        Path | None,
        typer.Option(
            help="write the audits as SARIF 2.1.0 for code scanning instead",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one self-contained report.html, and the figures and LaTeX tables for a paper."""
    require_directory(directory)
    if sarif is not None:
        from gradscope.results.sarif import write_sarif

        require_place(sarif, "sarif")
        write_sarif(directory, sarif)
        print(sarif)
    if card:
        from gradscope.reporting.card import write_card

        print(write_card(directory))
    if not card and sarif is None:
        from gradscope.reporting.page import write_report

        page = write_report(directory)
        print(page, flush=True)
        say_after_report(page)

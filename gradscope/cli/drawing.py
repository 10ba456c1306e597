"""``gradscope figures``."""

from pathlib import Path
from typing import Annotated

import typer


def figures(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a directory of results")],
) -> None:
    """Redraw the figures of a directory of results from its files alone."""
    from gradscope.report.figures import draw

    for path in draw(directory):
        print(path)

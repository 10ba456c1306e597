"""``gradscope claims``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli.afterwards import say_after_claims
from gradscope.cli.shared import require_directory


def claims(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="studies, directories of results, or directories above these",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="directory or .csv file", show_default="reports/FIRST-DIR-claims")
    ] = None,
) -> None:
    """Judge the paper's claims on results made on any machine."""
    for directory in directories:
        require_directory(directory)
    from gradscope.claims.table import judge
    from gradscope.reporting.console import claim_lines

    path = judge(directories, out or Path("reports") / f"{directories[0].resolve().name}-claims")
    print(claim_lines(path))
    print(path, flush=True)
    say_after_claims(path)

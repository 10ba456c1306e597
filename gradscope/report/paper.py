"""``paper/``: the figures as PDF under stable names, and the tables in LaTeX."""

from pathlib import Path

from gradscope.report.contents import Contents
from gradscope.report.grids import Grid, attacks_grid, checks_grid, claims_grid, statements_grid, transfer_grid
from gradscope.report.latex import latex
from gradscope.report.models import models, models_grid
from gradscope.results.rows import ATTACKS, PAPER, TRANSFER
from gradscope.results.tables import atomic


def write_paper(contents: Contents) -> list[Path]:
    """Write what a paper would include of ``contents`` into ``paper/``; the paths, figures first.

    A figure is named as in ``figures/``, behind the name of its part where that does not say the same. A table that
    has no data is not written; what else lies in ``paper/`` stays.
    """
    folder = contents.directory / PAPER
    written: list[Path] = []
    for part in contents.parts:
        for drawing in part.composed.drawings:
            name = f"{drawing.name}.pdf"
            content = (part.directory / "figures" / name).read_bytes()
            path = folder / name
            if path in written or not drawing.name.startswith(part.name):
                path = folder / f"{part.name}-{name}"
            written.append(path)
            with atomic(path) as temporary:
                temporary.write_bytes(content)
    for grid in paper_tables(contents):
        written.append(folder / f"{grid.name}.tex")
        with atomic(written[-1]) as temporary:
            temporary.write_text(latex(grid), encoding="utf-8")
    return written


def paper_tables(contents: Contents) -> list[Grid]:
    """The tables of a paper; those of several parts of a kind are named after theirs."""
    grids = []
    if contents.claims is not None:
        grids += [statements_grid(contents.claims), claims_grid(contents.claims, with_reasons=False)]
    if found := models(contents):
        grids.append(models_grid(found))
    for part in contents.parts:
        if len(rows := part.table(ATTACKS)) and not part.audits:
            grids.append(attacks_grid(rows))
        if len(rows := part.table(TRANSFER)):
            grids.append(transfer_grid(rows))
        if part.audits:
            grids.append(checks_grid(part.audits))
    return _named_apart(grids)


def _named_apart(grids: list[Grid]) -> list[Grid]:
    counts: dict[str, int] = {}
    named = []
    for grid in grids:
        counts[grid.name] = rank = counts.get(grid.name, 0) + 1
        name = grid.name if rank == 1 else f"{grid.name}-{rank}"
        named.append(Grid(name, grid.caption, grid.headings, grid.rows))
    return named

"""Write ``paper/``: the figures as PDF under stable names, and the tables in LaTeX."""

from pathlib import Path

from gradscope.reporting.contents import Contents
from gradscope.reporting.latex import latex
from gradscope.reporting.models import models, models_table
from gradscope.reporting.tables import (
    ReportTable,
    attacks_table,
    checks_table,
    claims_table,
    similarity_table,
    statements_table,
    transfer_table,
)
from gradscope.results.files import atomic
from gradscope.results.schemas import ATTACKS, PAPER, SIMILARITY, TRANSFER
from gradscope.results.tables import file_content


def write_paper(contents: Contents) -> list[Path]:
    """Write figures and tables for a paper into ``paper/`` and return their paths, figures first.

    A figure is named as in ``figures/``, behind the name of its part where that does not say the same. A table that
    has no data is not written; what else lies in ``paper/`` stays.
    """
    folder = contents.directory / PAPER
    written: list[Path] = []
    for part in contents.parts:
        for drawing in part.composed.drawings:
            name = f"{drawing.name}.pdf"
            content = file_content(part.directory / "figures" / name)
            path = folder / name
            if path in written or not drawing.name.startswith(part.name):
                path = folder / f"{part.name}-{name}"
            written.append(path)
            with atomic(path) as temporary:
                temporary.write_bytes(content)
    for table in paper_tables(contents):
        written.append(folder / f"{table.name}.tex")
        with atomic(written[-1]) as temporary:
            temporary.write_text(latex(table), encoding="utf-8")
    return written


def paper_tables(contents: Contents) -> list[ReportTable]:
    """Return the tables for a paper. Tables of one kind from several parts get a number each."""
    tables = []
    if contents.claims is not None:
        tables += [statements_table(contents.claims), claims_table(contents.claims, with_reasons=False)]
    if found := models(contents):
        tables.append(models_table(found))
    for part in contents.parts:
        if len(rows := part.table(ATTACKS)) and not part.audits:
            tables.append(attacks_table(rows))
        if len(rows := part.table(TRANSFER)):
            tables.append(transfer_table(rows))
        if len(rows := part.table(SIMILARITY)):
            tables.append(similarity_table(rows))
        if part.audits:
            tables.append(checks_table(part.audits))
    return _named_apart(tables)


def _named_apart(tables: list[ReportTable]) -> list[ReportTable]:
    counts: dict[str, int] = {}
    named = []
    for table in tables:
        counts[table.name] = rank = counts.get(table.name, 0) + 1
        name = table.name if rank == 1 else f"{table.name}-{rank}"
        named.append(ReportTable(name, table.caption, table.headings, table.rows))
    return named

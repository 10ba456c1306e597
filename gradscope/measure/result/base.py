"""The result of a measurement: the command's files in memory, with tables, figures and a summary."""

import html
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from gradscope.errors import GradscopeError, lookup, reason_of
from gradscope.measure.directory import clear, results_directory
from gradscope.reading import parse_json
from gradscope.results.arrays import read_arrays
from gradscope.results.files import atomic
from gradscope.results.manifest import MANIFEST
from gradscope.results.schemas import (
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    BANDS,
    CURVE,
    DENSITY,
    EIGENVALUES,
    EPOCHS,
    EXAMPLE_IMAGES,
    JUDGE,
    LANDSCAPE,
    PATH,
    SAMPLES,
    SCALE,
    SIMILARITY,
    SPECTRUM,
    STEPS,
    SUMMARY,
    TRANSFER,
    Table,
)
from gradscope.results.tables import parse_table
from gradscope.validation import given_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradscope.figures.draw import Sources

#: Every table by its name without the ending.
TABLES: dict[str, Table] = {
    table.file.removesuffix(".csv"): table
    for table in (
        STEPS,
        SAMPLES,
        SUMMARY,
        LANDSCAPE,
        PATH,
        BANDS,
        EPOCHS,
        SPECTRUM,
        EIGENVALUES,
        DENSITY,
        ATTACKS,
        CURVE,
        TRANSFER,
        SIMILARITY,
        AUDIT,
        SCALE,
        JUDGE,
    )
}


#: The number of findings that a ``repr`` shows.
_MOST_FINDINGS = 4


class Result:
    """The files of one measurement, in memory: tables as pandas frames, figures drawn on request.

    ``files`` holds the contents by name, ``manifest`` how they were made. Two results are equal if all files are.
    """

    #: The ``kind`` in the manifest, and the default table of :meth:`frame`.
    kind: ClassVar[str]
    main: ClassVar[str]

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.manifest: dict[str, Any] = parse_json(self.files[MANIFEST])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Result) and self.files == other.files

    __hash__ = None  # type: ignore[assignment]  # equality by content

    @property
    def models(self) -> list[str]:
        """The names of the measured models."""
        return [entry.get("label", "") for entry in self.manifest.get("checkpoints", ())]

    @property
    def tables(self) -> list[str]:
        """The names that :meth:`frame` accepts."""
        return [name for name, table in TABLES.items() if table.file in self.files]

    def frame(self, table: str | None = None) -> pd.DataFrame:
        """Return a table with the columns of its CSV: the main one, or one of :attr:`tables`."""
        known = {name: TABLES[name] for name in self.tables}
        wanted = lookup(known, self.main if table is None else table, "table")
        if wanted.file == SAMPLES.file:
            wanted = self._samples
        return parse_table(self.files[wanted.file], wanted)

    @property
    def _samples(self) -> Table:
        return SAMPLES

    def plot(self, name: str | None = None) -> "Figure":
        """Draw the main figure, or the figure ``name``: "steps-cosine" or, in short, "cosine"; see :attr:`plots`."""
        from gradscope.figures.draw import figure

        if name is not None:
            names = self.plots
            matches = [known for known in names if known == name or known.endswith(f"-{name}")]
            name = matches[0] if matches else lookup(dict.fromkeys(names, name), name, "name")
        _let_notebooks_show_figures()
        return figure(self._sources(), name)

    @property
    def plots(self) -> list[str]:
        """The names that :meth:`plot` accepts."""
        from gradscope.figures import style
        from gradscope.figures.draw import drawings

        with style.paper():
            return [drawing.name for drawing in drawings(self._sources())]

    def _sources(self) -> "Sources":
        from gradscope.figures.draw import Sources

        wanted = [name for name in self.tables if name not in ("summary", "bands")]
        tables = {TABLES[name].file: self.frame(name) for name in wanted}
        audit = parse_json(self.files[AUDIT_JSON]) if AUDIT_JSON in self.files else None
        return Sources(tables, self.manifest, audit, self._arrays(EXAMPLE_IMAGES))

    def _arrays(self, name: str) -> dict[str, Any] | None:
        if name not in self.files:
            return None
        try:
            return read_arrays(io.BytesIO(self.files[name]))
        except ValueError as error:
            raise GradscopeError(f"directory: {name} is damaged: {reason_of(error)}") from None

    def save(self, out: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write the same files as the command, and its figures, to the directory ``out``, and return it.

        :func:`gradscope.read` reads them back. Raises :class:`GradscopeError` if ``out`` holds results and
        ``overwrite`` is not set, or if it cannot be written.
        """
        from gradscope.figures.draw import draw

        directory = given_path(out, "out")
        with results_directory(directory, self.kind, resume=False, overwrite=overwrite):
            clear(directory)
            for name, content in sorted(self.files.items(), key=lambda file: file[0] == MANIFEST):
                with atomic(directory / name) as temporary:
                    temporary.write_bytes(content)
            if figures:
                draw(directory)
        return directory

    def summary(self) -> str:
        """Return the findings as text, as the command prints them."""
        import tempfile

        from gradscope.reporting import console

        with tempfile.TemporaryDirectory() as folder, _fitting():
            for name, content in self.files.items():
                Path(folder, name).write_bytes(content)
            return console.finding_lines(Path(folder))

    def _require_one(self, name: str, instead: str = ".frame()") -> None:
        """Raise :class:`GradscopeError` for the attribute ``name`` if there are several models."""
        if len(self.models) != 1:
            raise GradscopeError(
                f"{name} must be of a result of one model, got {', '.join(self.models)}; see {instead}"
            )

    def _findings(self) -> Iterator[str]:
        """Yield the finding of each model, in a few words."""
        yield from self.models

    def __repr__(self) -> str:
        with _fitting():
            findings = list(self._findings())
        more = f"; and {len(findings) - _MOST_FINDINGS} more" if len(findings) > _MOST_FINDINGS else ""
        return f"<{type(self).__name__} {'; '.join(findings[:_MOST_FINDINGS])}{more}>"

    def _repr_html_(self) -> str:
        lines = html.escape(self.summary())
        table = self.frame().head(10).to_html(index=False, border=0, float_format="{:.4g}".format)
        return f"<div><b>{html.escape(repr(self).strip('<>'))}</b><pre>{lines}</pre>{table}</div>"


@contextmanager
def _fitting() -> Iterator[None]:
    """Raise :class:`GradscopeError` if the files of a result contradict each other."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, GradscopeError):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise GradscopeError(
            f"directory must hold the files of one result, got files that differ ({reason})"
        ) from error


def _let_notebooks_show_figures() -> None:
    """Make IPython, if it runs, show figures without pyplot in the same way as pyplot's."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    from matplotlib.figure import Figure

    try:
        shell.display_formatter.formatters["image/png"].lookup_by_type(Figure)
    except KeyError:
        import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"})

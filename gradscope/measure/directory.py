"""Manage the directory of results: one writer at a time, never files of two runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.results.files import ensure_writable, exclusive, sweep
from gradscope.results.schemas import (
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    BANDS,
    CARD,
    CURVE,
    DENSITY,
    EIGENVALUES,
    EPOCHS,
    EXAMPLE_IMAGES,
    JUDGE,
    LANDSCAPE,
    PAGE,
    PAPER,
    PATH,
    SAMPLES,
    SCALE,
    SIMILARITY,
    SPECTRUM,
    STEPS,
    SUMMARY,
    TRANSFER,
)

#: The folder of finished pieces of work; it is removed when all results are written.
PARTIAL = ".tiles"
#: The file of adversarial images, written on request.
IMAGES = "adversarial.npz"
_TABLES = (
    *(STEPS, SAMPLES, SUMMARY, LANDSCAPE, PATH, BANDS, EPOCHS, SPECTRUM, EIGENVALUES, DENSITY),
    *(ATTACKS, CURVE, TRANSFER, SIMILARITY, AUDIT, SCALE, JUDGE),
)
#: The files that a measurement writes beside its figures.
FILES = (
    *(table.file + end for table in _TABLES for end in ("", ".gz")),
    IMAGES,
    AUDIT_JSON,
    EXAMPLE_IMAGES,
    "manifest.json",
)


def require_room(out: Path, what: str, *, resume: bool, overwrite: bool) -> None:
    """Raise :class:`GradscopeError` if ``out`` holds results, or an unfinished ``what``, that may not be replaced."""
    _require_no_file(out)
    if overwrite:
        return
    if unfinished(out):
        if not resume:
            raise GradscopeError(
                f"out must be another directory: {out} holds an unfinished {what}; `resume` continues it, "
                "`overwrite` drops it"
            )
    elif any((out / name).exists() for name in FILES):
        if resume:
            raise GradscopeError(
                f"out must be another directory: {out} holds results of a finished run, with nothing to resume; "
                "`overwrite` replaces them"
            )
        raise GradscopeError(f"out must be another directory: {out} holds results; pass `overwrite` to replace them")
    elif others := _replaced(out):
        raise GradscopeError(
            f"out must be another directory: {out} holds {others[0].relative_to(out)}, which the results would "
            "replace; pass `overwrite` to replace it"
        )


def _require_no_file(out: Path) -> None:
    if out.is_file():
        raise GradscopeError(f"out must be a directory, got the file {out}")


def unfinished(out: Path) -> bool:
    """Whether ``out`` holds pieces of an unfinished measurement."""
    return (out / PARTIAL).is_dir()


@contextmanager
def results_directory(out: Path, what: str, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the lock of ``out`` for a measurement that writes its results there; an interrupted one may ``resume``.

    Raises :class:`GradscopeError` if ``out`` holds results and ``overwrite`` is not set, or cannot be written. If an
    error occurs before anything is written, no new directory remains.
    """
    _require_no_file(out)
    new = [folder for folder in (out / PARTIAL, out) if not folder.exists()]
    try:
        with exclusive(out, directory=True):
            require_room(out, what, resume=resume, overwrite=overwrite)
            sweep(out, (*FILES, PAGE, CARD))
            for folder in (PARTIAL, "figures", PAPER):
                sweep(out / folder)
            if overwrite:  # marks the run as unfinished, as the old results stay until the first part is written
                ensure_writable(out / PARTIAL)
            yield
    except GradscopeError:
        for created in new:
            with suppress(OSError):  # not empty
                created.rmdir()
        raise


def clear(out: Path) -> None:
    """Remove the old results, including figures and report, which show other numbers."""
    for path in _replaced(out):
        path.unlink()


def _replaced(out: Path) -> list[Path]:
    """List the files, links and pipes in ``out`` with names of results, figures or reports."""
    drawn = [path for kind in ("pdf", "png", "gif", "html") for path in (out / "figures").glob(f"*-*.{kind}")]
    written = [path for kind in ("pdf", "tex") for path in (out / PAPER).glob(f"*.{kind}")]
    paths = (*(out / name for name in FILES), out / PAGE, out / CARD, *drawn, *written)
    return [path for path in paths if path.is_symlink() or (path.exists() and not path.is_dir())]

"""The directory of results: one writer at a time, never a mixture of two runs."""

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

#: The folder of finished pieces of work; it is removed when the whole is written.
PARTIAL = ".tiles"
#: Adversarial images that were asked for.
IMAGES = "adversarial.npz"
_TABLES = (
    *(STEPS, SAMPLES, SUMMARY, LANDSCAPE, PATH, BANDS, EPOCHS, SPECTRUM, EIGENVALUES, DENSITY),
    *(ATTACKS, CURVE, TRANSFER, SIMILARITY, AUDIT, SCALE, JUDGE),
)
#: What a measuring stage writes beside its figures.
FILES = (
    *(table.file + end for table in _TABLES for end in ("", ".gz")),
    IMAGES,
    AUDIT_JSON,
    EXAMPLE_IMAGES,
    "manifest.json",
)


def require_room(out: Path, what: str, *, resume: bool, overwrite: bool) -> None:
    """Raise :class:`GradscopeError` where ``out`` holds results, or an unfinished ``what``, that may not go."""
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
            f"out must be another directory: {out} holds no results, but {others[0].relative_to(out)}, which results "
            "would replace; pass `overwrite` to let them"
        )


def _require_no_file(out: Path) -> None:
    if out.is_file():
        raise GradscopeError(f"out must be a directory, got {out}, a file")


def unfinished(out: Path) -> bool:
    """Whether ``out`` holds pieces of a measurement that has not been completed."""
    return (out / PARTIAL).is_dir()


@contextmanager
def results_directory(out: Path, what: str, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold ``out`` for a measurement that writes its results there; what was interrupted may ``resume``.

    Raises :class:`GradscopeError` where it holds results and ``overwrite`` is not set, or cannot be written. What is
    refused before anything is written leaves no new directory behind.
    """
    _require_no_file(out)
    new = [folder for folder in (out / PARTIAL, out) if not folder.exists()]
    try:
        with exclusive(out, directory=True):
            require_room(out, what, resume=resume, overwrite=overwrite)
            sweep(out, (*FILES, PAGE, CARD))
            for folder in (PARTIAL, "figures", PAPER):
                sweep(out / folder)
            if overwrite:  # else what it replaces, which stays until then, would be taken for it
                ensure_writable(out / PARTIAL)
            yield
    except GradscopeError:
        for made in new:
            with suppress(OSError):  # where it is not empty
                made.rmdir()
        raise


def clear(out: Path) -> None:
    """Remove the results that are about to be replaced, figures and report among them: they show other numbers."""
    for path in _replaced(out):
        path.unlink()


def _replaced(out: Path) -> list[Path]:
    """The files, links and pipes in ``out`` that have the names of results, figures or reports."""
    drawn = [path for kind in ("pdf", "png", "gif", "html") for path in (out / "figures").glob(f"*-*.{kind}")]
    written = [path for kind in ("pdf", "tex") for path in (out / PAPER).glob(f"*.{kind}")]
    paths = (*(out / name for name in FILES), out / PAGE, out / CARD, *drawn, *written)
    return [path for path in paths if path.is_symlink() or (path.exists() and not path.is_dir())]

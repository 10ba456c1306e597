"""The directory of results: one writer at a time, never a mixture of two runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.results.rows import (
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    BANDS,
    EXHIBITS,
    LANDSCAPE,
    PAGE,
    PAPER,
    PATH,
    SAMPLES,
    STEPS,
    SUMMARY,
    TRANSFER,
)
from gradscope.results.tables import ensure_writable, exclusive
from gradscope.sharing import Team
from gradscope.study.tiles import unfinished

#: Adversarial images that were asked for.
IMAGES = "adversarial.npz"
_TABLES = (STEPS, SAMPLES, SUMMARY, LANDSCAPE, PATH, BANDS, ATTACKS, TRANSFER, AUDIT)
#: What a measuring stage writes beside its figures.
FILES = (*(table.file + end for table in _TABLES for end in ("", ".gz")), IMAGES, AUDIT_JSON, EXHIBITS, "manifest.json")


@contextmanager
def results_directory(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold ``out`` for a stage that writes its results there.

    Raises :class:`GradscopeError` where it holds results and ``overwrite`` is not set, or cannot be written. What the
    stage refuses before it has written anything leaves no new directory behind.
    """
    new = not out.exists()
    with exclusive(out):
        if any((out / name).exists() for name in FILES) and not overwrite:
            raise GradscopeError(f"--out: {out} holds results; pass --overwrite to replace them or another directory")
        ensure_writable(out)
        try:
            yield
        except GradscopeError:
            if new and not any(out.iterdir()):
                out.rmdir()
            raise


@contextmanager
def resumable_directory(out: Path, what: str, team: Team, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold ``out`` for a stage that keeps its pieces there; what was interrupted needs ``resume`` or ``overwrite``.

    The first rank of ``team`` holds it for all.
    """
    if not team.is_first:
        yield
        return
    if unfinished(out) and not (resume or overwrite):
        raise GradscopeError(f"--out: {out} holds an unfinished {what}; --resume continues it, --overwrite drops it")
    with results_directory(out, overwrite=overwrite or (resume and unfinished(out))):
        yield


def clear(out: Path) -> None:
    """Remove the results that are about to be replaced, figures and report among them: they show other numbers."""
    drawn = [path for kind in ("pdf", "png", "html") for path in (out / "figures").glob(f"*-*.{kind}")]
    written = [path for kind in ("pdf", "tex") for path in (out / PAPER).glob(f"*.{kind}")]
    for path in [*(out / name for name in FILES), out / PAGE, *drawn, *written]:
        path.unlink(missing_ok=True)

"""Write ``claims.csv``: every claim of the paper as tests on a study's measurements, on any data set."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradscope.claims import cost, gradients, hypothesis, robustness
from gradscope.claims.directories import read_directories
from gradscope.claims.group import Group
from gradscope.claims.measured import Findings
from gradscope.claims.reading import read_study
from gradscope.claims.verdicts import Finding, rows
from gradscope.results.schemas import CLAIMS
from gradscope.results.tables import write_table

TESTS: tuple[Callable[[Group], Iterator[Finding]], ...] = (
    robustness.c1,
    robustness.c2,
    gradients.c3,
    gradients.c4,
    gradients.c5,
    gradients.c6,
    robustness.c7,
    robustness.c8,
    cost.c9,
    hypothesis.h1,
    hypothesis.h2,
    hypothesis.h3,
    hypothesis.h4,
    hypothesis.h5,
    hypothesis.h6,
)


def write_claims(directories: Sequence[Path], out: Path) -> Path:
    """Test the claims on the ``directories`` of results of a study and write the table CLAIMS to ``out``.

    A directory may also hold only training histories (``NAME.history.csv``), which give the cost. ``out`` is the CSV
    file, or a directory for ``claims.csv``; its path is returned. If files, models or metrics are missing, a claim is
    not tested and its row says what to measure. Raises :class:`GradscopeError` for a damaged file.
    """
    return _write(read_study(directories), out)


def judge(directories: Sequence[Path], out: Path) -> Path:
    """Test the claims on results from anywhere: studies, directories of results, or folders that contain some.

    :func:`read_directories` joins the results and raises its errors; ``out`` is as in :func:`write_claims`.
    """
    return _write(read_directories(directories), out)


def _write(study: Findings, out: Path) -> Path:
    path = out if out.suffix == ".csv" else out / CLAIMS.file
    write_table(path, CLAIMS, _rows(study))
    return path


def claim_rows(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Make the rows of the table CLAIMS: all claims for each data set and architecture, in order of appearance."""
    return _rows(read_study(directories))


def _rows(study: Findings) -> list[dict[str, Any]]:
    groups = dict.fromkeys((model.dataset, model.arch) for model in study.models)
    return [row for dataset, arch in groups or {("", ""): None} for row in _of(study, dataset, arch)]


def _of(study: Findings, dataset: str, arch: str) -> list[dict[str, Any]]:
    group = Group(study, dataset, arch)
    return rows((test for tests in TESTS for test in tests(group)), dataset, arch)

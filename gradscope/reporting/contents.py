"""Read and check what a report shows: the files of one directory of results, or of a study's sub-directories."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gradscope.errors import GradscopeError
from gradscope.figures import draw, style
from gradscope.figures.draw import Composed
from gradscope.reading import read_json
from gradscope.results.audits import AuditOf, Audits
from gradscope.results.cautions import cautions
from gradscope.results.manifest import (
    MANIFEST,
    Manifest,
    StudyManifest,
    read_manifest,
    read_object,
    read_study_manifest,
)
from gradscope.results.schemas import (
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    CLAIMS,
    CURVE,
    JUDGE,
    SAMPLES,
    SCALE,
    SIMILARITY,
    SPECTRUM,
    SUMMARY,
    TRANSFER,
    Table,
)
from gradscope.results.tables import find_table, read_table

#: The kinds of parts in the order of the page. Parts of one kind follow the recipe, or their names.
_ORDER = ("analysis", "landscape", "spectrum", "attack", "transfer", "audit", "judge")
_NUMBERS = (SUMMARY, SPECTRUM, ATTACKS, CURVE, SCALE, TRANSFER, SIMILARITY, AUDIT, JUDGE)


@dataclass(frozen=True)
class ReportPart:
    """Hold the results of one command. ``name``: its sub-directory, empty for the directory itself."""

    name: str
    directory: Path
    composed: Composed
    tables: Mapping[str, pd.DataFrame]
    audits: tuple[AuditOf, ...]
    manifest: Manifest
    raw_manifest: Mapping[str, Any]

    def table(self, table: Table) -> pd.DataFrame:
        """Return the rows of one of its tables, none where the file is absent."""
        return self.tables.get(table.file, pd.DataFrame(columns=table.names))

    @property
    def title(self) -> str:
        """The heading of the part on the page."""
        return self.name or self.manifest.kind or "results"


@dataclass(frozen=True)
class Contents:
    """Hold everything that a directory has. ``remarks``: sentences on what is missing or incomplete."""

    directory: Path
    parts: tuple[ReportPart, ...]
    claims: pd.DataFrame | None
    study: StudyManifest = field(default_factory=StudyManifest)
    raw_study: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.resolve().name or str(self.directory.resolve())

    @property
    def audits(self) -> list[tuple[ReportPart, AuditOf]]:
        """Each audit and the part that holds it."""
        return [(part, one) for part in self.parts for one in part.audits]


def read_contents(directory: Path) -> Contents:
    """Read the results in ``directory`` and draw the figures that are missing.

    Raises :class:`GradscopeError` where there are no results in it or in a sub-directory, or where a file is damaged.
    """
    if not directory.is_dir():
        raise GradscopeError(f"directory must be a directory with results, got {directory}, which is not a directory")
    own = _holds_numbers(directory)
    study: StudyManifest = StudyManifest()
    raw_study: Mapping[str, Any] = {}
    if (directory / MANIFEST).exists() and not own:
        study, raw_study = read_study_manifest(directory / MANIFEST)
    below, others = _below(directory, [stage.folder for stage in study.stages if stage.folder])
    parts = [_read_part("", directory)] if own else []
    parts += [_read_part(folder.name, folder) for folder in below if _holds_numbers(folder)]
    parts.sort(key=_rank)
    claims = find_table(directory / CLAIMS.file)
    if not parts and claims is None:
        raise GradscopeError(
            f"directory must be a directory of results, or one whose sub-directories are, got {directory}, which "
            "holds no steps.csv, samples.csv, summary.csv, landscape.csv, spectrum.csv, attacks.csv, transfer.csv, "
            f"judge.csv, audit.csv with {AUDIT_JSON}, or claims.csv"
        )
    unfinished = [folder.name for folder in below if (folder / MANIFEST).exists() and not _holds_numbers(folder)]
    remarks = [
        *_lacks(study),
        *(
            f"{folder.name} does not belong to this study and is left out."
            for folder in others
            if _holds_numbers(folder)
        ),
        *(f"{name} holds a {MANIFEST} but no results yet." for name in unfinished),
        *(remark for part in parts for remark in _remarks(part)),
        *dict.fromkeys(f"{caution}." for part in parts for caution in cautions(part.manifest)),
    ]
    return Contents(
        directory, tuple(parts), read_table(claims, CLAIMS) if claims else None, study, raw_study, tuple(remarks)
    )


def _lacks(study: StudyManifest) -> Iterator[str]:
    """Yield a sentence for each thing that a study has not done, with the reason."""
    if study.complete is False:
        yield f"The study is incomplete: its {MANIFEST} says so."
    for name, reason in study.absent.data.items():
        yield f"The images of {name} are absent ({reason}). Stages that did not run: {', '.join(study.absent.stages)}."
    for stage in study.stages:
        if stage.state == "failed":
            yield f"{stage.label} failed: {stage.error} (see {stage.log})."
        elif stage.state == "blocked":
            yield f"{stage.label} did not start: it needs {', '.join(stage.blocked_by)}."
        elif stage.state != "done" and stage.kind != "claims":
            yield f"{stage.label} is still to be done."


def _rank(part: ReportPart) -> int:
    kind = part.manifest.kind or part.name.partition("-")[0]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _below(directory: Path, named: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the sub-directories in ``named``, in that order, and the others. Without ``named``: all, sorted."""
    try:
        folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise GradscopeError(f"directory: {directory} cannot be read: {error.strerror}") from None
    if not named:
        return folders, []
    known = {folder.name: folder for folder in folders}
    return [known.pop(name) for name in named if name in known], list(known.values())


def _holds_numbers(directory: Path) -> bool:
    return draw.holds_results(directory) or find_table(directory / SUMMARY.file) is not None


def _read_part(name: str, directory: Path) -> ReportPart:
    path = directory / MANIFEST
    manifest, raw = read_manifest(path) if path.exists() else (Manifest(), {})
    present = {table: file for table in _NUMBERS if (file := find_table(directory / table.file))}
    found = {table.file: read_table(file, table) for table, file in present.items()}
    document = directory / AUDIT_JSON
    audits = Audits.parse(read_json(document)).audits if document.exists() else ()
    with style.paper():
        sources = draw.read_sources(directory)
        composed = draw.compose(sources)
        if composed.drawings and not _are_drawn(composed, directory):
            draw.save(composed, directory)
            # A figure that was saved is laid out anew each time it is saved again, ever so slightly otherwise.
            composed = draw.compose(sources)
    return ReportPart(name, directory, _with_saved_captions(composed, directory), found, audits, manifest, raw)


def _are_drawn(composed: Composed, directory: Path) -> bool:
    names = [f"{drawing.name}.{kind}" for drawing in composed.drawings for kind in ("pdf", "png")]
    return all((directory / "figures" / name).exists() for name in ("captions.json", *names))


def _with_saved_captions(composed: Composed, directory: Path) -> Composed:
    """Take the captions that ``figures/captions.json`` has."""
    path = directory / "figures" / "captions.json"
    saved = read_object(path) if path.exists() else {}
    captions = {name: str(saved.get(name, caption)) for name, caption in composed.captions.items()}
    return composed._replace(captions=captions)


def _remarks(part: ReportPart) -> list[str]:
    """Return sentences on what is missing or incomplete in a part."""
    where = part.name or "This directory"
    remarks = []
    if not part.raw_manifest:
        remarks.append(f"{where} has no {MANIFEST}, so nobody can say how it was made.")
    if part.manifest.complete is False:
        remarks.append(
            f"{where} is incomplete: the run was interrupted or still goes on. The page shows what it has so far."
        )
    measured = _measured(part)
    remarks += [
        f"{where} has no results of {entry.label}, although its {MANIFEST} names it."
        for entry in part.manifest.checkpoints
        if measured and entry.label not in measured
    ]
    if not part.composed.drawings and not find_table(part.directory / SAMPLES.file):
        remarks.append(f"{where} holds no table that a figure can show.")
    return remarks


def _measured(part: ReportPart) -> set[str]:
    """Return the checkpoints that any table of the part names."""
    return {str(name) for rows in part.tables.values() for name in rows["checkpoint"].unique()}

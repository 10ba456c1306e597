"""The records of a study's stages, so that a finished stage with intact files never runs again."""

import errno
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field

from gradscope.errors import GradscopeError
from gradscope.models.checkpoint import load
from gradscope.reading import open_file, read_bytes
from gradscope.results.files import sweep, write_json
from gradscope.results.manifest import MANIFEST
from gradscope.results.schemas import HISTORY
from gradscope.results.tables import file_content, find_table
from gradscope.study.tasks import CHECKPOINTS, RESULTS, Stage
from gradscope.validation import Config

#: The folder of records and logs in a study's directory of results.
FOLDER = ".stages"
_CHUNK = 2**20
#: Seconds to wait for another worker of the stage: longer than Ray or a file server needs to notice a lost machine.
PATIENCE = 300.0


class Record(Config):
    """One stage's record.

    ``state``: "clearing" while files of another stage are removed, then begun, done, or failed with the ``error``.
    ``files`` and ``inputs`` hold the SHA-256 (for a checkpoint the fingerprint) of the written files and of the needed
    stages' files, by place. ``seconds`` is the sum over all runs. ``work`` holds the estimated passes, for later
    estimates; ``printed`` the lines printed at the end.
    """

    label: str
    kind: str
    command: str | None = None
    name: str
    state: Literal["clearing", "begun", "done", "failed"]
    inputs: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = None
    when: str | None = None
    where: dict[str, str | int | None] = Field(default_factory=dict)
    work: dict[str, float] = Field(default_factory=dict)
    printed: str = ""
    log: str | None = None
    error: str | None = None
    disk_full: bool = False


@dataclass(frozen=True)
class Places:
    """The directories that a study writes: checkpoints, and results with the records inside. Both are absolute."""

    checkpoints: Path
    results: Path

    def path(self, place: str) -> Path:
        """Return the file or directory of a place."""
        root, _, below = place.partition("/")
        roots = {CHECKPOINTS: self.checkpoints, RESULTS: self.results}
        if root not in roots:
            raise GradscopeError(f"out: a record in {self.records} is damaged: it names the unknown place {place!r}")
        return roots[root] / below

    def place(self, path: Path) -> str:
        """Return the place of a file under one of the roots."""
        for root, folder in ((RESULTS, self.results), (CHECKPOINTS, self.checkpoints)):
            if path.is_relative_to(folder):
                return f"{root}/{path.relative_to(folder).as_posix()}"
        raise AssertionError(f"{path} is below neither root")

    @property
    def records(self) -> Path:
        """The folder of records and logs."""
        return self.results / FOLDER

    def log(self, label: str) -> Path:
        """Return the path of a stage's log."""
        return self.records / f"{label}.log"

    def read(self, label: str) -> Record | None:
        """Read the record of a stage; None if there is none. A damaged record gives an empty one in state "clearing".

        Raises :class:`GradscopeError` if its path is a folder, so that none can be written.
        """
        path = self.records / f"{label}.json"
        if path.is_dir():
            raise GradscopeError(f"out must hold records as files, got the folder {path}")
        try:
            return Record.model_validate_json(read_bytes(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return Record(label=label, kind="", name="", state="clearing")

    def write(self, record: Record) -> None:
        """Write a record atomically."""
        write_json(self.records / f"{record.label}.json", record.model_dump(mode="json"))

    @contextmanager
    def held(self, label: str) -> Iterator[None]:
        """Hold an exclusive lock on the stage, for all machines that see the records; wait for the current holder.

        The lock ends with its process. Raises :class:`GradscopeError` if the holder does not end in time.
        """
        if not self.records.is_dir():
            raise GradscopeError(f"out: every machine must see {self.records}, {platform.node()} does not")
        lock = FileLock(self.records / f"{label}.lock")
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.2)
        except Timeout:
            raise GradscopeError(
                f"out: another process runs {label} and still holds {lock.lock_file} after {PATIENCE:g} s"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # before the release: after it, the file belongs to the next holder
                Path(lock.lock_file).unlink()
            lock.release()

    def digests(self, paths: Iterable[Path]) -> dict[str, str]:
        """Compute the SHA-256 of files, by place; for a checkpoint its fingerprint."""
        return {self.place(path): _content_digest(path) for path in sorted(paths)}

    def inputs(self, stage: Stage, done: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Collect the digests of the inputs of ``stage``, by place: the files of its needs that are ``done``.

        Histories contain seconds, so they count only for stages that gather.
        """
        digests = {
            place: known
            for need in stage.needs
            for place, known in done.get(need, {}).items()
            if stage.gathers or not place.endswith(HISTORY.file)
        }
        manifest = self.results / MANIFEST
        if stage.reads_manifest and manifest.exists():
            digests |= self.digests([manifest])
        return digests

    def is_intact(self, stage: Stage, record: Record | None, inputs: Mapping[str, str]) -> bool:
        """Whether ``record`` says that ``stage`` is done, from the same ``inputs``, and its files are unchanged.

        A table may have been compressed: NAME.csv.gz counts as NAME.csv.
        """
        return record is not None and record.inputs == dict(inputs) and self.stands(stage, record)

    def stands(self, stage: Stage, record: Record | None) -> bool:
        """Whether ``stage`` is done by its own record and files, regardless of its needs."""
        if record is None or record.state != "done" or record.name != stage.name:
            return False
        try:
            return all(_content_digest(self.path(place)) == known for place, known in record.files.items())
        except (OSError, ValueError):  # a damaged record may hold an invalid path
            return False

    def spared(self, stages: Sequence[Stage]) -> set[str]:
        """Find the models among ``stages`` that are recorded as done but whose files are missing; returns their labels.

        Stages that need them may be done, so they need not be made again. Models that no stage needs are not included.
        """
        records = {stage.label: self.read(stage.label) for stage in stages}
        done = {label: record for label, record in records.items() if record is not None and record.state == "done"}
        files = {label: record.files for label, record in done.items()}
        used = {need for stage in stages if not stage.gathers for need in stage.needs}
        return {
            stage.label
            for stage in stages
            if stage.kind in ("train", "scale")
            and stage.label in used & done.keys()
            and not self.path(stage.place).exists()
            and done[stage.label].name == stage.name
            and done[stage.label].inputs == self.inputs(stage, files)
        }

    def sweep(self) -> None:
        """Remove the temporary files of killed processes."""
        for root in (self.checkpoints, self.results):
            for folder, _, _ in os.walk(root):
                sweep(Path(folder))


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file's content."""
    sha256 = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(_CHUNK):
            sha256.update(part)
    return sha256.hexdigest()


def _content_digest(path: Path) -> str:
    """Compute the SHA-256 of a file, decompressed if a table was compressed; for a checkpoint its fingerprint."""
    if path.suffix == ".pt":
        return load(path).fingerprint
    table = find_table(path) if path.suffix == ".csv" else None
    return digest(path) if table is None or table == path else hashlib.sha256(file_content(table)).hexdigest()


def disk_refusal(error: BaseException | None) -> str | None:
    """Return the system's message if ``error`` comes from a full disk, a quota or a too large file; else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None

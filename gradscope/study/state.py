"""What a stage of a study leaves behind: its record, so that what is done and intact is never done again."""

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
#: Seconds that a stage waits for another worker to leave it: longer than Ray or a file server takes to miss a machine.
PATIENCE = 300.0


class Record(Config):
    """One stage's record.

    ``state``: files of another name are being removed; begun; done; failed, with the ``error``. ``files`` and
    ``inputs`` are the SHA-256 of what was written, and of the files of the stages it needed, by place; of a checkpoint
    its fingerprint. ``seconds``: of all runs that it took. ``work`` is
    how many passes it was thought to take, from which later estimates are made; ``printed`` what it said at the end.
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
    """Where a study writes: checkpoints, and results with the records among them. Both absolute."""

    checkpoints: Path
    results: Path

    def path(self, place: str) -> Path:
        """The file or directory that a place stands for."""
        root, _, below = place.partition("/")
        roots = {CHECKPOINTS: self.checkpoints, RESULTS: self.results}
        if root not in roots:
            raise GradscopeError(f"out: a record in {self.records} is damaged: it names {place!r}")
        return roots[root] / below

    def place(self, path: Path) -> str:
        """The place of a file under one of the roots."""
        for root, folder in ((RESULTS, self.results), (CHECKPOINTS, self.checkpoints)):
            if path.is_relative_to(folder):
                return f"{root}/{path.relative_to(folder).as_posix()}"
        raise AssertionError(f"{path} is below neither root")

    @property
    def records(self) -> Path:
        """The folder of records and logs."""
        return self.results / FOLDER

    def log(self, label: str) -> Path:
        """The log of a stage."""
        return self.records / f"{label}.log"

    def read(self, label: str) -> Record | None:
        """The record of a stage, if there is one; of one that is damaged, that there was one.

        Raises :class:`GradscopeError` for a folder, in whose place none can be written.
        """
        path = self.records / f"{label}.json"
        if path.is_dir():
            raise GradscopeError(f"out must hold records that are files, got {path}, a folder")
        try:
            return Record.model_validate_json(read_bytes(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return Record(label=label, kind="", name="", state="clearing")

    def write(self, record: Record) -> None:
        """Write a record in one step."""
        write_json(self.records / f"{record.label}.json", record.model_dump(mode="json"))

    @contextmanager
    def held(self, label: str) -> Iterator[None]:
        """Keep every other worker that sees the records, on any machine, from a stage; wait for one that is at it.

        The lock ends with its process. Raises :class:`GradscopeError` where the other does not.
        """
        if not self.records.is_dir():
            raise GradscopeError(f"out: {platform.node()} does not see {self.records}, as every machine has to")
        lock = FileLock(self.records / f"{label}.lock")
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.2)
        except Timeout:
            raise GradscopeError(
                f"out: another process is at {label}, and after {PATIENCE:g} s still holds {lock.lock_file}"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # before the release: after it, the file is the next one's
                Path(lock.lock_file).unlink()
            lock.release()

    def digests(self, paths: Iterable[Path]) -> dict[str, str]:
        """SHA-256 of files, by place; of a checkpoint its fingerprint."""
        return {self.place(path): _content_digest(path) for path in sorted(paths)}

    def inputs(self, stage: Stage, done: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Digests of what ``stage`` is made from, by place: the files of those of its needs that are ``done``.

        Histories, which hold seconds, matter to what gathers alone.
        """
        found = {
            place: known
            for need in stage.needs
            for place, known in done.get(need, {}).items()
            if stage.gathers or not place.endswith(HISTORY.file)
        }
        manifest = self.results / MANIFEST
        if stage.reads_manifest and manifest.exists():
            found |= self.digests([manifest])
        return found

    def is_intact(self, stage: Stage, record: Record | None, inputs: Mapping[str, str]) -> bool:
        """Whether ``record`` says that ``stage`` is done, from the same ``inputs``, and its files are as they were.

        A table may have been compressed since: NAME.csv.gz stands for NAME.csv.
        """
        return record is not None and record.inputs == dict(inputs) and self.stands(stage, record)

    def stands(self, stage: Stage, record: Record | None) -> bool:
        """Whether ``stage`` is done as far as its own record and files say, whatever has become of its needs."""
        if record is None or record.state != "done" or record.name != stage.name:
            return False
        try:
            return all(_content_digest(self.path(place)) == known for place, known in record.files.items())
        except (OSError, ValueError):  # a damaged record names what is no path
            return False

    def spared(self, stages: Sequence[Stage]) -> set[str]:
        """Labels of the models among ``stages`` that are recorded as done and whose files have gone.

        What was made from them may be done all the same. Models that nothing is made from are not spared.
        """
        read = {stage.label: self.read(stage.label) for stage in stages}
        done = {label: record for label, record in read.items() if record is not None and record.state == "done"}
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
        """Remove the temporary files that killed processes left."""
        for root in (self.checkpoints, self.results):
            for folder, _, _ in os.walk(root):
                sweep(Path(folder))


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    found = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(_CHUNK):
            found.update(part)
    return found.hexdigest()


def _content_digest(path: Path) -> str:
    """SHA-256 of a file; of a table as it was written, were it compressed since; of a checkpoint its fingerprint."""
    if path.suffix == ".pt":
        return load(path).fingerprint
    table = find_table(path) if path.suffix == ".csv" else None
    return digest(path) if table is None or table == path else hashlib.sha256(file_content(table)).hexdigest()


def disk_refusal(error: BaseException | None) -> str | None:
    """What the disk said where ``error`` comes from it: that it is full, over a quota, or the file too large for it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None

"""The tasks of a study: how each runs, which files it writes, and how they are removed."""

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gradscope.claims.table import write_claims
from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.figures import background
from gradscope.measure import runner
from gradscope.measure.directory import FILES, PARTIAL
from gradscope.measure.options import Request
from gradscope.measure.options.common import Circumstances, ForeignOptions, Options
from gradscope.options import DataOptions
from gradscope.reporting import console
from gradscope.results.manifest import MANIFEST
from gradscope.results.schemas import CLAIMS, PAPER
from gradscope.results.tables import read_table
from gradscope.study.recipe import ForeignModel, Resources
from gradscope.training.request import epochs_folder

if TYPE_CHECKING:
    from gradscope.study.state import Places

#: The roots of the stages' files: a file's place is one of these and the path below it.
CHECKPOINTS, RESULTS = "checkpoints", "results"


@dataclass(frozen=True)
class ImageFacts:
    """Facts about the images of a data set that a plan needs."""

    source: Data
    name: str
    fingerprint: str
    train: int
    test: int
    channels: int
    image_size: int
    classes: int

    @classmethod
    def of(cls, source: Data, splits: Splits) -> "ImageFacts":
        """Collect the facts of the images that ``source`` names."""
        digest = hashlib.sha256(f"{splits.train.fingerprint} {splits.test.fingerprint}".encode())
        train = splits.train
        return cls(
            *(source, train.name, digest.hexdigest(), len(train), len(splits.test)),
            *(train.channels, train.image_size, len(train.classes)),
        )

    def read(self) -> Splits:
        """Load the images; raises :class:`GradscopeError` if they differ from those of the plan."""
        splits = sources.load(self.source)
        if (splits.train.name, len(splits.train)) != (self.name, self.train):
            raise GradscopeError(f"data_root: {self.name} must be the data set that the study was planned with")
        return splits


class Task(ABC):
    """How a stage runs. The plan identifies equal tasks by a hash of their settings."""

    kind: ClassVar[str]
    #: Whether it runs on those of its needs that are done, even if others are not.
    gathers: ClassVar[bool] = False
    #: Whether it also reads the study's manifest, which then omits it.
    reads_manifest: ClassVar[bool] = False

    @abstractmethod
    def run(self, job: "Job", *, resume: bool) -> str:
        """Run the task, or resume it if ``resume`` is set; returns the lines to print."""

    @abstractmethod
    def files(self, out: Path) -> Iterable[Path]:
        """List the task's files at ``out``."""

    def remove(self, out: Path) -> None:
        """Remove the task's files at ``out``."""
        for path in self.files(out):
            path.unlink(missing_ok=True)

    def adopts(self, job: "Job") -> bool:
        """Whether files without a record are exactly those that it would make, or may be replaced."""
        return False


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    ``name`` is a hash of ``settings`` and of the needs, which are labels of other stages. The stage writes to
    ``place``, a file or a directory under one of the two roots.
    """

    label: str
    name: str
    place: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    task: Task
    resources: Resources

    @property
    def kind(self) -> str:
        """The kind of its task."""
        return self.task.kind

    @property
    def gathers(self) -> bool:
        """Whether it runs on those of its needs that are done, even if others are not."""
        return self.task.gathers

    @property
    def reads_manifest(self) -> bool:
        """Whether it also reads the study's manifest."""
        return self.task.reads_manifest


@dataclass(frozen=True)
class Job:
    """A stage with everything that a worker, here or elsewhere, needs to run it.

    ``inputs`` holds the digests of the files of the needed stages. ``threads`` None keeps torch's own number. ``jobs``
    is the number of stages that run at a time on the machine. Training stops before an epoch that would end after
    ``deadline`` (``time.time()``). ``figures``: whether measurements draw their figures.
    """

    stage: Stage
    places: "Places"
    inputs: dict[str, str]
    work: dict[str, float]
    device: str = "auto"
    threads: int | None = None
    jobs: int = 1
    deadline: float = inf
    figures: bool = True

    @property
    def out(self) -> Path:
        """The file or directory that the stage writes."""
        return self.places.path(self.stage.place)

    def checkpoint(self, model: str) -> Path:
        """Return the file of one of the study's models."""
        return self.places.path(f"{CHECKPOINTS}/{model}.pt")


class UnfinishedError(Exception):
    """Raised if a stage stopped at its deadline and can be resumed. The message says how far it got."""


@dataclass(frozen=True)
class MeasureTask(Task):
    """Measure models; ``others`` are models in other roles, ``foreign`` models that the study does not train."""

    kind = "measure"

    images: ImageFacts
    command: str
    options: Options
    models: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    foreign: Mapping[str, ForeignModel] = field(default_factory=dict)
    said_of_foreign: ForeignOptions = field(default_factory=ForeignOptions)

    def run(self, job: Job, *, resume: bool) -> str:
        """Run the measurement; if it cannot be resumed, start it again."""
        others = {role: [self._named(job, model) for model in models] for role, models in self.others.items()}
        if "epochs" in others:
            others["epochs"] = [str(epochs_folder(Path(file))) for file in others["epochs"]]
        where = Circumstances(
            device=job.device,
            devices=job.stage.resources.devices,
            resume=resume,
            overwrite=True,
            no_figures=not job.figures,
        )
        request = Request(
            options=self.options.naming(others),
            models=tuple(self._named(job, model) for model in self.models),
            foreign=self.said_of_foreign,
            data=DataOptions.parse(self.images.source.model_dump()),
            where=where,
        )
        try:
            runner.run(request, job.out)
        except CannotResumeError:
            runner.run(request.model_copy(update={"where": where.model_copy(update={"resume": False})}), job.out)
        return console.finding_lines(job.out)

    def _named(self, job: Job, model: str) -> str:
        """Return the text by which a command names a model."""
        return self.foreign[model].model if model in self.foreign else str(job.checkpoint(model))

    def files(self, out: Path) -> Iterator[Path]:
        """List the measured files, without figures, which can be drawn from them at any time."""
        for path in sorted(out.rglob("*")) if out.is_dir() else []:
            if path.is_file() and not {PARTIAL, "figures"}.intersection(path.relative_to(out).parts):
                yield path

    def remove(self, out: Path) -> None:
        """Remove the files that a measurement writes; other files in the directory stay."""
        for name in (*FILES, "figures", PARTIAL):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ClaimsTask(Task):
    """Test the paper's claims on the existing ``results``, which are places."""

    kind = "claims"
    gathers = True

    results: tuple[str, ...]

    def run(self, job: Job, *, resume: bool) -> str:
        """Test every claim on the existing results."""
        measured = [job.places.path(place) for place in self.results if f"{place}/{MANIFEST}" in job.inputs]
        write_claims([*measured, job.places.checkpoints], job.out)
        verdicts = Counter(read_table(job.out, CLAIMS)["verdict"])
        return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())

    def files(self, out: Path) -> Iterator[Path]:
        """List the table if it exists."""
        yield from (path for path in (out,) if path.exists())

    def adopts(self, job: Job) -> bool:
        """Return True: a table without a record may be replaced, because `gradscope claims` writes one, too."""
        return True


@dataclass(frozen=True)
class ReportTask(Task):
    """Write the page of the whole study from all existing results and the study's manifest."""

    kind = "report"
    gathers = True
    reads_manifest = True

    def run(self, job: Job, *, resume: bool) -> str:
        """Write the page after the figures are drawn."""
        from gradscope.reporting.page import write_report

        failures = background.wait()
        write_report(job.out.parent)  # draws missing figures, or raises the reason why it cannot
        return "\n".join(failures)

    def files(self, out: Path) -> Iterator[Path]:
        """List the page, and the figures and tables for a paper."""
        yield from (path for path in (out, *sorted(out.with_name(PAPER).glob("*"))) if path.is_file())

    def adopts(self, job: Job) -> bool:
        """Return True: a page without a record may be replaced, because `gradscope report` writes one, too."""
        return True

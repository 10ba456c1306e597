"""The tasks of a study: what each runs, which files are its own, and how they are removed."""

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

#: Roots of what stages write: a file's place is one of these and the path below it.
CHECKPOINTS, RESULTS = "checkpoints", "results"


@dataclass(frozen=True)
class ImageFacts:
    """What a plan knows of a data set whose images are there."""

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
        """The facts of the images that ``source`` names."""
        digest = hashlib.sha256(f"{splits.train.fingerprint} {splits.test.fingerprint}".encode())
        train = splits.train
        return cls(
            *(source, train.name, digest.hexdigest(), len(train), len(splits.test)),
            *(train.channels, train.image_size, len(train.classes)),
        )

    def read(self) -> Splits:
        """The images; others than those that were planned with raise :class:`GradscopeError`."""
        splits = sources.load(self.source)
        if (splits.train.name, len(splits.train)) != (self.name, self.train):
            raise GradscopeError(f"data_root: {self.name} is not what it was when the study was planned")
        return splits


class Task(ABC):
    """What a stage does. Equal tasks are told by their settings, which the plan hashes."""

    kind: ClassVar[str]
    #: Whether it runs on those of its needs that are done, however many are not.
    gathers: ClassVar[bool] = False
    #: Whether it is made from the study's manifest, too, which then says nothing of it.
    reads_manifest: ClassVar[bool] = False

    @abstractmethod
    def run(self, job: "Job", *, resume: bool) -> str:
        """Do it, or go on with it where ``resume`` is set; the lines to print."""

    @abstractmethod
    def files(self, out: Path) -> Iterable[Path]:
        """The files that it has at ``out``."""

    def remove(self, out: Path) -> None:
        """Remove them."""
        for path in self.files(out):
            path.unlink(missing_ok=True)

    def adopts(self, job: "Job") -> bool:
        """Whether files that no record knows are the very ones that it would make, or may go."""
        return False


@dataclass(frozen=True)
class Stage:
    """One piece of a study.

    ``settings`` is what the ``name`` is made of, beside the needs, which are labels of other stages. The stage writes
    below ``place``, a file or a directory under one of the two roots.
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
        """Whether it runs on those of its needs that are done, however many are not."""
        return self.task.gathers

    @property
    def reads_manifest(self) -> bool:
        """Whether it is made from the study's manifest, too."""
        return self.task.reads_manifest


@dataclass(frozen=True)
class Job:
    """A stage with everything that a worker, here or elsewhere, needs to run it.

    ``inputs`` are the digests of the files of the stages it needs. ``threads`` None leaves torch's own number.
    ``jobs``: how many run side by side on the machine. Training stops before an epoch that would end after ``deadline``
    (``time.time()``). ``figures``: whether measurements draw theirs.
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
        """The file of a model of the study."""
        return self.places.path(f"{CHECKPOINTS}/{model}.pt")


class UnfinishedError(Exception):
    """A stage that was stopped for its deadline and goes on later. The message says how far it is."""


@dataclass(frozen=True)
class MeasureTask(Task):
    """A measurement of models; ``others`` are those it names in other roles, ``foreign`` those it does not train."""

    kind = "measure"

    images: ImageFacts
    command: str
    options: Options
    models: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    foreign: Mapping[str, ForeignModel] = field(default_factory=dict)
    said_of_foreign: ForeignOptions = field(default_factory=ForeignOptions)

    def run(self, job: Job, *, resume: bool) -> str:
        """Measure; what cannot be resumed is measured anew."""
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
        """A model as a command names it."""
        return self.foreign[model].model if model in self.foreign else str(job.checkpoint(model))

    def files(self, out: Path) -> Iterator[Path]:
        """What was measured; figures are drawn again from it at any time."""
        for path in sorted(out.rglob("*")) if out.is_dir() else []:
            if path.is_file() and not {PARTIAL, "figures"}.intersection(path.relative_to(out).parts):
                yield path

    def remove(self, out: Path) -> None:
        """Remove what a measurement writes; whatever else lies in the directory stays."""
        for name in (*FILES, "figures", PARTIAL):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ClaimsTask(Task):
    """The paper's claims, judged on those of the places of ``results`` that are there."""

    kind = "claims"
    gathers = True

    results: tuple[str, ...]

    def run(self, job: Job, *, resume: bool) -> str:
        """Judge every claim on what is there."""
        measured = [job.places.path(place) for place in self.results if f"{place}/{MANIFEST}" in job.inputs]
        write_claims([*measured, job.places.checkpoints], job.out)
        verdicts = Counter(read_table(job.out, CLAIMS)["verdict"])
        return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())

    def files(self, out: Path) -> Iterator[Path]:
        """The table."""
        yield from (path for path in (out,) if path.exists())

    def adopts(self, job: Job) -> bool:
        """A table that no record knows may go: `gradscope claims` writes one, too."""
        return True


@dataclass(frozen=True)
class ReportTask(Task):
    """The page of the whole study, made of everything that is there and of the study's manifest."""

    kind = "report"
    gathers = True
    reads_manifest = True

    def run(self, job: Job, *, resume: bool) -> str:
        """Write the page once the figures are there."""
        from gradscope.reporting.page import write_report

        failures = background.wait()
        write_report(job.out.parent)  # draws the figures that are missing, or raises why it cannot
        return "\n".join(failures)

    def files(self, out: Path) -> Iterator[Path]:
        """The page, and what is written for a paper."""
        yield from (path for path in (out, *sorted(out.with_name(PAPER).glob("*"))) if path.is_file())

    def adopts(self, job: Job) -> bool:
        """A page that no record knows may go: `gradscope report` writes one, too."""
        return True

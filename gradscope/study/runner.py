"""Run a plan: stage after stage, or many at once, and resume whatever was interrupted before.

Before a stage writes anything, its record says so, with the stage's name. So existing files belong either to an
unfinished run of the same stage, which resumes, or to another stage, whose files are removed first.
"""

import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Protocol

import torch

from gradscope.distributed.processes import device_name, resolve_device
from gradscope.errors import GradscopeError
from gradscope.figures.background import in_background
from gradscope.progress import Advance, overall_progress
from gradscope.results.files import ensure_writable, exclusive
from gradscope.results.provenance import side_by_side
from gradscope.study.estimate import Limit
from gradscope.study.order import seconds_ahead
from gradscope.study.plan import Plan
from gradscope.study.state import Places, Record, disk_refusal
from gradscope.study.tasks import Job, Stage, UnfinishedError

Log = logging.getLogger("gradscope.study")


class Engine(Protocol):
    """Runs stages. Every submitted job ends once, in any order."""

    name: str

    @property
    def slots(self) -> float:
        """The number of jobs it runs at a time."""

    def submit(self, job: Job) -> None:
        """Accept a job whose needs are done."""

    def wait(self) -> Record:
        """Wait for a job to end and return its record."""

    def close(self) -> None:
        """Release the engine's resources."""


@dataclass
class Ended:
    """The outcome of a study's run: ``records`` of stages that are done or failed; ``kept``: those done before.

    ``blocked`` maps each stage that did not begin to its missing needs. ``postponed`` maps each stage left for a later
    run to the reason.
    """

    records: dict[str, Record] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    blocked: dict[str, list[str]] = field(default_factory=dict)
    postponed: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Record]:
        """The stages that failed."""
        return [record for record in self.records.values() if record.state == "failed"]


#: A callback for the end of each stage: its record, and whether it was done before this run.
Told = Callable[[Record, bool], None]


def run_plan(
    plan: Plan,
    places: Places,
    engine: Engine,
    *,
    work: Mapping[str, dict[str, float]],
    seconds: Mapping[str, float] | None = None,
    device: str = "auto",
    figures: bool = True,
    limit: Limit | None = None,
    told: Told = lambda record, kept: None,
    note: Callable[[Ended], None] = lambda ended: None,
) -> Ended:
    """Run ``plan``; leave out stages that need a failed stage, and stages that do not fit into ``limit``.

    ``work`` holds the estimated passes of each stage, ``seconds`` the estimated time. With ``seconds``, of the stages
    that can begin, the one with the longest chain of dependents comes first; without, they keep the plan's order.
    ``note`` saves the progress: it is called before every stage that runs, and at the end. Raises
    :class:`GradscopeError` if the disk is full, or another study is writing to the same places.
    """
    ensure_writable(places.records)
    ensure_writable(places.checkpoints)
    with exclusive(places.records, directory=True), exclusive(places.checkpoints, "checkpoints", directory=True):
        places.sweep()
        run = _Run(plan, places, engine, work, seconds or {}, device, figures, limit, told, note)
        with in_background(), overall_progress(plan.study.name, len(plan.stages), "stages") as advance:
            run.complete(advance)
        run.note()
        places.sweep()
    return run.ended


class _Run:
    """One run of a plan: the stages that are settled, and those that are running."""

    def __init__(
        self,
        plan: Plan,
        places: Places,
        engine: Engine,
        work: Mapping[str, dict[str, float]],
        seconds: Mapping[str, float],
        device: str,
        figures: bool,
        limit: Limit | None,
        told: Told,
        note: Callable[[Ended], None],
    ) -> None:
        self.plan, self.places, self.engine, self.work = plan, places, engine, work
        self.device, self.figures, self.limit, self.told = device, figures, limit, told
        self.ahead = seconds_ahead(plan.stages, seconds)
        self.spared = places.spared(plan.stages)
        self.ended = Ended()
        self.note = partial(note, self.ended)
        self.under_way: set[str] = set()

    def complete(self, advance: Advance) -> None:
        """Run or settle every stage."""
        self.waiting = {stage.label: stage for stage in self.plan.stages}
        while self.waiting or self.under_way:
            # Begin a stage only if the engine has a free slot, because the deadline is checked at that time.
            stage = self._next() if len(self.under_way) < self.engine.slots else None
            if stage is None:
                self._settle(self.engine.wait())
                advance(1, "")
            else:
                del self.waiting[stage.label]
                self._begin(stage)
                advance(int(self._is_settled(stage.label)), "")

    def _next(self) -> Stage | None:
        """Choose, of the stages whose needs are settled, the one with the longest chain of dependents."""
        ready = [stage for stage in self.waiting.values() if all(self._is_settled(need) for need in stage.needs)]
        return max(ready, key=lambda stage: self.ahead[stage.label], default=None)

    def _is_settled(self, label: str) -> bool:
        ended = self.ended
        return label in ended.records or label in ended.blocked or label in ended.postponed

    def _begin(self, stage: Stage) -> None:
        """Keep a stage that is done, block one whose needs are not, and submit any other."""
        record = self.places.read(stage.label)
        missing = [need for need in stage.needs if not self._is_done(need)]
        if missing and not stage.gathers:
            # Measurements of a model stay done while the model is trained again.
            if self.ended.postponed.keys() >= set(missing) and self.places.stands(stage, record):
                self._keep(stage, record)
            else:
                self.ended.blocked[stage.label] = missing
            return
        if stage.reads_manifest:
            self.note()
        done = {label: record.files for label, record in self.ended.records.items() if record.state == "done"}
        inputs = self.places.inputs(stage, done)
        if stage.label in self.spared or self.places.is_intact(stage, record, inputs):
            self._keep(stage, record)
            return
        objection = None if self.limit is None else self.limit.objection(stage)
        if self.ended.postponed and stage.gathers and not done:
            objection = "no stage that it needs is done yet"
        if objection:
            self.ended.postponed[stage.label] = f"not begun: {objection}"
            return
        if gone := self.spared.intersection(stage.needs) if not stage.gathers else set():
            self._recall(gone)
            self.waiting[stage.label] = stage
            return
        self.note()
        self.under_way.add(stage.label)
        job = Job(
            *(stage, self.places, inputs, self.work.get(stage.label, {}), self.device, stage.resources.cpus),
            deadline=inf if self.limit is None else self.limit.deadline,
            figures=self.figures,
        )
        self.engine.submit(job)

    def _keep(self, stage: Stage, record: Record | None) -> None:
        assert record is not None
        self.ended.records[stage.label] = record
        self.ended.kept.append(stage.label)
        self.told(record, True)

    def _recall(self, labels: set[str]) -> None:
        """Make missing models again, because a new stage needs them."""
        self.spared -= labels
        for stage in self.plan.stages:
            if stage.label in labels:
                del self.ended.records[stage.label]
                self.ended.kept.remove(stage.label)
                self.waiting[stage.label] = stage

    def _is_done(self, label: str) -> bool:
        return label in self.ended.records and self.ended.records[label].state == "done"

    def _settle(self, record: Record) -> None:
        self.under_way.discard(record.label)
        if record.state == "begun":
            self.ended.postponed[record.label] = f"stopped after {record.printed}"
            return
        self.ended.records[record.label] = record
        if record.disk_full:
            raise GradscopeError(
                f"out: the disk of {self.places.results} or {self.places.checkpoints} is full: {record.error}; "
                "finished stages are kept; free some space and run the same command again"
            )
        self.told(record, False)


def perform(job: Job) -> Record:
    """Run or resume a stage and write its record. An error of the stage is recorded, not raised.

    A worker whose driver or machine is lost may write for some more seconds. The next worker waits for its end, and
    keeps its result if it is complete.
    """
    try:
        with job.places.held(job.stage.label):
            return _perform_alone(job)
    except Exception as error:  # another worker holds the stage, so it owns the record, too
        return _failure(job, error)


def _perform_alone(job: Job) -> Record:
    stage, places = job.stage, job.places
    try:
        existing = places.read(stage.label)
        if existing is not None and places.is_intact(stage, existing, job.inputs):
            return existing
        job, resume, earlier = _prepare(job)
        started = time.perf_counter()
        with _logged(places.log(stage.label), stage), _threads(job.threads), side_by_side(job.jobs):
            try:
                printed = stage.task.run(job, resume=resume)
            except UnfinishedError as unfinished:
                Log.info("stopped after %s", unfinished)
                record = _record(job, "begun", earlier + time.perf_counter() - started)
                places.write(record)
                return record.model_copy(update={"printed": str(unfinished)})
            Log.info("done\n%s", printed)
        seconds = earlier + time.perf_counter() - started
        record = _record(job, "done", seconds).model_copy(
            update={"files": places.digests(stage.task.files(job.out)), "printed": printed}
        )
        places.write(record)
    except Exception as error:
        return failed(job, error)
    return record


def _prepare(job: Job) -> tuple[Job, bool, float]:
    """Prepare the stage's place; returns the job, whether to resume an unfinished run of the stage, and its seconds.

    A stage that began while others ran keeps that mark, whoever finishes it.
    """
    stage, places, task = job.stage, job.places, job.stage.task
    existing = places.read(stage.label)
    ensure_writable(places.records)
    if existing is None and any(True for _ in task.files(job.out)) and not task.adopts(job):
        raise GradscopeError(
            f"out: {job.out} exists and is not of this study; remove it, or choose another `out` and `checkpoints`"
        )
    same = existing is not None and existing.name == stage.name and existing.inputs == job.inputs
    resume = existing is None or (same and existing.state in ("begun", "failed"))
    if not resume:
        places.write(_record(job, "clearing"))
        task.remove(job.out)
    earlier = 0.0
    if resume and existing is not None:
        earlier = existing.seconds or 0.0
        job = replace(job, jobs=max(job.jobs, int(existing.where.get("jobs") or 1)))
    places.write(_record(job, "begun", earlier))
    return job, resume, earlier


def _record(job: Job, state: str, seconds: float | None = None) -> Record:
    stage = job.stage
    return Record.parse(
        {
            "label": stage.label,
            "kind": stage.kind,
            "command": stage.settings.get("command"),
            "name": stage.name,
            "state": state,
            "inputs": job.inputs,
            "seconds": seconds,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "where": {
                "host": platform.node(),
                "device": _device(job),
                "threads": _thread_count(job),
                "jobs": job.jobs,
                "torch": torch.__version__,
            },
            "work": job.work,
            "log": str(job.places.log(stage.label).relative_to(job.places.results)),
        }
    )


def _device(job: Job) -> str:
    try:
        return device_name(resolve_device(job.device))
    except GradscopeError:
        return job.device


def _thread_count(job: Job) -> int:
    return job.threads or torch.get_num_threads()


def failed(job: Job, error: Exception) -> Record:
    """Write and return the record of a failed stage; if it cannot be written, only return it."""
    record = _failure(job, error)
    try:
        begun = job.places.read(job.stage.label)
        if begun is not None and begun.state == "begun":
            job.places.write(record)
    except GradscopeError as second:
        return record.model_copy(update={"disk_full": record.disk_full or disk_refusal(second) is not None})
    return record


def _failure(job: Job, error: Exception) -> Record:
    message = str(error) if isinstance(error, GradscopeError) else f"{type(error).__name__}: {error}"
    refusal = disk_refusal(error)
    facts = {"error": refusal or " ".join(message.split()), "disk_full": refusal is not None}
    return _record(job, "failed").model_copy(update=facts)


@contextmanager
def _logged(path: Path, stage: Stage) -> Iterator[None]:
    """Send the stage's log messages, warnings and the traceback of its error to ``path``."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    level = Log.level
    root.addHandler(handler)
    logging.captureWarnings(True)
    Log.setLevel(logging.INFO)
    try:
        Log.info("%s (%s), process %d on %s", stage.label, stage.name, os.getpid(), platform.node())
        yield
    except Exception:
        Log.info("failed\n%s", traceback.format_exc())
        raise
    finally:
        logging.captureWarnings(False)
        Log.setLevel(level)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set torch's number of threads to ``count``, because it changes the rounding of sums; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

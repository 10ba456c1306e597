"""A plan is carried out: stage after stage, or many at once, whatever has been interrupted before.

Before a stage writes anything its record says so, with its name; so files that lie there are known to be of an
unfinished run of the same stage, which goes on, or of another one, whose files are removed first.
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
    """Where stages run. Every job that is submitted ends once, in whatever order."""

    name: str

    @property
    def slots(self) -> float:
        """How many jobs it takes at a time."""

    def submit(self, job: Job) -> None:
        """Take a job whose needs are done."""

    def wait(self) -> Record:
        """The record of a job that has ended."""

    def close(self) -> None:
        """Let go of what the engine holds."""


@dataclass
class Ended:
    """How a study ended: the record of each stage that is done, failed or was done before, and what was not begun.

    ``blocked``: what each stage that was not begun needs. ``postponed``: why a stage is left for a later run.
    """

    records: dict[str, Record] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    blocked: dict[str, list[str]] = field(default_factory=dict)
    postponed: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Record]:
        """The stages that failed."""
        return [record for record in self.records.values() if record.state == "failed"]


#: Told of each stage as it ends: its record, and whether it was done before.
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
    """Carry out ``plan``; what a failed stage is needed for is left, and what does not fit into ``limit``.

    ``work`` is how many passes each stage is thought to take. ``seconds``, where given, is how long: of the stages
    that can begin, the one that most depends on comes first; without it they keep the plan's order. ``note`` writes
    down how far it is: called before every stage that is run, and at the end. Raises :class:`GradscopeError` where the
    disk is full, and where another study is writing to the same places.
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
    """One run of a plan: which stages are settled, and which are under way."""

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
        """Settle every stage."""
        self.waiting = {stage.label: stage for stage in self.plan.stages}
        while self.waiting or self.under_way:
            # What an engine cannot run yet is not begun: the time that is left is known when it can.
            stage = self._next() if len(self.under_way) < self.engine.slots else None
            if stage is None:
                self._settle(self.engine.wait())
                advance(1, "")
            else:
                del self.waiting[stage.label]
                self._begin(stage)
                advance(int(self._is_settled(stage.label)), "")

    def _next(self) -> Stage | None:
        """Of the stages whose needs are settled the one that most depends on, or the first."""
        ready = [stage for stage in self.waiting.values() if all(self._is_settled(need) for need in stage.needs)]
        return max(ready, key=lambda stage: self.ahead[stage.label], default=None)

    def _is_settled(self, label: str) -> bool:
        ended = self.ended
        return label in ended.records or label in ended.blocked or label in ended.postponed

    def _begin(self, stage: Stage) -> None:
        """Keep a stage that is done, leave one whose needs are not, and submit any other."""
        record = self.places.read(stage.label)
        missing = [need for need in stage.needs if not self._is_done(need)]
        if missing and not stage.gathers:
            # A model that is being trained again does not undo what was measured of it.
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
            objection = "there is nothing yet that it could be made of"
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
        """Make models whose files have gone again: something new is to be made from them."""
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
                "what was done stays; free some space and run the same command again"
            )
        self.told(record, False)


def perform(job: Job) -> Record:
    """Run a stage, or go on with it, and leave its record. An error of its own is in the record, not raised.

    A worker whose driver or machine is lost may write for some seconds more. The next one waits for its end, and keeps
    what it has completed.
    """
    try:
        with job.places.held(job.stage.label):
            return _perform_alone(job)
    except Exception as error:  # the stage is another's, so its record is, too
        return _failure(job, error)


def _perform_alone(job: Job) -> Record:
    stage, places = job.stage, job.places
    try:
        found = places.read(stage.label)
        if found is not None and places.is_intact(stage, found, job.inputs):
            return found
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
    """Make the stage's place its own; whether an unfinished run of the very same stage lies there, and its seconds.

    What was begun side by side with others is marked so, whoever ends it.
    """
    stage, places, task = job.stage, job.places, job.stage.task
    found = places.read(stage.label)
    ensure_writable(places.records)
    if found is None and any(True for _ in task.files(job.out)) and not task.adopts(job):
        raise GradscopeError(
            f"out: {job.out} is there, and not of this study; remove it, or name another `out` and `checkpoints`"
        )
    same = found is not None and found.name == stage.name and found.inputs == job.inputs
    resume = found is None or (same and found.state in ("begun", "failed"))
    if not resume:
        places.write(_record(job, "clearing"))
        task.remove(job.out)
    earlier = 0.0
    if resume and found is not None:
        earlier = found.seconds or 0.0
        job = replace(job, jobs=max(job.jobs, int(found.where.get("jobs") or 1)))
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
    """The record of a stage that failed; where even that cannot be written, it is only returned."""
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
    """What the stage logs and warns of, and the traceback of its error, go to ``path``."""
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
    """Torch with ``count`` threads, for sums over more of them round otherwise; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

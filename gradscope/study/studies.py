"""Run a study from its recipe to its results."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gradscope.distributed.processes import resolve_device
from gradscope.errors import GradscopeError
from gradscope.study.engines import check_running
from gradscope.study.engines.local import LocalEngine, SideBySideEngine
from gradscope.study.engines.ray import RayEngine
from gradscope.study.engines.workers import cores
from gradscope.study.estimate import Estimate, Estimator, Limit, work_of
from gradscope.study.expansion import read_study
from gradscope.study.manifest import write_manifest
from gradscope.study.plan import Plan, make_plan
from gradscope.study.runner import Ended, Engine, run_plan
from gradscope.study.state import Places, Record
from gradscope.study.tasks import Stage


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """The options of ``gradscope study``.

    ``jobs``: number of stages to run at a time on this machine. ``until``: seconds after ``began`` (``time.time()``)
    within which it must stop; None for no limit.
    """

    recipe: Path
    out: Path
    checkpoints: Path
    settings: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    data_root: Path | None = None
    download: bool = False
    device: str = "auto"
    engine: str = "local"
    address: str | None = None
    jobs: int = 1
    until: float | None = None
    began: float = field(default_factory=time.time)
    figures: bool = True
    trust_code: bool = False

    @property
    def places(self) -> Places:
        """The directories it writes, as absolute paths."""
        return Places(self.checkpoints.resolve(), self.out.resolve())


def plan_study(request: StudyRequest) -> Plan:
    """Read the recipe and plan it; raises :class:`GradscopeError` for every mistake in it."""
    resolve_device(request.device)
    check_running(request.engine, request.jobs, request.until)
    study = read_study(request.recipe, settings=request.settings, seeds=request.seeds, data_root=request.data_root)
    return make_plan(study, download=request.download, with_report=request.figures, trust_code=request.trust_code)


def crowding(plan: Plan, request: StudyRequest) -> Iterator[str]:
    """Yield a sentence for each resource that concurrent stages must share."""
    if request.jobs == 1:
        return
    most = max((stage.resources.cpus or 1) * stage.resources.devices for stage in plan.stages)
    if request.jobs * most > cores():
        yield (
            f"--jobs {request.jobs} needs {request.jobs * most} cores, this machine has {cores()}: "
            "the stages will slow each other down"
        )
    if resolve_device(request.device).type == "cuda":
        yield (
            f"the {request.jobs} jobs share the GPUs: three trainings at a time on one H100 each took 2.2 to 2.9 "
            "times as long as alone"
        )


@dataclass(frozen=True)
class Foreseen:
    """The state of a stage before a run: done and intact, or with its estimated time.

    ``replaces``: its place holds finished results of another recipe or version, which will be removed.
    """

    stage: Stage
    done: bool
    estimate: Estimate | None
    replaces: bool


def foresee(plan: Plan, request: StudyRequest) -> list[Foreseen]:
    """Find the stages that are done, and estimate how long the rest takes; writes nothing."""
    places = request.places
    files: dict[str, dict[str, str]] = {}
    replaced: set[str] = set()
    spared = places.spared(plan.stages)
    for stage in plan.stages:
        record = places.read(stage.label)
        if record is not None and record.state == "done" and record.name != stage.name:
            replaced.add(stage.label)
        reached = all(need in files for need in stage.needs)
        if stage.label in spared or (reached and places.is_intact(stage, record, places.inputs(stage, files))):
            assert record is not None
            files[stage.label] = record.files
    for stage in reversed(plan.stages):
        if stage.label not in files and not stage.gathers:
            for need in spared.intersection(stage.needs):
                files.pop(need, None)  # a new stage needs it, so it is made again
    left = [stage for stage in plan.stages if stage.label not in files]
    estimates = Estimator(work_of(plan), places.results.parent, request.device).estimate(left)
    return [
        Foreseen(stage, stage.label in files, estimates.get(stage.label), stage.label in replaced)
        for stage in plan.stages
    ]


def run_study(
    plan: Plan, request: StudyRequest, told: Callable[[Record, bool], None] = lambda record, kept: None
) -> Ended:
    """Run ``plan``; write the manifest with the state of all stages before each stage and at the end."""
    work = work_of(plan)
    estimator = Estimator(work, request.places.results.parent, request.device)
    limit = None if request.until is None else Limit(request.began + request.until, estimator)
    engine = _engine(request)
    # Stages that run one after the other keep the recipe's order.
    expected = estimator.estimate(plan.stages) if request.jobs > 1 else {}
    note = partial(write_manifest, plan, request.places, engine=engine.name, device=request.device)
    try:
        return run_plan(
            plan,
            request.places,
            engine,
            work=work,
            seconds={label: estimate.likely for label, estimate in expected.items()},
            device=request.device,
            figures=request.figures,
            limit=limit,
            told=told,
            note=note,
        )
    finally:
        engine.close()


def _engine(request: StudyRequest) -> Engine:
    """Make the requested engine; raises :class:`GradscopeError` before anything is written if it cannot run."""
    if request.engine == "ray":
        return RayEngine(request.address, request.device)
    if request.address is not None:
        raise GradscopeError("address must be left out if engine is 'local', it belongs to 'ray'", "address")
    return LocalEngine() if request.jobs == 1 else SideBySideEngine(request.jobs)

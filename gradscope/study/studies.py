"""A study from its recipe to its results: planned, carried out, and written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.results.tables import ensure_writable
from gradscope.study.execution import Ended, Engine, LocalEngine, run_plan
from gradscope.study.inputs import resolve_device
from gradscope.study.manifest import write_manifest
from gradscope.study.plan import Plan, make_plan
from gradscope.study.recipe import read_recipe
from gradscope.study.records import Places, Record


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What ``gradscope study`` is told."""

    recipe: Path
    out: Path | None = None
    checkpoints: Path | None = None
    settings: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    data_root: Path | None = None
    download: bool = False
    device: str = "auto"
    engine: str = "local"
    address: str | None = None

    @property
    def places(self) -> Places:
        """Where it writes, in any working directory."""
        name = self.recipe.stem
        checkpoints = self.checkpoints or Path("checkpoints") / name
        return Places(checkpoints.resolve(), (self.out or Path("reports") / name).resolve())


def plan_study(request: StudyRequest) -> Plan:
    """Read the recipe and plan it; whatever is wrong with it raises :class:`GradscopeError`."""
    resolve_device(request.device)
    study = read_recipe(request.recipe, settings=request.settings, seeds=request.seeds, data_root=request.data_root)
    return make_plan(study, download=request.download)


def run_study(
    plan: Plan, request: StudyRequest, told: Callable[[Record, bool], None] = lambda record, kept: None
) -> Ended:
    """Carry out ``plan``; the manifest is written before the first stage and after the last, however it ends."""
    places = request.places
    ensure_writable(places.results)
    engine = _engine(request)
    ended = Ended()

    def note() -> None:
        write_manifest(plan, places, ended, engine=engine.name, device=request.device)

    try:
        note()
        run_plan(plan, places, engine, work={}, device=request.device, told=told, ended=ended)
    finally:
        engine.close()
    note()
    return ended


def _engine(request: StudyRequest) -> Engine:
    if request.engine == "local":
        if request.address is not None:
            raise GradscopeError("--address: it belongs to --engine ray, got --engine local")
        return LocalEngine()
    raise GradscopeError(f"--engine: local is allowed, got {request.engine!r}")

"""``gradscope study``."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradscope.cli.afterwards import say_after_study
from gradscope.cli.declared import declared, filled, panel
from gradscope.errors import GradscopeError, caution
from gradscope.measure.options.common import Circumstances, ForeignOptions
from gradscope.options import RUNNING, DataOptions
from gradscope.progress import duration
from gradscope.results.manifest import MANIFEST, read_study_manifest
from gradscope.validation import Config

if TYPE_CHECKING:
    from gradscope.study.estimate import Estimate
    from gradscope.study.state import Record
    from gradscope.study.studies import Foreseen

#: Exit code of an incomplete study: stages failed or are left for later, or images are missing.
INCOMPLETE = 1
#: If a stage prints more lines than this, they are only in its log.
_MOST_LINES = 12

_running = partial(typer.Option, rich_help_panel=panel(RUNNING))


class _Running(Config):
    """The numeric options of a study."""

    jobs: int = 1
    until: float | None = None


@declared(DataOptions, ForeignOptions, Circumstances)
def study(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file, such as analyses/quickstart.toml")],
    seeds: Annotated[
        str | None, typer.Option(help="seeds instead of the recipe's, such as 0,1,2", metavar="N,...")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="change a setting of the recipe, such as training.epochs=1; repeatable"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print the plan with finished stages and how long the rest will take, then stop"
        ),
    ] = False,
    trust_code: bool = False,
    data_root: Path | None = None,
    download: bool = False,
    engine: Annotated[
        str,
        _running(help="run stages on this machine (local) or spread over a cluster (ray)", metavar="[local|ray]"),
    ] = "local",
    jobs: Annotated[
        str,
        _running(
            help="how many stages run at once on this machine, each with its share of the cores; stages on one GPU "
            "slow each other down, and times measured meanwhile are marked",
            metavar="N",
        ),
    ] = "1",
    address: Annotated[
        str | None,
        _running(help="address of a Ray cluster, such as auto", show_default="a new cluster on this machine"),
    ] = None,
    device: str = "auto",
    until: Annotated[
        str | None,
        _running(
            help="stop after SECONDS: begin no stage that would take longer; run it again to continue",
            metavar="SECONDS",
        ),
    ] = None,
    no_figures: bool = False,
    checkpoints: Annotated[
        Path | None, _running(help="directory of the models", metavar="DIR", show_default="checkpoints/RECIPE")
    ] = None,
    out: Annotated[
        Path | None, _running(help="directory of results", metavar="DIR", show_default="reports/RECIPE")
    ] = None,
) -> None:
    """Train, measure and audit everything a recipe asks for; finished stages are skipped.

    Exit code 1 if a stage failed, was left for a later run, or lacks its images.
    """
    began = time.time()  # torch is not loaded yet
    from gradscope.study.engines import check_running
    from gradscope.study.engines.workers import cores, start_server
    from gradscope.study.expansion import read_study

    running = _Running.parse(filled(_Running, {"jobs": jobs, "until": until}))
    check_running(engine, running.jobs, running.until)
    Circumstances.parse({"device": device})
    read_study(recipe, settings=settings or (), seeds=_seeds(seeds), data_root=data_root)
    results = out or Path("reports") / recipe.stem
    if running.jobs > 1 and engine == "local" and not dry_run and not _was_complete(results):
        start_server(running.jobs)  # the workers load torch while this process does
    from gradscope.results.schemas import PAGE
    from gradscope.study.studies import StudyRequest, crowding, foresee, plan_study, run_study

    request = StudyRequest(
        recipe=recipe,
        out=results,
        checkpoints=checkpoints or Path("checkpoints") / recipe.stem,
        settings=settings or (),
        seeds=_seeds(seeds),
        data_root=data_root,
        download=download,
        device=device,
        engine=engine,
        address=address,
        jobs=running.jobs,
        until=running.until,
        began=began,
        figures=not no_figures,
        trust_code=trust_code,
    )
    plan = plan_study(request)
    for text in crowding(plan, request):
        caution(text)
    if dry_run:
        print("\n".join(foreseen_lines(foresee(plan, request), plan.absent, plan.left_out, min(running.jobs, cores()))))
        return
    ended = run_study(plan, request, _tell)
    for label, why in ended.postponed.items():
        print(f"{label}: {why}")
    for label, needs in ended.blocked.items():
        print(f"{label}: not begun, because it needs {', '.join(needs)}")
    for name, reason in plan.absent.items():
        print(f"{name} is absent, so {len(plan.left_out)} stages are left out: {reason}")
    page = request.places.results / PAGE
    print(page if page.exists() else request.places.results, flush=True)
    say_after_study(results, results / PAGE)
    if ended.failed or ended.blocked or ended.postponed or plan.absent:
        raise typer.Exit(INCOMPLETE)


def _was_complete(results: Path) -> bool:
    """Whether the last run completed the study."""
    try:
        return read_study_manifest(results / MANIFEST)[0].complete is True
    except GradscopeError:
        return False


#: Sources of an estimate, in words.
_SOURCES = {
    "record": "as long as last time",
    "records": "from similar stages on this machine",
    "probe": "from a few timed passes of the network",
    "fixed": "the usual time",
}


def foreseen_lines(
    foreseen: "Sequence[Foreseen]", absent: Mapping[str, str], left_out: Sequence[str], jobs: int = 1
) -> Iterator[str]:
    """Write the plan: each stage, the stages it needs, whether it is done, and about how long it takes."""
    from gradscope.study.order import span

    width = max(len(step.stage.label) for step in foreseen)
    for step in foreseen:
        needs = ", ".join(need.removeprefix("model-") for need in step.stage.needs)
        needs = "all other stages that there are" if step.stage.gathers else needs
        state = "done" if step.estimate is None else _expected(step.estimate)
        state += ", replaces existing results" if step.replaces else ""
        yield f"{step.stage.label:{width}}  {state}" + (f"  (needs {needs})" if needs else "")
    for name, reason in absent.items():
        yield f"{name} is absent: {reason}"
    for label in left_out:
        yield f"{label}: left out"
    left = {step.stage.label: step.estimate.seconds for step in foreseen if step.estimate is not None}
    if not left:
        yield f"{len(foreseen)} stages, all done"
        return
    together = duration(span([step.stage for step in foreseen], left, jobs))
    yield (
        f"{len(foreseen)} stages, {len(foreseen) - len(left)} done; the rest takes about "
        f"{duration(sum(left.values()))} one after the other"
        + (f", {together} with {jobs} at once if they do not slow each other" if jobs > 1 else "")
    )


def _expected(estimate: "Estimate") -> str:
    """Write an estimate and its source."""
    return f"{'up to ' if estimate.most else ''}{duration(estimate.seconds)}, {_SOURCES[estimate.source]}"


def _tell(record: "Record", kept: bool) -> None:
    if record.state == "failed":
        print(f"{record.label}: failed, see {record.log}: {record.error}", flush=True)
    elif kept:
        print(f"{record.label}: done before", flush=True)
    else:
        lines = record.printed.splitlines()
        if len(lines) > _MOST_LINES:
            lines = [f"{len(lines)} lines, see {record.log}"]
        print("\n  ".join([f"{record.label}: done in {record.seconds:.1f} s", *lines]), flush=True)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"--seeds must be whole numbers separated by commas, got {text!r}") from None

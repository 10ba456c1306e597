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

#: Exit code of a study that did not come to its end: stages failed, or images are missing.
INCOMPLETE = 1
#: What a stage prints beyond so many lines is in its log alone.
_MOST_LINES = 12

_running = partial(typer.Option, rich_help_panel=panel(RUNNING))


class _Running(Config):
    """The numbers among the options of how a study runs."""

    jobs: int = 1
    until: float | None = None


@declared(DataOptions, ForeignOptions, Circumstances)
def study(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file, such as analyses/quickstart.toml")],
    seeds: Annotated[
        str | None, typer.Option(help="seeds in place of the recipe's, such as 0,1,2", metavar="N,...")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="change a setting of the recipe, such as training.epochs=1; repeatable"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan, what is done and how long the rest will take, and stop")
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
            help="stages side by side on this machine, each with its share of the cores; stages that share a GPU slow "
            "each other down, and seconds that are measured side by side are marked",
            metavar="N",
        ),
    ] = "1",
    address: Annotated[
        str | None, _running(help="address of a Ray cluster, such as auto", show_default="a cluster of its own, here")
    ] = None,
    device: str = "auto",
    until: Annotated[
        str | None,
        _running(
            help="stop after so many seconds: begin nothing that would take longer; run it again to go on",
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
    """Train, measure and audit everything a recipe asks for; what is done and intact is never done again.

    Exit code 1 where something failed, was left for a later run, or lacks its images.
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
        start_server(running.jobs)  # it loads torch while this process does
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
        print(f"{label}: not begun, for it needs {', '.join(needs)}")
    for name, reason in plan.absent.items():
        print(f"{name} is absent, and {len(plan.left_out)} stages with it: {reason}")
    page = request.places.results / PAGE
    print(page if page.exists() else request.places.results, flush=True)
    say_after_study(results, results / PAGE)
    if ended.failed or ended.blocked or ended.postponed or plan.absent:
        raise typer.Exit(INCOMPLETE)


def _was_complete(results: Path) -> bool:
    """Whether the last run left nothing to do."""
    try:
        return read_study_manifest(results / MANIFEST)[0].complete is True
    except GradscopeError:
        return False


#: What an estimate is taken from, in words.
_SOURCES = {
    "record": "it took so long before",
    "records": "by stages like it on this machine",
    "probe": "by a few timed passes of the network",
    "fixed": "as it usually does",
}


def foreseen_lines(
    foreseen: "Sequence[Foreseen]", absent: Mapping[str, str], left_out: Sequence[str], jobs: int = 1
) -> Iterator[str]:
    """The plan: each stage with what it needs, whether it is done, and about how long it takes."""
    from gradscope.study.order import span

    width = max(len(one.stage.label) for one in foreseen)
    for one in foreseen:
        needs = ", ".join(need.removeprefix("model-") for need in one.stage.needs)
        needs = "what there is of the others" if one.stage.gathers else needs
        state = "done" if one.estimate is None else _expected(one.estimate)
        state += ", replaces what is there" if one.replaces else ""
        yield f"{one.stage.label:{width}}  {state}" + (f"  (needs {needs})" if needs else "")
    for name, reason in absent.items():
        yield f"{name} is absent: {reason}"
    for label in left_out:
        yield f"{label}: left out"
    left = {one.stage.label: one.estimate.seconds for one in foreseen if one.estimate is not None}
    if not left:
        yield f"{len(foreseen)} stages, all done"
        return
    together = duration(span([one.stage for one in foreseen], left, jobs))
    yield (
        f"{len(foreseen)} stages, {len(foreseen) - len(left)} done; the rest takes about "
        f"{duration(sum(left.values()))} one after the other"
        + (f", {together} with {jobs} side by side if none slows another" if jobs > 1 else "")
    )


def _expected(estimate: "Estimate") -> str:
    """How long, and from what."""
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
        raise GradscopeError(f"--seeds: whole numbers with commas between are allowed, got {text!r}") from None

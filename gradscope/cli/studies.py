"""``gradscope study``."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradscope.cli import options
from gradscope.errors import GradscopeError, lookup

if TYPE_CHECKING:
    from gradscope.study.estimate import Estimate
    from gradscope.study.state import Record
    from gradscope.study.studies import Foreseen

#: Exit code of a study that did not come to its end: stages failed, or images are missing.
INCOMPLETE = 1
#: What a stage prints beyond so many lines is in its log alone.
_MOST_LINES = 12


def study(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file, such as analyses/quickstart.toml")],
    engine: Annotated[str, typer.Option(help="local (one stage after the other) or ray (spread over a cluster)")] = (
        "local"
    ),
    address: Annotated[str | None, typer.Option(help="of a Ray cluster, such as auto; ray starts its own here")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the plan, what is done already, and about how long the rest takes")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="instead of the recipe's, such as 0,1,2")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="of the recipe, such as training.epochs=1; repeatable"),
    ] = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "auto",
    until: Annotated[
        float | None,
        typer.Option(help="seconds after which nothing more is begun that cannot end; run it again to go on"),
    ] = None,
    no_figures: options.NoFigures = False,
    trust_code: options.TrustCode = False,
    checkpoints: Annotated[Path | None, typer.Option(help="directory of the models; checkpoints/RECIPE")] = None,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/RECIPE")] = None,
) -> None:
    """Train, measure and audit everything a recipe asks for; what is done and intact is never done again.

    Exit code 1 where something failed, was left for a later run, or lacks its images.
    """
    began = time.time()  # torch is not loaded yet
    from gradscope.study.engines import ENGINES
    from gradscope.study.expansion import read_study

    lookup(ENGINES, engine, "engine")
    read_study(recipe, settings=settings or (), seeds=_seeds(seeds), data_root=data_root)
    from gradscope.results.schemas import PAGE
    from gradscope.study.studies import StudyRequest, foresee, plan_study, run_study

    request = StudyRequest(
        recipe=recipe,
        out=out,
        checkpoints=checkpoints,
        settings=settings or (),
        seeds=_seeds(seeds),
        data_root=data_root,
        download=download,
        device=device,
        engine=engine,
        address=address,
        until=until,
        began=began,
        figures=not no_figures,
        trust_code=trust_code,
    )
    plan = plan_study(request)
    if dry_run:
        print("\n".join(foreseen_lines(foresee(plan, request), plan.absent, plan.left_out)))
        return
    ended = run_study(plan, request, _tell)
    for label, why in ended.postponed.items():
        print(f"{label}: {why}")
    for label, needs in ended.blocked.items():
        print(f"{label}: not begun, for it needs {', '.join(needs)}")
    for name, reason in plan.absent.items():
        print(f"{name} is absent, and {len(plan.left_out)} stages with it: {reason}")
    page = request.places.results / PAGE
    print(page if page.exists() else request.places.results)
    if ended.failed or ended.blocked or ended.postponed or plan.absent:
        raise typer.Exit(INCOMPLETE)


#: What an estimate is taken from, in words.
_SOURCES = {
    "record": "it took so long before",
    "records": "by stages like it on this machine",
    "probe": "by a few timed passes of the network",
    "fixed": "as it usually does",
}


def foreseen_lines(foreseen: "Sequence[Foreseen]", absent: Mapping[str, str], left_out: Sequence[str]) -> Iterator[str]:
    """The plan: each stage with what it needs, whether it is done, and about how long it takes."""
    width = max(len(one.stage.label) for one in foreseen)
    for one in foreseen:
        needs = ", ".join(need.removeprefix("model-") for need in one.stage.needs)
        needs = "what there is of the others" if one.stage.gathers else needs
        state = "done" if one.estimate is None else _expected(one.stage.settings.get("command"), one.estimate)
        state += ", replaces what is there" if one.replaces else ""
        yield f"{one.stage.label:{width}}  {state}" + (f"  (needs {needs})" if needs else "")
    for name, reason in absent.items():
        yield f"{name} is absent: {reason}"
    for label in left_out:
        yield f"{label}: left out"
    left = [one.estimate.seconds for one in foreseen if one.estimate is not None]
    yield (
        f"{len(foreseen)} stages, {len(foreseen) - len(left)} done; the rest takes about {duration(sum(left))} one "
        "after the other"
        if left
        else f"{len(foreseen)} stages, all done"
    )


def _expected(command: str | None, estimate: "Estimate") -> str:
    """How long, and from what; what is counted of attacks is what they take of images that stand to the end."""
    bound = "up to " if estimate.source == "probe" and command in ("attack", "audit") else ""
    return f"{bound}{duration(estimate.seconds)}, {_SOURCES[estimate.source]}"


def duration(seconds: float) -> str:
    """Seconds in the unit they are read in."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


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

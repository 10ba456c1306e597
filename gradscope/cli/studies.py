"""``gradscope study``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradscope.cli import options
from gradscope.errors import GradscopeError

if TYPE_CHECKING:
    from gradscope.study.records import Record

#: Exit code of a study that did not come to its end: stages failed, or images are missing.
INCOMPLETE = 1


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
    checkpoints: Annotated[Path | None, typer.Option(help="directory of the models; checkpoints/RECIPE")] = None,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/RECIPE")] = None,
) -> None:
    """Train, measure and audit everything a recipe asks for; what is done and intact is never done again."""
    from gradscope.study.studies import StudyRequest, plan_study, run_study

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
    )
    plan = plan_study(request)
    if dry_run:
        return
    ended = run_study(plan, request, _tell)
    for label, needs in ended.blocked.items():
        print(f"{label}: not begun, for it needs {', '.join(needs)}")
    for name, reason in plan.absent.items():
        print(f"{name} is absent, and {len(plan.left_out)} stages with it: {reason}")
    print(request.places.results)
    if ended.failed or ended.blocked or plan.absent:
        raise typer.Exit(INCOMPLETE)


def _tell(record: "Record", kept: bool) -> None:
    if record.state == "failed":
        print(f"{record.label}: failed, see {record.log}: {record.error}", flush=True)
    else:
        print(f"{record.label}: {'done before' if kept else f'done in {record.seconds:.1f} s'}", flush=True)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"--seeds: whole numbers with commas between are allowed, got {text!r}") from None

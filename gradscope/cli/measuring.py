"""The measuring commands: ``gradscope analyze``, ``landscape``, ``attack``, ``transfer``, ``audit`` and ``judge``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.declared import filled, panel, parameters, plain_parameter, with_signature
from gradscope.cli.shared import is_first_process, shared_mistakes
from gradscope.errors import caution
from gradscope.measure.common_options import Circumstances, ForeignOptions, Options
from gradscope.measure.judge_options import JudgeOptions
from gradscope.measure.options import AuditOptions, Request
from gradscope.measure.refusals import refuse
from gradscope.options import MEASURING, RUNNING, DataOptions
from gradscope.results.files import require_idle

#: Characters of a model's name in the name of its directory of results.
_LONGEST = 100
#: Exit code where --fail-on-masking is set and a model is masked, or cannot be judged as it is set up.
MASKED = 3

_Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...",
        help="our .pt files, or foreign models: torchvision:NAME, timm:NAME, package.module:factory",
        show_default=False,
    ),
]
_Attack = Annotated[
    str,
    typer.Argument(
        metavar="ATTACK",
        help="package.module:function, called with model, x and y, or one of ours, see `gradscope list attacks`",
        show_default=False,
    ),
]
_FailOnMasking = Annotated[
    bool,
    typer.Option(
        "--fail-on-masking",
        help="exit with 3 where masking is found or the set-up is invalid",
        rich_help_panel=panel(MEASURING),
    ),
]


def measuring_command(kind: type[Options]) -> Callable[..., None]:
    """The command whose options are the fields of ``kind`` and of what every measurement takes."""

    def command(checkpoints: list[str], out: Path | None, **values: Any) -> None:
        with shared_mistakes():
            request = Request(
                options=kind.parse(filled(kind, values)),
                models=tuple(checkpoints),
                data=DataOptions.parse(filled(DataOptions, values)),
                foreign=ForeignOptions.parse(filled(ForeignOptions, values)),
                where=Circumstances.parse(filled(Circumstances, values)),
            )
            results = out or Path("reports") / f"{_stem(checkpoints[0])}{request.options.suffix}"
            if is_first_process():  # the first rank holds the lock, maybe before another comes here
                require_idle(results, directory=True)
            refuse(request, results)
        _measure(request, results)
        if values.get("fail_on_masking") and _is_masked(results):
            raise typer.Exit(MASKED)

    arguments = [plain_parameter("attack", _Attack)] if kind is JudgeOptions else []
    arguments.append(plain_parameter("checkpoints", _Checkpoints))
    if kind is AuditOptions:
        arguments.append(plain_parameter("fail_on_masking", _FailOnMasking, False))
    arguments += parameters(kind, DataOptions, ForeignOptions, Circumstances)
    suffix = kind.suffix if isinstance(kind.suffix, str) else "-SPACE-landscape"
    where = typer.Option(
        help="directory of results",
        metavar="DIR",
        show_default=f"reports/FIRST-CKPT{suffix}",
        rich_help_panel=panel(RUNNING),
    )
    arguments.append(plain_parameter("out", Annotated[Path | None, where], None))
    command.__doc__ = kind.summary
    return with_signature(command, arguments)


def _measure(request: Request, results: Path) -> None:
    """Measure, and print what came out and where it is."""
    from gradscope.measure.runner import run
    from gradscope.reporting import console

    run(request, results, warn=caution)
    if is_first_process():
        print(console.measured_lines(results))
        print(results)


def _is_masked(results: Path) -> bool:
    from gradscope.reading import read_json
    from gradscope.results.audits import Audits
    from gradscope.results.schemas import AUDIT_JSON

    return any(found.blocks for found in Audits.parse(read_json(results / AUDIT_JSON)).audits)


def _stem(checkpoint: str) -> str:
    return Path(checkpoint.rpartition(":")[2]).stem[:_LONGEST]

"""The measuring commands: ``gradscope analyze``, ``landscape``, ``spectrum``, ``attack`` and the others."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.afterwards import say_after_measuring
from gradscope.cli.declared import filled, panel, parameters, plain_parameter, with_signature
from gradscope.cli.shared import is_first_process, require_place, shared_mistakes
from gradscope.errors import caution
from gradscope.measure.options import AuditOptions, Request
from gradscope.measure.options.common import Circumstances, ForeignOptions, Options
from gradscope.measure.options.judge import JudgeOptions
from gradscope.measure.refusals import refuse
from gradscope.options import MEASURING, RUNNING, DataOptions
from gradscope.results.files import require_idle

#: Most characters of a model's name in its directory of results.
_LONGEST = 100
#: Exit code of a failed gate: --fail-on-masking if a model masks its gradients or its set-up is invalid, --claim if the
#: claim is refuted, --fail-on-blind if the attack is blind or its examples are invalid.
SHUT = 3
#: Exit code of an undecided gate.
UNDECIDED = 4

_Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...",
        help="gradscope's .pt files, or foreign models: torchvision:NAME, timm:NAME, package.module:factory",
        show_default=False,
    ),
]
_Attack = Annotated[
    str,
    typer.Argument(
        metavar="ATTACK",
        help="package.module:function, called with model, x and y, or a name from `gradscope list attacks`",
        show_default=False,
    ),
]
_FailOnMasking = Annotated[
    bool,
    typer.Option(
        "--fail-on-masking",
        help="exit with 3 if masking is found or the set-up is invalid, with 4 if the audit is inconclusive",
        rich_help_panel=panel(MEASURING),
    ),
]
_FailOnBlind = Annotated[
    bool,
    typer.Option(
        "--fail-on-blind",
        help="exit with 3 if the attack is blind or its examples are invalid, with 4 if it is inconclusive",
        rich_help_panel=panel(MEASURING),
    ),
]
_AllowInconclusive = Annotated[
    bool,
    typer.Option(
        "--allow-inconclusive",
        help="let --fail-on-blind pass when the judgement is inconclusive",
        rich_help_panel=panel(MEASURING),
    ),
]
_Sarif = Annotated[
    Path | None,
    typer.Option(
        help="also write the findings as SARIF 2.1.0 for code scanning",
        metavar="FILE",
        show_default=False,
        rich_help_panel=panel(RUNNING),
    ),
]
#: Verdicts of a judgement that fail the gate.
_BLIND = ("the attack is blind", "invalid examples")


def _print_schema(asked: bool) -> None:
    """Print the JSON Schema of ``audit.json`` and exit."""
    if asked:
        import json

        from gradscope.results.audits import json_schema

        print(json.dumps(json_schema(), indent=2))
        raise typer.Exit


_Schema = Annotated[
    bool,
    typer.Option(
        "--schema",
        help="print the JSON Schema of audit.json and exit",
        callback=_print_schema,
        is_eager=True,
        rich_help_panel=panel(RUNNING),
    ),
]


def measuring_command(kind: type[Options]) -> Callable[..., None]:
    """Make the command whose options are the fields of ``kind`` and the options that every measurement takes."""

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
            if is_first_process():  # only the first rank takes the lock, maybe before another rank gets here
                require_idle(results, directory=True)
            refuse(request, results)
            if values.get("sarif"):
                require_place(values["sarif"], "sarif")
        _measure(request, results)
        if values.get("sarif") and is_first_process():
            _write_sarif(results, values["sarif"])
        if isinstance(request.options, AuditOptions) and (values["fail_on_masking"] or request.options.claim):
            _pass_audits(results, on_masking=values["fail_on_masking"], allowing=request.options.allow_inconclusive)
        if isinstance(request.options, JudgeOptions) and values["fail_on_blind"]:
            _pass_judgements(results, allowing=values["allow_inconclusive"])

    arguments = [plain_parameter("attack", _Attack)] if kind is JudgeOptions else []
    arguments.append(plain_parameter("checkpoints", _Checkpoints))
    if kind is JudgeOptions:
        arguments.append(plain_parameter("fail_on_blind", _FailOnBlind, False))
        arguments.append(plain_parameter("allow_inconclusive", _AllowInconclusive, False))
    if kind is AuditOptions:
        arguments.append(plain_parameter("fail_on_masking", _FailOnMasking, False))
        arguments.append(plain_parameter("sarif", _Sarif, None))
        arguments.append(plain_parameter("schema", _Schema, False))
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
    """Measure, then print the findings and where the results are."""
    from gradscope.measure.runner import run
    from gradscope.reporting import console

    run(request, results, warn=caution)
    if is_first_process():
        print(console.measured_lines(results))
        print(results, flush=True)
        say_after_measuring(request, results)


def _write_sarif(results: Path, path: Path) -> None:
    from gradscope.results.sarif import write_sarif

    write_sarif(results, path)
    print(path)


def _pass_audits(results: Path, *, on_masking: bool, allowing: bool) -> None:
    """Exit with a gate's code unless every model passes the requested gates."""
    from gradscope.reading import read_json
    from gradscope.results.audits import Audits
    from gradscope.results.schemas import AUDIT_JSON

    audits = Audits.parse(read_json(results / AUDIT_JSON)).audits
    shut = any(entry.refuted or (on_masking and entry.blocks) for entry in audits)
    asked = [entry for entry in audits if on_masking or entry.claim is not None]
    _pass_gate(shut, [f"{entry.checkpoint}: {entry.reason}" for entry in asked if entry.undecided], allowing)


def _pass_judgements(results: Path, *, allowing: bool) -> None:
    """Exit with a gate's code unless the attack passes on every model."""
    from gradscope.measure.result import read

    rows = read(results).frame()
    found = rows[rows["role"] == "attack"].to_dict("records")
    undecided = [f"{row['checkpoint']}: {row['finding']}" for row in found if row["verdict"] == "inconclusive"]
    _pass_gate(any(row["verdict"] in _BLIND for row in found), undecided, allowing)


def _pass_gate(shut: bool, undecided: list[str], allowing: bool) -> None:
    """Exit with :data:`SHUT` if the gate failed, with :data:`UNDECIDED` if it is undecided; return if it passed."""
    if shut:
        raise typer.Exit(SHUT)
    if undecided and not allowing:
        if is_first_process():
            why = "; ".join(undecided)
            print(
                f"gradscope: the gate could not be decided ({why}); --allow-inconclusive lets it pass", file=sys.stderr
            )
        raise typer.Exit(UNDECIDED)


def _stem(checkpoint: str) -> str:
    return Path(checkpoint.rpartition(":")[2]).stem[:_LONGEST]

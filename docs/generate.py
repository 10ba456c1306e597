"""Write the pages that are made from the code: files.md, commands.md and api.md.

``python docs/generate.py`` writes them, a test compares them with what this module returns.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as dataclass_fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import typer

import gradscope
from gradscope.api.keywords import limits
from gradscope.cli import app
from gradscope.results import metrics, schemas
from gradscope.results.metrics import Metric
from gradscope.results.schemas import Column, Table

HERE = Path(__file__).parent


def cell(text: str) -> str:
    """Text that may stand in a table: without line ends and bars, and with no markup by accident."""
    pieces = _prose(" ".join(text.split())).replace("|", "\\|").split("`")
    pieces[::2] = [re.sub(r"([*<])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


# ---------------------------------------------------------------------------------------------------- files.md

#: The tables in the order in which a reader meets them, and what one row of each is.
TABLES: dict[str, str] = {
    "STEPS": "`analyze`: a row for each checkpoint, attack, metric and step of the attack.",
    "SAMPLES": "`analyze`, `landscape`: a row for each image, metric and point of the attack.",
    "SUMMARY": "`analyze`, `landscape`: a row for each metric and subset of the images.",
    "ATTACKS": "`attack`, `audit`: a row for each checkpoint, radius, attack and metric.",
    "ATTACK_SAMPLES": "`attack`, `audit`: a row for each image and attack. An image without a row was not attacked.",
    "CURVE": "`attack --curve`: a row for each radius at which robust accuracy falls.",
    "AUDIT": "`audit`: a row for each check.",
    "SCALE": "`audit`: robust accuracy under fixed attacks at each temperature of the logits.",
    "JUDGE": "`judge`: a row for the attack, for each of ours and for each repair.",
    "TRANSFER": "`transfer`: a row for each source and target.",
    "TRANSFER_SAMPLES": "`transfer`: a row for each source, target and image.",
    "SIMILARITY": "`transfer`: a row for every two models, and for each model.",
    "LANDSCAPE": "`landscape`: a row for each checkpoint, image and point of a plane.",
    "PATH": "`landscape`: the iterates of the attack, or the epochs of training, projected onto the plane.",
    "BANDS": "`landscape`: quantiles over the images at each point of a plane.",
    "EPOCHS": "`landscape --epochs`: sharpness and accuracy at each saved epoch.",
    "SPECTRUM": "`spectrum`: trace, negative mass and the like, with their errors.",
    "EIGENVALUES": "`spectrum`: the eigenvalues of largest size, with their residuals.",
    "DENSITY": "`spectrum`: the spectral density with its band.",
    "HISTORY": "`train`: beside the checkpoint, as `NAME.history.csv`; a row for each epoch.",
    "CLAIMS": "`study`, `claims`: a row for each test of each claim.",
}

#: The metrics by the table whose column `metric` names them.
METRICS: dict[str, str] = {
    "METRICS": "of `analyze`, in `steps.csv`, `samples.csv` and `summary.csv`",
    "GRADIENT_METRICS": "of `analyze`, `attack`, `transfer` and `audit`: the gradients that the attack followed",
    "LANDSCAPE_METRICS": "of `landscape`, in `samples.csv` and `summary.csv`",
    "BARRIER_METRICS": "of `landscape --towards CKPT --line`, in `summary.csv`",
    "SPECTRUM_METRICS": "of `spectrum`, in `spectrum.csv`",
    "ATTACK_METRICS": "of `attack` and `audit`, in `attacks.csv`",
    "SIMILARITY_METRICS": "of `transfer`, in `similarity.csv`",
    "SCALE_METRICS": "of `audit`, in `scale.csv`",
}


def files_page() -> str:
    """files.md: the text before the tables is in files.head.md."""
    parts = [(HERE / "files.head.md").read_text().rstrip(), "", "## Tables", ""]
    for name, meaning in TABLES.items():
        table: Table = getattr(schemas, name)
        kind = " of attacks" if name == "ATTACK_SAMPLES" else " of transfers" if name == "TRANSFER_SAMPLES" else ""
        parts += [f"### {table.file.removesuffix('.csv')}{kind}", "", f"`{table.file}`. {meaning}", ""]
        parts += ["| column | type | meaning |", "| --- | --- | --- |"]
        parts += [f"| `{column.name}` | {_kind(column)} | {cell(column.meaning)} |" for column in table.columns]
        parts += [""]
    parts += ["## Metrics", "", "Formulas are in [Definitions](definitions.md).", ""]
    for name, where in METRICS.items():
        known: dict[str, Metric] = getattr(metrics, name)
        parts += [f"Metrics {where}:", "", "| metric | unit | meaning |", "| --- | --- | --- |"]
        parts += [f"| `{key}` | {one.unit} | {cell(one.meaning)} |" for key, one in known.items()]
        parts += [""]
    return "\n".join(parts)


def _kind(column: Column) -> str:
    return f"{column.kind}, newer" if column.later else column.kind


# ------------------------------------------------------------------------------------------------- commands.md


def commands_page() -> str:
    """commands.md: each command with its arguments and options, in the order of ``gradscope --help``."""
    root: Any = typer.main.get_command(app)
    parts = [
        "# Command reference",
        "",
        "`gradscope COMMAND --help` prints the same. `gradscope --install-completion` completes names and options in",
        "your shell. Radii are in pixel units of images in [0, 1] and may be fractions.",
        "[Audit](audit.md#exit-codes) has the exit codes.",
        "",
        "| command | what it does |",
        "| --- | --- |",
    ]
    commands = root.commands
    parts += [f"| [{name}](#{name}) | {cell(_first(one.help))} |" for name, one in commands.items()]
    for name, command in commands.items():
        context = typer.Context(command, info_name=f"gradscope {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        parts += ["", f"## {name}", "", f"`gradscope {name} {usage}`", "", *command.help.strip().splitlines(), ""]
        groups: dict[str, list[tuple[str, str]]] = {}
        for title, rows in _help(command, context):
            groups.setdefault(title, []).extend(rows)
        for title, rows in groups.items():
            parts += [f"| {title.lower()} | meaning |", "| --- | --- |"]
            parts += [f"| {_flags(flags)} | {cell(text)} |" for flags, text in rows] + [""]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


class _Recorder:
    """Takes what a command's help would print, group by group."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, list[tuple[str, str]]]] = []

    def section(self, title: str) -> "_Recorder":
        self.groups.append((title, []))
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def write_dl(self, rows: list[tuple[str, str]]) -> None:
        self.groups[-1][1].extend(rows)


def _help(command: Any, context: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    recorder = _Recorder()
    command.format_options(context, recorder)
    return iter(recorder.groups)


def _flags(flags: str) -> str:
    return f"`{' '.join(flags.split())}`".replace("|", "\\|")


def _first(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


# ------------------------------------------------------------------------------------------------------ api.md

#: The public names by section; a test holds them against ``gradscope.__all__``.
NAMES: dict[str, tuple[str, ...]] = {
    "Measure": ("audit", "attack", "trace", "landscape", "spectrum", "transfer", "judge"),
    "Train and load": ("train", "load"),
    "Read and report": ("read", "report"),
    "Images and settings": ("ImageSet", "ThreatModel", "PGD", "Budget", "Training", "Phase", "Adversary"),
    "Errors": ("GradscopeError",),
}

#: What the functions return, and the methods and attributes that each adds.
RESULTS = (
    *("Result", "AuditReport", "Attacks", "Trace", "Landscape", "Spectrum", "TransferMatrix", "JudgeReport"),
    "TrainedModel",
)


#: Public functions of other modules.
ELSEWHERE = {"In test suites": ("gradscope.testing", "assert_not_masked")}


def api_page() -> str:
    """api.md: public names from their docstrings, in the order of :data:`NAMES`."""
    parts = [(HERE / "api.head.md").read_text().rstrip(), ""]
    for title, names in NAMES.items():
        parts += [f"## {title}", ""]
        parts += _shared_table() if title == "Measure" else ()
        for name in names:
            public = getattr(gradscope, name)
            parts += _class(f"gs.{name}", public) if inspect.isclass(public) else _function(f"gs.{name}", public)
        if title == "Read and report":
            parts += _results()
    for title, (module, name) in ELSEWHERE.items():
        parts += [f"## {title}", "", *_function(f"{module}.{name}", getattr(import_module(module), name))]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _results() -> Iterator[str]:
    from gradscope.api.models import TrainedModel
    from gradscope.measure import result

    yield from ("## Results", "")
    yield from ("Every function that measures returns one of these. All have what `Result` has.", "")
    for name in RESULTS:
        yield from _class(name, TrainedModel if name == "TrainedModel" else getattr(result, name))


def _function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    text = inspect.cleandoc(function.__doc__ or "")
    summary, sections = _sections(text)
    yield from (f"### {name}", "", f"`{name}({_parameters(function)})`", "", _prose(summary), "")
    entries = sections.pop("Parameters", [])
    shared = _shared() if function.__name__ in (*NAMES["Measure"], "assert_not_masked") else {}
    entries = [one for one in entries if one[0] not in shared]
    if entries:
        rows = [(names, *_default_of(function, names, meaning)) for names, meaning in entries]
        yield from ("| argument | default | meaning |", "| --- | --- | --- |")
        yield from (f"| {_names(names)} | {cell(default)} | {cell(meaning)} |" for names, default, meaning in rows)
        yield ""
    for title, found in sections.items():
        if title == "Examples":
            yield from ("Example:", "", "```pycon", *found[0][1].splitlines(), "```", "")
        else:
            for kind, meaning in found:
                yield from (f"{title} `{kind}`: {_prose(meaning)}", "")


def _shared() -> dict[str, str]:
    """The arguments that all functions take that measure, and what they mean."""
    functions = [getattr(gradscope, name) for name in NAMES["Measure"]]
    tables = [dict(_sections(inspect.cleandoc(one.__doc__ or ""))[1]["Parameters"]) for one in functions]
    return {name: text for name, text in tables[0].items() if all(one.get(name) == text for one in tables)}


def _shared_table() -> Iterator[str]:
    function = getattr(gradscope, NAMES["Measure"][0])
    yield from ("All functions of this section take these, and options of their own as keywords:", "")
    yield from ("| argument | default | meaning |", "| --- | --- | --- |")
    for names, meaning in _shared().items():
        default, text = _default_of(function, names, meaning)
        yield f"| {_names(names)} | {cell(default)} | {cell(text)} |"
    yield ""


def _names(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _parameters(function: Callable[..., Any]) -> str:
    """The arguments by position, and those by keyword where there are few."""
    parameters = inspect.signature(function).parameters.values()
    plain = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    keywords = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    return ", ".join([*plain, *(["*", *keywords] if 0 < len(keywords) < 8 else ["**options"] if keywords else [])])


def _default_of(function: Callable[..., Any], names: str, meaning: str) -> tuple[str, str]:
    """An argument's default, in words where the docstring has it so, and what the docstring says besides."""
    found = re.search(
        r"; default: ((?:(?!; (?:at least|at most|above|one of) ).)*?)(?=; (?:at|above|one of)|\.$)", meaning
    )
    if found:
        return found[1], meaning.replace(found[0], "", 1)
    parameter = inspect.signature(function).parameters.get(names)
    default = "" if parameter is None or parameter.default in (inspect.Parameter.empty, None, ()) else parameter.default
    return str(default), meaning


def _class(name: str, kind: type) -> Iterator[str]:
    summary, sections = _sections(inspect.cleandoc(kind.__doc__ or ""))
    yield from (f"### {name}", "", _prose(summary), "")
    fields = getattr(kind, "model_fields", None) or {}
    if fields:
        hints = get_type_hints(kind, include_extras=True)
        yield from ("| field | default | values |", "| --- | --- | --- |")
        for field, info in fields.items():
            default = "must be given" if info.is_required() else "see above" if info.default_factory else info.default
            allowed = limits(hints[field], *info.metadata).removeprefix("; ")
            yield f"| `{field}` | {cell(str(default))} | {cell(allowed)} |"
        yield ""
    elif is_dataclass(kind) and "from_tensors" not in vars(kind):
        said = [one.name if one.default is MISSING else f"{one.name}={one.default}" for one in dataclass_fields(kind)]
        yield from (f"`{name}({', '.join(said)})`", "")
    members = [*_members(kind)] if not fields and not issubclass(kind, Exception) else []
    if members:
        yield from ("| member | meaning |", "| --- | --- |")
        yield from (f"| `{signature}` | {cell(_prose(text))} |" for signature, text in members)
        yield ""
    for title, found in sections.items():
        if title == "Examples":
            yield from ("Example:", "", "```pycon", *found[0][1].splitlines(), "```", "")


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """The public methods and properties that a class defines itself, with the first paragraphs of their docstrings."""
    for name, member in vars(kind).items():
        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not (callable(inner) or isinstance(inner, property)) or name == "forward":
            continue
        text = inspect.cleandoc(inner.__doc__ or "").partition(">>>")[0].strip()
        if isinstance(inner, property):
            yield f".{name}", text
        else:
            arguments = [one for one in inspect.signature(inner).parameters if one not in ("self", "cls")]
            yield f".{name}({', '.join(arguments)})", text


_UNDERLINED = re.compile(r"^(Parameters|Returns|Raises|Examples)\n-+\n", re.MULTILINE)


def _sections(text: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The text before the sections of a docstring in numpy's style, and of each section its entries."""
    pieces = _UNDERLINED.split(text)
    found: dict[str, list[tuple[str, str]]] = {}
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if title == "Examples":
            found[title] = [("", body.strip())]
            continue
        entries = re.split(r"^(?=\S)", body.strip(), flags=re.MULTILINE)
        found[title] = [
            (head.strip(), " ".join(rest.split())) for head, _, rest in (e.partition("\n") for e in entries if e)
        ]
    return pieces[0].strip(), found


def _prose(text: str) -> str:
    """Markdown of a docstring's text: its roles and double backticks."""
    text = re.sub(r":(?:func|class|meth|data|mod|attr):`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


PAGES: dict[str, Callable[[], str]] = {"files.md": files_page, "commands.md": commands_page, "api.md": api_page}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page())


if __name__ == "__main__":
    main()

"""Make commands from declared options: each field of an options class is an option of the command."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup

from gradscope.cli.shared import shared_mistakes
from gradscope.errors import UNPRINTABLE, GradscopeError
from gradscope.options import GROUPS
from gradscope.validation import Config, given_path


def completing(table: str) -> Any:
    """Complete comma-separated names from the table "module:TABLE"; import the module only when the shell asks."""

    def names(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        module, _, name = table.partition(":")
        known = getattr(import_module(module), name)
        return [f"{done}{comma}{name}" for name in known if name.startswith(last)]

    return names


#: Placeholders for values by type in ``--help``.
_VALUES = {"str": "TEXT", "int": "N", "float": "NUMBER", "path": "PATH", "list[str]": "TEXT"}


class WholeSentences(TyperGroup):
    """The whole command line. Its ``--help`` shows a full sentence for each command, on as many lines as needed."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first paragraph of its help."""
        helps = {name: command.help or "" for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join(text.partition("\n\n")[0].split())) for name, text in helps.items()])


class GroupedCommand(TyperCommand):
    """A command whose ``--help`` lists its options in groups, in order of declaration."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Write ``CKPT...``, not ``{CKPT}...``."""
        return [re.sub(r"\{(\w+)(\.\.\.)?\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; empty or unprintable values and invalid paths are usage errors."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        checked = [] if ctx.resilient_parsing else self.get_params(ctx)
        with shared_mistakes():
            for parameter in checked:
                for text in _each(given.get(parameter.name)):
                    _require_text(parameter, text)
            rest = super().parse_args(ctx, args)
            for parameter in checked:
                for path in _each(ctx.params.get(parameter.name)):
                    if isinstance(path, Path):
                        given_path(path, _name(parameter))
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                name = re.sub(r" <.*>", "", record[0]) if is_argument else _with_value(record[0])
                # Typer puts extra parentheses around a default in words.
                text = re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", record[1])
                groups.setdefault(title, []).append((name, text))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _each(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _name(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    return (str(parameter.metavar) if is_argument else max(parameter.opts, key=len)).removesuffix("...")


def _require_text(parameter: Any, text: object) -> None:
    """Raise :class:`GradscopeError` if the typed ``text`` is empty or not one line of printable text."""
    name = _name(parameter)
    if not isinstance(text, str):
        return
    if not text:
        raise GradscopeError(f"{name} must not be empty")
    lines = text.replace("\n", "") if name == "--set" else text  # TOML may have several lines
    if UNPRINTABLE.search(lines):
        raise GradscopeError(f"{name} must be text in one line, in UTF-8, got {text!r:.300}")


def _with_value(flags: str) -> str:
    return re.sub(r"<(.*)>", lambda kind: _VALUES[kind[1]], flags)


def parameters(*kinds: type[Config]) -> list[inspect.Parameter]:
    """Make the options for the fields of ``kinds``, sorted by group, required options first."""
    fields = [(name, field) for name, field in _fields(kinds).items() if _extra(field)["typed"]]
    fields.sort(key=lambda item: (GROUPS.index(_extra(item[1])["group"]), not item[1].is_required()))
    return [_parameter(name, field) for name, field in fields]


def declared(*kinds: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a command's unannotated options from the fields with the same names."""
    fields = _fields(kinds)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        plain = [name for name, parameter in own.items() if get_origin(parameter.annotation) is not Annotated]
        return with_signature(command, [*(own | {name: _parameter(name, fields[name]) for name in plain}).values()])

    return decorate


def _fields(kinds: Sequence[type[Config]]) -> dict[str, FieldInfo]:
    return {name: field for kind in kinds for name, field in kind.model_fields.items()}


def plain_parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Make an argument or option that is not a field, with typer's annotation."""
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def panel(group: str) -> str:
    """Write the heading of a group in ``--help``."""
    return f"{group.capitalize()} options"


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def filled(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the fields of ``kind`` that the command line gave."""
    given = {name: value for name in kind.model_fields if (value := values.get(name)) is not None}
    return {name: _number(value) if _is_number(kind.model_fields[name]) else value for name, value in given.items()}


def _is_number(field: FieldInfo) -> bool:
    return _kinds(field.annotation) in ({int}, {float})


def _number(text: str) -> object:
    """Parse ``text`` as a number; leave other text unchanged, so that the field refuses it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def with_signature(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give ``command(**values)`` the signature that typer reads."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = _extra(field)
    flag = extra["flag"] or f"--{name.replace('_', '-')}"
    kind, default = _on_the_command_line(field)
    names = extra["names"]
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if extra["both_ways"] else flag,
        help=field.description,
        metavar=extra["metavar"] or _choices(field.annotation) or _value(field, default),
        show_default=extra["usual"] or True,
        autocompletion=completing(names) if names else None,
        rich_help_panel=panel(extra["group"]),
    )
    optional = default is None and not field.is_required()
    return plain_parameter(name, Annotated[kind | None if optional else kind, option], default)


def _on_the_command_line(field: FieldInfo) -> tuple[Any, Any]:
    """Choose the type that the command line parses, and its default. Numbers stay text: the field parses them."""
    kinds = _kinds(field.annotation)
    default: Any = inspect.Parameter.empty if field.is_required() else field.default
    if tuple in kinds or isinstance(default, tuple):
        if _extra(field)["repeatable"]:
            return list[str], None
        return str, ",".join(map(str, default)) or None if default else None
    for plain in (bool, Path):
        if kinds == {plain}:
            return plain, default
    return str, str(default) if isinstance(default, int) else default


def _kinds(annotation: Any) -> set[Any]:
    """List the plain types in an annotation, without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(_kinds(part) for part in get_args(annotation))) - {NoneType}
    if origin is Literal:
        return {str}
    return {NoneType} if annotation is None else {origin or annotation}


def _value(field: FieldInfo, default: Any) -> str | None:
    """Choose the placeholder for a value: a number, ``NAME`` or several names."""
    kinds = _kinds(field.annotation)
    if float in kinds and tuple not in kinds:
        return "NUMBER"
    if kinds == {int}:
        return "N"
    if _extra(field)["names"] is None:
        return None
    return "NAME,..." if "," in str(default or "") else "NAME"


def _choices(annotation: Any) -> str | None:
    """Write ``[a|b]`` for a literal, also one that may be None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, map(_choices, get_args(annotation))), None)
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    return f"[{'|'.join(map(str, get_args(annotation)))}]" if get_origin(annotation) is Literal else None

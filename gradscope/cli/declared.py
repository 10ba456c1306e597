"""Commands made from declared options: a field of an options class is an option of the command."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from gradscope.config import Config
from gradscope.measure.declaring import GROUPS


def completing(table: str) -> Any:
    """Complete names between commas by those of "module:TABLE"; the module is imported when the shell asks."""

    def names(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        module, _, name = table.partition(":")
        known = getattr(import_module(module), name)
        return [f"{done}{comma}{name}" for name in known if name.startswith(last)]

    return names


class GroupedCommand(TyperCommand):
    """A command whose ``--help`` lists its options in groups, in the order in which they come."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = getattr(parameter, "rich_help_panel", None)
                title = "Arguments" if parameter.param_type_name == "argument" else group or "Options"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def parameters(*kinds: type[Config]) -> list[inspect.Parameter]:
    """The options of a command that fill the fields of ``kinds``, those of a group together."""
    fields = [(name, field) for kind in kinds for name, field in kind.model_fields.items()]
    fields.sort(key=lambda one: GROUPS.index(_extra(one[1])["group"]))
    return [_parameter(name, field) for name, field in fields]


def plain_parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """An argument or option that is no field, with typer's annotation."""
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def panel(group: str) -> str:
    """The heading of a group in ``--help``."""
    return f"{group.capitalize()} options"


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def filled(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line gave of ``kind``'s fields."""
    return {name: values[name] for name in kind.model_fields if values[name] is not None}


def with_signature(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """``command(**values)`` with the signature that typer reads."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = _extra(field)
    flag = f"--{name.replace('_', '-')}"
    kind, default, declared = _on_the_command_line(field)
    if kind is bool and extra["both_ways"]:
        declared = (f"{flag}/--no-{flag[2:]}",)
    elif kind is bool:
        declared = (flag,)
    names = extra["names"]
    option = typer.Option(
        *declared,
        help=field.description,
        metavar=extra["metavar"] or _choices(field.annotation),
        autocompletion=completing(names) if names else None,
        rich_help_panel=panel(extra["group"]),
    )
    return plain_parameter(name, Annotated[kind if default is not None else kind | None, option], default)


def _on_the_command_line(field: FieldInfo) -> tuple[Any, Any, tuple[str, ...]]:
    """The type that the command line reads, its default, and how the option is declared where not by its name."""
    kinds = _kinds(field.annotation)
    default = field.default
    if tuple in kinds or isinstance(default, tuple):
        if _extra(field)["repeatable"]:
            return list[str], None, ()
        return str, ",".join(map(str, default)) or None if default else None, ()
    for plain in (bool, int, float, Path):
        if kinds == {plain}:
            return plain, default, ()
    return str, default, ()


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of, without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(_kinds(part) for part in get_args(annotation))) - {NoneType}
    if origin is Literal:
        return {str}
    return {NoneType} if annotation is None else {origin or annotation}


def _choices(annotation: Any) -> str | None:
    """``[a|b]`` for a literal."""
    return f"[{'|'.join(map(str, get_args(annotation)))}]" if get_origin(annotation) is Literal else None

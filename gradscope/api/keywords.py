"""Functions whose keyword arguments are declared options: their signature, their docstring, and what they refuse."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from gradscope.config import PGD, Budget
from gradscope.errors import GradscopeError, described, unknown_name
from gradscope.options import explained
from gradscope.validation import Config

Function = TypeVar("Function", bound=Callable[..., Any])


def declared(own: str, *kinds: type[Config], without: str | None = None) -> Callable[[Function], Function]:
    """Give a function the keyword arguments that ``kinds`` declare, in its signature and its docstring.

    ``own`` documents its own arguments; fields of their names, and the one ``without``, are left out.
    """

    def decorate(function: Function) -> Function:
        plain = inspect.signature(function)
        before = {name: one for name, one in plain.parameters.items() if one.kind is not one.VAR_KEYWORD}
        added: dict[str, inspect.Parameter] = {}
        texts: dict[str, str] = {}
        for kind in kinds:
            hints = get_type_hints(kind, include_extras=True)
            for name, field in kind.model_fields.items():
                if name in before or name == without:
                    continue
                allowed = limits(hints[name], *field.metadata)
                allowed = allowed if allowed or Any in _parts(hints[name]) else _limits_beneath(name)
                texts[name] = f"{explained(field)}{_default(field.default)}{allowed}"
                added[name] = _keyword(name, field.default, get_type_hints(kind)[name])
        added["progress"] = _keyword("progress", None, bool | None)
        texts["progress"] = "draw progress bars, or none; where it is left out, on a terminal"

        @wraps(function)
        def checked(*given: Any, **options: Any) -> Any:
            for name in options:
                if name not in before and name not in added:
                    raise unknown_name(f"{function.__name__}()", name, added)
            return function(*given, **options)

        signature = plain.replace(parameters=[*before.values(), *added.values()])
        checked.__signature__ = signature  # type: ignore[attr-defined]  # what help() reads
        checked.__doc__ = _document(function.__doc__ or "", own, texts)
        return cast(Function, checked)

    return decorate


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _default(value: Any) -> str:
    """The default, where it is a value that says something."""
    if value is None or value == () or value is ...:
        return ""
    said = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"; default: {said}"


#: What a bound of a number is called, in the order in which they are said.
_BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def limits(hint: Any, *metadata: Any) -> str:
    """The values that an option takes: names, or bounds of a number."""
    parts = [*_parts(hint), *metadata]
    names = [str(name) for part in parts if get_origin(part) is Literal for name in get_args(part)]
    said = [f"one of {', '.join(names)}"] if len(names) > 1 else []
    for kind, attribute, words in _BOUNDS:
        said += [f"{words} {getattr(part, attribute):,}" for part in parts if isinstance(part, kind)][:1]
    return f"; {', '.join(said)}" if said else ""


def _limits_beneath(name: str) -> str:
    """The limits of the setting of an attack that an option is laid over."""
    for kind in (PGD, Budget):
        if name in kind.model_fields:
            return limits(get_type_hints(kind, include_extras=True)[name], *kind.model_fields[name].metadata)
    return ""


def _parts(hint: Any) -> Iterator[Any]:
    """An annotation and all that it is made of, with the metadata of pydantic's fields."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _parts(part)
    yield from getattr(hint, "metadata", ())


def _document(text: str, own: str, options: Mapping[str, str]) -> str:
    """The docstring with its parameters before what it says of the result."""
    first, _, last = inspect.cleandoc(text).partition("\n\nReturns\n")
    lines = [f"{name}\n    {_in_python(text)}." for name, text in options.items()]
    return f"{first}\n\nParameters\n----------\n{own}{chr(10).join(lines)}\n\nReturns\n{last}\n"


def _in_python(text: str) -> str:
    """An option's text for Python: flags are keywords, values are lists, and it begins as a sentence does."""
    text = re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), text)
    text = re.sub(r"\bCKPT\b", "model", text)
    text = text.replace(" with commas between", ", a list or a text with commas").replace("repeatable", "one or a list")
    return f"{text[:1].upper()}{text[1:]}"


def require_left_out(kind: type[Config], values: Mapping[str, Any], why: str) -> None:
    """Raise :class:`GradscopeError` where ``values`` have an option of ``kind``."""
    for name, value in of_kind(kind, values).items():
        raise GradscopeError(f"{name} must be left out where {why}, got {described(value)}")


def of_kind(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """The ``values`` that are options of ``kind``."""
    return {name: value for name, value in values.items() if name in kind.model_fields}

"""Functions whose keyword arguments are declared options: their signature, their docstring, and what they refuse."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast, get_type_hints

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
            hints = get_type_hints(kind)
            for name, field in kind.model_fields.items():
                if name in before or name == without:
                    continue
                texts[name] = explained(field)
                added[name] = _keyword(name, field.default, hints[name])
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

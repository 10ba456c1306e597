"""Base class of every configuration; turns pydantic's validation errors into one-line errors that name the key."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gradscope.errors import UNPRINTABLE, GradscopeError, described, unknown_name

_IN_NO_NAME = re.compile(rf"{UNPRINTABLE.pattern}|[/\\]")


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, mistakes as one-line :class:`GradscopeError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate ``values``; raises :class:`GradscopeError` that names the key of the first mistake."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = _first_mistake(error.errors())
            cause = first.get("ctx", {}).get("error")
            raise (cause if isinstance(cause, GradscopeError) else _explain(cls, first)) from None


def _require_given(value: object) -> object:
    if value == "":
        raise ValueError("must be a non-empty path")
    return value


#: A non-empty path: the empty path would mean the working directory.
FilePath = Annotated[Path, BeforeValidator(_require_given)]


def given_path(value: object, argument: str) -> Path:
    """Convert ``value`` to a path; raises :class:`GradscopeError` that names ``argument`` if it cannot be one."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise GradscopeError(f"{argument} must be a path, got {type(value).__name__}")
    if not text:
        raise GradscopeError(f"{argument} must not be empty")
    if UNPRINTABLE.search(text):
        raise GradscopeError(f"{argument} must be text in one line, in UTF-8, got {text!r:.300}")
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise GradscopeError(f"{argument} must be a path, got {text:.300}: {error.strerror}") from None
    return Path(text)


def is_plain_name(text: str) -> bool:
    """Tell whether ``text`` is a plain name: one line of at most 255 characters that is not a path.

    >>> is_plain_name("results"), is_plain_name("a/b")
    (True, False)
    """
    return text not in ("", ".", "..") and len(text) <= 255 and not _IN_NO_NAME.search(text)


#: Type of a pydantic error to the words after "must"; the error's context fills in the placeholders.
MUST = {
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be at least {ge:g}",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be at most {le:g}",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "be a number"),
    "finite_number": "be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "be true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "be text"),
    "path_type": "be a path",
    "literal_error": "be one of {expected}",
    **dict.fromkeys(("tuple_type", "list_type"), "be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "be a table"),
    "missing": "be given",
    "too_short": "have at least {min_length} {entries}",
}


def _explain(config: type[Config], error: ErrorDetails) -> GradscopeError:
    """Turn one pydantic error into one line: the key, what it must be, and the value that was given."""
    location = _place(error)
    key = ".".join(str(part) for part in location)
    where = ""
    if len(location) == 2 and isinstance(location[1], int) and "number" in MUST.get(error["type"], ""):
        key, where = str(location[0]), " in every entry"  # an option that takes a list
    given = error["input"]
    if type(given).__module__.partition(".")[0] in ("torch", "numpy") or callable(given):
        given = type(given)  # the value itself would fill the screen
    if error["type"] == "extra_forbidden":
        return unknown_name(key, str(location[-1]), _fields_at(config, location[:-1]))
    facts = dict(error.get("ctx", {}))
    if error["type"] == "literal_error":
        allowed = [name.strip(" '") for name in str(facts["expected"]).replace(" or ", ",").split(",")]
        if isinstance(given, str):
            return unknown_name(key, given, allowed)
        facts["expected"] = ", ".join(allowed)
    if error["type"] in MUST:
        entries = "entry" if facts.get("min_length") == 1 else "entries"
        got = "" if error["type"] == "missing" else f", got {described(given)}"
        return GradscopeError(f"{key} must {MUST[error['type']].format(**facts, entries=entries)}{where}{got}", key)
    message = error["msg"].removeprefix("Value error, ")
    colon = "" if message.startswith("must ") else ":"
    return GradscopeError(f"{key}{colon} {message}, got {described(given)}", key) if key else GradscopeError(message)


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """Return the keys that lead to an error, without the union members, which pydantic names by type or tag."""
    return tuple(part for part in error["loc"] if part not in ("str", "float") and not str(part).startswith("["))


def _first_mistake(errors: list[ErrorDetails]) -> ErrorDetails:
    """Select the first error; for a union such as text or number, the last member's: "must be a number"."""
    return [error for error in errors if _place(error) == _place(errors[0])][-1]


def _fields_at(config: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """List the keys of the configuration nested at ``location``."""
    for part in location:
        field = config.model_fields.get(str(part))
        if field is not None:
            config = next(kind for kind in _nested(field.annotation) if issubclass(kind, Config))
    return [field.alias or name for name, field in config.model_fields.items()]


def _nested(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in _nested(argument)]

"""The base of every configuration, and what a mistake in one is called: one line in our words, not in pydantic's."""

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
        """Validate ``values``; the first mistake is raised as a :class:`GradscopeError` that names the key."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = _told(error.errors())
            ours = first.get("ctx", {}).get("error")
            raise (ours if isinstance(ours, GradscopeError) else _explain(cls, first)) from None


def _require_given(value: object) -> object:
    if value == "":
        raise ValueError("must be a path and not empty")
    return value


#: A path that is given: an empty one would be the working directory.
FilePath = Annotated[Path, BeforeValidator(_require_given)]


def given_path(value: object, argument: str) -> Path:
    """``value`` as a path; :class:`GradscopeError` that names ``argument`` where it can be none."""
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
            raise GradscopeError(f"{argument}: {text:.300} is no path: {error.strerror}") from None
    return Path(text)


def is_plain_name(text: str) -> bool:
    """Whether ``text`` is a name, of at most 255 characters in one line, and no path."""
    return text not in ("", ".", "..") and len(text) <= 255 and not _IN_NO_NAME.search(text)


#: What a value must be, by the type of pydantic's error; filled in with the error's context.
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
    """One line for pydantic's first error: the key, what is allowed, what came."""
    location = _place(error)
    key = ".".join(str(part) for part in location)
    each = ""
    if len(location) == 2 and isinstance(location[1], int) and "number" in MUST.get(error["type"], ""):
        key, each = str(location[0]), " in each place"  # of a list that is an option
    given = error["input"]
    if type(given).__module__.partition(".")[0] in ("torch", "numpy") or callable(given):
        given = type(given)  # whose value would fill the screen
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
        came = "" if error["type"] == "missing" else f", got {described(given)}"
        return GradscopeError(f"{key} must {MUST[error['type']].format(**facts, entries=entries)}{each}{came}", key)
    message = error["msg"].removeprefix("Value error, ")
    colon = "" if message.startswith("must ") else ":"
    return GradscopeError(f"{key}{colon} {message}, got {described(given)}", key) if key else GradscopeError(message)


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """The keys that lead to an error, without the members of a union, which pydantic names by type or tag."""
    return tuple(part for part in error["loc"] if part not in ("str", "float") and not str(part).startswith("["))


def _told(errors: list[ErrorDetails]) -> ErrorDetails:
    """The first error; of a union the last member's: of text or number, that it is no number."""
    return [error for error in errors if _place(error) == _place(errors[0])][-1]


def _fields_at(config: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the configuration nested at ``location`` knows."""
    for part in location:
        field = config.model_fields.get(str(part))
        if field is not None:
            config = next(kind for kind in _nested(field.annotation) if issubclass(kind, Config))
    return [field.alias or name for name, field in config.model_fields.items()]


def _nested(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in _nested(argument)]

"""The error for a user's mistake, the warning about a costly or doubtful step, and the lookup of names."""

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


#: The argument at the start of a message: "epsilon must be ...", "data_root: no such folder".
_LEADING = re.compile(r"\w+(?=(?:\.\w+)*(?::| must\b))")


#: Characters that are printed only as escapes: control characters, line ends and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class GradscopeError(ValueError):
    """A user's mistake. The message is one line: the argument, what it must be, and the value that was given.

    Characters of :data:`UNPRINTABLE` in the message are escaped.

    ``argument``: name of the argument that the message begins with, as Python spells it; by default it is read from the
    message. Other arguments in the message stand in backticks. The command line replaces both by its flags.
    ``shared``: every process of the run raises this error, so only the first needs to report it.
    """

    shared = False

    def __init__(self, message: str, argument: str | None = None) -> None:
        message = UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), message)
        super().__init__(message)
        leading = _LEADING.match(message)
        self.argument = leading[0] if argument is None and leading else argument

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.argument)


class CannotResumeError(GradscopeError):
    """The unfinished run cannot be continued: it began with other settings, or its saved state is damaged."""


#: Other names of the same option, in other commands or on the command line.
_ELSEWHERE = {
    "samples": "images",
    "images": "samples",
    "attack": "attacks",
    "attacks": "attack",
    "dataset": "data",
    "arch": "architecture",
}


def unknown_name(argument: str, name: str, known: Iterable[str]) -> GradscopeError:
    """Build the error for an unknown name: it suggests the closest known name and lists all of them."""
    names = sorted(known)
    close = _closest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return GradscopeError(f"{argument}: {described(name)} is unknown; {hint}known: {', '.join(names)}")


def _closest(name: str, names: Sequence[str]) -> str | None:
    """Find the closest of ``names``: the synonym, else the shortest that ``name`` begins, else the most similar."""
    if _ELSEWHERE.get(name) in names:
        return _ELSEWHERE[name]
    completions = [known for known in names if len(name) > 1 and known.startswith(name.lower())]
    if completions:
        return min(completions, key=len)
    return next(iter(get_close_matches(name.lower(), names, n=1, cutoff=0.5)), None)


def lookup(table: Mapping[str, T], name: str, argument: str) -> T:
    """Return ``table[name]``; an unknown name raises :class:`GradscopeError` with the closest name and the list."""
    if name not in table:
        raise unknown_name(argument, name, table)
    return table[name]


def known_names(names: Sequence[str], table: Mapping[str, Any], argument: str) -> list[str]:
    """Check ``names`` and return them: each must be in ``table``, none may repeat, and there must be at least one."""
    for name in names:
        lookup(table, name, argument)
    if not names:
        raise GradscopeError(f"{argument} must name at least one of: {', '.join(table)}")
    for name in names:
        if names.count(name) > 1:
            raise GradscopeError(f"{argument} must name each only once, got {name!r} again")
    return list(names)


def described(value: object) -> str:
    """Format ``value`` for a message: at most 200 characters of its repr, or its type where repr fails."""
    try:
        text = repr(value)
    except Exception:  # a user's own class may raise anything; so may deep nesting
        return type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def reason_of(error: BaseException) -> str:
    """Shorten the text of another library's ``error`` to one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_of(names: Sequence[str]) -> str:
    """List the first five of ``names``, and how many more there are, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Caution(UserWarning):
    """A warning about doubtful numbers or a costly step; the command line prints it on a line of its own."""


def caution(text: str) -> None:
    """Warn with ``text``, at the line of the user's code that called gradscope."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("gradscope."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, Caution, stacklevel=level)

"""The error a user's mistake raises, the warning before a costly or doubtful step, and the way names are looked up."""

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


#: The argument that a message begins with: "epsilon must be ...", "data_root: no such folder".
_LEADING = re.compile(r"\w+(?=(?:\.\w+)*(?::| must\b))")


#: What is never printed as it is: control characters, ends of lines, and halves of characters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class GradscopeError(ValueError):
    """A mistake of the user's. The message is one line: the argument, what it must be, what came.

    What a name in it has of :data:`UNPRINTABLE` is escaped.

    ``argument``: the argument with whose name the message begins, as Python spells it; read off the message where it
    is not given. Arguments that a hint names are in backticks. The command line says its flags instead of both.
    ``shared``: every process of a run raises it, so that the first may speak for all.
    """

    shared = False

    def __init__(self, message: str, argument: str | None = None) -> None:
        message = UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
        super().__init__(message)
        found = _LEADING.match(message)
        self.argument = found[0] if argument is None and found else argument

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.argument)


class CannotResumeError(GradscopeError):
    """An unfinished run that cannot be continued: it was begun otherwise, or its state is damaged."""


#: What other commands, or the command line, call the same.
_ELSEWHERE = {
    "samples": "images",
    "images": "samples",
    "attack": "attacks",
    "attacks": "attack",
    "dataset": "data",
    "arch": "architecture",
}


def unknown_name(argument: str, name: str, known: Iterable[str]) -> GradscopeError:
    """The error for a name that is in no table: offers the closest one and lists all."""
    names = sorted(known)
    close = _closest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return GradscopeError(f"{argument}: {described(name)} is unknown; {hint}known: {', '.join(names)}")


def _closest(name: str, names: Sequence[str]) -> str | None:
    """What ``name`` is called here, else the shortest name that begins with it, else the most alike, if any is."""
    if _ELSEWHERE.get(name) in names:
        return _ELSEWHERE[name]
    begun = [one for one in names if len(name) > 1 and one.startswith(name.lower())]
    return min(begun, key=len) if begun else next(iter(get_close_matches(name.lower(), names, n=1, cutoff=0.5)), None)


def lookup(table: Mapping[str, T], name: str, argument: str) -> T:
    """``table[name]``; a miss raises :class:`GradscopeError` with the closest name and the list."""
    if name not in table:
        raise unknown_name(argument, name, table)
    return table[name]


def known_names(names: Sequence[str], table: Mapping[str, Any], argument: str) -> list[str]:
    """``names``; all must be in ``table``, none twice, and there must be one."""
    for name in names:
        lookup(table, name, argument)
    if not names:
        raise GradscopeError(f"{argument}: at least one name is needed, known: {', '.join(table)}")
    for name in names:
        if names.count(name) > 1:
            raise GradscopeError(f"{argument} must be given once each, got {name!r} again")
    return list(names)


def described(value: object) -> str:
    """``repr(value)`` for a message, 200 characters of it; its type where it cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # of a user's own class, or nested too deeply
        return type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def reason_of(error: BaseException) -> str:
    """What another library's ``error`` says, for a message: one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_of(names: Sequence[str]) -> str:
    """Five of ``names`` and how many more there are, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Caution(UserWarning):
    """What to know before numbers are read or time is spent; the command line prints it as a line of its own."""


def caution(text: str) -> None:
    """Warn the user of ``text`` at the line that called gradscope."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("gradscope."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, Caution, stacklevel=level)

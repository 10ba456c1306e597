"""The error a user's mistake raises, and the one way names are looked up."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class GradscopeError(Exception):
    """A mistake of the user's. The message is one line: the argument, what is allowed, what came.

    ``shared``: every process of a run raises it, so that the first may speak for all.
    """

    shared = False


def unknown_name(argument: str, name: str, known: Iterable[str]) -> GradscopeError:
    """The error for a name that is in no table: offers the closest one and lists all."""
    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return GradscopeError(f"{argument}: {name!r} is unknown; {hint}known: {', '.join(names)}")


def lookup(table: Mapping[str, T], name: str, argument: str) -> T:
    """``table[name]``; a miss raises :class:`GradscopeError` with the closest name and the list."""
    if name not in table:
        raise unknown_name(argument, name, table)
    return table[name]

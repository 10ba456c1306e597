"""Files that anyone may have written: opened without waiting, read up to a limit, refused in one line."""

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from gradscope.errors import GradscopeError, reason_of
from gradscope.limits import most, raising

#: Half of a character, which JSON may spell and UTF-8 does not have.
_HALF = re.compile("[\ud800-\udfff]")
#: Objects, lists and tables that may lie within each other.
_DEEPEST = 100


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; anything else raises OSError. Opening a pipe would wait for a writer."""
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115 (a path's own takes no opener; the caller closes)
    except ValueError:  # a NUL in it, or half a character
        raise OSError(errno.EINVAL, "it is no path", str(path)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return cast(BinaryIO, file)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, limit: str = "TEXT_BYTES") -> bytes:
    """Read a file of at most the ``limit`` of :mod:`gradscope.limits`; OSError where it cannot be, or is larger."""
    largest = most(limit)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= largest else b""
    if max(size, len(content)) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest} bytes; {raising(limit)}", str(path))
    return content


def read_text(path: Path, argument: str) -> str:
    """Read a text in UTF-8; :class:`GradscopeError` that names ``argument`` where that fails."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} is no text in UTF-8: {reason_of(error)}") from None


def read_json(path: Path, argument: str = "directory") -> Any:
    """Read JSON; :class:`GradscopeError` that names ``argument`` where it cannot be read or is none."""
    text = read_text(path, argument)
    try:
        return parse_json(text)
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} is not JSON: {reason_of(error)}") from None


def parse_json(text: str | bytes) -> Any:
    """The value that ``text`` holds as JSON; ValueError where it is none, or no measurement writes it.

    That are keys that come twice, numbers that are not finite, half characters, and what is nested too deep.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_whole
        )
        require_shallow(value)
    except RecursionError:
        raise _too_deep() from None
    if "\\ud" in text.lower() and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half a character, which no file can")
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables that ``text`` holds as TOML; ValueError where it is none, or its tables lie too deep."""
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    require_shallow(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (again, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {again!r:.100} twice")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text:.20}, which is no finite number")
    return number


def _whole(text: str) -> int:
    _number(text)
    return int(text)


def require_shallow(value: Any) -> None:
    """Raise ValueError where objects and lists lie in each other so deep that walking through them may fail."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_DEEPEST} deep")


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()

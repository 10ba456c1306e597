"""Read files that anyone may have written: without blocking, up to a size limit, with one-line errors."""

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

#: A lone surrogate, which JSON can spell and UTF-8 cannot hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
#: The maximum nesting depth of objects, lists and tables.
_DEEPEST = 100


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; raises OSError for anything else, as a pipe would block until a writer."""
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115 (a path's own takes no opener; the caller closes)
    except ValueError:  # the path holds a NUL or a lone surrogate
        raise OSError(errno.EINVAL, "it is not a valid path", str(path)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return cast(BinaryIO, file)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, limit: str = "TEXT_BYTES") -> bytes:
    """Read a file's bytes; raises OSError if that fails or the file exceeds ``limit`` of :mod:`gradscope.limits`."""
    largest = most(limit)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= largest else b""
    if max(size, len(content)) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest} bytes; {raising(limit)}", str(path))
    return content


def read_text(path: Path, argument: str) -> str:
    """Read a UTF-8 text file; raises :class:`GradscopeError` that names ``argument`` if that fails."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} must be UTF-8 text: {reason_of(error)}") from None


def read_json(path: Path, argument: str = "directory") -> Any:
    """Read a JSON file; raises :class:`GradscopeError` that names ``argument`` if it cannot be read or parsed."""
    text = read_text(path, argument)
    try:
        return parse_json(text)
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} is not JSON: {reason_of(error)}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse ``text`` as JSON; raises ValueError if it is not JSON or holds values that gradscope never writes.

    Those are duplicate keys, numbers that are not finite, lone surrogates, and nesting deeper than the limit.

    >>> parse_json('{"epsilon": 0.03, "epsilon": 0.3}')
    Traceback (most recent call last):
    ValueError: it has the key 'epsilon' twice
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_whole
        )
        require_shallow(value)
    except RecursionError:
        raise _too_deep() from None
    if "\\ud" in text.lower() and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds a lone surrogate, which UTF-8 cannot encode")
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse ``text`` as TOML; raises ValueError if it is not TOML or nested deeper than the limit."""
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    require_shallow(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (duplicate, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {duplicate!r:.100} twice")
    return values


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"its numbers must be finite, got {text:.20}")
    return number


def _whole(text: str) -> int:
    _number(text)
    return int(text)


def require_shallow(value: Any) -> None:
    """Raise ValueError if objects and lists are nested so deep that a recursive walk may fail."""
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

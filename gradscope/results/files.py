"""Files written in one step, by one process at a time."""

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradscope.errors import GradscopeError

#: Seconds in which a process that was killed has let go of everything it held.
_MOMENT = 1.0
#: The names of temporary files: 8 digits say which file is written, 8 are random.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}(\.\w+)?")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    ensure_writable(path.parent)
    temporary = path.parent / f".{_mark(path.name)}{secrets.token_hex(4)}{path.suffix}"
    try:
        temporary.touch(mode=0o666, exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise GradscopeError(f"out: {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove what killed processes left in ``folder``: temporary files of ``names``, or all of them, and lock files.

    Whoever calls it holds the lock of what it sweeps (:func:`exclusive`), so that no live process writes there.
    """
    marks = None if names is None else {_mark(name) for name in names}
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and (marks is None or path.name[1:9] in marks):
            with suppress(OSError):
                path.unlink()
    for path in folder.glob(".*.lock") if names is None else ():
        with suppress(OSError, Timeout), FileLock(path, timeout=0):  # a live process keeps its own
            path.unlink()


def _mark(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()


@contextmanager
def exclusive(path: Path, argument: str = "out", *, directory: bool = False) -> Iterator[None]:
    """Keep other processes from writing to ``path``; :class:`GradscopeError` where one is writing.

    The lock is a hidden file beside ``path``, of a ``directory`` in it, so every process and machine that sees ``path``
    sees the lock. The system frees the lock of a killed process. The file is removed at the end.
    """
    file = _lock_file(path, directory)
    ensure_writable(file.parent, argument)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_MOMENT)
    except Timeout:
        busy = f"another gradscope is writing to {path}"
        raise GradscopeError(f"{argument}: {busy}; wait for it or name another") from None
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be locked: {error.strerror}; name another") from None
    try:
        yield
    finally:
        with suppress(OSError):  # before the release: after it, the file is the next one's
            file.unlink()
        lock.release()


def require_idle(path: Path, *, directory: bool = False) -> None:
    """Raise :class:`GradscopeError` where another process is writing to ``path``; leave nothing behind."""
    if _lock_file(path, directory).exists():
        with exclusive(path, directory=directory):
            pass


def _lock_file(path: Path, directory: bool) -> Path:
    path = path.resolve()
    return path / ".gradscope.lock" if directory else path.with_name(f".{path.name}.lock")


def ensure_writable(directory: Path, argument: str = "out") -> None:
    """Make ``directory``; where that or writing in it fails, raise :class:`GradscopeError` before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise GradscopeError(f"{argument}: {directory} is not writable: {error.strerror}") from None


def write_json(path: Path, value: Mapping[str, Any], *, indented: bool = True) -> None:
    """Write ``value`` as JSON; where it is not ``indented``, ten times as fast.

    A number that is not finite, which JSON does not have, is null.
    """
    indent = 2 if indented else None
    try:
        text = json.dumps(value, indent=indent, default=str, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=indent)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")

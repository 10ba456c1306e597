"""Write files atomically, by one process at a time."""

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

#: Seconds to wait for a lock: a killed process releases everything within this time.
_MOMENT = 1.0
#: The names of temporary files: the first 8 hex digits are a hash of the file's name, the other 8 are random.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}(\.\w+)?")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it replaces ``path`` when the block ends without an error."""
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
    """Remove the temporary files that killed processes left in ``folder``.

    With ``names``, only the temporary files of those names; without, all of them and stale lock files. The caller
    must hold the lock of ``folder`` (:func:`exclusive`), so that no live process writes there.
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
    """Hold an exclusive lock on ``path``; raises :class:`GradscopeError` if another process holds it.

    The lock is a hidden file beside ``path`` (inside it for a ``directory``), so every process and machine that sees
    ``path`` sees the lock. The system releases the lock of a killed process. The file is removed at the end.
    """
    file = _lock_file(path, directory)
    ensure_writable(file.parent, argument)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_MOMENT)
    except Timeout:
        busy = f"another gradscope is writing to {path}"
        raise GradscopeError(f"{argument}: {busy}; wait for it or choose another path") from None
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be locked: {error.strerror}; choose another path") from None
    try:
        yield
    finally:
        with suppress(OSError):  # before the release: after it, the file belongs to the next holder
            file.unlink()
        lock.release()


def require_idle(path: Path, *, directory: bool = False) -> None:
    """Raise :class:`GradscopeError` if another process is writing to ``path``; leave no file behind."""
    if _lock_file(path, directory).exists():
        with exclusive(path, directory=directory):
            pass


def _lock_file(path: Path, directory: bool) -> Path:
    path = path.resolve()
    return path / ".gradscope.lock" if directory else path.with_name(f".{path.name}.lock")


def ensure_writable(directory: Path, argument: str = "out") -> None:
    """Create ``directory`` and test that it can be written, before any work; raises :class:`GradscopeError` if not."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise GradscopeError(f"{argument}: {directory} is not writable: {error.strerror}") from None


def write_json(path: Path, value: Mapping[str, Any], *, indented: bool = True) -> None:
    """Write ``value`` as JSON. Without ``indented``, writing is ten times as fast.

    JSON has no NaN and no infinity: they become null.
    """
    indent = 2 if indented else None
    try:
        text = json.dumps(value, indent=indent, default=str, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=indent)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")

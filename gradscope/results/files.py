"""Files written in one step, by one process at a time."""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradscope.errors import GradscopeError

#: Seconds in which a process that was killed has let go of everything it held.
_MOMENT = 1.0


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    ensure_writable(path.parent)
    temporary = path.parent / f".{secrets.token_hex(8)}{path.suffix}"
    try:
        temporary.touch(mode=0o666, exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise GradscopeError(f"out: {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, argument: str = "out") -> Iterator[None]:
    """Keep this machine's other processes from writing to ``path``; :class:`GradscopeError` where one is at it."""
    name = hashlib.blake2b(str(path.resolve()).encode(), digest_size=16).hexdigest()
    lock = FileLock(Path(tempfile.gettempdir()) / f"gradscope-{name}.lock")
    try:
        lock.acquire(timeout=_MOMENT)
    except Timeout:
        busy = f"another gradscope is writing to {path}"
        raise GradscopeError(f"{argument}: {busy}; wait for it or name another") from None
    try:
        yield
    finally:
        lock.release()


def ensure_writable(directory: Path, argument: str = "out") -> None:
    """Make ``directory``; where that or writing in it fails, raise :class:`GradscopeError` before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise GradscopeError(f"{argument}: {directory} is not writable: {error.strerror}") from None


def write_json(path: Path, value: Mapping[str, Any], *, indented: bool = True) -> None:
    """Write ``value`` as JSON; where it is not ``indented``, ten times as fast."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2 if indented else None, default=str) + "\n")

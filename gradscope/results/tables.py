"""Atomic writing and checked reading of the result files."""

import csv
import hashlib
import json
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from gradscope.errors import GradscopeError
from gradscope.results.rows import Table

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
        raise GradscopeError(f"--out: {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep this machine's other processes from writing to ``path``; :class:`GradscopeError` where one is at it."""
    name = hashlib.blake2b(str(path.resolve()).encode(), digest_size=16).hexdigest()
    lock = FileLock(Path(tempfile.gettempdir()) / f"gradscope-{name}.lock")
    try:
        lock.acquire(timeout=_MOMENT)
    except Timeout:
        raise GradscopeError(f"--out: another gradscope is writing to {path}; wait for it or name another") from None
    try:
        yield
    finally:
        lock.release()


def ensure_writable(directory: Path) -> None:
    """Make ``directory``; where that or writing in it fails, raise :class:`GradscopeError` before any work is done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise GradscopeError(f"--out: {directory} is not writable: {error.strerror}") from None


def write_table(path: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as CSV, one at a time; None is an empty cell, NaN is ``nan``. Nothing is rounded."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, table.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path, table: Table) -> pd.DataFrame:
    """Read a CSV that :func:`write_table` wrote; a missing file or column raises :class:`GradscopeError`."""
    texts = {column.name: "string" for column in table.columns if column.kind == "text"}
    numbers = {column.name: ["", "nan"] for column in table.columns if column.kind != "text"}
    try:
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=numbers)
    except OSError as error:
        raise GradscopeError(f"DIR: {path} cannot be read: {error.strerror}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise GradscopeError(f"DIR: {path} is not a {table.file}: {' '.join(str(error).split())}") from None
    missing = [name for name in table.names if name not in frame.columns]
    if missing:
        raise GradscopeError(f"DIR: {path} lacks the columns {', '.join(missing)} of a {table.file}")
    wrong = [name for name in numbers if not frame.empty and not pd.api.types.is_numeric_dtype(frame[name])]
    if wrong:
        raise GradscopeError(f"DIR: {path} holds text where {table.file} has numbers, in {', '.join(wrong)}")
    return frame


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")

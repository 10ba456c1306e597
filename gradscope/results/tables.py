"""Atomic writing and checked reading of the result files."""

import csv
import gzip
import hashlib
import json
import secrets
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from gradscope.errors import GradscopeError
from gradscope.results.rows import Table

#: What is added to a table's name where it was compressed, as `gzip samples.csv` does.
_COMPRESSED = ".gz"
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


def find_table(path: Path) -> Path | None:
    """Find the file of the table ``path``: NAME.csv or, compressed, NAME.csv.gz; None where neither exists."""
    return next((file for file in (path, path.with_name(path.name + _COMPRESSED)) if file.exists()), None)


def find_tables(directory: Path, pattern: str = "*.csv") -> list[Path]:
    """Find the files of the tables in ``directory`` by ``pattern``, in order of name, each as :func:`find_table`."""
    files = [*directory.glob(pattern), *directory.glob(pattern + _COMPRESSED)]
    names = sorted({file.name.removesuffix(_COMPRESSED) for file in files})
    return [file for name in names if (file := find_table(directory / name))]


def table_content(path: Path) -> bytes:
    """Read the bytes of a file, of a compressed one what it holds; :class:`GradscopeError` where it is damaged."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == _COMPRESSED else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise GradscopeError(f"DIR: {path} is damaged: {error}") from None
    except OSError as error:
        raise GradscopeError(f"DIR: {path} cannot be read: {error.strerror}") from None


def read_csv(path: Path, table: Table, **options: Any) -> pd.DataFrame:
    """Read a file that :func:`find_table` found with pandas' ``options``; :class:`GradscopeError` where that fails."""
    try:
        frame: pd.DataFrame = pd.read_csv(path, keep_default_na=False, **options)
        return frame
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise GradscopeError(f"DIR: {path} is damaged: {error}") from None
    except OSError as error:
        raise GradscopeError(f"DIR: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise GradscopeError(f"DIR: {path} is not a {table.file}: {' '.join(str(error).split())}") from None


def read_table(path: Path, table: Table) -> pd.DataFrame:
    """Read a CSV that :func:`write_table` wrote, also as NAME.csv.gz.

    A missing or damaged file, and a missing column, raise :class:`GradscopeError`.
    """
    texts = {column.name: "string" for column in table.columns if column.kind == "text"}
    numbers = {column.name: ["", "nan"] for column in table.columns if column.kind != "text"}
    path = find_table(path) or path
    frame = read_csv(path, table, dtype=texts, na_values=numbers)
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

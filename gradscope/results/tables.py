"""Write CSV tables atomically or append to them, and read them with checks."""

import csv
import errno
import gzip
import hashlib
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd

from gradscope.errors import GradscopeError, caution, reason_of
from gradscope.limits import most, raising
from gradscope.reading import open_file
from gradscope.results.files import atomic, ensure_writable
from gradscope.results.manifest import MANIFEST
from gradscope.results.schemas import Table

#: The suffix of a compressed table, as `gzip samples.csv` adds it.
_COMPRESSED = ".gz"
#: Texts that a spreadsheet may run as a formula, and texts that are already escaped. Both get an apostrophe in front.
_FORMULA = re.compile(r"'*[=+\-@\t\r].", re.DOTALL)


def write_table(path: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as CSV, one at a time. None becomes an empty cell, NaN becomes ``nan``; nothing is rounded.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, which :func:`read_table` removes.
    """
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, table.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_escaped(table, rows))


def append_rows(path: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` to the CSV ``path``; a new file begins with the names of the columns.

    If writing fails, the file is restored to its former length. An OSError becomes a :class:`GradscopeError`.
    """
    ensure_writable(path.parent)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, table.names, lineterminator="\n")
            if not before:
                writer.writeheader()
            writer.writerows(_escaped(table, rows))
    except BaseException as error:
        if path.is_file():
            os.truncate(path, before) if before else path.unlink()
        if isinstance(error, OSError):
            raise GradscopeError(f"out: {path} cannot be written: {error.strerror}") from error
        raise


def _escaped(table: Table, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    texts = [column.name for column in table.columns if column.kind == "text"]
    plain: set[Any] = set()  # texts known to need no escape: few texts occur in many rows
    for row in rows:
        if not plain.issuperset(map(row.get, texts)):
            formulas = {name: f"'{row[name]}" for name in texts if _FORMULA.match(str(row.get(name, "")))}
            plain.update(row.get(name) for name in texts if name not in formulas)
            row = {**row, **formulas}
        yield row


def find_table(path: Path) -> Path | None:
    """Find the file of the table ``path``: NAME.csv or, compressed, NAME.csv.gz; None if neither exists."""
    return next((file for file in (path, path.with_name(path.name + _COMPRESSED)) if file.exists()), None)


def find_tables(directory: Path, pattern: str = "*.csv") -> list[Path]:
    """Find the tables in ``directory`` that match ``pattern``, plain or compressed, in order of name."""
    files = [*directory.glob(pattern), *directory.glob(pattern + _COMPRESSED)]
    names = sorted({file.name.removesuffix(_COMPRESSED) for file in files if not file.name.startswith(".")})
    return [file for name in names if (file := find_table(directory / name))]


def file_content(path: Path) -> bytes:
    """Read the bytes of a file, decompressed if it is compressed; raises :class:`GradscopeError` if it is damaged."""
    with _table_errors(path), _opened(path) as file:
        return file.read()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file's content, decompressed if it is compressed."""
    with _table_errors(path), open_file(path) as file:
        content = gzip.GzipFile(fileobj=file) if path.suffix == _COMPRESSED else file
        return hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]  # it reads bytes


def content_digest(manifest: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a manifest's content without its own digests."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tell_changes(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Warn of each file in ``directory`` whose SHA-256 differs from the one in ``manifest``."""
    digests = manifest.get("sha256")
    written = digests if isinstance(digests, dict) else {}
    for path in sorted(directory.iterdir()) if written else ():
        digest = written.get(path.name.removesuffix(_COMPRESSED))
        current = content_digest(manifest) if path.name == MANIFEST else file_digest(path) if digest else None
        if digest is not None and current != digest:
            caution(f"{path} has changed since it was written: its SHA-256 is not that in its manifest")


@contextmanager
def _table_errors(path: object) -> Iterator[None]:
    """Turn the errors of reading a table within the block into :class:`GradscopeError`."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise GradscopeError(f"directory: {path} is damaged: {error}") from None
    except OSError as error:
        raise GradscopeError(f"directory: {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a table, decompressed if it is compressed; reading past the size limit of tables raises OSError."""
    with open_file(path) as file:
        if path.suffix != _COMPRESSED:
            yield cast(IO[bytes], _Limited(file, path))
        else:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(IO[bytes], _Limited(unpacked, path))


class _Limited(io.RawIOBase):
    """A reader of ``file`` that raises OSError past the size limit of tables."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path, self.left = file, path, most("TABLE_BYTES")

    def readable(self) -> bool:
        """Return True, as io.RawIOBase asks of a readable stream."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into ``buffer``; returns their number."""
        count: int = self.file.readinto(buffer)
        self.left -= count
        if self.left < 0:
            largest = f"it has more than {most('TABLE_BYTES')} bytes; {raising('TABLE_BYTES')}"
            raise OSError(errno.EFBIG, largest, str(self.path))
        return count


def read_csv(path: Path | io.BytesIO, table: Table, **options: Any) -> pd.DataFrame:
    """Read a file from :func:`find_table` with pandas' ``options``; raises :class:`GradscopeError` if that fails."""
    where = table.file if isinstance(path, io.BytesIO) else path
    try:
        with _table_errors(path), nullcontext(path) if isinstance(path, io.BytesIO) else _opened(path) as file:
            frame: pd.DataFrame = pd.read_csv(file, keep_default_na=False, **options)
    except ValueError as error:
        if isinstance(error, GradscopeError):
            raise
        raise GradscopeError(f"directory: {where} is not a {table.file}: {reason_of(error)}") from None
    for name in (column.name for column in table.columns if column.kind == "text" and column.name in frame):
        plain = {text: text[1:] for text in frame[name].unique() if str(text)[:1] == "'" and _FORMULA.match(text)}
        if plain:
            kind: Any = str(frame[name].dtype)  # "category" without its old categories
            frame[name] = frame[name].map(lambda text, plain=plain: plain.get(text, text)).astype(kind)
    return frame


def read_table(path: Path, table: Table) -> pd.DataFrame:
    """Read a CSV that :func:`write_table` wrote, plain or as NAME.csv.gz.

    Raises :class:`GradscopeError` for a missing or damaged file, and for a missing column. A ``later`` column that the
    file lacks is empty.
    """
    return _read(find_table(path) or path, table)


def parse_table(content: bytes, table: Table) -> pd.DataFrame:
    """Parse the content of a CSV that :func:`write_table` wrote, with the checks of :func:`read_table`."""
    return _read(io.BytesIO(content), table)


def _read(path: Path | io.BytesIO, table: Table) -> pd.DataFrame:
    texts = {column.name: "string" for column in table.columns if column.kind == "text"}
    numbers = {column.name: ["", "nan"] for column in table.columns if column.kind != "text"}
    frame = read_csv(path, table, dtype=texts, na_values=numbers)
    for column in table.columns:
        if column.later and column.name not in frame.columns:
            empty = pd.Series("", frame.index, "string") if column.kind == "text" else math.nan
            frame[column.name] = empty
    where = table.file if isinstance(path, io.BytesIO) else path
    missing = [name for name in table.names if name not in frame.columns]
    if missing:
        raise GradscopeError(f"directory: {where} lacks the columns {', '.join(missing)} of a {table.file}")
    wrong = [name for name in numbers if not frame.empty and not pd.api.types.is_numeric_dtype(frame[name])]
    if wrong:
        raise GradscopeError(f"directory: {where} must hold numbers in {', '.join(wrong)}, got text")
    for column in table.columns:
        if column.kind == "integer" and (wrong_value := _not_count(frame[column.name], "empty" in column.meaning)):
            needed = f"must hold whole numbers from 0 in {column.name}"
            raise GradscopeError(f"directory: {where} {needed}, got {wrong_value}")
    return frame


def _not_count(values: "pd.Series[Any]", empty: bool) -> str:
    """Name a value that is not a whole number from 0, or a forbidden empty cell; "" if there is none."""
    if not empty and values.isna().any():
        return "an empty cell"
    wrong = values[~values.isna() & ~((values >= 0) & (values < 2**53) & (values % 1 == 0))]
    return "" if wrong.empty else f"{wrong.iloc[0]:g}"

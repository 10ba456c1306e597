"""Write the files of a measurement: tables that grow, and the manifest with their content and progress."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.measure.directory import FILES, clear
from gradscope.results.files import write_json
from gradscope.results.manifest import MANIFEST, read_object
from gradscope.results.schemas import Table
from gradscope.results.tables import append_rows, content_digest, file_digest

Row = dict[str, Any]
#: For each table a function that makes its rows when they are written, because all rows would not fit in memory.
Rows = Mapping[Table, Callable[[], Iterable[Row]]]


@dataclass(frozen=True)
class Part:
    """Measured values of the model at ``position`` (None: of all models), ready to write.

    ``facts`` go into the manifest's entry of the model; each of ``files`` is written by a function of its path.
    """

    position: int | None
    rows: Rows = field(default_factory=dict)
    facts: Row = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


class Writer:
    """Writes the parts of a measurement to ``out`` as they come; the first part removes old results."""

    def __init__(self, out: Path, manifest: Row) -> None:
        self.out, self.manifest = out, manifest
        self._begun = False

    def add(self, part: Part) -> None:
        """Append the rows of ``part``, write its files, and update the manifest."""
        if not self._begun:
            clear(self.out)
            self._begun = True
        for table, make in part.rows.items():
            append_rows(self.out / table.file, table, make())
        for name, write in part.files.items():
            write(self.out / name)
        if part.position is not None:
            _merge(self.manifest["checkpoints"][part.position], part.facts)
        # Not indented: the manifest is rewritten after every part, and indenting is ten times as slow with many models.
        write_json(self.out / MANIFEST, self.manifest, indented=False)

    def complete(self) -> None:
        """Mark the measurement as complete in the manifest, with the SHA-256 of each file.

        The partial results stay until the figures are drawn.
        """
        written = [name for name in FILES if name != MANIFEST and (self.out / name).exists()]
        self.manifest["sha256"] = {name: file_digest(self.out / name) for name in written}
        self.manifest["complete"] = True
        path = self.out / MANIFEST
        write_json(path, self.manifest)
        self.manifest["sha256"][MANIFEST] = content_digest(read_object(path))
        write_json(path, self.manifest)


def _merge(entry: Row, facts: Row) -> None:
    """Update ``entry`` with ``facts``; mappings are merged."""
    for key, value in facts.items():
        both = isinstance(value, dict) and isinstance(entry.get(key), dict)
        entry[key] = entry[key] | value if both else value


def dependencies(manifest: Row, more: Mapping[str, Any]) -> Row:
    """Collect everything that the values of partial results depend on: from ``manifest``, and ``more``."""
    records = ("kind", "options", "intervals", "complete", "checkpoints", "surrogates", "provenance", "landscape")
    decisive = {key: value for key, value in manifest.items() if key not in records}
    depends: Row = json.loads(json.dumps(decisive | manifest.get("landscape", {}) | dict(more), default=str))
    return depends

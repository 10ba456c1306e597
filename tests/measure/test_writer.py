"""Tables that grow: what is there is never written again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradscope.errors import GradscopeError
from gradscope.measure.writer import Part, Writer
from gradscope.results.schemas import SAMPLES, STEPS, SUMMARY, TRANSFER
from gradscope.results.tables import append_rows, read_table, write_table
from tests.measure.requests import measured

Row = dict[str, Any]


def rows(*numbers: int) -> Iterator[Row]:
    for number in numbers:
        yield {"source": "a, b", "checkpoint": f"model {number}", "accuracy": number / 7, "ci_low": None, "n": number}


class BrokenError(Exception):
    pass


def broken(error: Exception, after: int = 10_000) -> Iterator[Row]:
    """More rows than fit in a buffer, then an error."""
    yield from rows(*range(after))
    raise error


def test_a_table_that_was_appended_to_is_the_one_written_at_once(tmp_path: Path) -> None:
    write_table(tmp_path / "whole.csv", TRANSFER, rows(*range(9)))
    for part in (range(2), range(0), range(2, 8), range(8, 9)):
        append_rows(tmp_path / "new" / "grown.csv", TRANSFER, rows(*part))
    assert (tmp_path / "new" / "grown.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(BrokenError(), BrokenError), (OSError(28, "No space left on device"), GradscopeError)],
    ids=["any", "disk"],
)
def test_an_error_leaves_the_table_as_it_was(
    tmp_path: Path, is_there: bool, error: Exception, raised: type[Exception]
) -> None:
    path = tmp_path / TRANSFER.file
    if is_there:
        append_rows(path, TRANSFER, rows(1, 2))
    before = path.read_bytes() if is_there else None
    with pytest.raises(raised):
        append_rows(path, TRANSFER, broken(error))
    assert (path.read_bytes() if path.exists() else None) == before
    append_rows(path, TRANSFER, rows(3))
    assert list(read_table(path, TRANSFER)["n"]) == ([1, 2, 3] if is_there else [3])


def test_facts_join_those_of_the_model(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {"checkpoints": [{"seconds": {}}, {"seconds": {}}], "complete": False})
    (tmp_path / TRANSFER.file).write_text("of an earlier run")
    writer.add(Part(0, {TRANSFER: lambda: rows(1)}, {"seconds": {"pgd": 1.0}}))
    writer.add(Part(0, {TRANSFER: lambda: rows(2)}, {"seconds": {"square": 2.0}, "skipped": {"fab": "no gradient"}}))
    writer.add(Part(1, {}, {"seconds": 3.0}, {"more.txt": lambda path: path.write_text("more")}))
    assert writer.manifest["checkpoints"] == [
        {"seconds": {"pgd": 1.0, "square": 2.0}, "skipped": {"fab": "no gradient"}},
        {"seconds": 3.0},
    ]
    assert list(read_table(tmp_path / TRANSFER.file, TRANSFER)["n"]) == [1, 2]
    assert (tmp_path / "more.txt").read_text() == "more"


#: What this process has done, which Linux counts.
COUNTS = Path("/proc/self/io")


def written() -> int:
    """Bytes that this process has written so far."""
    return int(next(line for line in COUNTS.read_text().splitlines() if line.startswith("wchar")).split()[1])


@pytest.mark.skipif(not COUNTS.exists(), reason="bytes written are counted by Linux alone")
def test_each_byte_of_a_table_is_written_once(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six models; the tables of the first two begin those of all."""
    copies = [str(shutil.copy(trained[0], tmp_path / f"copy{number}.pt")) for number in range(6)]
    tables = [table.file for table in (STEPS, SAMPLES, SUMMARY)]
    add, parts = Writer.add, []

    def sizes(out: Path) -> int:
        return sum((out / name).stat().st_size for name in tables if (out / name).exists())

    def counted(writer: Writer, part: Part) -> None:
        bytes_before, size_before = written(), sizes(writer.out)
        add(writer, part)
        spent, grown = written() - bytes_before, sizes(writer.out) - size_before
        assert grown > 0
        parts.append(spent - grown - (writer.out / "manifest.json").stat().st_size)

    given: dict[str, Any] = {"steps": 2, "samples": 6, "metrics": "loss"}
    two = measured("analyze", copies[:2], tmp_path / "two", **given)
    monkeypatch.setattr(Writer, "add", counted)
    six = measured("analyze", copies, tmp_path / "six", **given)
    assert parts == [0] * 6, "bytes beside new rows and the manifest"
    assert all((six / name).read_bytes().startswith((two / name).read_bytes()) for name in tables)

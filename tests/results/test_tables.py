import csv
import gzip
import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradscope.errors import GradscopeError
from gradscope.results.files import atomic, ensure_writable, exclusive, write_json
from gradscope.results.metrics import ATTACK_METRICS, METRICS
from gradscope.results.schemas import (
    ATTACK_SAMPLES,
    ATTACKS,
    CLAIMS,
    HISTORY,
    SAMPLES,
    STEPS,
    SUMMARY,
    TRANSFER,
    TRANSFER_SAMPLES,
    Column,
    Table,
)
from gradscope.results.tables import append_rows, file_content, find_table, find_tables, read_table, write_table

SMALL = Table("small.csv", (Column("name", "text", ""), Column("count", "integer", ""), Column("value", "number", "")))


def row(name="a", count=1, value=0.5):
    return {"name": name, "count": count, "value": value}


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "table", [STEPS, SAMPLES, SUMMARY, ATTACKS, ATTACK_SAMPLES, TRANSFER, TRANSFER_SAMPLES, HISTORY, CLAIMS]
)
def test_schemas_are_sound(table):
    assert len(set(table.names)) == len(table.names)
    assert all(column.meaning for column in table.columns)


def test_every_metric_has_unit_and_meaning():
    assert all(metric.unit and metric.meaning for metric in [*METRICS.values(), *ATTACK_METRICS.values()])


def test_a_table_comes_back(tmp_path):
    write_table(tmp_path / "small.csv", SMALL, [row(), row('b, with "quotes" and a\nline', 2, 1e-300)])
    frame = read_table(tmp_path / "small.csv", SMALL)
    assert list(frame.columns) == SMALL.names
    assert frame["name"].tolist() == ["a", 'b, with "quotes" and a\nline']
    assert frame["count"].tolist() == [1, 2]
    assert frame["value"].tolist() == [0.5, 1e-300]


@settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=200))
def test_nothing_is_rounded(tmp_path, values):
    write_table(tmp_path / "small.csv", SMALL, (row(value=value) for value in values))
    assert read_table(tmp_path / "small.csv", SMALL)["value"].tolist() == values


def test_numpy_numbers_are_written_in_full(tmp_path):
    values = [np.float64(0.1) + np.float64(0.2), np.float32(0.1)]
    write_table(tmp_path / "small.csv", SMALL, [row(value=value) for value in values])
    assert (tmp_path / "small.csv").read_text() == f"name,count,value\na,1,{0.1 + 0.2!r}\na,1,0.1\n"


def test_none_is_empty_and_nan_is_nan(tmp_path):
    write_table(tmp_path / "small.csv", SMALL, [row(value=None), row(value=math.nan), row(value=math.inf)])
    assert (tmp_path / "small.csv").read_text() == "name,count,value\na,1,\na,1,nan\na,1,inf\n"
    assert np.isnan(read_table(tmp_path / "small.csv", SMALL)["value"][:2]).all()


def test_text_is_text(tmp_path):
    names = ["1", "NA", "null", "None", "nan", "true"]
    write_table(tmp_path / "small.csv", SMALL, [row(name) for name in names])
    assert read_table(tmp_path / "small.csv", SMALL)["name"].tolist() == names


def test_an_empty_table_keeps_its_columns(tmp_path):
    write_table(tmp_path / "small.csv", SMALL, [])
    frame = read_table(tmp_path / "small.csv", SMALL)
    assert frame.empty
    assert list(frame.columns) == SMALL.names


def test_a_column_that_came_later_is_empty_in_older_tables(tmp_path):
    """As published tables are: without the ball of their attack."""
    older = Table(SUMMARY.file, tuple(column for column in SUMMARY.columns if not column.later))
    values = dict.fromkeys(older.names, 1) | {"attack": "pgd"}
    write_table(tmp_path / "summary.csv", older, [values, values])
    frame = read_table(tmp_path / "summary.csv", SUMMARY)
    assert set(SUMMARY.names) - set(older.names) == {"norm", "epsilon"}
    assert frame["norm"].tolist() == ["", ""]
    assert frame["norm"].dtype == frame["attack"].dtype
    assert frame["epsilon"].isna().all()
    assert frame["epsilon"].dtype == float


def test_rows_are_written_one_at_a_time(tmp_path):
    """Memory does not grow with the table: the rows may come from a generator that is read once."""
    write_table(tmp_path / "small.csv", SMALL, (row(count=count) for count in range(1000)))
    assert read_table(tmp_path / "small.csv", SMALL)["count"].tolist() == list(range(1000))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"name,count\na,1\n",
        b"name,count,value\na,1,2\na,1,2,3,4\n",
        b"\xff,\xfe\n",
        b"name,count,value\na,1,much\n",
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, content):
    (tmp_path / "small.csv").write_bytes(content)
    with pytest.raises(GradscopeError, match=r"small\.csv") as caught:
        read_table(tmp_path / "small.csv", SMALL)
    one_line(caught)


@pytest.mark.parametrize("count", ["-1", "0.5", "inf", "1e999", "1e30", "", "nan"])
def test_a_count_that_is_none_is_one_line(tmp_path, count):
    (tmp_path / "small.csv").write_text(f"name,count,value\na,1,1\na,{count},1\n")
    with pytest.raises(GradscopeError, match=r"small\.csv must hold whole numbers from 0 in count, got ") as caught:
        read_table(tmp_path / "small.csv", SMALL)
    one_line(caught)


def test_a_measured_number_may_be_infinite(tmp_path):
    (tmp_path / "small.csv").write_text("name,count,value\na,1,inf\na,2,-inf\n")
    assert read_table(tmp_path / "small.csv", SMALL)["value"].tolist() == [math.inf, -math.inf]


def test_a_missing_table_is_one_line(tmp_path):
    with pytest.raises(GradscopeError, match="cannot be read: No such file") as caught:
        read_table(tmp_path / "small.csv", SMALL)
    one_line(caught)


def compress(path: Path) -> Path:
    """Put NAME.csv.gz in the place of NAME.csv, as gzip does."""
    compressed = path.with_name(f"{path.name}.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return compressed


def test_a_compressed_table_stands_for_the_table(tmp_path):
    path = tmp_path / "small.csv"
    assert find_table(path) is None
    write_table(path, SMALL, [row(value=0.1), row("b", 2, math.nan)])
    plain, content = read_table(path, SMALL), path.read_bytes()
    compressed = compress(path)
    assert find_table(path) == compressed
    assert read_table(path, SMALL).equals(plain)
    assert read_table(compressed, SMALL).equals(plain)
    assert file_content(compressed) == content


def test_of_both_forms_the_plain_one_is_read(tmp_path):
    """It is the later one: writers write it."""
    for value in (1.0, 2.0):
        write_table(tmp_path / "small.csv", SMALL, [row(value=value)])
        if value == 1:
            compress(tmp_path / "small.csv")
    assert read_table(tmp_path / "small.csv", SMALL)["value"].tolist() == [2.0]
    (tmp_path / "other.csv.gz").touch()
    (tmp_path / "other.json.gz").touch()
    assert find_tables(tmp_path) == [tmp_path / "other.csv.gz", tmp_path / "small.csv"]


@pytest.mark.parametrize("damage", ["cut in half", "no gzip", "changed"])
def test_a_damaged_compressed_table_is_one_line(tmp_path, damage):
    write_table(tmp_path / "small.csv", SMALL, (row(count=count) for count in range(1000)))
    path = compress(tmp_path / "small.csv")
    raw = path.read_bytes()
    changed = raw[:-8] + b"12345678"
    path.write_bytes(
        {"cut in half": raw[: len(raw) // 2], "no gzip": b"name,count,value\n", "changed": changed}[damage]
    )
    for read in (lambda: read_table(tmp_path / "small.csv", SMALL), lambda: file_content(path)):
        with pytest.raises(GradscopeError, match=r"directory: .*small\.csv\.gz is damaged: ") as caught:
            read()
        one_line(caught)


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"path": tmp_path, "value": 0.1, "list": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": str(tmp_path), "value": 0.1, "list": [1, None]}


def test_atomic_makes_the_directory_and_leaves_only_the_file(tmp_path):
    with atomic(tmp_path / "deep" / "er" / "a.txt") as temporary:
        assert temporary.parent == tmp_path / "deep" / "er"
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "er" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = GradscopeError if error is OSError else error

    def write_half() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(expected):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_that_does_not_fit_leaves_the_old_table(tmp_path):
    write_table(tmp_path / "small.csv", SMALL, [row()])
    before = (tmp_path / "small.csv").read_text()
    with pytest.raises(ValueError, match="extra"):
        write_table(tmp_path / "small.csv", SMALL, [row(), row() | {"extra": 1}])
    assert (tmp_path / "small.csv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["small.csv"]


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    path, start = tmp_path / "a.txt", threading.Barrier(8)

    def write(letter: str) -> None:
        start.wait()
        for _ in range(10):
            with atomic(path) as temporary:
                temporary.write_text(letter * 100_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    content = path.read_text()
    assert len(content) == 100_000
    assert len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_any_other(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_a_directory_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(GradscopeError, match=r"out: .*is not writable") as caught:
            ensure_writable(directory)
        one_line(caught)
        with pytest.raises(GradscopeError, match="out: "):
            write_json(directory / "a.json", {})


def test_a_target_that_is_a_directory_is_one_line(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(GradscopeError, match="cannot be written: Is a directory") as caught:
        write_json(tmp_path / "a.json", {})
    one_line(caught)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("length", [245, 300])
def test_a_long_name_is_written_or_refused_in_one_line(tmp_path, length):
    path = tmp_path / ("n" * (length - 5) + ".json")
    if length < 256:
        write_json(path, {})
        assert path.exists()
    else:
        with pytest.raises(GradscopeError, match="File name too long") as caught:
            write_json(path, {})
        one_line(caught)


def test_ensure_writable_makes_the_directory_and_leaves_nothing_in_it(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_one_process_at_a_time_writes_to_a_path(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from gradscope.errors import GradscopeError\n"
        "from gradscope.results.files import exclusive\n"
        "try:\n"
        "    with exclusive(pathlib.Path(sys.argv[1])):\n"
        "        print('free')\n"
        "except GradscopeError as error:\n"
        "    print(error)\n"
    )

    def other(path: Path) -> str:
        return subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout

    with exclusive(tmp_path / "a"):
        assert "out: another gradscope is writing to" in other(tmp_path / "a")
        assert other(tmp_path / "b") == "free\n"
    assert other(tmp_path / "a") == "free\n"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a", "\t=1", "'=1", "''-a", "=HYPERLINK(1)\nb"])
def test_a_text_is_no_formula_in_a_spreadsheet_and_comes_back(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / "small.csv", SMALL, [row(name, 1, -0.5)])
    append_rows(tmp_path / "small.csv", SMALL, [row(name, 2, -0.5)])
    with (tmp_path / "small.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["name"] for cell in cells] == [f"'{name}"] * 2
    assert [cell["value"] for cell in cells] == ["-0.5", "-0.5"]
    frame = read_table(tmp_path / "small.csv", SMALL)
    assert frame["name"].tolist() == [name] * 2
    assert frame["name"].dtype == "string"
    assert frame["value"].tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("name", ["-", "'", "'a'", "a=1", ""])
def test_other_texts_are_written_as_they_are(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / "small.csv", SMALL, [row(name)])
    assert (tmp_path / "small.csv").read_text().splitlines()[1].startswith(f"{name},1,")
    assert read_table(tmp_path / "small.csv", SMALL)["name"].tolist() == [name]

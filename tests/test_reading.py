"""Files that anyone may have written: each is refused in one line, without waiting, and before memory is taken."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradscope.config import read_toml
from gradscope.errors import GradscopeError
from gradscope.reading import open_file, parse_json, read_json, read_text
from gradscope.results.schemas import STEPS
from gradscope.results.tables import file_content, read_table


def refusal(read, *arguments):
    with pytest.raises(GradscopeError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.fixture(params=["pipe", "device", "folder", "large", "missing", "bytes"])
def hostile(request, tmp_path):
    """A path that no text can be read from."""
    path = tmp_path / "file.json"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "large":
        with path.open("wb") as file:
            file.truncate(2**31)
    elif request.param == "bytes":
        path.write_bytes(b"\xff\xfe")
    return path


@pytest.mark.parametrize("read", [read_json, read_toml, read_text])
def test_what_is_no_text_is_one_line(hostile, read):
    said = refusal(read, hostile, "recipe")
    assert said.startswith(f"recipe: {hostile} ")
    assert "cannot be read: " in said or "must be UTF-8 text: " in said


def test_a_text_of_gibibytes_takes_no_memory(tmp_path):
    """The address space is limited to what the process has and a quarter of the file."""
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(2**31)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom gradscope.reading import read_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
        "try:\n    read_bytes(Path(sys.argv[1]))\nexcept OSError as error:\n    sys.exit(error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stderr.strip() == "it has more than 67108864 bytes; GRADSCOPE_MOST_TEXT_BYTES raises this limit"


def test_the_limit_of_a_text_is_raised(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("[1, 2]")
    monkeypatch.setenv("GRADSCOPE_MOST_TEXT_BYTES", "5")
    assert "it has more than 5 bytes" in refusal(read_json, path)
    monkeypatch.setenv("GRADSCOPE_MOST_TEXT_BYTES", "6")
    assert read_json(path) == [1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested more than 100 deep"),
        ("[" * 500 + "]" * 500, "nested more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 deep"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "it has the key 'c' twice"),
        ('{"a": "\\ud800"}', "it holds a lone surrogate"),
        ('["\\uDFFF"]', "it holds a lone surrogate"),
        ("[NaN]", "its numbers must be finite, got NaN"),
        ("[-Infinity]", "must be finite, got -Infinity"),
        ("[1e999]", "must be finite, got 1e999"),
        ("[1" + "0" * 400 + "]", "its numbers must be finite, got 1000"),
        ("[1" + "0" * 5000 + "]", "its numbers must be finite, got 1000"),
        ("", "Expecting value"),
    ],
)
def test_json_that_no_measurement_writes_is_one_line(tmp_path, text, why):
    (tmp_path / "file.json").write_text(text)
    assert why in refusal(read_json, tmp_path / "file.json")


def test_json_that_measurements_write_is_read():
    assert parse_json('{"a": [1, -2.5e-3, null, true, "NaN", "\\ud83d\\ude00"], "b": {"a": {}}}') == {
        "a": [1, -0.0025, None, True, "NaN", "\U0001f600"],
        "b": {"a": {}},
    }
    assert parse_json("[" * 99 + "]" * 99)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "[" + ".".join("a" * 3000) + "]\nb = 1"])
def test_toml_that_is_nested_too_deep_is_one_line(tmp_path, text):
    (tmp_path / "file.toml").write_text(text)
    assert "is not TOML: it is nested more than 100 deep" in refusal(read_toml, tmp_path / "file.toml")


@pytest.mark.parametrize("read", [lambda path: read_table(path, STEPS), file_content])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_table_that_is_no_file_is_one_line(tmp_path, kind, read):
    path = tmp_path / STEPS.file
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    assert refusal(read, path).startswith(f"directory: {path} cannot be read: ")


def test_a_table_that_swells_is_refused_early(tmp_path, monkeypatch):
    """A compressed gibibyte is a mebibyte on the disk."""
    monkeypatch.setenv("GRADSCOPE_MOST_TABLE_BYTES", str(2**20))
    path = tmp_path / f"{STEPS.file}.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"0" * 2**20)
    said = "it has more than 1048576 bytes; GRADSCOPE_MOST_TABLE_BYTES raises this limit"
    assert said in refusal(read_table, tmp_path / STEPS.file, STEPS)
    assert said in refusal(file_content, path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_an_oserror(name: str) -> None:
    with pytest.raises(OSError, match="it is not a valid path"):
        open_file(Path(name))

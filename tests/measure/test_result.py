"""Results that are read back and damaged: one line."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.claims.reading import read_study
from gradscope.errors import Caution, GradscopeError
from gradscope.figures.draw import read_sources
from gradscope.measure.result import read
from tests.synthetic import write_audit


@pytest.mark.parametrize("content", [b'{"schema"', b"[" * 100_000, b"\xff"])
def test_a_damaged_document_is_one_line(tmp_path: Path, content: bytes) -> None:
    write_audit(tmp_path, ["sl"])
    (tmp_path / "audit.json").write_bytes(content)
    with pytest.raises(GradscopeError, match=r"^directory: \S+audit\.json (is not JSON|must be UTF-8 text): [^\n]+$"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_damaged_pictures_are_one_line(tmp_path: Path, content: bytes) -> None:
    write_audit(tmp_path, ["sl"])
    (tmp_path / "evidence.npz").write_bytes(content)
    with pytest.raises(GradscopeError, match=r"^directory: \S+evidence\.npz [^\n]+$"):
        read(tmp_path)


def test_a_manifest_nested_without_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(GradscopeError, match="directory must hold a manifest"):
        read(tmp_path)


def test_a_file_that_has_changed_since_it_was_written_is_told(tmp_path: Path, linear: type[nn.Module]) -> None:
    model, x = linear(torch.eye(3, 4)).eval(), torch.rand(6, 1, 2, 2)
    written = gs.trace(model, x, model(x).argmax(1), steps=2).save(tmp_path / "results", figures=False)
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["sha256"].keys() == {"steps.csv", "samples.csv", "summary.csv", "manifest.json"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(written)
        compressed = gzip.compress((written / "steps.csv").read_bytes())
        (written / "steps.csv").unlink()
        (written / "steps.csv.gz").write_bytes(compressed)
        read(written)
    table = (written / "summary.csv").read_bytes()
    (written / "summary.csv").write_bytes(table.replace(b"1", b"2", 1))
    with pytest.warns(Caution, match=r"summary\.csv has changed since it was written"):
        read(written)
    with pytest.warns(Caution, match=r"summary\.csv has changed since it was written"):
        read_sources(written)
    with pytest.warns(Caution, match=r"summary\.csv has changed since it was written"):
        read_study([written])
    (written / "summary.csv").write_bytes(table)
    (written / "manifest.json").write_text(json.dumps(manifest | {"seed": 1}))
    with pytest.warns(Caution, match=r"manifest\.json has changed since it was written"):
        read(written)


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", "x" * 300, "a\nb", None, 3])
def test_what_is_no_path_is_one_line(
    path: Any, linear: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, x = linear(torch.eye(3, 4)).eval(), torch.rand(6, 1, 2, 2)
    trace = gs.trace(model, x, model(x).argmax(1), steps=2)
    for argument, use in (("out", trace.save), ("directory", gs.read), ("model", gs.load), ("directory", gs.report)):
        with pytest.raises(GradscopeError, match=rf"^{argument}[^\n]+$"):
            use(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "\ud800", "a\nb", "x" * 300])
def test_what_is_no_name_of_a_model_is_one_line(name: str, linear: type[nn.Module]) -> None:
    model, x = linear(torch.eye(3, 4)).eval(), torch.rand(6, 1, 2, 2)
    with pytest.raises(GradscopeError, match=r"^model must have names of 1 to 255 characters in one line, got [^\n]+$"):
        gs.trace({name: model}, x, model(x).argmax(1), steps=2)

"""Results that are read back and damaged: one line."""

import gzip
import json
import warnings
from pathlib import Path

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
    with pytest.raises(GradscopeError, match=r"^directory: \S+audit\.json is (not JSON|no text in UTF-8): [^\n]+$"):
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
    assert json.loads((written / "manifest.json").read_text())["sha256"].keys() == {
        "steps.csv",
        "samples.csv",
        "summary.csv",
    }
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

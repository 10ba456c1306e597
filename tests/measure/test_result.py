"""Results that are read back and damaged: one line, where what is damaged is asked for."""

from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.measure.result import AuditReport, read
from tests.synthetic import write_audit


@pytest.mark.parametrize("content", [b'{"schema"', b"[" * 100_000, b"\xff"])
def test_a_damaged_document_is_one_line(tmp_path: Path, content: bytes) -> None:
    write_audit(tmp_path, ["sl"])
    (tmp_path / "audit.json").write_bytes(content)
    report = read(tmp_path)
    assert isinstance(report, AuditReport)
    for asked in ("audits", "plots"):
        with pytest.raises(GradscopeError, match=r"^directory: audit\.json is damaged: [^\n]+$"):
            getattr(report, asked)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_damaged_pictures_are_one_line(tmp_path: Path, content: bytes) -> None:
    write_audit(tmp_path, ["sl"])
    (tmp_path / "evidence.npz").write_bytes(content)
    with pytest.raises(GradscopeError, match=r"^directory: evidence\.npz is damaged: [^\n]+$"):
        _ = read(tmp_path).plots


def test_a_manifest_nested_without_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(GradscopeError, match="directory must hold a manifest"):
        read(tmp_path)

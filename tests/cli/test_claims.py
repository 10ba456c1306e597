"""``gradscope claims``: results of several commands, judged."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from gradscope.results.schemas import CLAIMS
from gradscope.results.tables import read_table

Done = Callable[..., str]
QUICK = ("--steps", 2, "--samples", 6, "--metrics", "loss")


@pytest.fixture
def results(world: Path, tmp_path: Path, done: Done, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What two commands measured, the second with its tables compressed."""
    monkeypatch.chdir(tmp_path)
    for name in ("sl", "rl"):
        done("analyze", world / f"{name}.pt", *QUICK, "--out", tmp_path / name)
    table = tmp_path / "rl" / "samples.csv"
    Path(f"{table}.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    return [tmp_path / "sl", tmp_path / "rl"]


def test_claims_are_counted_by_verdict_and_written(results: list[Path], tmp_path: Path, done: Done) -> None:
    lines = done("claims", *results).splitlines()
    assert lines[0] == "digits, cnn2: number of tests supported, not supported, not tested"
    path = tmp_path / lines[-1]
    assert path == tmp_path / "reports" / "sl-claims" / "claims.csv"
    rows = read_table(path, CLAIMS)
    counts = {line.split()[0]: [int(count) for count in line.split()[1:4]] for line in lines[1:-1]}
    assert list(counts) == list(rows["claim"].unique())
    verdicts = ("supported", "not supported", "not tested")
    for claim, of_claim in counts.items():
        mine = rows[rows["claim"] == claim]["verdict"]
        assert of_claim == [int((mine == verdict).sum()) for verdict in verdicts]
    assert counts["C2"][2] == 0
    assert all(line.endswith(str(rows[rows["claim"] == line.split()[0]]["statement"].iloc[0])) for line in lines[1:-1])


def test_claims_of_a_folder_and_a_file_of_choice(results: list[Path], tmp_path: Path, done: Done) -> None:
    for out, path in (("x.csv", "x.csv"), ("folder", "folder/claims.csv")):
        assert done("claims", tmp_path, "--out", tmp_path / out).splitlines()[-1] == str(tmp_path / path)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "folder" / "claims.csv").read_bytes()

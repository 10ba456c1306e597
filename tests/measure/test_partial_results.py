"""Which pieces of an interrupted measurement are gone on with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradscope.distributed.units import Team
from gradscope.errors import CannotResumeError
from gradscope.measure.partial_results import PartialResults

TEAM = Team(torch.device("cpu"))


@pytest.fixture
def kept(tmp_path: Path) -> PartialResults:
    kept = PartialResults(tmp_path, {"seed": 0}, TEAM, resume=False)
    kept.write("piece", {"value": torch.tensor(1)})
    return kept


def test_pieces_of_the_same_measurement_are_kept_and_others_refused(kept: PartialResults, tmp_path: Path) -> None:
    assert PartialResults(tmp_path, {"seed": 0}, TEAM, resume=True).read("piece") == {"value": torch.tensor(1)}
    with pytest.raises(CannotResumeError, match="was begun with another seed"):
        PartialResults(tmp_path, {"seed": 1}, TEAM, resume=True)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"seed": 0', b'{"seed": \xff}'])
def test_pieces_of_an_unknown_measurement_are_made_anew(
    kept: PartialResults, tmp_path: Path, content: bytes | None
) -> None:
    """As where a run was killed while it removed them."""
    kept.named.unlink()
    if content is not None:
        kept.named.write_bytes(content)
    assert PartialResults(tmp_path, {"seed": 1}, TEAM, resume=True).read("piece") is None


@pytest.mark.parametrize(
    "odd",
    [
        {"value": torch.ones(1).expand(10**12)},
        {"value": torch.ones(2)},
        {"value": torch.nn.Parameter(torch.zeros(3))},
        {"other": torch.zeros(3)},
        [],
    ],
    ids=repr,
)
def test_a_piece_with_other_values_than_were_written_is_made_anew(kept: PartialResults, odd: Any) -> None:
    path = kept.folder / "piece.pt"
    written = torch.load(path, weights_only=True)
    torch.save(written | {"values": odd}, path)  # with checksums of its own, all right
    assert torch.equal(kept.get("piece", lambda: {"value": torch.tensor(2)})["value"], torch.tensor(2))
    assert kept.read("piece") == {"value": torch.tensor(2)}


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_folder_or_a_pipe_in_the_place_of_a_piece_goes(put: Callable[[Path], None], kept: PartialResults) -> None:
    (kept.folder / "piece.pt").unlink()
    put(kept.folder / "piece.pt")
    assert kept.read("piece") is None
    kept.write("piece", {"value": torch.tensor(2)})
    assert kept.read("piece") == {"value": torch.tensor(2)}

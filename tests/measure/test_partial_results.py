"""Which pieces of an interrupted measurement are gone on with."""

from pathlib import Path

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

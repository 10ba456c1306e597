"""Which images are measured, and analyses as a request asks for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from gradscope.config import PGD, attack_settings
from gradscope.data.image_set import ImageSet, Splits
from gradscope.errors import GradscopeError
from gradscope.measure import analyze as module
from gradscope.measure.inputs import Chosen, Inputs
from gradscope.results.schemas import SAMPLES, STEPS, SUMMARY
from gradscope.results.tables import read_table
from tests.measure.requests import measured, request_of

# --- choosing images ---


def choose(test: ImageSet, samples: int | None, seed: int = 0) -> Chosen:
    inputs = Inputs(request_of("analyze", ["model.pt"], seed=seed), torch.device("cpu"))
    return inputs.choose(test, samples, "samples")


def test_images_are_drawn_by_the_seed_without_replacement(digits: Splits) -> None:
    test = digits.test
    chosen = choose(test, 50, seed=4)
    numbers = chosen.numbers.tolist()
    assert numbers == sorted(set(numbers))
    assert (len(numbers), chosen.available) == (50, 359)
    assert numbers != list(range(50))
    assert torch.equal(chosen.images.images, test.images[chosen.numbers])
    assert torch.equal(chosen.images.labels, test.labels[chosen.numbers])
    assert torch.equal(choose(test, 50, seed=4).numbers, chosen.numbers)
    assert not torch.equal(choose(test, 50, seed=5).numbers, chosen.numbers)
    more = set(choose(test, 80, seed=4).numbers.tolist())
    assert set(numbers) < more, "more samples keep those that were there"


def test_500_images_or_all_there_are(digits: Splits) -> None:
    assert len(choose(digits.test, None).numbers) == 359
    assert len(choose(digits.train, None).numbers) == 500
    assert choose(digits.test, 359).numbers.tolist() == list(range(359))


@pytest.mark.parametrize("samples", [0, -1, 41])
def test_samples_that_are_not_there(image_set: ImageSet, samples: int) -> None:
    with pytest.raises(GradscopeError, match=f"samples must be from 1 to 40.*got {samples}$"):
        choose(image_set, samples)


# --- analysing ---


def analyse(texts: Sequence[str], out: Path, *attacks: str, **given: Any) -> Path:
    settings = {"attack": attacks or ("pgd",), "steps": 2, "metrics": "loss,norm", "samples": 12}
    return measured("analyze", texts, out, **settings | given)


def tables(directory: Path) -> dict[str, pd.DataFrame]:
    return {table.file: read_table(directory / table.file, table) for table in (STEPS, SAMPLES, SUMMARY)}


def test_an_analysis_is_reproduced_by_its_seed(trained: list[str], tmp_path: Path) -> None:
    first, again, other = (
        analyse(trained[:1], tmp_path / str(number), seed=seed) for number, seed in enumerate((1, 1, 2))
    )
    for name in ("steps.csv", "samples.csv", "summary.csv"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_company_changes_no_number(trained: list[str], tmp_path: Path) -> None:
    """The same rows alone and beside another checkpoint and another attack."""
    both = tables(analyse(trained, tmp_path / "both", "pgd-paper", "pgd"))
    alone = tables(analyse(trained[1:], tmp_path / "alone"))
    for name, frame in both.items():
        mine = frame[(frame["checkpoint"] == "rl") & (frame["attack"] == "pgd")].reset_index(drop=True)
        assert_frame_equal(mine, alone[name], check_exact=True)


def test_the_batch_size_changes_rounding_only(trained: list[str], tmp_path: Path) -> None:
    whole = tables(analyse(trained[:1], tmp_path / "whole"))
    parts = tables(analyse(trained[:1], tmp_path / "parts", batch_size=5))
    for name, frame in whole.items():
        assert_frame_equal(frame, parts[name], rtol=1e-3, atol=1e-5)


def test_checkpoints_are_left_as_they_are(trained: list[str], tmp_path: Path) -> None:
    before = [Path(path).read_bytes() for path in trained]
    state = torch.get_rng_state()
    analyse(trained, tmp_path)
    assert [Path(path).read_bytes() for path in trained] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_manifest_resolves_every_attack(trained: list[str], tmp_path: Path) -> None:
    analyse(trained, tmp_path, "pgd", "pgd-paper", seed=6, batch_size=7)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: PGD.parse(values) for name, values in manifest["attacks"].items()} == {
        name: attack_settings(name, {"steps": 2}) for name in ("pgd", "pgd-paper")
    }
    assert (manifest["kind"], manifest["seed"], manifest["complete"]) == ("analysis", 6, True)
    assert manifest["batch_sizes"] == {"pgd": 7, "pgd-paper": 7}
    assert manifest["metrics"] == ["loss", "norm"]
    assert [one["config"]["mode"] for one in manifest["checkpoints"]] == ["sl", "rl"]
    assert [one["trained"]["packages"]["torch"] for one in manifest["checkpoints"]] == [torch.__version__] * 2


def test_every_file_grows_after_each_attack(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[tuple[str, str]], ...]] = []
    measure = module.measure_trajectory

    def look(*arguments: Any, **options: Any) -> Any:
        if (tmp_path / "manifest.json").exists():
            frames = tables(tmp_path).values()
            seen.append(tuple(set(zip(frame["checkpoint"], frame["attack"], strict=True)) for frame in frames))
        return measure(*arguments, **options)

    monkeypatch.setattr(module, "measure_trajectory", look)
    analyse(trained, tmp_path, "pgd", "pgd-paper")
    sequence = [("sl", "pgd"), ("sl", "pgd-paper"), ("rl", "pgd")]
    assert seen == [(set(sequence[:count]),) * 3 for count in (1, 2, 3)]

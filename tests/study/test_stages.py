"""The stages, called as the commands call them; what is refused there is in ``tests/cli/test_refusals.py``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from gradscope.config import PGD, Data, Training, attack_settings
from gradscope.data.image_set import ImageSet, Splits
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign
from gradscope.report import figures
from gradscope.results.rows import SAMPLES, STEPS, SUMMARY
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import read_table
from gradscope.study.analysis import Analysis
from gradscope.study.inputs import choose, resolve_device
from gradscope.study.stages import (
    configure_training,
    count_right,
    run_analysis,
    run_training,
)
from gradscope.training.hardware import Hardware

CPU = Hardware("cpu")


def configure(
    mode: str = "sl",
    data: Mapping[str, Any] | None = None,
    *,
    paper: bool = False,
    table: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    epochs: int | None = None,
    **options: Any,
) -> tuple[Training, Splits]:
    return configure_training(
        mode,
        data or {},
        paper=paper,
        table=table or {},
        settings=settings,
        epochs=epochs,
        options=options,
        download=False,
    )


def analyse(texts: Sequence[str], out: Path, *attacks: str, metrics: str = "loss,norm", **options: Any) -> Path:
    settings = {name: attack_settings(name, {"steps": 2}) for name in attacks or ("pgd",)}
    analysis = Analysis(attacks=settings, metrics=frozenset(metrics.split(",")), **{"samples": 12, **options})
    return run_analysis(texts, analysis, Foreign(), out)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here, and is tested with the command."""
    monkeypatch.setattr(figures, "draw", lambda directory: [])


# --- training ---


@pytest.mark.parametrize(("mode", "epochs", "rate"), [("sl", 100, 2e-4), ("rl", 600, 1e-4)])
def test_the_papers_numbers(mode: str, epochs: int, rate: float) -> None:
    training, _ = configure(mode, paper=True)
    assert (training.architecture, training.batch_size, training.epochs) == ("cnn6", 256, epochs)
    assert training.phases[0].learning_rate == rate
    assert training.vertical_flip


def test_the_data_are_of_the_command_before_a_setting_before_the_file(tmp_path: Path) -> None:
    table = {"data": {"dataset": "npz", "data_root": str(tmp_path / "none.npz")}}
    with pytest.raises(GradscopeError, match=r"none\.npz"):
        configure(table=table)
    kept = json.dumps(table)
    with pytest.raises(GradscopeError, match=r"other\.npz"):
        configure(table=table, settings=[f"data.data_root={tmp_path / 'other.npz'}"])
    training, splits = configure(data={"dataset": "digits"}, table=table, settings=["data.dataset=cifar10"])
    assert (training.data.dataset, splits.train.name) == ("digits", "digits")
    assert json.dumps(table) == kept
    whole, _ = configure(settings=["data={dataset = 'digits', image_size = 8}"])
    assert whole.data == Data(image_size=8)


def test_a_key_that_only_begins_like_data_is_refused() -> None:
    with pytest.raises(GradscopeError, match="'dataset' is unknown"):
        configure(settings=["dataset=cifar10"])


@pytest.mark.parametrize("table", [{"mode": "rl"}, {}])
def test_the_mode_is_the_commands(table: dict[str, str]) -> None:
    training, _ = configure("sl", table=table, settings=[] if table else ["mode=rl"])
    assert training.mode == "sl"
    assert training.phases[0].mix == {"cross-entropy": 1.0}


def test_a_trained_checkpoint_is_judged_on_the_test_images(tmp_path: Path, digits: Splits) -> None:
    training, splits = configure(epochs=1)
    made = run_training(training, splits, tmp_path / "c.pt", CPU, resume=False, overwrite=False)
    images, labels = digits.test.batch(torch.arange(359), "cpu")
    with torch.no_grad():
        right = int((made.checkpoint.build()(images).argmax(1) == labels).sum())
    assert right == count_right(made.checkpoint, digits.test, torch.device("cpu"))
    assert (made.test_accuracy, made.test_images) == (right / 359, 359)
    assert made.test_interval == wilson_interval(right, 359)


# --- choosing images ---


def test_images_are_drawn_by_the_seed_without_replacement(digits: Splits) -> None:
    test = digits.test
    chosen = choose(test, 50, 500, 4, "--samples")
    numbers = chosen.numbers.tolist()
    assert numbers == sorted(set(numbers))
    assert (len(numbers), chosen.available) == (50, 359)
    assert numbers != list(range(50))
    assert torch.equal(chosen.images.images, test.images[chosen.numbers])
    assert torch.equal(chosen.images.labels, test.labels[chosen.numbers])
    assert torch.equal(choose(test, 50, 500, 4, "--samples").numbers, chosen.numbers)
    assert not torch.equal(choose(test, 50, 500, 5, "--samples").numbers, chosen.numbers)
    more = set(choose(test, 80, 500, 4, "--samples").numbers.tolist())
    assert set(numbers) < more, "more samples keep those that were there"


def test_500_images_or_all_there_are(digits: Splits) -> None:
    assert len(choose(digits.test, None, 500, 0, "--samples").numbers) == 359
    assert len(choose(digits.train, None, 500, 0, "--samples").numbers) == 500
    assert choose(digits.test, 359, 500, 0, "--samples").numbers.tolist() == list(range(359))


@pytest.mark.parametrize("samples", [0, -1, 41])
def test_samples_that_are_not_there(image_set: ImageSet, samples: int) -> None:
    with pytest.raises(GradscopeError, match=f"--samples: 1 to 40 is allowed.*got {samples}$"):
        choose(image_set, samples, 500, 0, "--samples")


def test_a_device_is_named() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(GradscopeError, match="auto, cpu or cuda is allowed, got 'mps'"):
        resolve_device("mps")


# --- analysing ---


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


def test_every_file_is_rewritten_after_each_attack(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradscope.study import stages

    seen: list[tuple[set[tuple[str, str]], ...]] = []
    measure = stages.measure_trajectory

    def look(*arguments: Any, **options: Any) -> Any:
        if (tmp_path / "manifest.json").exists():
            frames = tables(tmp_path).values()
            seen.append(tuple(set(zip(frame["checkpoint"], frame["attack"], strict=True)) for frame in frames))
        return measure(*arguments, **options)

    monkeypatch.setattr(stages, "measure_trajectory", look)
    analyse(trained, tmp_path, "pgd", "pgd-paper")
    sequence = [("sl", "pgd"), ("sl", "pgd-paper"), ("rl", "pgd")]
    assert seen == [(set(sequence[:count]),) * 3 for count in (1, 2, 3)]

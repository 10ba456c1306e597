"""What a history warns of, on real runs: FGSM training that overfits, and the same against PGD, which does not."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.errors import Caution
from gradscope.models.checkpoint import Checkpoint
from gradscope.training.history import kept_epoch, warnings_of
from gradscope.training.loop import train
from gradscope.training.phases import resolve


@pytest.fixture(scope="module")
def larger_digits() -> ImageSet:
    """The digits with 16 pixels a side: more pixels, in which a single step can be hidden from."""
    small = sources.load(Data()).train
    images = F.interpolate(small.images.float(), size=(16, 16), mode="bilinear").round().to(torch.uint8)
    return ImageSet.from_tensors("larger-digits", images, small.labels, small.classes)


def trained(
    images: ImageSet, out: Path, rate: float = 2e-3, epochs: int = 6, **adversary: Any
) -> tuple[Checkpoint, list[str]]:
    """A run against the adversary alone, nearly, and what it warned of."""
    phase = {"epochs": epochs, "learning_rate": rate, "adversary": {"weight": 20.0, **adversary}}
    training = resolve(
        "mine", Data(), 16, table={"phases": [phase]}, options={"architecture": "cnn2", "batch_size": 64}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(training, images, out, Hardware("cpu"))
    return found, [str(one.message) for one in caught if issubclass(one.category, Caution)]


def test_fgsm_training_that_overfits_to_one_step_is_told_once(larger_digits, tmp_path) -> None:
    found, warned = trained(larger_digits, tmp_path / "c.pt", epsilon=0.2)
    last = found.history[-1]
    assert last["fgsm_accuracy"] > 0.6
    assert last["pgd_accuracy"] < 0.15
    assert last["pgd_accuracy"] < max(row["pgd_accuracy"] for row in found.history)
    [sentence] = warned
    assert "overfits to a single step" in sentence


def test_training_against_pgd_in_the_same_ball_is_not_warned_of(larger_digits, tmp_path) -> None:
    found, warned = trained(larger_digits, tmp_path / "c.pt", epochs=4, epsilon=0.2, method="pgd", steps=3)
    assert found.history[-1]["pgd_accuracy"] > 0.22
    assert warned == []


def test_a_network_that_predicts_one_class_is_told_once(larger_digits, tmp_path) -> None:
    """A rate at which cnn2 dies: it learns nothing in six epochs."""
    found, warned = trained(larger_digits, tmp_path / "c.pt", rate=0.1, epsilon=0.2)
    assert found.history[-1]["most_predicted"] == 1
    [sentence] = warned
    assert "one class gets 100 % of the predictions" in sentence


def rows(*accuracies: tuple[float | None, float | None], phases: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "phase": phases[epoch - 1] if phases else 0,
            "validation_accuracy": 0.9,
            "fgsm_accuracy": fgsm,
            "pgd_accuracy": strong,
            "most_predicted": 0.1,
        }
        for epoch, (fgsm, strong) in enumerate(accuracies, start=1)
    ]


@pytest.mark.parametrize(
    ("accuracies", "warned"),
    [
        ([(0.5, 0.4), (0.6, 0.45), (0.9, 0.1)], True),
        ([(0.5, 0.4), (0.9, 0.19), (0.9, 0.19)], False),  # was told at the second
        ([(0.3, 0.05), (0.5, 0.1)], False),  # at the first already
        ([(0.6, 0.5), (0.65, 0.4)], False),
        ([(0.1, 0.05), (0.15, 0.0)], False),
        ([(None, None), (0.8, 0.05)], True),
    ],
)
def test_overfitting_is_a_gap_at_which_pgd_fell(accuracies, warned) -> None:
    assert bool([*warnings_of(rows(*accuracies), 100)]) is warned


def test_the_epoch_that_is_kept_is_of_the_last_phase_and_ties_go_to_the_later() -> None:
    history = rows((None, None), (0.5, 0.4), (0.6, 0.4), (0.7, 0.3), phases=(0, 1, 1, 1))
    assert [kept_epoch(history, "robust"), kept_epoch(history, "best"), kept_epoch(history, "last")] == [3, 4, 4]
    assert kept_epoch(history[:1], "robust") == 1

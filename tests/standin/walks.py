"""Small runs of every training and measurement, each through the function that its command calls."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import loss_landscapes.metrics
import pytest
import torch
from torch import Tensor, nn

from gradscope.auditing.budgets import BUDGETS
from gradscope.config import Budget, Data
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.distributed import processes
from gradscope.distributed.processes import Hardware
from gradscope.errors import Caution
from gradscope.measure import epochs, weight_landscape
from gradscope.measure.partial_results import PartialResults
from gradscope.models import checkpoint as checkpoints
from gradscope.models.rescaling import calibrating_factor
from gradscope.probes import comparison
from gradscope.training.options import TrainOptions
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, run_training
from gradscope.training.state import RunState
from tests.measure.requests import measured

#: A run that writes its files into a folder. Measurements read the trained models from the working directory.
Walk = Callable[[Path], object]
SL, RL = "sl/sl.pt", "rl/rl.pt"

PGD_IN_TRAINING = ("phases.1.adversary.method=pgd", "phases.1.adversary.steps=2")
SHORT: dict[str, Any] = {"step_size": 0.4, "steps": 3}
FLOAT64: dict[str, Any] = {**SHORT, "norm": "linf", "epsilon": 0.1, "precision": "float64", "loss": "margin"}
BUDGET: dict[str, Any] = {"steps": 3, "restarts": 2, "smoothing": 2, "targets": 2, "queries": 8, "noise_points": 3}
LINF: dict[str, Any] = {"norm": "linf", "epsilon": 0.05}


@contextmanager
def reduced() -> Iterator[None]:
    """Reduce what no request can reduce."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "MOST_PRODUCTS", 3)
        patch.setattr(weight_landscape, "MOST_PRODUCTS", 6)
        patch.setattr(epochs, "PRODUCTS", 3)
        patch.setattr(epochs, "PROBES", 2)
        patch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], attacks=Budget(**BUDGET)))
        yield


class InterruptedRunError(Exception):
    pass


@contextmanager
def interrupted(owner: type, method: str, calls: int) -> Iterator[None]:
    """Stop the run inside, as a kill would, after ``calls`` calls of a method."""
    called, original = [], getattr(owner, method)

    def stop(*arguments: object) -> None:
        original(*arguments)
        called.append(None)
        if len(called) == calls:
            raise InterruptedRunError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, stop)
        with pytest.raises(InterruptedRunError):
            yield


def few_images() -> Splits:
    splits = sources.load(Data())
    return Splits(splits.train.subset(torch.arange(150)), splits.test.subset(torch.arange(40)))


def train(out: Path, mode: str, epochs: int, *settings: str, resume: bool = False, keep_epochs: bool = False) -> None:
    options = TrainOptions(mode=mode, set=("shift=0.1", *settings), epochs=epochs)
    training, _ = configure_training(TrainingRequest(options=options))
    how = {"resume": resume, "overwrite": False, "keep_epochs": keep_epochs}
    with warnings.catch_warnings():
        # Two epochs on so few images may leave a model at chance.
        warnings.simplefilter("ignore", Caution)
        run_training(training, few_images(), out / f"{mode}.pt", Hardware("cpu"), **how)


def train_resumed(out: Path) -> None:
    """Interrupt a training after its first epoch and resume it; the second epoch has an adversary."""
    with interrupted(RunState, "_store", 1):
        train(out, "rl-adv", 2)
    train(out, "rl-adv", 2, resume=True)


TRAININGS: dict[str, Walk] = {
    "sl": lambda out: train(out, "sl", 3, keep_epochs=True),
    "rl": lambda out: train(out, "rl", 2),
    "sl-adv": lambda out: train(out, "sl-adv", 2),
    "rl-adv": lambda out: train(out, "rl-adv", 2),
    "sl-adv pgd": lambda out: train(
        *(out, "sl-adv", 2, *PGD_IN_TRAINING, "phases.1.adversary.norm=l2"),
        "phases.1.adversary.objective=cross-entropy",
    ),
    "rl-adv pgd": lambda out: train(out, "rl-adv", 2, *PGD_IN_TRAINING),
    "cnn4": lambda out: train(out, "rl-adv", 2, "architecture=cnn4"),
    "cnn6": lambda out: train(out, "sl", 1, "architecture=cnn6"),
    "resumed": train_resumed,
}


def mean_loss(images: Tensor, labels: Tensor) -> Callable[[object], object]:
    """Make a metric of loss_landscapes."""
    return loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), images, labels)


def batch_normed() -> nn.Module:
    """Make a foreign model with batch norm and dropout."""
    front = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2d(2))
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(64, 10))


class _Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)


def probabilities() -> nn.Module:
    """Make a foreign model that returns probabilities."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(dim=1))


def noisy() -> nn.Module:
    """Make a foreign model that draws random numbers."""
    return nn.Sequential(_Noisy(), nn.Flatten(), nn.Linear(64, 10))


def calibrate(out: Path) -> None:
    factor = calibrating_factor(checkpoints.load(Path(SL)), few_images().test, processes.resolve_device("cpu"))
    (out / "factor.json").write_text(json.dumps({"factor": factor}))


def measure(command: str, out: Path, *models: str, **given: Any) -> None:
    measured(command, models, out, dataset="digits", device="auto", **given)


def analyze(out: Path, *models: str, **given: Any) -> None:
    options = {"attack": "pgd,pgd-paper,pgd-margin", "restarts": 2, "samples": 6, "batch_size": 4, **SHORT}
    measure("analyze", out, *models, **options | given)


def around_images(out: Path, *models: str, **given: Any) -> None:
    measure("landscape", out, *models, points=3, span=2.0, images=2, **SHORT, **given)


def around_weights(out: Path, model: str, **given: Any) -> None:
    measure("landscape", out, model, space="weights", points=3, images=12, trust_code=True, **given)


def spectrum(out: Path, model: str, **given: Any) -> None:
    options = {"images": 12, "eigenvalues": 2, "probes": 2, "iterations": 3, "adversarial": True, **SHORT}
    measure("spectrum", out, model, **options, **given)


def attack(out: Path, **given: Any) -> None:
    options = {"attacks": "all", "samples": 6, "batch_size": 4, "surrogate": (RL,), "save_images": True, **BUDGET}
    measure("attack", out, SL, **options, **given)


def audit(out: Path, model: str, *surrogates: str) -> None:
    given = {"samples": 6, "batch_size": 4, "surrogate": surrogates, "trust_code": True, "allow_inconclusive": True}
    measure("audit", out, model, budget="quick", **given, **LINF)


def resumed(measure: Callable[..., None], *models: str) -> Walk:
    """Interrupt a measurement once it has kept two partial results, and resume it."""

    def walk(out: Path) -> None:
        with interrupted(PartialResults, "write", 2):
            measure(out, *models)
        measure(out, *models, resume=True)

    return walk


MEASUREMENTS: dict[str, Walk] = {
    "calibration": calibrate,
    "analysis": lambda out: analyze(out, SL),
    "analysis in float64": lambda out: analyze(out, SL, **FLOAT64),
    "analysis resumed": resumed(analyze, SL),
    "input landscape": lambda out: around_images(out, SL),
    "shared landscape": lambda out: around_images(out, SL, RL, plane="shared", right=True),
    "input landscape resumed": resumed(around_images, SL),
    "weight landscape": lambda out: around_weights(out, SL),
    "adversarial weight landscape": lambda out: around_weights(out, SL, adversarial=True, **SHORT),
    "line": lambda out: around_weights(out, SL, towards=RL, line=True, metric=f"{__name__}:mean_loss"),
    "plane towards": lambda out: around_weights(out, SL, towards=RL),
    "ways": lambda out: around_weights(out, SL, towards=RL, line=True, align=True, curve="bezier", curve_updates=2),
    "plane of the epochs": lambda out: around_weights(out, SL, epochs="sl/sl.epochs", **SHORT),
    "batch norm": lambda out: around_weights(out, f"{__name__}:batch_normed", line=True, batch_norm="re-estimated"),
    "spectrum": lambda out: spectrum(out, SL, layers=True),
    "spectrum of images": lambda out: spectrum(out, SL, space="input", matrix=("gauss-newton",)),
    "attacks l2": lambda out: attack(out, epsilon=0.5, cascade=False),
    "attacks linf": lambda out: attack(out, **LINF),
    "transfer": lambda out: measure("transfer", out, SL, RL, samples=6, batch_size=4, **SHORT),
    "audit": lambda out: audit(out, SL, RL),
    "audit of probabilities": lambda out: audit(out, f"{__name__}:probabilities"),
    "audit of a random model": lambda out: audit(out, f"{__name__}:noisy"),
}

"""Small runs of every training and measurement, each through the function that its command calls."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import loss_landscapes.metrics
import pytest
import torch
from torch import Tensor, nn

from gradscope.attacks.battery import BATTERY
from gradscope.audit.budgets import BUDGETS
from gradscope.config import PGD, Balls, Budget, Data, attack_settings
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.models import checkpoint as checkpoints
from gradscope.models.rescaling import calibrating_factor
from gradscope.models.subject import Foreign
from gradscope.probes import comparison
from gradscope.results.rows import METRICS
from gradscope.study import inputs, weight_landscapes
from gradscope.study.analysis import Analysis
from gradscope.study.attacks import Battery, run_attacks
from gradscope.study.audits import AuditRequest, run_audits
from gradscope.study.input_landscapes import InputLandscape, run_input_landscape
from gradscope.study.stages import configure_training, run_analysis, run_training
from gradscope.study.tiles import Tiles
from gradscope.study.transfer import TransferMatrix, run_transfer
from gradscope.study.weight_landscapes import WeightLandscape, run_weight_landscape
from gradscope.training import loop
from gradscope.training.hardware import Hardware

#: A run that writes its files into a folder. Measurements read the trained models from the working directory.
Walk = Callable[[Path], object]
SL, RL = "sl/sl.pt", "rl/rl.pt"
COMMON = {"figures": False, "data": {"dataset": "digits"}}

PGD_IN_TRAINING = ("phases.1.adversary.method=pgd", "phases.1.adversary.steps=2")
SHORT = PGD(step_size=0.4, steps=3)
BUDGET = Budget(steps=3, restarts=2, smoothing=2, targets=2, queries=8, draws=3)
LINF = Balls(norm="linf", epsilon=0.05)
PROBED = {
    "pgd": SHORT.model_copy(update={"restarts": 2}),
    "pgd-paper": attack_settings("pgd-paper", {"steps": 3}),
    "pgd-smooth": SHORT.model_copy(update={"loss": "margin", "smoothing": 2, "smoothing_radius": 0.1}),
    "pgd-float64": SHORT.model_copy(update={"norm": "linf", "epsilon": 0.1, "precision": "float64"}),
}


@contextmanager
def reduced() -> Iterator[None]:
    """Reduce what no request can reduce."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "MOST_PRODUCTS", 3)
        patch.setattr(weight_landscapes, "MOST_PRODUCTS", 6)
        patch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], attacks=BUDGET))
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
    training, _ = configure_training(
        *(mode, {}), paper=False, table={}, settings=settings, epochs=epochs, options={"shift": 0.1}, download=False
    )
    how = {"resume": resume, "overwrite": False, "keep_epochs": keep_epochs}
    run_training(training, few_images(), out / f"{mode}.pt", Hardware("cpu"), **how)


def train_resumed(out: Path) -> None:
    """Interrupt a training after its first epoch and resume it; the second epoch has an adversary."""
    with interrupted(loop.Run, "_store", 1):
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
    factor = calibrating_factor(checkpoints.load(Path(SL)), few_images().test, inputs.resolve_device("cpu"))
    (out / "factor.json").write_text(json.dumps({"factor": factor}))


def analyze(out: Path, *models: str, resume: bool = False) -> None:
    request = Analysis(attacks=PROBED, metrics=frozenset(METRICS), samples=6, batch_size=4, resume=resume, **COMMON)
    run_analysis(models, request, Foreign(), out)


def around_images(out: Path, *models: str, **options: Any) -> None:
    request = InputLandscape(attack="pgd", settings=SHORT, points=3, span=2.0, images=2, **COMMON, **options)
    run_input_landscape(models, request, Foreign(), out)


def around_weights(out: Path, model: str, **options: Any) -> None:
    request = WeightLandscape(points=3, images=12, **COMMON, **options)
    run_weight_landscape([model], request, Foreign(trust_code=True), out)


def attack(out: Path, balls: Balls, *, cascade: bool) -> None:
    request = Battery(
        attacks=tuple(BATTERY),
        balls=balls,
        budget=BUDGET,
        samples=6,
        batch_size=4,
        cascade=cascade,
        surrogates=(RL,),
        save_images=True,
        **COMMON,
    )
    run_attacks([SL], request, Foreign(), out)


def transfer(out: Path) -> None:
    request = TransferMatrix(attack="pgd", settings=SHORT, samples=6, batch_size=4, **COMMON)
    run_transfer([SL, RL], request, Foreign(), out)


def audit(out: Path, model: str, *surrogates: str) -> None:
    request = AuditRequest(balls=LINF, budget="quick", samples=6, batch_size=4, surrogates=surrogates, **COMMON)
    run_audits([model], request, Foreign(trust_code=True), out)


def resumed(measure: Callable[..., None], *models: str) -> Walk:
    """Interrupt a measurement once it has kept two partial results, and resume it."""

    def walk(out: Path) -> None:
        with interrupted(Tiles, "write", 2):
            measure(out, *models)
        measure(out, *models, resume=True)

    return walk


MEASUREMENTS: dict[str, Walk] = {
    "calibration": calibrate,
    "analysis": lambda out: analyze(out, SL),
    "analysis resumed": resumed(analyze, SL),
    "input landscape": lambda out: around_images(out, SL),
    "shared landscape": lambda out: around_images(out, SL, RL, shared=True, right=True),
    "input landscape resumed": resumed(around_images, SL),
    "weight landscape": lambda out: around_weights(out, SL),
    "adversarial weight landscape": lambda out: around_weights(out, SL, attack="pgd", settings=SHORT),
    "line": lambda out: around_weights(out, SL, towards=RL, line=True, metric=f"{__name__}:mean_loss"),
    "plane towards": lambda out: around_weights(out, SL, towards=RL),
    "plane of the epochs": lambda out: around_weights(out, SL, epochs=Path("sl/sl.epochs")),
    "batch norm": lambda out: around_weights(out, f"{__name__}:batch_normed", line=True, reestimate=True),
    "attacks l2": lambda out: attack(out, Balls(norm="l2", epsilon=0.5), cascade=False),
    "attacks linf": lambda out: attack(out, LINF, cascade=True),
    "transfer": transfer,
    "audit": lambda out: audit(out, SL, RL),
    "audit of probabilities": lambda out: audit(out, f"{__name__}:probabilities"),
    "audit of a random model": lambda out: audit(out, f"{__name__}:noisy"),
}

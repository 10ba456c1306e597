"""Robust accuracy under a fixed attack as the scale of the logits changes, and the scale that calibrates the model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import ScaleBudget
from gradscope.functional import calibration_error
from gradscope.losses import cross_entropy
from gradscope.models.rescaling import best_factor
from gradscope.results.metrics import SCALE_METRICS
from gradscope.results.stats import UNDEFINED, Interval, wilson_interval

Row = dict[str, Any]

#: An attack that the scale of the logits does not change. It runs only at the two ends and at temperature 1.
REFERENCE = "pgd-margin"
#: The temperatures reach from 10 to minus this power up to 10 to this power.
DECADES = 2


class Tempered(nn.Module):
    """Divides a model's logits by ``temperature``: predictions stay the same, softmax probabilities change."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Compute the divided logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = self.model(images)
        return logits / self.temperature


def temperatures(count: int) -> tuple[float, ...]:
    """List ``count`` temperatures from 1/100 to 100, evenly spaced in their logarithm; an odd ``count`` includes 1.

    >>> temperatures(5)
    (0.01, 0.1, 1.0, 10.0, 100.0)
    """
    half = count // 2
    return tuple(10 ** (DECADES * step / half) for step in range(-half, half + 1))


def attacks_at(budget: ScaleBudget) -> dict[float, tuple[str, ...]]:
    """List the attacks of ``budget`` at each temperature."""
    tried = temperatures(budget.temperatures)
    with_reference = {tried[0], 1.0, tried[-1]}
    return {at: (*budget.attacks, *([REFERENCE] if at in with_reference else [])) for at in tried}


@dataclass(frozen=True)
class Calibration:
    """Calibration of the softmax at ``temperature``.

    ``error``: expected calibration error (Guo et al. 2017). ``loss``: mean cross-entropy in nats.
    """

    temperature: float
    error: float
    loss: float


@dataclass(frozen=True)
class ScaleCurve:
    """Robust accuracy under fixed attacks as a function of the logits' temperature, on the first M images of an audit.

    ``right`` ``(M,)``: the clean prediction is right, at every temperature. ``standing`` ``(M,)``, by attack and
    temperature: right when clean and under the attack on the logits at that temperature. ``given`` is the calibration
    at temperature 1, ``fitted`` that where cross-entropy is smallest, on ``images`` images. ``fitted`` is None if no
    temperature is best, for example if every image is right.
    """

    threat: ThreatModel
    steps: int
    right: Tensor
    standing: Mapping[str, Mapping[float, Tensor]]
    images: int
    given: Calibration
    fitted: Calibration | None

    def strongest(self, attack: str, among: Iterable[float]) -> float:
        """Find the temperature ``among`` these at which ``attack`` fools most images; of several the nearest to 1."""
        standing = self.standing[attack]
        return min(among, key=lambda temperature: (int(standing[temperature].sum()), abs(log(temperature))))

    @property
    def stands(self) -> Tensor:
        """The images ``(M,)`` that are right when clean and under every attack at every temperature."""
        everything = [stands for standing in self.standing.values() for stands in standing.values()]
        return torch.stack(everything).all(dim=0)

    def rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``scale.csv``, labelled by ``identity``: accuracies, then calibration."""
        ball = {"norm": self.threat.norm, "epsilon": self.threat.epsilon}
        n = len(self.right)
        for attack, standing in self.standing.items():
            for temperature, stands in standing.items():
                count = int(stands.sum())
                at = {**identity, "attack": attack, **ball, "temperature": temperature, "fitted": 0}
                yield at | {"steps": self.steps} | _measured("robust-accuracy", count / n, wilson_interval(count, n), n)
        clean = {**identity, "attack": "none", **ball, "temperature": 1.0, "fitted": 0, "steps": None}
        count = int(self.right.sum())
        yield clean | _measured("accuracy", count / n, wilson_interval(count, n), n)
        for calibration in (self.given, self.fitted):
            if calibration is not None:
                at = clean | {"temperature": calibration.temperature, "fitted": int(calibration is self.fitted)}
                for metric, value in (("calibration-error", calibration.error), ("cross-entropy", calibration.loss)):
                    yield at | _measured(metric, value, UNDEFINED, self.images)


def _measured(metric: str, value: float, interval: Interval, n: int) -> Row:
    ends = {"ci_low": interval.low, "ci_high": interval.high}
    return {"metric": metric, "unit": SCALE_METRICS[metric].unit, "value": value, **ends, "n": n}


def scale_curve(outcomes: Mapping[float, Outcome], steps: int, logits: Tensor, labels: Tensor) -> ScaleCurve | None:
    """Combine the attacks' outcomes at each temperature and the calibration of ``logits`` ``(N, K)`` into a curve.

    A temperature at which rounding changes a clean prediction is left out. None if no attack could run.
    """
    plain = outcomes[1.0]
    kept = {at: outcome for at, outcome in outcomes.items() if torch.equal(outcome.right, plain.right)}
    standing = {
        attack: {at: outcome.standing(attack) for at, outcome in kept.items() if attack in outcome.attacks}
        for attack in plain.attacks
    }
    known = logits.isfinite().all(dim=1)
    logits, labels = logits[known].double(), labels[known]
    if not standing or not len(labels):
        return None
    factor = best_factor(logits, labels)
    fitted = None if factor is None else _calibration(logits, labels, 1 / factor)
    given = _calibration(logits, labels, 1.0)
    return ScaleCurve(plain.threat, steps, plain.right, standing, len(labels), given, fitted)


def _calibration(logits: Tensor, labels: Tensor, temperature: float) -> Calibration:
    tempered = logits / temperature
    error, loss = calibration_error(tempered, labels), float(cross_entropy(tempered, labels).mean())
    return Calibration(temperature, error, loss)

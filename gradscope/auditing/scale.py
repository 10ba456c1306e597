"""What one fixed attack reaches as the scale of the logits changes, and which scale would calibrate the model."""

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

#: An attack that no scale of the logits changes: it is run at the ends and as given alone.
REFERENCE = "pgd-margin"
#: The temperatures reach from one over ten to this power to the power itself.
DECADES = 2


class Tempered(nn.Module):
    """A model whose logits are divided by ``temperature``: every decision stays, every softmax changes."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in, logits ``(N, K)`` out."""
        logits: Tensor = self.model(images)
        return logits / self.temperature


def temperatures(count: int) -> tuple[float, ...]:
    """``count`` temperatures from 1/100 to 100, spaced evenly in their logarithm; an odd number has 1 in its middle.

    >>> temperatures(5)
    (0.01, 0.1, 1.0, 10.0, 100.0)
    """
    half = count // 2
    return tuple(10 ** (DECADES * step / half) for step in range(-half, half + 1))


def attacks_at(budget: ScaleBudget) -> dict[float, tuple[str, ...]]:
    """The attacks that ``budget`` pays for at each temperature."""
    found = temperatures(budget.temperatures)
    ends = {found[0], 1.0, found[-1]}
    return {one: (*budget.attacks, *([REFERENCE] if one in ends else [])) for one in found}


@dataclass(frozen=True)
class Calibration:
    """How well the softmax at ``temperature`` knows how often it is right.

    ``error``: expected calibration error (Guo et al. 2017); ``loss``: mean cross-entropy in nats.
    """

    temperature: float
    error: float
    loss: float


@dataclass(frozen=True)
class ScaleCurve:
    """Robust accuracy under fixed attacks against the temperature of the logits, on the first M images of an audit.

    ``right`` ``(M,)``: the prediction is right when clean, at every temperature. ``standing`` ``(M,)`` by attack and
    temperature: right when clean and under the attack that sees the logits at that temperature. ``given`` and
    ``fitted`` are the calibration at temperature 1 and where cross-entropy is smallest, on ``images`` images; None
    where no temperature is best, as where every image is right.
    """

    threat: ThreatModel
    steps: int
    right: Tensor
    standing: Mapping[str, Mapping[float, Tensor]]
    images: int
    given: Calibration
    fitted: Calibration | None

    def strongest(self, attack: str, among: Iterable[float]) -> float:
        """The temperature ``among`` those at which ``attack`` leaves fewest; of several the nearest to 1."""
        standing = self.standing[attack]
        return min(among, key=lambda temperature: (int(standing[temperature].sum()), abs(log(temperature))))

    @property
    def stands(self) -> Tensor:
        """Which images ``(M,)`` are right when clean and under every attack at every temperature."""
        everything = [one for standing in self.standing.values() for one in standing.values()]
        return torch.stack(everything).all(dim=0)

    def rows(self, identity: Row) -> Iterator[Row]:
        """Rows of ``scale.csv``: accuracy by attack and temperature, then calibration; ``identity`` says whose."""
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
        for found in (self.given, self.fitted):
            if found is not None:
                at = clean | {"temperature": found.temperature, "fitted": int(found is self.fitted)}
                for metric, value in (("calibration-error", found.error), ("cross-entropy", found.loss)):
                    yield at | _measured(metric, value, UNDEFINED, self.images)


def _measured(metric: str, value: float, interval: Interval, n: int) -> Row:
    ends = {"ci_low": interval.low, "ci_high": interval.high}
    return {"metric": metric, "unit": SCALE_METRICS[metric].unit, "value": value, **ends, "n": n}


def scale_curve(outcomes: Mapping[float, Outcome], steps: int, logits: Tensor, labels: Tensor) -> ScaleCurve | None:
    """The curve of what the attacks did at each temperature, and the calibration of ``logits`` ``(N, K)``.

    A temperature at which rounding changes a clean prediction is left out; None where no attack could be run.
    """
    plain = outcomes[1.0]
    kept = {temperature: one for temperature, one in outcomes.items() if torch.equal(one.right, plain.right)}
    standing = {
        attack: {temperature: one.standing(attack) for temperature, one in kept.items() if attack in one.attacks}
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

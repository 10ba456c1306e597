"""Distance from each image to the nearest point found that fools the model, and robust accuracy at every radius."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.outcome import Outcome, Row
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget, Norm
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Work
from gradscope.results.metrics import ATTACK_METRICS
from gradscope.results.stats import simultaneous_interval

#: The attack that searches for the nearest point.
ATTACK = "fmn"


@dataclass(frozen=True)
class Distances:
    """Distances found by :data:`ATTACK`; ``outcome`` is its evaluation in a ball that contains the whole box."""

    outcome: Outcome

    @property
    def found(self) -> bool:
        """Whether the attack ran."""
        return ATTACK in self.outcome.attacks

    @property
    def values(self) -> Tensor:
        """Distance of each image ``(N,)``, pixel units: 0 if the clean image is wrong, infinite if no point fooled."""
        values = self.outcome.distance.nan_to_num(math.inf)
        return torch.where(self.outcome.right, values, 0.0)

    @property
    def not_fooled(self) -> int:
        """Number of images that no perturbation fooled."""
        return int(self.values.isinf().sum())

    @property
    def bounded(self) -> Tensor:
        """The distances ``(N,)``, capped at the largest distance in the box."""
        return self.values.clamp(max=self.outcome.threat.epsilon)

    @property
    def median(self) -> float:
        """The median over all images, pixel units; capped at the largest distance in the box."""
        return float(self.bounded.quantile(0.5)) if len(self.outcome) else math.nan

    def joined(self, outcome: Outcome) -> Outcome:
        """Add the attack to ``outcome`` of the same images: it fooled those whose distance is within the radius."""
        attacks = dict(outcome.attacks)
        if self.found:
            attack = self.outcome.attacks[ATTACK]
            within = attack.fooled & (attack.distance <= outcome.threat.epsilon)
            attacks[ATTACK] = replace(attack, fooled=within, distance=attack.distance.where(within, math.nan))
        return replace(outcome, attacks=attacks, skipped={**outcome.skipped, **self.outcome.skipped})

    def curve_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``curve.csv``: clean accuracy at radius 0, then one row where robust accuracy drops."""
        values, n = self.values, len(self.outcome)
        of_model = {**identity, "attack": ATTACK, "norm": self.outcome.threat.norm}
        for radius in torch.cat([values.new_zeros(1), values[values.isfinite()]]).unique().tolist():
            share = float((values > radius).double().mean())
            band = simultaneous_interval(share, n)
            yield of_model | {"epsilon": radius, "value": share, "ci_low": band.low, "ci_high": band.high, "n": n}

    def sample_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``samples.csv``: the distance of each image."""
        outcome, unit = self.outcome, ATTACK_METRICS["distance"].unit
        ball = {"norm": outcome.threat.norm, "epsilon": None}
        row = {**identity, "attack": ATTACK, **ball, "metric": "distance", "point": "nearest", "unit": unit, "first": 0}
        images = zip(outcome.numbers.tolist(), outcome.labels.tolist(), self.bounded.tolist(), strict=True)
        for number, label, value in images:
            yield row | {"index": number, "label": label, "value": value}


def measure_distances(
    model: nn.Module,
    image_set: ImageSet,
    norm: Norm,
    budget: Budget,
    *,
    numbers: Tensor | None = None,
    work: Work = PLAIN,
) -> Distances:
    """Measure each image's distance in ``norm``, without a bound on the radius. Arguments as for :func:`evaluate`."""
    whole = ThreatModel(norm, 0.0).unbounded(image_set.images[0].numel())
    return Distances(evaluate(model, image_set, [ATTACK], whole, budget, numbers=numbers, work=work))

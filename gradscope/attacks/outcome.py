"""Results of an evaluation: which attack fooled which image, at what distance and at what cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscope.attacks.threat import ThreatModel
from gradscope.functional import NOT_FINITE, ZERO
from gradscope.results.metrics import ATTACK_METRICS
from gradscope.results.stats import Interval, wilson_interval

Row = dict[str, Any]


@dataclass(frozen=True)
class AttackOutcome:
    """Result of one attack on M of the N images.

    ``attacked`` ``(M,)`` are the indices of the M images among the N. ``fooled`` ``(M,)`` marks the images that the
    model gets wrong under attack. ``distance`` ``(M,)`` is the norm of the perturbation, NaN where the model is not
    fooled. ``adversarial`` ``(M, C, H, W)`` are the points reached, if they were kept. ``forward`` and ``backward``
    count passes, one per image, over all M images; ``seconds`` is their time. ``blindness`` ``(M,)`` is the largest
    :func:`gradscope.functional.blindness` among each image's gradients; None if the attack used no gradient or none was
    recorded.
    """

    attacked: Tensor
    fooled: Tensor
    distance: Tensor
    forward: int
    backward: int
    seconds: float
    adversarial: Tensor | None = None
    blindness: Tensor | None = None

    def per_image(self, passes: int) -> float:
        """Divide ``passes`` by the number of attacked images; NaN if there are none."""
        return passes / len(self.attacked) if len(self.attacked) else float("nan")


def blind_images(blindness: Tensor) -> dict[str, Tensor]:
    """Mark the images ``(N,)`` for which each of :data:`~gradscope.results.metrics.GRADIENT_METRICS` holds."""
    return {"zero-gradient": blindness == ZERO, "not-finite-gradient": blindness == NOT_FINITE}


def count_blind(blindness: Tensor) -> dict[str, int]:
    """Count the images, and those for which each gradient metric holds, for the manifest."""
    return {"images": len(blindness)} | {
        name.replace("-", "_"): int(holds.sum()) for name, holds in blind_images(blindness).items()
    }


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation on N images: the ``attacks`` in the order they ran, and why others were ``skipped``.

    ``right`` ``(N,)`` marks clean images that the model classifies correctly. ``undefined`` ``(N,)`` marks images whose
    clean logits are not finite; these are not right. The attacks in ``cascade`` got only images that no earlier attack
    fooled.
    """

    threat: ThreatModel
    numbers: Tensor
    labels: Tensor
    right: Tensor
    undefined: Tensor
    cascade: frozenset[str]
    attacks: Mapping[str, AttackOutcome]
    skipped: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.labels)

    def fooled_by(self, name: str) -> Tensor:
        """Mark the images ``(N,)`` that the attack ``name`` fooled; False for images it did not attack."""
        fooled = torch.zeros(len(self), dtype=torch.bool)
        attack = self.attacks[name]
        fooled[attack.attacked] = attack.fooled
        return fooled

    def standing(self, *names: str) -> Tensor:
        """Mark the images ``(N,)`` that are right when clean and under all of ``names``, by default every attack."""
        stands = self.right.clone()
        for name in names or self.attacks:
            stands &= ~self.fooled_by(name)
        return stands

    @property
    def robust_accuracy(self) -> float:
        """Robust accuracy: share of all images right when clean and under every attack; an upper bound."""
        return float(self.standing().double().mean())

    def felled_by(self) -> list[str | None]:
        """Name the first attack that fooled each image; None if none did, or if the clean image is wrong."""
        first_attack: list[str | None] = [None] * len(self)
        for name in self.attacks:
            for place in self.fooled_by(name).nonzero().squeeze(1).tolist():
                first_attack[place] = first_attack[place] or name
        return first_attack

    @property
    def distance(self) -> Tensor:
        """Distance ``(N,)`` at which the first successful attack fooled each image; NaN if none did."""
        distance = torch.full((len(self),), torch.nan, dtype=torch.float64)
        for attack in reversed(list(self.attacks.values())):
            distance[attack.attacked[attack.fooled]] = attack.distance[attack.fooled]
        return distance

    def only(self, first: str, second: str) -> tuple[int, int]:
        """Count the images that only ``first`` and only ``second`` fooled, for :func:`gradscope.results.stats.mcnemar`.

        Raises ValueError if the two did not attack the same images, as in a cascade.
        """
        if not torch.equal(self.attacks[first].attacked, self.attacks[second].attacked):
            raise ValueError(f"{first} and {second} attacked different images; run them without cascade")
        by_first, by_second = self.fooled_by(first), self.fooled_by(second)
        return int((by_first & ~by_second).sum()), int((by_second & ~by_first).sum())

    def attack_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``attacks.csv``, labelled by ``identity``; clean images come first, as attack "none"."""
        clean = self._of(identity, "none")
        yield clean | _share("accuracy", "all", self.right)
        yield clean | _share("undefined", "all", self.undefined)
        stands = self.right.clone()
        for name, attack in self.attacks.items():
            row = self._of(identity, name)
            stands &= ~self.fooled_by(name)
            yield row | _share("accuracy", "attacked", ~attack.fooled)
            if name not in self.cascade:
                yield row | _share("accuracy", "all", self.standing(name))
            yield row | _share("robust-accuracy", "all", stands)
            if attack.blindness is not None:
                for metric, holds in blind_images(attack.blindness).items():
                    yield row | _share(metric, "attacked", holds)
            for metric in ("forward", "backward"):
                yield row | _cost(metric, attack.per_image(getattr(attack, metric)), len(attack.attacked))
            yield row | _cost("seconds", attack.seconds, len(attack.attacked))

    @property
    def blind(self) -> dict[str, dict[str, int]]:
        """:func:`count_blind` of the images of each attack that recorded gradients."""
        recorded = {name: attack.blindness for name, attack in self.attacks.items()}
        return {name: count_blind(blindness) for name, blindness in recorded.items() if blindness is not None}

    def sample_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``samples.csv``: correctness of each image, clean and under each attack, and distance."""
        clean = torch.where(self.undefined, torch.nan, self.right.double())
        first_attack = self.felled_by()
        yield from self._samples(identity, "none", "accuracy", torch.arange(len(self)), clean, first_attack)
        for name, attack in self.attacks.items():
            right = (~attack.fooled).double()
            yield from self._samples(identity, name, "accuracy", attack.attacked, right, first_attack)
            yield from self._samples(identity, name, "distance", attack.attacked, attack.distance, first_attack)

    def _samples(
        self, identity: Row, attack: str, metric: str, places: Tensor, values: Tensor, first_attack: list[str | None]
    ) -> Iterator[Row]:
        point = {"point": "clean" if attack == "none" else "worst", "unit": ATTACK_METRICS[metric].unit}
        row = self._of(identity, attack) | {"metric": metric, **point}
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            image = {"index": int(self.numbers[place]), "label": int(self.labels[place])}
            yield row | image | {"value": value, "first": int(first_attack[place] == attack)}

    def _of(self, identity: Row, name: str) -> Row:
        return {**identity, "attack": name, "norm": self.threat.norm, "epsilon": self.threat.epsilon}


def _share(metric: str, subset: str, holds: Tensor) -> Row:
    count, n = int(holds.sum()), len(holds)
    value = count / n if n else float("nan")
    return _row(metric, subset, value, n) | _ends(wilson_interval(count, n))


def _cost(metric: str, value: float, n: int) -> Row:
    return _row(metric, "attacked", value, n) | {"ci_low": None, "ci_high": None}


def _row(metric: str, subset: str, value: float, n: int) -> Row:
    return {"metric": metric, "subset": subset, "unit": ATTACK_METRICS[metric].unit, "value": value, "n": n}


def _ends(interval: Interval) -> Row:
    return {"ci_low": interval.low, "ci_high": interval.high}

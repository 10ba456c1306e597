"""What an evaluation found: which attack fooled the model on which image, how far from it, and at what cost."""

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
    """One attack on M of the N images.

    ``attacked`` ``(M,)`` are their places among the N, ``fooled`` ``(M,)`` says whose label the model no longer gives,
    ``distance`` ``(M,)`` is the norm of the perturbation (NaN where it fooled nobody), ``adversarial``
    ``(M, C, H, W)`` the points reached, where they were kept. ``forward`` and ``backward`` count passes over all M
    images together, an image of a batch as one; ``seconds`` are theirs. ``blindness`` ``(M,)`` is the largest of each
    image's gradients, see :func:`gradscope.functional.blindness`; None where it went along none, or none was seen.
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
        """``passes`` a pass for each image attacked; NaN where there are none."""
        return passes / len(self.attacked) if len(self.attacked) else float("nan")


def blind_images(blindness: Tensor) -> dict[str, Tensor]:
    """For which images ``(N,)`` each of :data:`~gradscope.results.metrics.GRADIENT_METRICS` holds."""
    return {"zero-gradient": blindness == ZERO, "not-finite-gradient": blindness == NOT_FINITE}


def count_blind(blindness: Tensor) -> dict[str, int]:
    """How many images there are, and for how many each of the metrics holds, for the manifest."""
    return {"images": len(blindness)} | {
        name.replace("-", "_"): int(holds.sum()) for name, holds in blind_images(blindness).items()
    }


@dataclass(frozen=True)
class Outcome:
    """An evaluation of N images: ``attacks`` in the order they were run, and why the ``skipped`` ones were not.

    ``right`` ``(N,)``: the model gives the label of the clean image. ``undefined`` ``(N,)``: its clean logits are not
    finite; these are not right. The attacks in ``cascade`` had only what stood.
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
        """Which of all images ``(N,)`` the attack called ``name`` fooled; False where it was not run."""
        found = torch.zeros(len(self), dtype=torch.bool)
        attack = self.attacks[name]
        found[attack.attacked] = attack.fooled
        return found

    def standing(self, *names: str) -> Tensor:
        """Which images ``(N,)`` are right when clean and under each of ``names``; under every attack where none is."""
        stands = self.right.clone()
        for name in names or self.attacks:
            stands &= ~self.fooled_by(name)
        return stands

    @property
    def robust_accuracy(self) -> float:
        """Share of all images that are right when clean and under every attack: an upper bound."""
        return float(self.standing().double().mean())

    def felled_by(self) -> list[str | None]:
        """The first attack that fooled the model on each image; None where none did, or where it was wrong before."""
        felled: list[str | None] = [None] * len(self)
        for name in self.attacks:
            for place in self.fooled_by(name).nonzero().squeeze(1).tolist():
                felled[place] = felled[place] or name
        return felled

    @property
    def distance(self) -> Tensor:
        """How far from each image ``(N,)`` the first attack that fooled the model did so; NaN where none did."""
        found = torch.full((len(self),), torch.nan, dtype=torch.float64)
        for attack in reversed(list(self.attacks.values())):
            found[attack.attacked[attack.fooled]] = attack.distance[attack.fooled]
        return found

    def only(self, first: str, second: str) -> tuple[int, int]:
        """How many images only ``first`` and only ``second`` fooled, for :func:`gradscope.results.stats.mcnemar`.

        Raises ValueError where the two were not run on the same images, as in a cascade.
        """
        if not torch.equal(self.attacks[first].attacked, self.attacks[second].attacked):
            raise ValueError(f"{first} and {second} attacked different images; run them without cascade")
        one, other = self.fooled_by(first), self.fooled_by(second)
        return int((one & ~other).sum()), int((other & ~one).sum())

    def attack_rows(self, identity: Row) -> Iterator[Row]:
        """Rows of ``attacks.csv``; ``identity`` says whose. The clean images come first, as attack "none"."""
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
        """By attack :func:`count_blind` of the images that it had."""
        known = {name: attack.blindness for name, attack in self.attacks.items()}
        return {name: count_blind(found) for name, found in known.items() if found is not None}

    def sample_rows(self, identity: Row) -> Iterator[Row]:
        """Rows of ``samples.csv``: whether each image is right clean and under each attack, and the distance."""
        clean = torch.where(self.undefined, torch.nan, self.right.double())
        felled = self.felled_by()
        yield from self._samples(identity, "none", "accuracy", torch.arange(len(self)), clean, felled)
        for name, attack in self.attacks.items():
            right = (~attack.fooled).double()
            yield from self._samples(identity, name, "accuracy", attack.attacked, right, felled)
            yield from self._samples(identity, name, "distance", attack.attacked, attack.distance, felled)

    def _samples(
        self, identity: Row, attack: str, metric: str, places: Tensor, values: Tensor, felled: list[str | None]
    ) -> Iterator[Row]:
        point = {"point": "clean" if attack == "none" else "worst", "unit": ATTACK_METRICS[metric].unit}
        row = self._of(identity, attack) | {"metric": metric, **point}
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            image = {"index": int(self.numbers[place]), "label": int(self.labels[place])}
            yield row | image | {"value": value, "first": int(felled[place] == attack)}

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

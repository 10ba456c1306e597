"""What a check found, and how checks that share an audit are corrected for their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.evidence import Evidence
from gradscope.results.schemas import FIRES_BELOW
from gradscope.results.stats import UNDEFINED, Interval, holm

State = Literal["fired", "passed", "abstained"]
Cause = Literal[
    "saturation",
    "shattering",
    "randomness",
    "missing gradient",
    "false gradient",
    "bounded output",
    "clipped output",
    "probabilities",
    "stand-in",
    "weak attack",
    "unexplained",
]

#: Family-wise chance of a paired test firing on a model where both attacks are equal.
ALPHA = 0.05
#: An outcome accuses where the blinded attack leaves a robust accuracy that somebody would claim: so much above the
#: lowest that was reached, and so large a share of the clean accuracy.
CLAIMED_ABOVE = 0.10
CLAIMED_SHARE = 0.2
#: Fewer images than this say nothing about a share of 1 to 5 %.
FEWEST_PROBED = 20
#: Fewer images that stand at the end of PGD say nothing about convergence.
FEWEST_STANDING = 10


@dataclass(frozen=True)
class Check:
    """One check: ``value`` of ``n`` images against ``threshold``, interval, p-value (adjusted) and whose ``images``.

    ``accuses``: where it fires, an attack that ought to be weaker, or that differs in numerics only, did better: an
    outcome, not only a cause. ``left`` and ``lowest`` are what the blinded attack leaves of all images in the ball of
    the comparison, and the lowest that was reached there. ``beside`` is what else was measured, fired or not, as it
    goes on after ``cause``. ``points_to`` are the causes that what it saw can have. Its
    images are seen after ``attack``, inside ``threat`` where that is not the audit's own; "" where no attack shows
    them.
    """

    id: str
    name: str
    state: State
    value: float
    threshold: float
    cause: str
    next_step: str
    interval: Interval = UNDEFINED
    n: int | None = None
    p_value: float | None = None
    images: tuple[int, ...] = ()
    accuses: bool = False
    left: float = math.nan
    lowest: float = math.nan
    beside: str = ""
    points_to: tuple[Cause, ...] = ()
    attack: str = ""
    threat: ThreatModel | None = None

    @property
    def fired(self) -> bool:
        """Whether it found what it looks for."""
        return self.state == "fired"

    @property
    def beyond(self) -> bool:
        """Whether the value lies beyond the threshold, be it by chance."""
        return self.value < self.threshold if self.id in FIRES_BELOW else self.value > self.threshold

    def row(self) -> dict[str, Any]:
        """Its columns of ``audit.csv``."""
        return {
            "check": self.id,
            "name": self.name,
            "state": self.state,
            "accuses": int(self.fired and self.accuses),
            "value": self.value,
            "threshold": self.threshold,
            "ci_low": self.interval.low,
            "ci_high": self.interval.high,
            "n": self.n,
            "p_value": self.p_value,
            "images": " ".join(str(index) for index in self.images),
            "cause": f"{self.cause}{self.beside}",
            "next_step": self.next_step,
        }


def would_be_claimed(left: float, lowest: float, clean: float) -> bool:
    """Whether somebody would claim ``left``, what a blinded attack leaves, where the lowest is ``lowest``."""
    return left - lowest >= CLAIMED_ABOVE - 1e-9 and left >= CLAIMED_SHARE * clean - 1e-9


def abstained(identifier: str, name: str, why: str, next_step: str, threshold: float = float("nan")) -> Check:
    """A check that was not made, and why."""
    return Check(identifier, name, "abstained", float("nan"), threshold, why, next_step)


def no_gradient(evidence: Evidence, identifier: str, name: str, threshold: float) -> Check:
    """A check of gradients, which nobody looked at: there is none, or no image for it."""
    if not len(evidence.places):
        return abstained(identifier, name, "no image is right, so no gradient was looked at", "see D1", threshold)
    return abstained(identifier, name, "no gradient was taken", "see D1", threshold)


def adjusted(checks: Sequence[Check]) -> list[Check]:
    """The checks with their p-values adjusted together (Holm); what is above :data:`ALPHA` then has passed."""
    tested = [place for place, check in enumerate(checks) if check.p_value is not None and check.state != "abstained"]
    found = list(checks)
    for place, p_value in zip(tested, holm([checks[place].p_value or 0.0 for place in tested]), strict=True):
        check = found[place]
        state: State = "passed" if p_value > ALPHA else check.state
        found[place] = replace(check, p_value=p_value, state=state)
    return found


def numbers_at(numbers: Tensor, chosen: Tensor) -> tuple[int, ...]:
    """The images' indices in their set where ``chosen`` ``(N,)`` is True."""
    return tuple(int(number) for number in numbers[chosen])


def known_median(values: Tensor, words: str) -> str:
    """``words`` with the median of the ``values`` that are defined; empty where none is."""
    known = values[~values.isnan()]
    return words.format(float(known.median())) if len(known) else ""

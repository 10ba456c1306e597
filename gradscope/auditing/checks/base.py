"""The result of a check, and the correction of p-values for the number of checks in an audit."""

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

#: Family-wise error rate: the chance that any paired test fires on a model on which both its attacks are equally
#: strong.
ALPHA = 0.05
#: An outcome accuses if robust accuracy under the blinded attack is high enough that somebody would claim it: at least
#: this far above the lowest found, and at least this share of the clean accuracy.
CLAIMED_ABOVE = 0.10
CLAIMED_SHARE = 0.2
#: Fewest images needed to judge a share of 1 to 5 %.
FEWEST_PROBED = 20
#: Fewest images not fooled by PGD that are needed to judge its convergence.
FEWEST_STANDING = 10


@dataclass(frozen=True)
class Check:
    """Result of one check: ``value`` over ``n`` images against ``threshold``, with interval and adjusted p-value.

    ``images``: indices of the images concerned. ``accuses``: the check compares outcomes; if it fires, an attack that
    should be weaker, or that differs only in numerics, did better. Otherwise it only finds a possible cause. ``left``:
    robust accuracy under the blinded attack in the ball of the comparison. ``lowest``: the lowest robust accuracy found
    there. ``beside``: further measurements, appended to ``cause`` whether the check fires or not. ``points_to``:
    possible causes of this finding. ``attack``: the attack that shows its images, inside ``threat`` if that is not the
    audit's own; "" if no attack shows them.
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
        """Whether the check fired."""
        return self.state == "fired"

    @property
    def beyond(self) -> bool:
        """Whether the value lies beyond the threshold, significantly or by chance."""
        return self.value < self.threshold if self.id in FIRES_BELOW else self.value > self.threshold

    def row(self) -> dict[str, Any]:
        """Return the check's columns of ``audit.csv``."""
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
    """Tell whether robust accuracy ``left`` under a blinded attack is high enough above ``lowest`` to be claimed."""
    return left - lowest >= CLAIMED_ABOVE - 1e-9 and left >= CLAIMED_SHARE * clean - 1e-9


def abstained(identifier: str, name: str, why: str, next_step: str, threshold: float = float("nan")) -> Check:
    """Build the result of a check that could not run, with the reason ``why``."""
    return Check(identifier, name, "abstained", float("nan"), threshold, why, next_step)


def no_gradient(evidence: Evidence, identifier: str, name: str, threshold: float) -> Check:
    """Build the result of a gradient check that could not run: there is no gradient, or no correct image."""
    if not len(evidence.places):
        return abstained(
            identifier, name, "no image is classified correctly, so no gradient was examined", "see D1", threshold
        )
    return abstained(identifier, name, "no gradient could be computed", "see D1", threshold)


def adjusted(checks: Sequence[Check]) -> list[Check]:
    """Adjust the p-values of the checks together (Holm); a check above :data:`ALPHA` then passes."""
    tested = [place for place, check in enumerate(checks) if check.p_value is not None and check.state != "abstained"]
    results = list(checks)
    for place, p_value in zip(tested, holm([checks[place].p_value or 0.0 for place in tested]), strict=True):
        check = results[place]
        state: State = "passed" if p_value > ALPHA else check.state
        results[place] = replace(check, p_value=p_value, state=state)
    return results


def numbers_at(numbers: Tensor, chosen: Tensor) -> tuple[int, ...]:
    """Return the images' indices in their set where ``chosen`` ``(N,)`` is True."""
    return tuple(int(number) for number in numbers[chosen])


def known_median(values: Tensor, words: str) -> str:
    """Format the median of the defined ``values`` with ``words``; empty if none is defined."""
    known = values[~values.isnan()]
    return words.format(float(known.median())) if len(known) else ""

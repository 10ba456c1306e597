"""Result of a trial: robust accuracy under the attack, under each of ours and each repair, and the verdict."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.checks.base import ALPHA
from gradscope.judging.repairs import Part, Reading
from gradscope.results.stats import UNDEFINED, Interval, wilson_interval

Row = dict[str, Any]
Verdict = Literal[
    "the attack is blind", "the attack is weaker", "the attack is sound", "invalid examples", "inconclusive"
]


@dataclass(frozen=True)
class Compared:
    """One of our attacks, or a repair, compared with the attack on trial on the same images.

    ``standing`` ``(N,)`` marks the images that it does not fool; it may cover only the first images. None if it could
    not run, for the ``reason``. ``gain`` is robust accuracy under the attack on trial minus robust accuracy under this
    one, with Tango's interval. ``p_value`` is McNemar's, one-sided, adjusted over all comparisons of its kind (Holm).
    """

    name: str
    part: Part | None
    standing: Tensor | None
    gain: float = float("nan")
    interval: Interval = UNDEFINED
    p_value: float | None = None
    named: bool = False
    reason: str = ""

    @property
    def significant(self) -> bool:
        """Whether robust accuracy is significantly lower than under the attack on trial."""
        return self.p_value is not None and self.p_value < ALPHA and self.gain > 0


@dataclass(frozen=True)
class Judgement:
    """Verdict on an attack on trial.

    ``parts`` are the parts that make it blind, the largest gain first. ``finding`` explains the verdict in one or more
    sentences. ``right`` ``(N,)`` marks images right when clean, ``standing`` ``(N,)`` those right under the attack too,
    and ``lowest`` ``(N,)`` those right under the attack, all of ours and all repairs. ``reading`` describes how the
    attack works. All but ``right`` are None if the attack did not run.
    """

    verdict: Verdict
    parts: tuple[Part, ...]
    finding: str
    attack: str
    threat: ThreatModel
    budget: str
    right: Tensor
    standing: Tensor | None
    lowest: Tensor | None
    ours: tuple[Compared, ...] = ()
    repairs: tuple[Compared, ...] = ()
    reading: Reading | None = None

    def rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``judge.csv``: the clean images, the attack, ours, the repairs, and all together."""
        whole = {
            **identity,
            "attack": self.attack,
            "norm": self.threat.norm,
            "epsilon": self.threat.epsilon,
            "budget": self.budget,
            "verdict": self.verdict,
        }
        yield whole | _row("clean", "none", self.right)
        yield whole | _row("attack", self.attack, self.standing) | {"finding": self.finding}
        for role, compared in (("ours", self.ours), ("repair", self.repairs)):
            for other in compared:
                gain = {"gain": other.gain, "gain_low": other.interval.low, "gain_high": other.interval.high}
                more = {
                    "part": other.part or "",
                    "p_value": other.p_value,
                    "named": int(other.named),
                    "finding": other.reason,
                    **gain,
                }
                yield whole | _row(role, other.name, other.standing) | more
        yield whole | _row("all", "all together", self.lowest)

    def to_json(self) -> dict[str, Any]:
        """Return verdict, parts and how the attack works, for the manifest."""
        known = {} if self.reading is None else self.reading.to_json()
        return {"attack": self.attack, "verdict": self.verdict, "parts": list(self.parts), "reading": known}


def share(holds: Tensor) -> float:
    """Compute the share of ``holds`` ``(N,)`` that is true."""
    return float(holds.double().mean())


def _row(role: str, name: str, standing: Tensor | None) -> Row:
    empty = {"part": "", "gain": None, "gain_low": None, "gain_high": None, "p_value": None, "named": 0, "finding": ""}
    if standing is None:
        return {"role": role, "name": name, "left": None, "ci_low": None, "ci_high": None, "n": 0, **empty}
    interval = wilson_interval(int(standing.sum()), len(standing))
    numbers = {"left": share(standing), "ci_low": interval.low, "ci_high": interval.high, "n": len(standing)}
    return {"role": role, "name": name, **numbers, **empty}

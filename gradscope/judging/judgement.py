"""What a trial of an attack gives: what each of ours and each repair leaves beside it, and the verdict."""

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
    """What one of ours, or a repair, leaves of the images, beside the attack on trial.

    ``standing`` ``(N,)``, or of the first images alone; None where it could not be run, for the ``reason``. ``gain``:
    what the attack leaves, less what this leaves, with Tango's interval; ``p_value``: McNemar's, one-sided, adjusted
    over all of its kind (Holm).
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
        """Whether it leaves significantly less than the attack."""
        return self.p_value is not None and self.p_value < ALPHA and self.gain > 0


@dataclass(frozen=True)
class Judgement:
    """What an attack on trial is worth.

    ``parts``: what makes it blind, the largest gain first. ``finding``: why the verdict is so, in a sentence or more.
    ``right``, ``standing`` ``(N,)``: images that are right when clean, and under the attack too. ``lowest`` ``(N,)``:
    under it, all of ours and all repairs. ``reading``: how it works. All but ``right`` None where it was not run.
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
        """Rows of ``judge.csv``: the clean images, the attack, ours, the repairs, and all together."""
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
            for one in compared:
                gain = {"gain": one.gain, "gain_low": one.interval.low, "gain_high": one.interval.high}
                more = {
                    "part": one.part or "",
                    "p_value": one.p_value,
                    "named": int(one.named),
                    "finding": one.reason,
                    **gain,
                }
                yield whole | _row(role, one.name, one.standing) | more
        yield whole | _row("all", "all together", self.lowest)

    def to_json(self) -> dict[str, Any]:
        """Verdict, parts and what is known of how the attack works, for the manifest."""
        known = {} if self.reading is None else self.reading.to_json()
        return {"attack": self.attack, "verdict": self.verdict, "parts": list(self.parts), "reading": known}


def share(holds: Tensor) -> float:
    """The share of ``holds`` ``(N,)`` that are true."""
    return float(holds.double().mean())


def _row(role: str, name: str, standing: Tensor | None) -> Row:
    empty = {"part": "", "gain": None, "gain_low": None, "gain_high": None, "p_value": None, "named": 0, "finding": ""}
    if standing is None:
        return {"role": role, "name": name, "left": None, "ci_low": None, "ci_high": None, "n": 0, **empty}
    interval = wilson_interval(int(standing.sum()), len(standing))
    numbers = {"left": share(standing), "ci_low": interval.low, "ci_high": interval.high, "n": len(standing)}
    return {"role": role, "name": name, **numbers, **empty}

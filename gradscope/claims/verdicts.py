"""Turn an effect and a claim's prediction into a row of the table CLAIMS: the verdict and its reason."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from gradscope.claims.effects import Effect
from gradscope.results.stats import CONFIDENCE, UNDEFINED, Interval, holm

ALPHA = 1 - CONFIDENCE
#: From this number of seeds on, the interval over seeds must support the claim, too. With two seeds, Student's t
#: interval takes 12.7 standard errors and decides nothing; with fewer, the row says "holds for these models only".
ENOUGH_SEEDS = 3
SUPPORTED, NOT_SUPPORTED, NOT_TESTED = "supported", "not supported", "not tested"

STATEMENTS = {
    "C1": "classifiers trained by reinforcement resist white-box gradient attacks far better than supervised ones",
    "C2": "their clean accuracy falls little, 3 to 5 points",
    "C3": "reinforcement gives smaller input-gradient norms",
    "C4": "reinforcement gives unstable gradient directions along PGD: low cosine, low sign consistency",
    "C5": "reinforcement changes predictive entropy, clean and under attack",
    "C6": "reinforcement changes the input-space loss landscape around a test image",
    "C7": "transfer is asymmetric: examples made on the reinforced model transfer poorly, those made on the supervised "
    "one break both",
    "C8": "reinforcement with adversarial training is the most robust, ahead of supervised adversarial training",
    "C9": "reinforcement costs more training than supervision",
    "H1": "reinforcement inflates logit margins until float32 rounds p_y to 1 (16.6 nats)",
    "H2": "its input gradients are then so small that the floor of the paper's attack shortens the steps",
    "H3": "the images that survive the paper's attack are those with inflated margins and tiny gradients",
    "H4": "an attack without that rounding and that floor breaks the images that survived the paper's attack",
    "H5": "reinforcement's advantage under the paper's attack disappears under the exact attack",
    "H6": "rescaling the logits, which changes no prediction, reproduces the headline figure",
}


class Direction(NamedTuple):
    """A claim's prediction about a value."""

    side: Literal["above", "below", "not"]
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.side} {self.bound:g}"

    def bears_out(self, interval: Interval) -> bool:
        """Whether the whole interval lies on the predicted side; False if an end is undefined."""
        above, below = interval.low > self.bound, interval.high < self.bound
        return above if self.side == "above" else below if self.side == "below" else above or below

    def opposed_by(self, interval: Interval) -> bool:
        """Whether the whole interval lies on the other side."""
        above, below = interval.low > self.bound, interval.high < self.bound
        return (below and self.side == "above") or (above and self.side == "below")


ABOVE, BELOW, EITHER = Direction("above"), Direction("below"), Direction("not")


@dataclass(frozen=True)
class Finding:
    """One test of a claim. Without an ``effect`` it was not made, and ``lacking`` gives the reason and what to do.

    ``points``: values of unit "-" are shown in percentage points. ``said``: the two levels in words. ``exact``: the
    value is a count, so that no interval is needed. ``paper``: the paper's number. ``remarks`` are added to the reason.
    """

    claim: str
    statistic: str
    direction: Direction
    unit: str = "-"
    points: bool = True
    effect: Effect | None = None
    lacking: str = ""
    said: str = ""
    paper: str = ""
    exact: bool = False
    remarks: tuple[str, ...] = ()


def rows(tests: Iterable[Finding], dataset: str, arch: str) -> list[dict[str, Any]]:
    """Make the rows of CLAIMS for one data set and architecture, with p-values adjusted over its tests (Holm)."""
    tests = [_complete(test) for test in tests]
    with_p = [at for at, test in enumerate(tests) if test.effect is not None and test.effect.p_value is not None]
    raw = [effect.p_value for effect in (tests[at].effect for at in with_p) if effect and effect.p_value is not None]
    adjusted = dict(zip(with_p, holm(raw), strict=True))
    return [_row(test, dataset, arch, adjusted.get(at)) for at, test in enumerate(tests)]


def _complete(test: Finding) -> Finding:
    """Mark a test as not made if the data do not define its value or interval."""
    effect = test.effect
    if effect is None or (not math.isnan(effect.value) and (test.exact or not math.isnan(effect.interval.low))):
        return test
    left_out = f", and it is undefined on {effect.undefined} more" if effect.undefined else ""
    images = "image" if effect.n == 1 else "images"
    return replace(test, effect=None, lacking=f"no interval from {effect.n} {images}{left_out}; measure more")


def _row(test: Finding, dataset: str, arch: str, p: float | None) -> dict[str, Any]:
    named = {
        "claim": test.claim,
        "statement": STATEMENTS[test.claim],
        "dataset": dataset,
        "arch": arch,
        "statistic": test.statistic,
        "direction": str(test.direction),
        "unit": test.unit,
        "paper": test.paper,
    }
    effect = test.effect
    if effect is None:
        empty = dict.fromkeys(("value", "ci_low", "ci_high", "seeds_low", "seeds_high"), math.nan)
        why = "; ".join([test.lacking, *test.remarks])
        return named | empty | {"p_value": None, "n": 0, "seeds": 0, "verdict": NOT_TESTED, "why": why}
    verdict, reason = _verdict(test, effect, p)
    return named | {
        "value": effect.value,
        "ci_low": effect.interval.low,
        "ci_high": effect.interval.high,
        "seeds_low": effect.over_seeds.low,
        "seeds_high": effect.over_seeds.high,
        "p_value": p,
        "n": effect.n,
        "seeds": len(effect.seeds),
        "verdict": verdict,
        "why": _why(test, effect, reason),
    }


def _verdict(test: Finding, effect: Effect, p: float | None) -> tuple[str, str]:
    direction, bound = test.direction, f"{test.direction.bound:g}"
    many = len(effect.seeds) >= ENOUGH_SEEDS
    interval = (Interval(min(effect.seeds), max(effect.seeds)) if effect.seeds else UNDEFINED) if test.exact else None
    interval = interval or effect.interval
    if direction.opposed_by(interval):
        return NOT_SUPPORTED, f"the effect is on the other side of {bound}"
    if not direction.bears_out(interval):
        return NOT_SUPPORTED, f"the interval reaches {bound}" if not test.exact else f"not {direction} at every seed"
    if p is not None and p > ALPHA:
        return NOT_SUPPORTED, f"the p-value adjusted over all tests is {p:.2g}"
    if many and not test.exact and not direction.bears_out(effect.over_seeds):
        return NOT_SUPPORTED, f"the interval over {len(effect.seeds)} seeds reaches {bound}"
    return SUPPORTED, ""


def _why(test: Finding, effect: Effect, reason: str) -> str:
    """Write the reason: first the numbers, then the deciding fact, then the cautions."""
    unit = test.unit if test.points or test.unit != "-" else ""
    numbers = shown(effect.value, unit, signed=test.direction.bound == 0 or effect.value < 0)
    if not test.exact:
        low, high = (shown(end, unit, signed=False, with_unit=False) for end in effect.interval)
        numbers += f" [{low}, {high}] over {effect.n} images"
    parts = [f"{test.said}: {numbers}" if test.said else numbers]
    if effect.undefined:
        parts.append(f"{effect.undefined} images on which it is undefined are left out")
    if reason:
        parts.append(reason)
    if len(effect.seeds) < ENOUGH_SEEDS:
        parts.append(f"{'one seed' if len(effect.seeds) == 1 else 'two seeds'}: holds for these models only")
    return "; ".join([*parts, *test.remarks])


def shown(value: float, unit: str, *, signed: bool = True, with_unit: bool = True) -> str:
    """Format a number for people: unit "-" is a share, shown in percentage points; unit "" is a bare number.

    >>> shown(0.134, "-"), shown(1.25, "nats", signed=False)
    ('+13.4 points', '1.25 nats')
    """
    sign = "+" if signed else ""
    if unit == "-":
        return f"{100 * value:{sign}.1f}" + (" points" if with_unit else "")
    text = f"{value:{sign}.3g}"
    return f"{text} {unit}" if with_unit and unit else text


def levels(effect: Effect | None, names: Sequence[str], unit: str) -> str:
    """Format the two levels of which an effect is the difference: ``rl 13.4 %, sl 0.0 %``."""
    if effect is None or effect.levels is None:
        return ""
    texts = [f"{100 * value:.1f} %" if unit == "-" else f"{value:.3g}" for value in effect.levels]
    return ", ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))

"""Prepare charts that the page draws itself: values with intervals on one axis, in per cent of its width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gradscope.reporting.models import EXACT, PAPER, Rate, ReportedModel, main_ball
from gradscope.reporting.tables import is_missing


@dataclass(frozen=True)
class Mark:
    """A value on the axis: ``place`` and the ends of its interval in per cent of the width, and the value in words."""

    kind: str
    place: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Row:
    """A row of a chart: its label, its marks, and the length of its bar from the left, if it has one."""

    label: str
    marks: tuple[Mark, ...]
    bar: float | None = None

    @property
    def words(self) -> str:
        """The row in words."""
        return f"{self.label}: {'; '.join(mark.words for mark in self.marks)}"


@dataclass(frozen=True)
class Chart:
    """The chart of models. ``kinds``: the meaning of each kind of mark, in the order of the legend."""

    caption: str
    kinds: Mapping[str, str]
    rows: tuple[Row, ...]


_KINDS = {
    "clean": "clean",
    "trial": "attack on trial",
    "claimed": "claimed",
    "paper": "the paper's attack",
    "exact": "exact PGD",
    "bound": "at most robust",
}


def overview(found: Sequence[ReportedModel]) -> Chart | None:
    """Make the chart of models: clean accuracy, paper's attack, exact attack, and the lowest bound."""
    ball = main_ball(found)
    rows = []
    for model in found:
        lowest = model.lowest(ball) if ball else None
        rates: dict[str, tuple[str, Rate | None]] = {"clean": ("clean", model.clean)}
        if on_trial := model.on_trial():
            rates["trial"] = (on_trial.attack, on_trial.rate)
        if claims := [audit.claim.value for audit in model.audits if audit.claim]:
            rates["claimed"] = ("claimed", Rate(claims[0], math.nan, math.nan, 0))
        if ball:
            for kind, attack in (("paper", PAPER), ("exact", EXACT)):
                reached = model.reached(attack, ball)
                rates[kind] = (_KINDS[kind], reached.rate if reached else None)
        if lowest:
            rates["bound"] = (f"at most ({lowest.attack})", lowest.rate)
        marks = [_mark(kind, name, rate) for kind, (name, rate) in rates.items() if rate]
        if marks:
            rows.append(Row(model.label, tuple(marks), 100 * lowest.rate.value if lowest else None))
    if not rows:
        return None
    used = {mark.kind for row in rows for mark in row.marks}
    what = f"Accuracy of each model; attacks in {ball}" if ball else "Clean accuracy of each model"
    bar = ". The bar ends at the lowest accuracy under any attack: the robust accuracy is at most this"
    return Chart(
        f"{what}, with 95 % intervals{bar if 'bound' in used else ''}.",
        {kind: words for kind, words in _KINDS.items() if kind in used},
        tuple(rows),
    )


def _mark(kind: str, name: str, rate: Rate) -> Mark:
    images = f", {rate.n:,} images" if rate.n else ""
    low, high = (rate.value if is_missing(end) else end for end in (rate.low, rate.high))
    return Mark(kind, 100 * rate.value, 100 * low, 100 * high, f"{name} {rate.words}{images}")


@dataclass(frozen=True)
class Track:
    """An effect with its interval on an axis, in per cent of its width; ``null`` is the place of the claim's bound.

    ``claimed_from`` and ``claimed_to``: the range that the claim predicts.
    """

    place: float
    low: float
    high: float
    null: float
    claimed_from: float
    claimed_to: float
    tone: str


def tracks(claims: pd.DataFrame, tones: Mapping[str, str]) -> dict[int, Track]:
    """Make a track for each row of the table CLAIMS that has an effect, by the row's index.

    Effects of one unit share one axis, symmetrical about no effect. The axis of ratios ("times") is logarithmic.
    """
    found = {}
    for unit, rows in claims[claims["value"].notna()].groupby("unit", sort=False):
        is_ratio = unit == "times"
        shown = [(at, row, _ends(row, is_ratio)) for at, row in zip(rows.index, rows.to_dict("records"), strict=True)]
        reach = max((abs(end) for _, _, ends in shown for end in ends), default=0.0) or 1.0
        for at, row, ends in shown:
            side, bound = _direction(str(row["direction"]))
            value, low, high, null = (_place(end, reach) for end in (*ends, _scaled(bound, is_ratio)))
            claimed = {"above": (null, 100.0), "below": (0.0, null)}.get(side, (0.0, 0.0))
            found[int(at)] = Track(value, low, high, null, *claimed, tones.get(str(row["verdict"]), ""))
    return found


def _ends(row: Mapping[Any, Any], is_ratio: bool) -> tuple[float, float, float]:
    value, low, high = (row[name] for name in ("value", "ci_low", "ci_high"))
    low, high = (value if is_missing(end) or math.isinf(end) else end for end in (low, high))
    first, second, third = (_scaled(float(end), is_ratio) for end in (value, low, high))
    return first, second, third


def _scaled(value: float, is_ratio: bool) -> float:
    return (math.log2(value) if value > 0 else 0.0) if is_ratio else value


def _place(value: float, reach: float) -> float:
    return round(50 + 48 * max(-1.0, min(1.0, value / reach)), 2)


def _direction(words: str) -> tuple[str, float]:
    """Split a direction such as "above -0.05" into side and bound."""
    side, _, bound = words.partition(" ")
    try:
        return side, float(bound)
    except ValueError:
        return side, 0.0

"""The checks of an audit as a table: one row a check, one column a checkpoint, the verdicts above."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.figures.text_layout import height_of, sheet, write
from gradscope.results.audits import AuditOf, balls, images, warnings
from gradscope.results.schemas import AUDIT, FIRES_BELOW


class Face(NamedTuple):
    """How a state or a verdict is shown: apart in grey print too, by tone, symbol and hatch."""

    symbol: str
    fill: str
    ink: str
    hatch: str | None = None


ACCUSES = Face("✗", "#A63C00", "white")
FIRED = Face("!", "#F6C85F", "black")
PASSED = Face("✓", "#E3F0F9", "black")
ABSTAINED = Face("\N{EN DASH}", "white", "black", "//////")
#: Where a check has passed since its value lies beyond the threshold by chance.
_BY_CHANCE = "\N{ALMOST EQUAL TO}"
#: Each state of a check, in words.
STATES: dict[str, Face] = {"accuses": ACCUSES, "fired": FIRED, "passed": PASSED, "abstained": ABSTAINED}
VERDICTS: dict[str, Face] = {
    "masking found": ACCUSES,
    "set-up invalid": FIRED,
    "none found within this budget": PASSED,
    "inconclusive": ABSTAINED,
}
_MEANINGS = {
    "accuses": "fired on an outcome: accuses",
    "fired": "fired, does not accuse",
    "passed": "passed",
    "abstained": "abstained",
}
#: What the letters of the checks stand for.
_LETTERS = (
    "D set-up, N numerics of the loss, X attacks that follow no gradient of the model, M what holds of every attack "
    "that works, S shattered gradients, C effort of the attack, K scale of the logits, G geometry"
)
#: Sizes in inches: names of the checks, margins, between groups, between cells, a cell at least and at most; the width
#: from which a cell has one line, and the heights of rows of one and two.
_NAMES, _EDGE, _GROUP, _GAP = 1.12, 0.05, 0.05, 0.03
_SMALLEST, _LARGEST = 0.7, 2.2
_WIDE, _ROWS = 1.6, (0.22, 0.29)
_TEXT, _SMALL = 7.0, 5.5


def state_of(row: Mapping[Any, Any]) -> str:
    """What the cell of a row of AUDIT shows."""
    state = "accuses" if row["state"] == "fired" and row["accuses"] else str(row["state"])
    if state not in STATES:
        raise GradscopeError(f"directory: {AUDIT.file} has an unknown state {state!r}; known: {', '.join(STATES)}")
    return state


def draw_checks(audit: pd.DataFrame, audits: Sequence[AuditOf]) -> Drawing:
    """The figure ``audit-checks`` of rows of the table AUDIT, the columns those of ``audits``."""
    page = style.COLUMN if len(audits) <= 3 else style.PAGE
    cell = min(_LARGEST, max(_SMALLEST, (page - _NAMES - 2 * _EDGE) / len(audits)))
    width = _NAMES + 2 * _EDGE + cell * len(audits)
    row = _ROWS[cell < _WIDE]
    size = _TEXT - (cell < 0.9)
    heads = [style.wrapped(style.shorten(one.checkpoint), cell - 2 * _GAP, size, "bold") for one in audits]
    verdicts = [style.wrapped(one.verdict_and_cause, cell - 4 * _GAP, _SMALL + 1) for one in audits]
    top = _EDGE + max(height_of(head, size) for head in heads) + _GAP
    first = top + max(height_of(verdict, _SMALL + 1) for verdict in verdicts) + 4 * _GAP
    checks = audit.drop_duplicates("check")[["check", "name"]].itertuples(index=False, name=None)
    places = _places([(str(identifier), str(name)) for identifier, name in checks], first + 2 * _GROUP, row)
    legend, height = _legend(width, max((y for y, _ in places.values()), default=first) + row + 0.08)
    figure, axes = sheet(width, height)
    for column, (one, head, verdict) in enumerate(zip(audits, heads, verdicts, strict=True)):
        left = _EDGE + _NAMES + column * cell
        write(axes, left + cell / 2, top - _GAP / 2, head, size, "bottom", weight="bold")
        face = VERDICTS[one.verdict]
        _fill(axes, (left, top), (cell, first - top), face)
        write(axes, left + cell / 2, (top + first) / 2, verdict, _SMALL + 1, **_ink(face))
        for made in audit[audit["checkpoint"] == one.checkpoint].to_dict("records"):
            _draw_cell(axes, (left, places[str(made["check"])][0]), (cell, row), made)
    for identifier, (y, name) in places.items():
        write(axes, _EDGE + 0.02, y + row / 2, identifier, _TEXT, weight="bold", ha="left")
        write(axes, _EDGE + 0.25, y + row / 2, name, _TEXT, ha="left")
    for (x, y), state in legend:
        _fill(axes, (x, y), (0.17, 0.14), STATES[state])
        write(axes, x + 0.085, y + 0.07, STATES[state].symbol, _TEXT - 1, **_ink(STATES[state]))
        write(axes, x + 0.22, y + 0.07, _MEANINGS[state], _TEXT - 0.5, ha="left")
    return Drawing("audit-checks", figure, _caption(audits), ("budget",))


def _places(checks: Sequence[tuple[str, str]], first: float, row: float) -> dict[str, tuple[float, str]]:
    """Top and name of each check's row, a gap where the letter changes."""
    places: dict[str, tuple[float, str]] = {}
    y, letter = first, checks[0][0][:1] if checks else ""
    for identifier, name in checks:
        y += _GROUP if identifier[:1] != letter else 0
        places[identifier] = (y, name)
        y, letter = y + row, identifier[:1]
    return places


def _legend(width: float, top: float) -> tuple[list[tuple[tuple[float, float], str]], float]:
    """Where the meaning of each state goes, line by line, and the height that the figure then has."""
    x, y, placed = _EDGE, top, []
    for state in STATES:
        needs = 0.22 + style.text_width(_MEANINGS[state], _TEXT - 0.5)
        if x > _EDGE and x + needs > width - _EDGE:
            x, y = _EDGE, y + 0.18
        placed.append(((x, y), state))
        x += needs + 0.14
    return placed, y + 0.14 + _EDGE


def _draw_cell(axes: Axes, corner: tuple[float, float], size: tuple[float, float], made: Mapping[Any, Any]) -> None:
    state = state_of(made)
    face = STATES[state]
    _fill(axes, corner, size, face)
    (left, top), (width, height) = corner, size
    x, y = left + width / 2, top + height / 2
    if state == "abstained":
        write(axes, x, y, f"{face.symbol} abstained", _SMALL, **_ink(face))
        return
    symbol = _BY_CHANCE if _is_by_chance(made) else face.symbol
    value, threshold = f"{symbol} {_number(made['value'])}", _threshold(made)
    weight = "bold" if state == "accuses" else "normal"
    if width >= _WIDE:
        write(axes, left + 0.46 * width, y, value, _TEXT, weight=weight, ha="right", **_ink(face))
        write(axes, left + 0.54 * width, y, f"fires {threshold}", _SMALL + 0.5, ha="left", **_ink(face))
    else:
        write(axes, x, y - 0.055, value, _TEXT, weight=weight, **_ink(face))
        write(axes, x, y + 0.075, threshold, _SMALL, **_ink(face))


def _is_by_chance(made: Mapping[Any, Any]) -> bool:
    """Whether the check has passed although its value lies where it fires."""
    value, threshold = made["value"], made["threshold"]
    beyond = value < threshold if made["check"] in FIRES_BELOW else value > threshold
    return bool(beyond) and made["state"] == "passed"


def _threshold(made: Mapping[Any, Any]) -> str:
    """The threshold with the side on which the check fires; "n.s." where the value lies there and it has passed."""
    side = "<" if made["check"] in FIRES_BELOW else ">"
    return f"{side} {_number(made['threshold'])}{', n.s.' if _is_by_chance(made) else ''}"


def _number(value: float) -> str:
    """Three digits, with a minus as wide as a plus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _fill(axes: Axes, corner: tuple[float, float], size: tuple[float, float], face: Face) -> None:
    inner = (corner[0] + _GAP / 2, corner[1] + _GAP / 2)
    look: dict[str, Any] = {"edgecolor": "0.8", "linewidth": 0.4, "hatch": face.hatch} if face.hatch else {}
    axes.add_patch(Rectangle(inner, size[0] - _GAP, size[1] - _GAP, facecolor=face.fill, **{"linewidth": 0, **look}))


def _ink(face: Face) -> dict[str, Any]:
    """How text on it is written; on a hatch with a patch of white behind it."""
    behind = {"bbox": {"facecolor": face.fill, "edgecolor": "none", "pad": 0.8}} if face.hatch else {}
    return {"color": face.ink, **behind}


def _caption(audits: Sequence[AuditOf]) -> str:
    return "; ".join(
        [
            f"Checks (rows) of each checkpoint (columns), {balls(audits)}, budget "
            f"{' and '.join(dict.fromkeys(one.budget for one in audits))}, {images(audits)}, and the verdict above",
            "in each cell the value and, smaller, the threshold, > above or < below which the check fires; values "
            "are shares of images or differences of two (column n of audit.csv: of how many), D1 counts what is wrong "
            "with the set-up, G1 is a cosine",
            f"{ACCUSES.symbol} fired on an outcome, an attack that ought to be weaker or differs in numerics only did "
            "better (N1: no loss has a gradient on most of what stands): alone enough for the verdict",
            f"{FIRED.symbol} fired on what can blind an attack or on too little work, which does not accuse by itself",
            f"{PASSED.symbol} passed; {ABSTAINED.symbol} abstained: it could not be made",
            f"{_BY_CHANCE} and n.s.: passed beyond the threshold, for the paired test (McNemar, exact, at 0.05, "
            "adjusted for their number as Holm does) or the 95 % Wilson interval leaves that to chance",
            _LETTERS,
            *warnings(audits),
        ]
    )

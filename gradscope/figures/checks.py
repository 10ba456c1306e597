"""Draw the checks of an audit as a table: one row per check, one column per checkpoint, verdicts at the top."""

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
    """How a state or a verdict looks. Tone, symbol and hatch tell states apart in grey print too."""

    symbol: str
    fill: str
    ink: str
    hatch: str | None = None


ACCUSES = Face("✗", "#A63C00", "white")
FIRED = Face("!", "#F6C85F", "black")
PASSED = Face("✓", "#E3F0F9", "black")
ABSTAINED = Face("\N{EN DASH}", "white", "black", "//////")
#: A check that passed although its value lies beyond the threshold: the difference may be chance.
_BY_CHANCE = "\N{ALMOST EQUAL TO}"
#: The look of each state of a check.
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
#: Meaning of the checks' letters.
_LETTERS = (
    "letters: D set-up, N numerics of the loss, X attacks without the model's gradient, M rules that every working "
    "attack obeys, S shattered gradients, C effort of the attack, T test on known adversarial points, K scale of "
    "the logits, G geometry"
)
#: Sizes in inches: names of the checks, margins, between groups, between cells, a cell at least and at most; the width
#: from which a cell has one line, and the heights of rows of one and two.
_NAMES, _EDGE, _GROUP, _GAP = 1.12, 0.05, 0.05, 0.03
_SMALLEST, _LARGEST = 0.7, 2.2
_WIDE, _ROWS = 1.6, (0.22, 0.29)
_TEXT, _SMALL = 7.0, 5.5


def state_of(row: Mapping[Any, Any]) -> str:
    """Name the state that the cell of a row of AUDIT shows."""
    state = "accuses" if row["state"] == "fired" and row["accuses"] else str(row["state"])
    if state not in STATES:
        raise GradscopeError(f"directory: {AUDIT.file} has an unknown state {state!r}; known: {', '.join(STATES)}")
    return state


def draw_checks(audit: pd.DataFrame, audits: Sequence[AuditOf]) -> Drawing:
    """Draw the figure ``audit-checks`` from rows of the table AUDIT, one column for each of ``audits``."""
    figure_width = style.COLUMN if len(audits) <= 3 else style.PAGE
    cell = min(_LARGEST, max(_SMALLEST, (figure_width - _NAMES - 2 * _EDGE) / len(audits)))
    width = _NAMES + 2 * _EDGE + cell * len(audits)
    row = _ROWS[cell < _WIDE]
    size = _TEXT - (cell < 0.9)
    heads = [style.wrapped(style.shorten(entry.checkpoint), cell - 2 * _GAP, size, "bold") for entry in audits]
    verdicts = [style.wrapped(entry.verdict_and_cause, cell - 4 * _GAP, _SMALL + 1) for entry in audits]
    top = _EDGE + max(height_of(head, size) for head in heads) + _GAP
    first = top + max(height_of(verdict, _SMALL + 1) for verdict in verdicts) + 4 * _GAP
    checks = audit.drop_duplicates("check")[["check", "name"]].itertuples(index=False, name=None)
    places = _places([(str(identifier), str(name)) for identifier, name in checks], first + 2 * _GROUP, row)
    legend, height = _legend(width, max((y for y, _ in places.values()), default=first) + row + 0.08)
    figure, axes = sheet(width, height)
    for column, (entry, head, verdict) in enumerate(zip(audits, heads, verdicts, strict=True)):
        left = _EDGE + _NAMES + column * cell
        write(axes, left + cell / 2, top - _GAP / 2, head, size, "bottom", weight="bold")
        face = VERDICTS[entry.verdict]
        _fill(axes, (left, top), (cell, first - top), face)
        write(axes, left + cell / 2, (top + first) / 2, verdict, _SMALL + 1, **_ink(face))
        for check in audit[audit["checkpoint"] == entry.checkpoint].to_dict("records"):
            _draw_cell(axes, (left, places[str(check["check"])][0]), (cell, row), check)
    for identifier, (y, name) in places.items():
        write(axes, _EDGE + 0.02, y + row / 2, identifier, _TEXT, weight="bold", ha="left")
        write(axes, _EDGE + 0.25, y + row / 2, name, _TEXT, ha="left")
    for (x, y), state in legend:
        _fill(axes, (x, y), (0.17, 0.14), STATES[state])
        write(axes, x + 0.085, y + 0.07, STATES[state].symbol, _TEXT - 1, **_ink(STATES[state]))
        write(axes, x + 0.22, y + 0.07, _MEANINGS[state], _TEXT - 0.5, ha="left")
    return Drawing("audit-checks", figure, _caption(audits), ("budget",))


def _places(checks: Sequence[tuple[str, str]], first: float, row: float) -> dict[str, tuple[float, str]]:
    """Place each check's row: its top in inches and its name, with a gap where the letter changes."""
    places: dict[str, tuple[float, str]] = {}
    y, letter = first, checks[0][0][:1] if checks else ""
    for identifier, name in checks:
        y += _GROUP if identifier[:1] != letter else 0
        places[identifier] = (y, name)
        y, letter = y + row, identifier[:1]
    return places


def _legend(width: float, top: float) -> tuple[list[tuple[tuple[float, float], str]], float]:
    """Place the legend of the states line by line; return their corners and the figure's height in inches."""
    x, y, placed = _EDGE, top, []
    for state in STATES:
        needs = 0.22 + style.text_width(_MEANINGS[state], _TEXT - 0.5)
        if x > _EDGE and x + needs > width - _EDGE:
            x, y = _EDGE, y + 0.18
        placed.append(((x, y), state))
        x += needs + 0.14
    return placed, y + 0.14 + _EDGE


def _draw_cell(axes: Axes, corner: tuple[float, float], size: tuple[float, float], check: Mapping[Any, Any]) -> None:
    state = state_of(check)
    face = STATES[state]
    _fill(axes, corner, size, face)
    (left, top), (width, height) = corner, size
    x, y = left + width / 2, top + height / 2
    if state == "abstained":
        write(axes, x, y, f"{face.symbol} abstained", _SMALL, **_ink(face))
        return
    symbol = _BY_CHANCE if _is_by_chance(check) else face.symbol
    value, threshold = f"{symbol} {_number(check['value'])}", _threshold(check)
    weight = "bold" if state == "accuses" else "normal"
    if width >= _WIDE:
        write(axes, left + 0.46 * width, y, value, _TEXT, weight=weight, ha="right", **_ink(face))
        write(axes, left + 0.54 * width, y, f"fires {threshold}", _SMALL + 0.5, ha="left", **_ink(face))
    else:
        write(axes, x, y - 0.055, value, _TEXT, weight=weight, **_ink(face))
        write(axes, x, y + 0.075, threshold, _SMALL, **_ink(face))


def _is_by_chance(check: Mapping[Any, Any]) -> bool:
    """Whether the check passed although its value lies beyond the threshold."""
    value, threshold = check["value"], check["threshold"]
    beyond = value < threshold if check["check"] in FIRES_BELOW else value > threshold
    return bool(beyond) and check["state"] == "passed"


def _threshold(check: Mapping[Any, Any]) -> str:
    """Write the threshold with the side on which the check fires; add "n.s." if it passed beyond the threshold."""
    side = "<" if check["check"] in FIRES_BELOW else ">"
    return f"{side} {_number(check['threshold'])}{', n.s.' if _is_by_chance(check) else ''}"


def _number(value: float) -> str:
    """Write three digits, with a minus as wide as a plus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _fill(axes: Axes, corner: tuple[float, float], size: tuple[float, float], face: Face) -> None:
    inner = (corner[0] + _GAP / 2, corner[1] + _GAP / 2)
    look: dict[str, Any] = {"edgecolor": "0.8", "linewidth": 0.4, "hatch": face.hatch} if face.hatch else {}
    axes.add_patch(Rectangle(inner, size[0] - _GAP, size[1] - _GAP, facecolor=face.fill, **{"linewidth": 0, **look}))


def _ink(face: Face) -> dict[str, Any]:
    """Style the text on a face; on a hatch with a white patch behind it."""
    behind = {"bbox": {"facecolor": face.fill, "edgecolor": "none", "pad": 0.8}} if face.hatch else {}
    return {"color": face.ink, **behind}


def _caption(audits: Sequence[AuditOf]) -> str:
    return "; ".join(
        [
            f"Checks (rows) of each checkpoint (columns) with the verdict at the top, {balls(audits)}, budget "
            f"{' and '.join(dict.fromkeys(entry.budget for entry in audits))}, {images(audits)}",
            "each cell: the value and, smaller, the threshold; the check fires above (>) or below (<) it; values are "
            "shares of images or differences of two shares (column n of audit.csv: of how many images), except D1 "
            "(number of faults in the set-up) and G1 (a cosine)",
            f"{ACCUSES.symbol} fired on an outcome: an attack that should be weaker, or that differs only in numerics, "
            "fooled more images (N1: no loss has a gradient on most unfooled images); enough for the verdict by itself",
            f"{FIRED.symbol} fired on a property that can blind an attack, or on too little work; does not accuse by "
            "itself",
            f"{PASSED.symbol} passed; {ABSTAINED.symbol} abstained: the check could not be made",
            f"{_BY_CHANCE} and n.s.: passed beyond the threshold, because the difference may be chance (exact McNemar "
            "test at 0.05 with Holm's correction, or the 95 % Wilson interval)",
            _LETTERS,
            *warnings(audits),
        ]
    )

"""The figures of an audit, from ``audit.csv``, ``audit.json`` and ``evidence.npz``."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.checks import VERDICTS, draw_checks
from gradscope.figures.example_images import draw_example_images
from gradscope.figures.style import Drawing
from gradscope.figures.text_layout import height_of, write
from gradscope.results.audits import AuditOf, Audits, ExampleImages, balls, images, warnings
from gradscope.results.schemas import AUDIT, AUDIT_JSON, EXAMPLE_IMAGES
from gradscope.results.stats import Interval, wilson_interval

PGD = "pgd"
_GAP_COLOUR, _GAP_TONE = "#D55E00", 0.22
_MARGIN = 0.03
#: The room that the words for a gap need beside it.
_ROOM = 0.27
#: Sizes in inches: a lane of marks, around a checkpoint's text and lanes, below all, a row of the legend.
_LANE, _AROUND, _BELOW, _LEGEND_ROW = 0.115, 0.08, 0.42, 0.165
_TEXT, _SMALL = 7.0, 6.5


class Dot(NamedTuple):
    """One accuracy of a checkpoint: in which lane it lies, and how it is marked."""

    words: str
    lane: float
    mark: Mapping[str, Any]


CLEAN, ALONE, BOUND = "clean", "alone", "bound"
DOTS = {
    CLEAN: Dot("clean", 0, {"color": "0.25", "marker": "o", "markerfacecolor": "white", "markeredgewidth": 1.0}),
    ALONE: Dot("under PGD alone", 1, {"color": "#0072B2", "marker": "s"}),
    BOUND: Dot("lowest reached, an upper bound", 3, {"color": "#D55E00", "marker": "D"}),
}
_LANES = 4


def draw_audit(audit: pd.DataFrame, document: Mapping[str, Any], examples: ExampleImages | None) -> list[Drawing]:
    """The figures of rows of the table AUDIT, of the parsed ``audit.json`` and of the arrays of ``evidence.npz``.

    ``audit-checks``: every check of every checkpoint; ``audit-robustness``: clean accuracy, accuracy under PGD alone
    and the lowest that was reached; ``audit-evidence-CHECKPOINT``: images. Call it inside
    :func:`gradscope.figures.style.paper`. Raises :class:`GradscopeError` where the three are not of the same audits.
    """
    audits = Audits.parse(document).audits
    _require_same(audits, set(audit["checkpoint"].astype(str)), AUDIT.file)
    if not audits:
        return []
    drawings = [draw_checks(audit, audits), _draw_robustness(audits)]
    if examples is not None:
        shown = set(examples["checkpoint"].astype(str).tolist())
        _require_same([one for one in audits if one.checkpoint in shown], shown, EXAMPLE_IMAGES)
        drawings += draw_example_images(examples, audits)
    return drawings


def _require_same(audits: Sequence[AuditOf], found: set[str], file: str) -> None:
    known = {one.checkpoint for one in audits}
    if odd := sorted(known ^ found):
        raise GradscopeError(f"directory: {file} and {AUDIT_JSON} are not of the same audits: {odd[0]} is in one only")


def _draw_robustness(audits: Sequence[AuditOf]) -> Drawing:
    """A block for each checkpoint: its name, its verdict, and lanes for the marks with the gap between two."""
    inside = style.COLUMN - 0.25
    names = [style.wrapped(style.shorten(one.checkpoint), inside, _TEXT, "bold") for one in audits]
    verdicts = [style.wrapped(_verdict(one), inside, _SMALL) for one in audits]
    tops, bottom = [], 0.0
    for name, verdict in zip(names, verdicts, strict=True):
        tops.append(bottom)
        bottom += _AROUND * 2 + height_of(name, _TEXT) + height_of(verdict, _SMALL) + _LANE * _LANES
    handles = _handles(audits)
    height = bottom + _BELOW + _LEGEND_ROW * -(-len(handles) // 2)
    figure = Figure(figsize=(style.COLUMN, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-_MARGIN, 1 + _MARGIN)
    axes.set_ylim(bottom, 0)
    for place, (one, name, verdict, top) in enumerate(zip(audits, names, verdicts, tops, strict=True)):
        if place % 2:
            axes.axhspan(top, [*tops, bottom][place + 1], color="0.96", linewidth=0, zorder=0)
        write(axes, 0, top + _AROUND, name, _TEXT, "top", ha="left", weight="bold")
        below = top + _AROUND + height_of(name, _TEXT)
        write(axes, 0, below, verdict, _SMALL, "top", ha="left")
        _draw_lanes(axes, below + height_of(verdict, _SMALL), one)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"share of images right ({balls(audits)})")
    style.place_legend(figure, handles, 2, handle_length=1.8)
    return Drawing("audit-robustness", figure, _caption(audits), ("budget",))


def _verdict(one: AuditOf) -> str:
    return f"{VERDICTS[one.verdict].symbol} {one.verdict_and_cause}"


def _draw_lanes(axes: Axes, top: float, one: AuditOf) -> None:
    found = _accuracies(one)
    heights = {name: top + (dot.lane + 0.5) * _LANE for name, dot in DOTS.items()}
    for name, (value, interval) in found.items():
        mark, y = DOTS[name].mark, heights[name]
        axes.plot(list(interval), [y, y], color=mark["color"], linewidth=1.0, zorder=2)
        axes.plot([value], [y], linestyle="", markersize=4.5, zorder=3, **mark)
    words: dict[str, Any] = {"fontsize": _TEXT - 1, "va": "center"}
    if ALONE not in found:
        axes.text(0, heights[ALONE], "PGD was not run", ha="left", color="0.35", **words)
        return
    alone, bound = found[ALONE][0], found[BOUND][0]
    if alone > bound:
        look: dict[str, Any] = {"facecolor": _GAP_COLOUR, "alpha": _GAP_TONE, "linewidth": 0, "zorder": 1.5}
        axes.add_patch(Rectangle((bound, heights[ALONE]), alone - bound, heights[BOUND] - heights[ALONE], **look))
    text = f"{100 * (alone - bound):.1f} points" if alone > bound else "no gap"
    x, side = _beside(min(alone, bound), max(alone, bound))
    axes.text(x, (heights[ALONE] + heights[BOUND]) / 2, text, ha=side, **words)


def _beside(low: float, high: float) -> tuple[float, str]:
    """Where the words for what lies between these shares go, and which of their sides is there: inside at last."""
    if low > _ROOM:
        return low - 0.015, "right"
    return (high + 0.015, "left") if high < 1 - _ROOM else ((low + high) / 2, "center")


def _accuracies(one: AuditOf) -> dict[str, tuple[float, Interval]]:
    """What is known of the checkpoint, with 95 % Wilson intervals."""
    clean, bound = one.clean_accuracy, one.robust_accuracy
    found = {CLEAN: (clean.value, Interval(clean.ci_low, clean.ci_high))}
    if PGD in one.under:
        share = one.under[PGD]
        found[ALONE] = (share, wilson_interval(round(share * bound.n), bound.n))
    found[BOUND] = (bound.upper_bound, Interval(bound.ci_low, bound.ci_high))
    return found


def _handles(audits: Sequence[AuditOf]) -> list[Artist]:
    run = any(PGD in one.under for one in audits)
    shown = [dot for name, dot in DOTS.items() if run or name != ALONE]
    marks: list[Artist] = [Line2D([], [], linewidth=1.0, markersize=4.5, label=dot.words, **dot.mark) for dot in shown]
    gap = Patch(facecolor=_GAP_COLOUR, alpha=_GAP_TONE, linewidth=0, label="what PGD alone misses")
    return [*marks, gap] if run else marks


def _caption(audits: Sequence[AuditOf]) -> str:
    parts = [
        f"Accuracy of each checkpoint, {balls(audits)}, of all {images(audits)}: clean (circle), under PGD on "
        "cross-entropy alone (square), and the lowest that the audit reached (diamond), an upper bound of the true "
        "robust accuracy",
        "shaded, with its width in percentage points: the images that PGD leaves standing and something else that the "
        "audit tried at this radius fells; a wide gap means that PGD alone says little",
        "lines: Wilson score interval over images, 95 %",
        *warnings(audits),
    ]
    if any(PGD in one.under and one.robust_accuracy.upper_bound > one.under[PGD] for one in audits):
        parts.append(
            "where the lowest lies above PGD the output is random: it is judged by the mean of many draws, PGD by one"
        )
    return "; ".join(parts)

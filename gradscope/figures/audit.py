"""Draw the figures of an audit from ``audit.csv``, ``audit.json`` and ``evidence.npz``."""

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
#: Room for the label beside a gap, as a share of the axis.
_ROOM = 0.27
#: Sizes in inches: a lane of marks, around a checkpoint's text and lanes, below all, a row of the legend.
_LANE, _AROUND, _BELOW, _LEGEND_ROW = 0.115, 0.08, 0.42, 0.165
_TEXT, _SMALL = 7.0, 6.5


class Dot(NamedTuple):
    """The mark of one kind of accuracy: its words in the legend, its lane and its style."""

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
    """Draw the figures of an audit: rows of the table AUDIT, the parsed ``audit.json``, the arrays of ``evidence.npz``.

    ``audit-checks``: every check of every checkpoint; ``audit-robustness``: clean accuracy, accuracy under PGD alone
    and the lowest accuracy reached; ``audit-evidence-CHECKPOINT``: example images. Call it inside
    :func:`gradscope.figures.style.paper`. Raises :class:`GradscopeError` if the three belong to different audits.
    """
    audits = Audits.parse(document).audits
    _require_same(audits, set(audit["checkpoint"].astype(str)), AUDIT.file)
    if not audits:
        return []
    drawings = [draw_checks(audit, audits), _draw_robustness(audits)]
    if examples is not None:
        shown = set(examples["checkpoint"].astype(str).tolist())
        _require_same([entry for entry in audits if entry.checkpoint in shown], shown, EXAMPLE_IMAGES)
        drawings += draw_example_images(examples, audits)
    return drawings


def _require_same(audits: Sequence[AuditOf], found: set[str], file: str) -> None:
    known = {entry.checkpoint for entry in audits}
    if unmatched := sorted(known ^ found):
        raise GradscopeError(
            f"directory: {file} and {AUDIT_JSON} must be of the same audits, got {unmatched[0]} in only one of them"
        )


def _draw_robustness(audits: Sequence[AuditOf]) -> Drawing:
    """Draw a block per checkpoint: name, verdict, and lanes of marks with the gap between PGD alone and the lowest."""
    text_width = style.COLUMN - 0.25
    names = [style.wrapped(style.shorten(entry.checkpoint), text_width, _TEXT, "bold") for entry in audits]
    verdicts = [style.wrapped(_verdict(entry), text_width, _SMALL) for entry in audits]
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
    for rank, (entry, name, verdict, top) in enumerate(zip(audits, names, verdicts, tops, strict=True)):
        if rank % 2:
            axes.axhspan(top, [*tops, bottom][rank + 1], color="0.96", linewidth=0, zorder=0)
        write(axes, 0, top + _AROUND, name, _TEXT, "top", ha="left", weight="bold")
        below = top + _AROUND + height_of(name, _TEXT)
        write(axes, 0, below, verdict, _SMALL, "top", ha="left")
        _draw_lanes(axes, below + height_of(verdict, _SMALL), entry)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"share of images right ({balls(audits)})")
    style.place_legend(figure, handles, 2, handle_length=1.8)
    return Drawing("audit-robustness", figure, _caption(audits), ("budget",))


def _verdict(entry: AuditOf) -> str:
    return f"{VERDICTS[entry.verdict].symbol} {entry.verdict_and_cause}"


def _draw_lanes(axes: Axes, top: float, entry: AuditOf) -> None:
    accuracies = _accuracies(entry)
    heights = {name: top + (dot.lane + 0.5) * _LANE for name, dot in DOTS.items()}
    for name, (value, interval) in accuracies.items():
        mark, y = DOTS[name].mark, heights[name]
        axes.plot(list(interval), [y, y], color=mark["color"], linewidth=1.0, zorder=2)
        axes.plot([value], [y], linestyle="", markersize=4.5, zorder=3, **mark)
    words: dict[str, Any] = {"fontsize": _TEXT - 1, "va": "center"}
    if ALONE not in accuracies:
        axes.text(0, heights[ALONE], "PGD was not run", ha="left", color="0.35", **words)
        return
    alone, bound = accuracies[ALONE][0], accuracies[BOUND][0]
    if alone > bound:
        look: dict[str, Any] = {"facecolor": _GAP_COLOUR, "alpha": _GAP_TONE, "linewidth": 0, "zorder": 1.5}
        axes.add_patch(Rectangle((bound, heights[ALONE]), alone - bound, heights[BOUND] - heights[ALONE], **look))
    text = f"{100 * (alone - bound):.1f} points" if alone > bound else "no gap"
    x, side = _beside(min(alone, bound), max(alone, bound))
    axes.text(x, (heights[ALONE] + heights[BOUND]) / 2, text, ha=side, **words)


def _beside(low: float, high: float) -> tuple[float, str]:
    """Place the label of the gap between two shares: left of it, else right of it, else inside. Returns x and side."""
    if low > _ROOM:
        return low - 0.015, "right"
    return (high + 0.015, "left") if high < 1 - _ROOM else ((low + high) / 2, "center")


def _accuracies(entry: AuditOf) -> dict[str, tuple[float, Interval]]:
    """Collect the checkpoint's accuracies with 95 % Wilson intervals."""
    clean, bound = entry.clean_accuracy, entry.robust_accuracy
    accuracies = {CLEAN: (clean.value, Interval(clean.ci_low, clean.ci_high))}
    if PGD in entry.under:
        share = entry.under[PGD]
        accuracies[ALONE] = (share, wilson_interval(round(share * bound.n), bound.n))
    accuracies[BOUND] = (bound.upper_bound, Interval(bound.ci_low, bound.ci_high))
    return accuracies


def _handles(audits: Sequence[AuditOf]) -> list[Artist]:
    run = any(PGD in entry.under for entry in audits)
    shown = [dot for name, dot in DOTS.items() if run or name != ALONE]
    marks: list[Artist] = [Line2D([], [], linewidth=1.0, markersize=4.5, label=dot.words, **dot.mark) for dot in shown]
    gap = Patch(facecolor=_GAP_COLOUR, alpha=_GAP_TONE, linewidth=0, label="missed by PGD alone")
    return [*marks, gap] if run else marks


def _caption(audits: Sequence[AuditOf]) -> str:
    parts = [
        f"Accuracy of each checkpoint, {balls(audits)}, of all {images(audits)}: clean (circle), under PGD on "
        "cross-entropy alone (square), and the lowest that the audit reached (diamond), an upper bound of the true "
        "robust accuracy",
        "shaded, with its width in percentage points: images that PGD does not fool, but another attack of the audit "
        "at this radius does; a wide gap means that accuracy under PGD alone says little",
        "lines: Wilson score interval over images, 95 %",
        *warnings(audits),
    ]
    if any(PGD in entry.under and entry.robust_accuracy.upper_bound > entry.under[PGD] for entry in audits):
        parts.append(
            "where the lowest lies above PGD the output is random: the lowest uses the mean of many draws, PGD one draw"
        )
    return "; ".join(parts)

"""Draw accuracy under fixed attacks against the temperature of the logits, from ``scale.csv``."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.schemas import SCALE


class _Stroke(NamedTuple):
    """The style of an attack's line, and its label."""

    words: str
    colour: str
    width: float = 1.5
    dash: str = "-"


_ATTACKS = {
    "pgd-paper": _Stroke("PGD of the paper", "#D55E00"),
    "pgd": _Stroke("PGD, cross-entropy", "#0072B2"),
    "pgd-margin": _Stroke("PGD, margin", "#009E73"),
}
_CLEAN = _Stroke("clean", "0.35", 0.9, ":")
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")
_GIVEN, _FITTED = "0.15", "0.5"
#: Most panels in a row, and heights in inches: a panel, the title and marks above it, the axis label below.
_COLUMNS, _PANEL, _ABOVE, _BELOW = 3, 1.55, 0.42, 0.3
_TEXT, _SMALL = 7.0, 6.0
_MARGIN = 0.03
#: The least distance of two labels beside the lines, as a share of the axis.
_APART = 0.105


def draw_scale(rows: pd.DataFrame) -> Iterator[Drawing]:
    """Draw ``audit-scale`` from rows of the table SCALE: one panel per checkpoint; no rows give no figure.

    Call it inside :func:`gradscope.figures.style.paper`.
    """
    names = list(dict.fromkeys(rows["checkpoint"].astype(str)))
    if not names:
        return
    columns = 2 if len(names) == 4 else min(_COLUMNS, len(names))  # two rows of two, not three and one
    lines = -(-len(names) // columns)
    width = style.COLUMN if columns == 1 else style.PAGE
    figure = Figure(figsize=(width, lines * (_PANEL + _ABOVE) + _BELOW), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    panels = grid.ravel().tolist()
    ends = _ends(rows)
    for place, (axes, name) in enumerate(zip(panels, names, strict=False)):
        own = rows[rows["checkpoint"].astype(str) == name]
        _draw_panel(axes, name, own, ends, (width - 1.7) / columns, labels=place % columns == columns - 1)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("temperature T (the attack sees logits / T)", fontsize=8)
    figure.supylabel("share of images right", fontsize=8)
    yield Drawing("audit-scale", figure, _caption(rows, names), ())


def _ends(rows: pd.DataFrame) -> tuple[float, float]:
    """Find the ends of the temperature axis that all panels share."""
    known = rows["temperature"][np.isfinite(rows["temperature"]) & (rows["temperature"] > 0)]
    if known.empty:
        raise GradscopeError(f"directory: {SCALE.file} must hold temperatures above 0, got none")
    return float(known.min()) / 1.15, float(known.max()) * 1.15


def _draw_panel(
    axes: Axes, name: str, rows: pd.DataFrame, ends: tuple[float, float], width: float, *, labels: bool
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(-_MARGIN, 1 + _MARGIN)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(-6, 7)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid(visible=False, axis="x")
    title = style.wrapped(style.shorten(name), max(width, 1.0), _TEXT, "bold")
    style.as_written(axes.set_title(title, fontsize=_TEXT, fontweight="bold", loc="left", pad=19))
    axes.axvline(1.0, color=_GIVEN, linewidth=0.8, zorder=1.2)
    _write_mark(axes, 1.0, "as given, T = 1", 2, _GIVEN)
    fitted = _fitted(rows)
    if fitted is not None:
        axes.axvline(fitted, color=_FITTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.2)
        _write_mark(axes, fitted, f"calibrated, T = {_short(fitted)}", 10, _FITTED)
    drawn = list(_draw_lines(axes, rows))
    if labels:
        _write_labels(axes, drawn)


def _write_mark(axes: Axes, temperature: float, words: str, above: float, colour: str) -> None:
    """Label a vertical mark: ``above`` points over the axes, within their width."""
    low, high = np.log(axes.get_xlim())
    share = float((np.log(temperature) - low) / (high - low))
    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    where: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, above), "textcoords": "offset points"}
    axes.annotate(words, (share, 1), **where, fontsize=_SMALL, color=colour, ha=side, va="bottom")


def _strokes(rows: pd.DataFrame) -> dict[str, _Stroke]:
    """Choose a stroke for each attack of ``rows``; known attacks come in a fixed order."""
    attacks = [attack for attack in dict.fromkeys(rows["attack"].astype(str)) if attack != "none"]
    others = [attack for attack in attacks if attack not in _ATTACKS]
    more = {attack: _Stroke(attack, _OTHERS[place % len(_OTHERS)]) for place, attack in enumerate(others)}
    return {attack: stroke for attack, stroke in (_ATTACKS | more).items() if attack in attacks}


def _draw_lines(axes: Axes, rows: pd.DataFrame) -> Iterator[tuple[float, _Stroke]]:
    """Draw each attack with its band, and the clean accuracy; yield the right end of each line."""
    for attack, stroke in _strokes(rows).items():
        line = rows[(rows["attack"] == attack) & (rows["metric"] == "robust-accuracy")].sort_values("temperature")
        if line.empty:
            continue
        x = line["temperature"]
        look: dict[str, Any] = {"color": stroke.colour}
        axes.fill_between(x, line["ci_low"], line["ci_high"], **look, alpha=0.16, linewidth=0, zorder=2)
        axes.plot(x, line["value"], **look, linewidth=stroke.width, marker="o", markersize=2.6, zorder=3)
        yield float(line["value"].iloc[-1]), stroke
    clean = rows[(rows["attack"] == "none") & (rows["metric"] == "accuracy")]
    if len(clean):
        value = float(clean["value"].iloc[0])
        axes.axhline(value, color=_CLEAN.colour, linewidth=_CLEAN.width, linestyle=_CLEAN.dash, zorder=1.5)
        yield value, _CLEAN


def _short(temperature: float) -> str:
    """Write two digits, without an exponent below a million."""
    return f"{float(f'{temperature:.2g}'):g}"


def _write_labels(axes: Axes, drawn: Sequence[tuple[float, _Stroke]]) -> None:
    """Label every line at its right end; move a label up if it would overlap the one below."""
    lowest = -_MARGIN
    for value, stroke in sorted(drawn, key=lambda line: line[0]):
        height = max((value + _MARGIN) / (1 + 2 * _MARGIN), lowest)
        lowest = height + _APART
        axes.text(
            1.025, height, stroke.words, transform=axes.transAxes, fontsize=_SMALL, color=stroke.colour, va="center"
        )


def _fitted(rows: pd.DataFrame) -> float | None:
    """Find the fitted temperature; None if there is none."""
    found = rows[rows["fitted"] == 1]["temperature"]
    return None if found.empty else float(found.iloc[0])


def _caption(rows: pd.DataFrame, names: Sequence[str]) -> str:
    curves = rows[rows["metric"] == "robust-accuracy"]
    balls = curves.drop_duplicates(["norm", "epsilon"])
    ball = " and ".join(f"{one.norm}, epsilon {one.epsilon:.4g}" for one in balls.itertuples())
    counts = sorted({int(n) for n in curves["n"]})
    images = " to ".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]])) if counts else "0"
    steps = " and ".join(str(int(one)) for one in sorted(set(curves["steps"].dropna())))
    parts = [
        f"Accuracy under fixed attacks of {steps} steps ({ball}) against the temperature T: the attack sees logits / T",
        f"line: share of n = {images} images that are right when clean and under the attack",
        "T changes no prediction of the model: a line that bends shows what the attack misses, not what the model "
        "withstands; the margin loss does not depend on T",
        "band: Wilson score interval over images, 95 %; dotted: clean accuracy; vertical: the logits as given (solid) "
        "and the temperature of least cross-entropy on the clean images (dashed)",
    ]
    errors = [found for name in names if (found := _errors(name, rows[rows["checkpoint"].astype(str) == name]))]
    if errors:
        parts.append(
            "expected calibration error (15 equal bins, the same clean images), as given and at that temperature: "
            + ", ".join(errors)
        )
    return "; ".join(parts)


def _errors(name: str, rows: pd.DataFrame) -> str:
    """Write the calibration errors of a checkpoint for the caption."""
    errors = rows[rows["metric"] == "calibration-error"]
    given, fitted = (errors[errors["fitted"] == kind]["value"].tolist() for kind in (0, 1))
    if not given:
        return ""
    there = f"and {fitted[0]:.3f}" if fitted else "(no temperature fits best)"
    return f"{style.shorten(name)} {given[0]:.3f} {there}"

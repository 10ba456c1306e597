"""Robust accuracy, from ``attacks.csv``: attack by attack, and against the radius."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing, Look
from gradscope.results.schemas import ATTACKS

CLEAN = "none"
#: Share of a row that the checkpoints' lanes take.
_SPREAD = 0.8
_MARGIN = 0.03
#: Sizes in inches: a row without lanes, a lane, the axis labels and edges, a row of the legend.
_ROW, _LANE, _AROUND, _LEGEND_ROW = 0.08, 0.14, 0.55, 0.16
_WIDTH, _TALLEST = 1.25 * style.COLUMN, 9.0
#: Names up to so many characters leave room for a second column of the legend.
_SHORT = 22


def draw_attacks(attacks: pd.DataFrame) -> list[Drawing]:
    """The figures of rows of the table ATTACKS.

    ``attacks-accuracy``, of several radii ``attacks-accuracy-EPSILON`` each: every attack in the order it was run, for
    each checkpoint its accuracy and what stands after it and all before. ``attacks-epsilon``, of several radii: what
    stands after all. Call it inside :func:`gradscope.figures.style.paper`.
    """
    balls = list(attacks.groupby(["norm", "epsilon"], sort=True))
    table = looks_of(attacks)
    drawings = []
    for (norm, epsilon), rows in balls:
        name = "attacks-accuracy" if len(balls) == 1 else f"attacks-accuracy-{norm}-{epsilon:.6g}"
        if (rows["attack"] != CLEAN).any():
            drawings.append(_draw_ball(name, f"{norm}, epsilon {epsilon:.4g}", rows, table))
    if len({epsilon for (_, epsilon), _ in balls}) > 1:
        drawings += [_draw_radii(str(norm), rows, table) for norm, rows in attacks.groupby("norm", sort=True)]
    return drawings


def looks_of(rows: pd.DataFrame) -> dict[str, Look]:
    """Each checkpoint's look; here all have a marker."""
    found = style.looks(rows.assign(attack=""))
    shapes = style.MARKERS[1:]
    return {
        series.checkpoint: Look(
            look.label, look.colour, look.dash, shapes[style.MARKERS.index(look.marker) % len(shapes)], look.rank
        )
        for series, look in found.items()
    }


def _draw_ball(name: str, ball: str, rows: pd.DataFrame, table: Mapping[str, Look]) -> Drawing:
    """Attacks from above in the order they were run, the clean images first."""
    shown = {checkpoint: look for checkpoint, look in table.items() if (rows["checkpoint"] == checkpoint).any()}
    order = _order(rows)
    alone = rows[rows["metric"] == "accuracy"]
    on_all = set(alone[alone["subset"] == "all"]["attack"])
    alone = alone[(alone["subset"] == "all") | ~alone["attack"].isin(on_all)]
    later = [attack for attack in order if attack not in on_all]
    cascade = len(later) == len(order) - 1
    if not cascade:  # shares of what few others left would be read as shares of all
        alone = alone[alone["attack"].isin(on_all)]
    so_far = rows[rows["metric"] == "robust-accuracy"]
    share = "of those it attacked" if cascade else "of all images"
    handles = _handles(shown, [f"right under this attack, {share}", "right under this and all above, of all images"])
    columns = 2 if len(shown) > 2 and max(len(look.label) for look in shown.values()) <= _SHORT else 1
    height = _AROUND + len(order) * (_ROW + _LANE * len(shown)) + _LEGEND_ROW * -(-len(handles) // columns)
    figure = Figure(figsize=(_WIDTH, min(height, _TALLEST)), layout="constrained")
    axes = figure.subplots()
    for rank, (checkpoint, look) in enumerate(shown.items()):
        for marks, filled in ((alone, True), (so_far, False)):
            shift = _SPREAD * ((rank + (0.3 if filled else 0.7)) / len(shown) - 0.5)
            _dots(axes, marks[marks["checkpoint"] == checkpoint], order, shift, look, filled=filled)
    for place in range(0, len(order), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=0)
    axes.set_yticks(range(len(order)), ["clean" if attack == CLEAN else attack for attack in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(-_MARGIN, 1 + _MARGIN)
    axes.set_xlabel(f"share of images ({ball})")
    style.place_legend(figure, handles, columns, handle_length=1.8)
    counts = rows[rows["subset"] == "all"]["n"]
    if counts.empty:
        raise GradscopeError(
            f"directory: {ATTACKS.file} must hold what of all images is right, got parts of them alone"
        )
    images = int(counts.max())
    denominator = "those it was run on, which stood until then" if cascade else f"all n = {images} images"
    left = f"; {', '.join(later)}: run on what the others left alone, no mark" if later and not cascade else ""
    parts = [
        f"Accuracy under each attack in the order they were run, {ball}",
        f"filled: right under this attack, of {denominator}{left}",
        f"open: right when clean, under this attack and all above it, of all n = {images} images, an upper bound of "
        "the robust accuracy",
        "lines: Wilson score interval over images, 95 %",
    ]
    return Drawing(name, figure, "; ".join(parts), ("budget",))


def _order(rows: pd.DataFrame) -> list[str]:
    """The clean images, then every attack in the order run; some checkpoints may have skipped some."""
    order = [CLEAN]
    for _, ours in rows.groupby(["checkpoint", "epsilon"], sort=False):
        place = 1
        for name in ours["attack"].unique():
            if name in order:
                place = order.index(name) + 1
            else:
                order.insert(place, str(name))
                place += 1
    return order


def _handles(shown: Mapping[str, Look], kinds: Sequence[str]) -> list[Line2D]:
    """A mark for each checkpoint, and what filled and open ones mean."""
    checkpoints = [
        Line2D([], [], color=look.colour, linestyle="", marker=look.marker, label=look.label) for look in shown.values()
    ]
    filled = Line2D([], [], color="0.4", linestyle="", marker="o", label=kinds[0])
    opened = Line2D([], [], **_mark("0.4", "o", filled=False), linestyle="", label=kinds[1])
    return [*checkpoints, filled, opened]


def _mark(colour: str, marker: str, *, filled: bool) -> dict[str, Any]:
    face: dict[str, Any] = {} if filled else {"markerfacecolor": "white", "markeredgewidth": 0.9, "markersize": 4.5}
    return {"color": colour, "marker": marker, **face}


def _dots(axes: Axes, rows: pd.DataFrame, order: Sequence[str], shift: float, look: Look, *, filled: bool) -> None:
    """A mark for each attack, ``shift`` rows below its name, with its interval."""
    rows = rows[np.isfinite(rows["value"])]
    if rows.empty:
        return
    places = np.array([order.index(attack) for attack in rows["attack"]]) + shift
    values = rows["value"].to_numpy()
    ends = np.stack([values - rows["ci_low"], rows["ci_high"] - values]).clip(min=0)
    width = 1.0 if filled else 0.7
    axes.errorbar(
        values, places, xerr=ends, linestyle="", elinewidth=width, **_mark(look.colour, look.marker, filled=filled)
    )


def _draw_radii(norm: str, attacks: pd.DataFrame, table: Mapping[str, Look]) -> Drawing:
    """Robust accuracy after all attacks against the radius, with the clean accuracy at 0."""
    figure, grid = style.panels((1, 1), style.COLUMN, 2.3, [look.label for look in table.values()])
    axes = grid[0, 0]
    shown = []
    for checkpoint, look in table.items():
        line = _curve(attacks[attacks["checkpoint"] == checkpoint])
        if len(line):
            shown.append(look)
            axes.fill_between(
                line["epsilon"], line["ci_low"], line["ci_high"], color=look.colour, alpha=0.2, linewidth=0, zorder=1.5
            )
            axes.plot(line["epsilon"], line["value"], **{**look.line(len(line)), "markevery": 1})
    axes.set_xlabel(f"epsilon ({norm}, pixel units)")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(-_MARGIN, 1 + _MARGIN)
    axes.set_xlim(left=0)
    style.add_legend(figure, shown)
    names = _order(attacks)[1:]
    images = int(attacks[attacks["subset"] == "all"]["n"].max())
    caption = "; ".join(
        [
            f"Robust accuracy against epsilon ({norm}, pixel units), the clean accuracy at 0: share of all "
            f"n = {images} images that are right when clean and under every one of {', '.join(names)}, an upper bound",
            "band: Wilson score interval over images, 95 %",
        ]
    )
    return Drawing("attacks-epsilon", figure, caption, ("budget",))


def _curve(rows: pd.DataFrame) -> pd.DataFrame:
    """The clean accuracy at radius 0, then at each radius what stood after the last attack."""
    clean = rows[(rows["attack"] == CLEAN) & (rows["metric"] == "accuracy")].head(1).assign(epsilon=0.0)
    return pd.concat([clean, after_all(rows)])


def after_all(rows: pd.DataFrame) -> pd.DataFrame:
    """At each radius, ascending, what stood of a checkpoint after the last attack."""
    after = rows[rows["metric"] == "robust-accuracy"].drop_duplicates("epsilon", keep="last")
    return after.sort_values("epsilon")

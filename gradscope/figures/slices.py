"""Draw landscapes along a line: slices of planes around images, lines and curves between weights."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.figures import style
from gradscope.figures.planes import (
    QUANTITIES,
    axis_words,
    grid_words,
    is_share,
    plane,
    quantity_words,
    range_words,
    weights_words,
)
from gradscope.figures.style import Drawing, Look
from gradscope.results.landscape import barrier
from gradscope.results.stats import METHODS, wilson_interval

_ROWS = {"loss": "loss\n(nats)", "margin": "margin\n(logits)", "right": "images right\n(share)"}
#: With more lines than this, bands are fainter and the outer quantiles are left out.
_FEW = 3
_ROOM = 0.02
#: Paths to another checkpoint: label, colour and dashes.
WAYS: dict[str, tuple[str, str, Any]] = {
    "line": ("straight line", "#000000", style.DASHES[0]),
    "aligned": ("line, units aligned", "#009E73", style.DASHES[1]),
    "bezier": ("trained curve", "#CC79A7", style.DASHES[3]),
}
_THIN = (0, (2, 2))
#: Most checkpoints side by side in one figure of paths, and the height of a row in inches.
_MOST_COLUMNS, _ROW = 4, 1.25


def draw_slices(quantiles: pd.DataFrame, settings: Mapping[str, Any]) -> Drawing:
    """Draw ``landscape-slices`` from rows of the table BANDS.

    Columns are the two directions through the centre; rows are loss, margin and the share of images that are right.
    Lines are medians over the images, with a band over the middle half; the share has its Wilson interval.
    """
    table = style.looks(quantiles)
    figure, grid = style.panels(
        (len(_ROWS), 2), style.PAGE, 1.35, [look.label for look in table.values()], sharex="col", sharey="row"
    )
    directions: tuple[Literal["a", "b"], ...] = ("a", "b")
    offsets: dict[str, float] = {}
    for column, (along, words) in enumerate(zip(directions, axis_words(settings), strict=True)):
        across = "b" if along == "a" else "a"
        for series, look in table.items():
            line = style.rows_of(quantiles, series)
            nearest = _nearest_to_zero(line[across])
            if nearest:
                offsets[across] = nearest
            line = line[line[across] == nearest].sort_values(along, kind="stable")
            for row, what in enumerate(_ROWS):
                metric = "margin" if what == "right" else what
                _draw_slice(grid[row, column], what, line[line["metric"] == metric], along, look, len(table))
        style.as_written(grid[-1, column].set_xlabel(words))
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(nbins=7))
        grid[-1, column].margins(x=_ROOM)
    for row, (what, words) in enumerate(_ROWS.items()):
        grid[row, 0].set_ylabel(words)
        _scale(grid[row], what == "right", 0 if what == "loss" else None)
    figure.align_ylabels(grid[:, 0])
    style.add_legend(figure, list(table.values()))
    caption = _slices_caption(quantiles, settings, offsets, len(table) <= _FEW)
    return Drawing("landscape-slices", figure, caption, tuple(dict.fromkeys(series.attack for series in table)))


def _nearest_to_zero(coordinates: pd.Series) -> float:
    """Find the coordinate nearest to 0; of two equally near, the negative one."""
    distinct = np.unique(coordinates)
    return float(distinct[np.argmin(np.abs(distinct))])


def _draw_slice(axes: Axes, what: str, line: pd.DataFrame, along: str, look: Look, lines: int) -> None:
    at = line[along].to_numpy()
    middle = line["right" if what == "right" else "median"]
    if what == "right":
        counts = zip(line["right"], line["n"], strict=True)
        ends = np.array([wilson_interval(round(share * n) if n else 0, int(n)) for share, n in counts])
        low, high = ends[:, 0], ends[:, 1]
    else:
        low, high = line["q25"].to_numpy(), line["q75"].to_numpy()
        if lines <= _FEW:
            for tail in ("q05", "q95"):
                axes.plot(at, _finite(line[tail]), color=look.colour, linewidth=0.5, alpha=0.6, zorder=1.6)
    alpha = 0.2 if lines <= _FEW else 0.12
    axes.fill_between(at, _finite(low), _finite(high), color=look.colour, alpha=alpha, linewidth=0, zorder=1.5)
    axes.plot(at, _finite(middle), **look.line(len(at)))


def _finite(values: Any) -> NDArray[np.float64]:
    """Replace infinite ``values`` by gaps."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _scale(panels: Sequence[Axes], share: bool, low: float | None = None) -> None:
    """Set the y axis that these panels share: symmetric-log if their lines differ much in magnitude, else linear."""
    axes = panels[0]
    if share:
        axes.set_ylim(-_ROOM, 1 + _ROOM)
        return
    sizes: dict[str, float] = {}
    for label, line in ((str(line.get_label()), line) for panel in panels for line in panel.lines):
        if not label.startswith("_"):
            sizes[label] = max(sizes.get(label, 0), float(np.nanmax(np.abs(_finite(line.get_ydata())), initial=0)))
    ends = np.array([panel.dataLim.intervaly for panel in panels])
    ends = np.array([ends.min() if low is None else low, ends.max()])
    if style.far_apart(list(sizes.values())):
        style.set_symlog(axes, "y", list(sizes.values()))
    if np.isfinite(ends).all():
        transform = axes.yaxis.get_transform()
        drawn = transform.transform(ends)
        room = 2 * _ROOM * (drawn[1] - drawn[0]) or 0.5
        axes.set_ylim(*transform.inverted().transform(drawn + np.array([-room, room])).tolist())


def _slices_caption(
    quantiles: pd.DataFrame, settings: Mapping[str, Any], offsets: Mapping[str, float], tails: bool
) -> str:
    grid = plane(quantiles[quantiles["metric"] == "loss"].drop_duplicates(["a", "b"]), "median")
    where = [f"at {name} = {value:.4g}, the grid's line nearest to 0" for name, value in sorted(offsets.items())]
    infinite = bool(np.isinf(quantiles[["q25", "median", "q75"]].to_numpy(dtype=np.float64)).any())
    return "; ".join(
        [
            f"Loss, margin and accuracy along both directions through n = {int(quantiles['n'].max())} images",
            "all lines share the axes",
            *where,
            "loss (nats) and margin (logits): median over images, band from the 25 % to the 75 % quantile"
            + (", thin lines the 5 % and 95 % quantiles" if tails else ""),
            f"images right: share with band: {METHODS['accuracy']}",
            *(["infinite quantiles left out"] if infinite else []),
            grid_words(grid, settings),
        ]
    )


def draw_weight_line(
    quantity: str, weights: pd.DataFrame, settings: Mapping[str, Any], attacks: tuple[str, ...]
) -> Drawing:
    """Draw ``weights-line-QUANTITY``: a quantity along the first direction, one line per checkpoint."""
    table = style.looks(weights)
    figure, grid = style.panels((1, 1), style.COLUMN, 2.3, [look.label for look in table.values()])
    axes = grid[0, 0]
    planes = []
    for series, look in table.items():
        line = style.rows_of(weights, series).sort_values("a", kind="stable")
        planes.append(plane(line, quantity))
        axes.plot(line["a"], _finite(line[quantity]), **look.line(len(line)))
    style.as_written(
        axes.set_xlabel(axis_words(settings)[0]), axes.set_ylabel(quantity_words(quantity, settings, "\n"))
    )
    _scale([axes], is_share(quantity))
    axes.margins(x=_ROOM)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    other = settings.get("towards")
    for end in (0, 1) if other else (0,):
        axes.axvline(end, color="0.5", linewidth=0.7, linestyle=":", zorder=1)
    style.add_legend(figure, list(table.values()))
    caption = "; ".join(
        [
            f"{weights_words(quantity, {**settings, 'line': True})}, dotted at 0, the checkpoint itself"
            + (f", and at 1, {style.shorten(str(other))}" if other else ""),
            range_words(planes, "left out", "left out"),
            grid_words(planes[0], settings),
        ]
    )
    return Drawing(f"weights-line-{quantity.replace('_', '-')}", figure, caption, attacks)


def draw_ways(weights: pd.DataFrame, settings: Mapping[str, Any]) -> Iterator[Drawing]:
    """Draw ``weights-ways``, ``weights-ways-2`` and so on: every path to the other checkpoint, side by side.

    Columns are checkpoints, rows are quantities against the share of the path; each path has its barrier.
    """
    table = list(style.looks(weights).items())
    other = f" to {style.shorten(str(settings['towards']))}" if settings.get("towards") else ""
    quantities = [quantity for quantity in QUANTITIES if weights[quantity].notna().any()]
    for first in range(0, len(table), _MOST_COLUMNS):
        shown = table[first : first + _MOST_COLUMNS]
        names = [name for name in WAYS if (weights["way"] == name).any()]
        handles = _way_handles(names)
        labels = [str(handle.get_label()) for handle in handles]
        width = style.COLUMN if len(shown) == 1 else style.PAGE
        shape = len(quantities), len(shown)
        figure, grid = style.panels(shape, width, _ROW, labels, sharex=True, sharey="row")
        heights: list[str] = []
        room = 0.8 * width / len(shown)
        for column, (series, look) in enumerate(shown):
            rows = style.rows_of(weights, series)
            for row, quantity in enumerate(quantities):
                found = [_draw_way(grid[row, column], quantity, rows[rows["way"] == name], name) for name in names]
                if quantity != "custom":
                    known = [f"{WAYS[name][0]} {one:.3g}" for name, one in zip(names, found, strict=True)]
                    heights.append(f"{look.label}, {quantity_words(quantity, settings)}: {', '.join(known)}")
            above, below = (style.wrapped(words, room, 8) for words in (look.label, f"share of the way{other}"))
            style.as_written(grid[0, column].set_title(above, fontsize=8), grid[-1, column].set_xlabel(below))
            grid[-1, column].xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        for row, quantity in enumerate(quantities):
            words = style.wrapped(quantity_words(quantity, settings), _ROW - 0.3, 8)
            style.as_written(grid[row, 0].set_ylabel(words))
            _scale(grid[row], is_share(quantity), 0 if quantity.endswith("loss") else None)
        figure.align_ylabels(grid[:, 0])
        style.place_legend(figure, handles, 2 if len(shown) == 1 else len(handles))
        name = "weights-ways" if first == 0 else f"weights-ways-{first // _MOST_COLUMNS + 1}"
        attacks = ("adversarial",) if any(one.startswith("adversarial") for one in quantities) else ()
        yield Drawing(name, figure, _ways_caption(weights, settings, heights), attacks)


def _way_handles(names: Sequence[str]) -> list[Line2D]:
    return [
        *(Line2D([], [], label=WAYS[name][0], color=WAYS[name][1], linestyle=WAYS[name][2]) for name in names),
        Line2D([], [], color="0.4", linewidth=0.7, linestyle=_THIN, label="between the ends"),
        Line2D([], [], color="0.4", linewidth=0.9, marker="o", markersize=3, label="barrier"),
    ]


def _draw_way(axes: Axes, quantity: str, line: pd.DataFrame, name: str) -> float:
    """Draw a quantity along a path from end to end with its barrier; return the barrier, NaN if there are no rows."""
    line = line[(line["a"] >= 0) & (line["a"] <= 1)].sort_values("a", kind="stable")
    if line.empty:
        return float("nan")
    words, colour, dash = WAYS[name]
    shares, values = (line[key].to_numpy(dtype=np.float64) for key in ("a", quantity))
    axes.plot(shares, _finite(values), color=colour, linestyle=dash, label=words, zorder=2.5)
    if quantity == "custom" or (shares[0], shares[-1]) != (0, 1):
        return float("nan")
    chord = (1 - shares) * values[0] + shares * values[-1]
    axes.plot(shares, _finite(chord), color=colour, linewidth=0.7, linestyle=_THIN, alpha=0.6, zorder=1.8)
    height, at = barrier(shares, -values if is_share(quantity) else values)
    if height > 0 and np.isfinite(height):
        upright = Line2D([shares[at]] * 2, [chord[at], values[at]], color=colour, linewidth=0.9, zorder=3)
        upright.set(marker="o", markersize=3, markevery=[1])
        axes.add_line(upright)
    return float(height)


def _ways_caption(weights: pd.DataFrame, settings: Mapping[str, Any], heights: Sequence[str]) -> str:
    other = style.shorten(str(settings.get("towards") or "the other checkpoint"))
    images = f" over n = {settings['images']} images" if isinstance(settings.get("images"), int) else ""
    norms = f", batch norm {settings['batch_norm']}" if settings.get("batch_norm") else ""
    curve, trained = settings.get("curve"), []
    if isinstance(curve, Mapping):
        training = {key: curve.get(key) for key in ("updates", "images", "trained_on")}
        trained = [f"curve trained in {training['updates']} updates of {training['images']} {training['trained_on']}"]
    seed = [f"seed {settings['seed']}"] if settings.get("seed") is not None else []
    points = weights[(weights["a"] >= 0) & (weights["a"] <= 1)]["a"].nunique()
    measured = ", ".join(
        quantity_words(quantity, settings) for quantity in QUANTITIES if weights[quantity].notna().any()
    )
    return "; ".join(
        [
            f"{measured[0].upper()}{measured[1:]}{images} at {points} points of each path through the weights, from "
            f"the checkpoint (0) to {other} (1){norms}",
            "thin line: straight line between the values at both ends; upright with a point: the barrier, the largest "
            "distance from that line (0 where none is drawn, intervals in summary.csv)",
            *heights,
            *trained,
            *seed,
        ]
    )

"""Landscapes along a line: slices through the centre of planes around images, and lines between weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.figures import style
from gradscope.figures.planes import axis_words, grid_words, is_share, plane, quantity_words, range_words, weights_words
from gradscope.figures.style import Drawing, Look
from gradscope.results.stats import METHODS, wilson_interval

_ROWS = {"loss": "loss\n(nats)", "margin": "margin\n(logits)", "right": "images right\n(share)"}
#: More lines than this have fainter bands and no outer quantiles.
_FEW = 3
_ROOM = 0.02


def draw_slices(quantiles: pd.DataFrame, settings: Mapping[str, Any]) -> Drawing:
    """The figure ``landscape-slices`` of rows of the table BANDS.

    Columns are the two directions through the centre, rows loss, margin and the share of images that are right.
    Lines are medians over the images with the band of the middle half; of the share, the Wilson interval.
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
    """The coordinate of smallest size; of two alike, the negative one."""
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
    """``values``, infinite ones as gaps."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _scale(panels: Sequence[Axes], share: bool, low: float | None = None) -> None:
    """Limits of panels that share their y axis, which is symmetric-log where their lines differ much in size."""
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
    one = plane(quantiles[quantiles["metric"] == "loss"].drop_duplicates(["a", "b"]), "median")
    where = [f"at {name} = {value:.4g}, the grid's line nearest to 0" for name, value in sorted(offsets.items())]
    infinite = bool(np.isinf(quantiles[["q25", "median", "q75"]].to_numpy(dtype=np.float64)).any())
    return "; ".join(
        [
            f"Slices through the centre of the planes of n = {int(quantiles['n'].max())} images, in both directions",
            "axes shared by all lines",
            *where,
            "loss (nats) and margin (logits): median over images, band from the 25 % to the 75 % quantile"
            + (", thin lines the 5 % and 95 % quantiles" if tails else ""),
            f"images right: share with band: {METHODS['accuracy']}",
            *(["infinite quantiles left out"] if infinite else []),
            grid_words(one, settings),
        ]
    )


def draw_weight_line(
    quantity: str, weights: pd.DataFrame, settings: Mapping[str, Any], attacks: tuple[str, ...]
) -> Drawing:
    """The figure ``weights-line-QUANTITY``: a quantity along the first direction, one line a checkpoint."""
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

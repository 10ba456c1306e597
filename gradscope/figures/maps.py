"""Draw square panels side by side on one colour scale, with contours, marks, paths and a legend."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.figures import style
from gradscope.figures.planes import COLOURS, ColourScale, PlaneGrid, axis_words
from gradscope.figures.style import Look

_MOST_COLUMNS = 4
_UNDEFINED = "0.75"
_INK = "white"
#: Sizes in inches: left of the first panel and right of the last, between two, between rows, a line of a title, both
#: axis labels.
_SIDES, _GAP, _ROW_GAP, _TITLE_LINE, _BELOW = 1.15, 0.12, 0.16, 0.13, 0.46
_LEGEND_SIZE = 7.0
#: Height of a strip in multiples of a panel's side.
_LOW = 0.45
#: A contour's label keeps this share of the panel's side clear.
_CLEAR = 0.07


class Mosaic(NamedTuple):
    """A figure of panels in rows.

    ``panels``: those of each look, from the top; ``rows``: the top panels of each row, with the hidden panels that
    fill the last row.
    """

    figure: Figure
    panels: list[list[Axes]]
    rows: list[list[Axes]]


def mosaic(
    looks: Sequence[Look], stacked: int, handles: Sequence[Artist], settings: Mapping[str, Any], *, strip: bool = False
) -> Mosaic:
    """Make ``stacked`` square panels for each look, titled by its label, at most four side by side, over one legend.

    With ``strip`` each look has a low panel below, whose x axis is the step.
    """
    rows = -(-len(looks) // _MOST_COLUMNS)
    columns = -(-len(looks) // rows)
    width = {1: style.COLUMN, 2: 0.72 * style.PAGE}.get(columns, style.PAGE)
    words = [_wrapped(word, 1.12 * (width - _SIDES) / columns) for word in axis_words(settings, "\n")]
    side = (width - _SIDES - words[1].count("\n") * _TITLE_LINE) / columns - _GAP
    titles = [_wrapped(look.label, side) for look in looks]
    lines = [text.count("\n") + 1 for text in titles]
    above = sum(max(lines[first : first + columns]) for first in range(0, len(lines), columns)) * _TITLE_LINE
    below = _BELOW + (words[0].count("\n") + (len(titles) % columns > 0)) * _TITLE_LINE
    legend = _legend_columns(handles, width)
    below += -(-len(handles) // legend) * _LEGEND_SIZE * 1.6 / 72
    shapes = [1.0] * stacked + [_LOW] * strip
    height = rows * sum(shape * side + _ROW_GAP for shape in shapes) + above + below
    if strip:  # each row repeats the x labels above its strips
        height += (2 * rows - 1) * _BELOW + (rows - 1) * words[0].count("\n") * _TITLE_LINE
    figure = Figure(figsize=(width, height), layout="compressed")
    levels = len(shapes)
    grid = figure.subplots(rows * levels, columns, squeeze=False, height_ratios=shapes * rows)
    panels = []
    for place, text in enumerate(titles):
        row, column = divmod(place, columns)
        stack = [grid[row * levels + level, column] for level in range(levels)]
        square = stack[:stacked]
        style.as_written(stack[0].set_title(text, fontsize=_LEGEND_SIZE + 1))
        for axes in square:
            _prepare(axes)
            axes.tick_params(labelleft=column == 0, labelbottom=False)
            style.as_written(axes.set_ylabel(words[1] if column == 0 else ""))
        last = place + columns >= len(titles)
        square[-1].tick_params(labelbottom=last or strip)
        style.as_written(square[-1].set_xlabel(words[0] if row == rows - 1 or strip else ""))
        for axes in stack[stacked:]:
            axes.set_box_aspect(_LOW)
            axes.tick_params(labelleft=column == 0)
            axes.set_xlabel("step")
        panels.append(stack)
    for column in range(len(titles) - (rows - 1) * columns, columns):
        for axes, shape in zip(grid[(rows - 1) * levels :, column], shapes, strict=True):
            axes.set_box_aspect(shape)
            axes.set_visible(False)
    style.place_legend(figure, handles, legend, handle_length=1.8)
    return Mosaic(figure, panels, [list(grid[row * levels]) for row in range(rows)])


def _prepare(axes: Axes) -> None:
    """Make a panel square, without grid lines."""
    axes.set_box_aspect(1)
    axes.grid(visible=False)
    axes.set_facecolor(_UNDEFINED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], prune="both"))


def _wrapped(text: str, inches: float) -> str:
    """Wrap ``text`` into lines that fit a panel this wide."""
    characters = max(10, int(inches * 72 / (0.58 * (_LEGEND_SIZE + 1))))
    lines = [textwrap.wrap(line, characters, break_on_hyphens=False) or [""] for line in text.split("\n")]
    return "\n".join(part for line in lines for part in line)


def _legend_columns(handles: Sequence[Artist], width: float) -> int:
    font = FontProperties(family="DejaVu Sans", size=_LEGEND_SIZE)
    labels = [str(handle.get_label()) for handle in handles]
    widest = max(text_to_path.get_text_width_height_descent(label, font, ismath=False)[0] for label in labels) / 72
    return max(1, min(len(labels), int(width / (widest + 4.0 * _LEGEND_SIZE / 72))))


def fill(axes: Axes, values: PlaneGrid, scale: ColourScale) -> None:
    """Draw filled contours. Infinite values fall into the last band; undefined points keep the panel's grey."""
    shown = np.ma.masked_invalid(scale.clipped(values.grid))
    axes.set_xlim(values.a[0], values.a[-1])
    axes.set_ylim(values.b[0], values.b[-1])
    if shown.count():
        look: dict[str, Any] = {"levels": list(scale.edges), "cmap": COLOURS, "norm": scale.norm(), "zorder": 0.5}
        axes.contourf(values.a, values.b, shown, **look).set_rasterized(True)


def add_bar(figure: Figure, rows: Sequence[Sequence[Axes]], scale: ColourScale, words: str) -> None:
    """Add the colour bar right of these rows of panels."""
    bar = figure.colorbar(
        ScalarMappable(scale.norm(), COLOURS),
        ax=[axes for row in rows for axes in row],
        boundaries=list(scale.edges),
        ticks=list(scale.ticks),
        spacing="uniform",
        aspect=22 * len(rows),
        pad=0.02,
        label=words,
    )
    bar.ax.set_yticks(list(scale.ticks), [f"{tick:g}" for tick in scale.ticks])
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def outline(axes: Axes, values: PlaneGrid, level: float) -> None:
    """Draw a white line where ``values`` cross ``level``."""
    line = axes.contour(values.a, values.b, values.grid, levels=[level], colors=_INK, linewidths=0.9)
    line.set_path_effects([style.casing("black", 1.8)])


def label_contours(axes: Axes, values: PlaneGrid, scale: ColourScale, around: NDArray[np.float64]) -> None:
    """Draw lines at the ticks of the scale; label each where it is far from the points ``around`` and the edges."""
    shown = np.ma.masked_invalid(scale.clipped(values.grid))
    levels = [tick for tick in scale.ticks if shown.count() and shown.min() < tick < shown.max()]
    if not levels:
        return
    look: dict[str, Any] = {"colors": _INK, "linewidths": 0.6, "linestyles": "solid"}
    lines = axes.contour(values.a, values.b, shown, levels=levels, **look)
    corner = np.array([values.a[0], values.b[0]])
    spans = np.array([values.a[-1], values.b[-1]]) - corner
    taken, spots = (around - corner) / spans, []
    for parts in lines.allsegs:
        points = (np.concatenate([np.empty((0, 2)), *parts]) - corner) / spans
        clear = 2 * np.minimum(points, 1 - points).min(axis=1)
        clear = np.minimum(clear, np.linalg.norm(points[:, None] - taken, axis=2).min(axis=1))
        if clear.max(initial=0) > _CLEAR:
            spot = points[int(np.argmax(clear))]
            taken = np.concatenate([taken, spot[None]])
            spots.append(tuple((corner + spot * spans).tolist()))
    if spots:
        for text in axes.clabel(lines, fmt="%g", fontsize=5.5, inline_spacing=2, manual=spots):
            text.set_path_effects([style.casing("black", 1.2)])


def line_handle(label: str, look: Look | None = None) -> Line2D:
    """Make the legend entry of a path, white unless it has a look."""
    colour, casing = (look.colour, "white") if look else (_INK, "black")
    effects = [style.casing(casing, 2.2)]
    return Line2D([], [], color=colour, linestyle=look.dash if look else "-", label=label, path_effects=effects)


def centre(label: str) -> Line2D:
    """Make the mark at a = b = 0, for a panel or for the legend."""
    look: dict[str, Any] = {"color": _INK, "marker": "+", "markersize": 5.0, "markeredgewidth": 1.1, "linestyle": ""}
    return Line2D([0], [0], label=label, path_effects=[style.casing("black", 2.4)], zorder=3.5, **look)


def draw_path(axes: Axes, points: NDArray[np.float64], look: Look | None = None) -> None:
    """Draw a line through ``points`` ``(T + 1, 2)`` from a circle to a cross, white unless it has a look."""
    colour, casing = (look.colour, "white") if look else (_INK, "black")
    ends: dict[str, Any] = {"linestyle": "", "color": colour, "markeredgecolor": casing, "markeredgewidth": 0.6}
    dash = look.dash if look else "-"
    axes.plot(
        *points.T, color=colour, linestyle=dash, linewidth=1.1, path_effects=[style.casing(casing, 2.2)], zorder=3
    )
    axes.plot(*points[0], marker="o", markersize=3.5, zorder=3.2, **ends)
    axes.plot(*points[-1], marker="X", markersize=4.5, zorder=3.2, **ends)

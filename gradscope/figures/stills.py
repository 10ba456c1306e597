"""Draw surfaces as still pictures: ``landscape-3d.html`` on paper, on the same scale from the same side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscope.figures import style
from gradscope.figures.maps import add_bar
from gradscope.figures.planes import COLOURS, ColourScale, PlaneGrid, axis_words, grid_words, range_words
from gradscope.figures.style import Drawing, Look, Series

_MOST_COLUMNS = 3
#: Most rows or columns of facets; finer facets cannot be seen on paper.
_FACETS = 60
#: Height of a panel in multiples of its width, and room above and below a row of panels in inches.
_SHAPE, _ROOM = 0.86, 0.25
_LETTERS = 6.0
#: The view with which the interactive page begins, degrees.
_VIEW = {"elev": 26, "azim": -133}


def draw_surfaces(
    contours: Drawing,
    table: Mapping[Series, Look],
    planes: Mapping[Series, PlaneGrid],
    scale: ColourScale,
    words: str,
    sentence: str,
    settings: Mapping[str, Any],
) -> Drawing:
    """Draw ``NAME-3d``: the ``planes`` of the drawing ``contours``, called NAME, as surfaces on the same scale.

    ``words`` names the quantity; ``sentence`` begins the caption.
    """
    rows = -(-len(table) // _MOST_COLUMNS)
    columns = -(-len(table) // rows)
    width = {1: style.COLUMN, 2: 0.72 * style.PAGE}.get(columns, style.PAGE)
    side = (width - 0.5) / columns
    figure = Figure(figsize=(width, rows * (side * _SHAPE + _ROOM)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "3d"})
    across, up = (style.wrapped(named.split("\n")[0], 0.5 * side, _LETTERS) for named in axis_words(settings, "\n"))
    low, high = (float(scale.height(np.array(end))) for end in scale.ends)
    for place, (series, look) in enumerate(table.items()):
        axes, one = grid[place // columns, place % columns], planes[series]
        values = scale.clipped(one.grid)
        colours = colormaps[COLOURS](scale.norm()(np.ma.masked_invalid(values)))
        a, b = np.meshgrid(one.a, one.b)
        strides = {"rstride": -(-len(one.b) // _FACETS), "cstride": -(-len(one.a) // _FACETS)}
        faces: dict[str, Any] = {"facecolors": colours, "shade": False, "linewidth": 0, "antialiased": False}
        axes.plot_surface(a, b, scale.height(values), rasterized=True, **strides, **faces)
        axes.set_xlim(one.a[0], one.a[-1])
        axes.set_ylim(one.b[0], one.b[-1])
        axes.set_zlim(low, high if high > low else low + 1)
        axes.set_zticks([float(scale.height(np.array(tick))) for tick in scale.ticks], [f"{t:g}" for t in scale.ticks])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], prune="both"))
        axes.tick_params(labelsize=_LETTERS, pad=-3)
        axes.tick_params(axis="z", pad=1)
        style.as_written(
            axes.set_title(look.label, fontsize=8, pad=-4),
            axes.set_xlabel(across, fontsize=_LETTERS, labelpad=-5),
            axes.set_ylabel(up, fontsize=_LETTERS, labelpad=-5),
        )
        axes.view_init(**_VIEW)
        axes.set_box_aspect((1, 1, 0.75), zoom=0.88)
    for axes in grid.flat[len(table) :]:
        axes.set_visible(False)
    add_bar(figure, [list(row) for row in grid], scale, words)
    every = list(planes.values())
    caption = "; ".join(
        [
            f"{sentence}, as a surface",
            f"heights and {scale.words()}; all panels share scale and axes",
            range_words(every, "left out", "at the end of the scale"),
            grid_words(every[0], settings),
        ]
    )
    return Drawing(f"{contours.name}-3d", figure, caption, contours.attacks)

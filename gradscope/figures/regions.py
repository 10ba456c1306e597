"""Draw the decision regions of a plane, in colours that colour-blind readers can tell apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage

from gradscope.figures.planes import PlaneGrid, class_words

#: One colour per class. The first ten differ most, under every kind of colour vision.
PALETTE = (
    *("#A5780F", "#2E9DF0", "#6FE8CC", "#B42D69", "#D2E687", "#00929F", "#F09687", "#695AA5", "#5A783C", "#E1D2FF"),
    *("#A5A54B", "#E6DDA0", "#87C3B4", "#F0C35A", "#CFA0EE", "#2D6A90", "#4BA569", "#7C97D2", "#B47887", "#6E5A12"),
)
#: The colour of all classes beyond the palette.
OTHER = "#8C8C8C"
_FINE = 200
_BOUNDARY = "0.1"
_ROOM_OF_A_NUMBER = 0.045


def palette(predicted: NDArray[np.float64], label: int) -> dict[int, str]:
    """Choose a colour for each class in ``predicted`` and for ``label``, in ascending order of the classes.

    A class takes the colour at its number. If a number exceeds the palette, the true class takes the first colour and
    the most frequent other classes the next; the rest share a grey.
    """
    classes, counts = np.unique(predicted[~np.isnan(predicted)].astype(int), return_counts=True)
    counted = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    if max([label, *counted]) < len(PALETTE):
        return {number: PALETTE[number] for number in sorted({label, *counted})}
    ranked = [label, *sorted(counted.keys() - {label}, key=lambda number: (-counted[number], number))]
    return dict(sorted((number, [*PALETTE, OTHER][min(rank, len(PALETTE))]) for rank, number in enumerate(ranked)))


def draw_regions(axes: Axes, predicted: PlaneGrid, colours: Mapping[int, str], around: NDArray[np.float64]) -> None:
    """Fill each class's region with its colour, outline it, and write its number into its larger parts.

    Between grid points the class with the largest share by bilinear interpolation wins, so a boundary is exact to half
    a grid step. Numbers avoid the points ``around`` ``(M, 2)``, where something else is drawn.
    """
    fine, shares = _refined(predicted)
    codes = list(colours)
    axes.set_xlim(predicted.a[0], predicted.a[-1])
    axes.set_ylim(predicted.b[0], predicted.b[-1])
    axes.pcolormesh(
        fine.a,
        fine.b,
        np.ma.masked_where(np.isnan(fine.grid), np.searchsorted(codes, fine.grid)),
        cmap=ListedColormap([colours[code] for code in codes]),
        vmin=-0.5,
        vmax=len(codes) - 0.5,
        shading="nearest",
        rasterized=True,
    )
    for number, share in shares.items():
        if len(shares) > 1:
            others = np.max([other for name, other in shares.items() if name != number], axis=0)
            lead = np.ma.masked_where(np.isnan(fine.grid), share - others)
            axes.contour(fine.a, fine.b, lead, levels=[0.0], colors=_BOUNDARY, linewidths=0.5)
        _write_numbers(axes, fine, number, colours[number], around)


def class_handles(colours: Mapping[int, str], label: int, settings: Mapping[str, Any]) -> list[Patch]:
    """Make a legend patch for each class with its own colour, and one for all others."""
    named = {colour: class_words(number, settings) for number, colour in colours.items() if colour != OTHER}
    named[colours[label]] += " (true)"
    if OTHER in colours.values():
        named[OTHER] = "other classes"
    return [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name) for colour, name in named.items()]


def _refined(predicted: PlaneGrid) -> tuple[PlaneGrid, dict[int, NDArray[np.float64]]]:
    """Interpolate classes to a finer grid that contains the given points; also return each class's share there."""
    across, up = _interpolation(len(predicted.a)), _interpolation(len(predicted.b))
    classes = np.unique(predicted.grid[~np.isnan(predicted.grid)]).astype(int).tolist()
    shares = {number: up @ (predicted.grid == number) @ across.T for number in classes}
    undefined = up @ np.isnan(predicted.grid) @ across.T > 0.5
    values = np.full(undefined.shape, np.nan)
    if classes:
        values = np.asarray(classes, dtype=np.float64)[np.argmax(list(shares.values()), axis=0)]
    return PlaneGrid(across @ predicted.a, up @ predicted.b, np.where(undefined, np.nan, values)), shares


def _interpolation(points: int) -> NDArray[np.float64]:
    """Compute weights ``(F, points)`` that interpolate linearly to about 200 points."""
    factor = max(1, round(_FINE / (points - 1)))
    at = np.arange((points - 1) * factor + 1) / factor
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(points)))
    return weights


def _write_numbers(axes: Axes, fine: PlaneGrid, number: int, colour: str, around: NDArray[np.float64]) -> None:
    """Write the class's number where each of its parts is widest, if it is wide enough."""
    parts, count = ndimage.label(fine.grid == number)
    taken = np.ones(parts.shape, dtype=bool)
    if len(around):
        inside = around[((around >= [fine.a[0], fine.b[0]]) & (around <= [fine.a[-1], fine.b[-1]])).all(axis=1)]
        taken[np.searchsorted(fine.b, inside[:, 1]), np.searchsorted(fine.a, inside[:, 0])] = False
    for part in range(1, count + 1):
        depth = ndimage.distance_transform_edt(np.pad((parts == part) & taken, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
        if depth[row, column] >= _ROOM_OF_A_NUMBER * max(depth.shape):
            axes.text(fine.a[column], fine.b[row], str(number), ha="center", va="center", **_ink(colour))


def _ink(colour: str) -> dict[str, Any]:
    red, green, blue = to_rgb(colour)
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
    return {"color": "white" if dark else "black", "fontsize": 6.0}

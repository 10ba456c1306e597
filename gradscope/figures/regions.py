"""Decision regions of a plane: which class is predicted where, in colours that stay apart for colour-blind readers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage

from gradscope.figures.planes import PlaneGrid, class_words

#: One colour a class; the first ten are further apart under every colour vision than the others.
PALETTE = (
    *("#A5780F", "#2E9DF0", "#6FE8CC", "#B42D69", "#D2E687", "#00929F", "#F09687", "#695AA5", "#5A783C", "#E1D2FF"),
    *("#A5A54B", "#E6DDA0", "#87C3B4", "#F0C35A", "#CFA0EE", "#2D6A90", "#4BA569", "#7C97D2", "#B47887", "#6E5A12"),
)
#: Classes past the palette's end.
OTHER = "#8C8C8C"
_FINE = 200
_BOUNDARY = "0.1"
_ROOM_OF_A_NUMBER = 0.045


def palette(predicted: NDArray[np.float64], label: int) -> dict[int, str]:
    """The colour of each class in ``predicted`` and of ``label``, in ascending order of the classes.

    A class has the colour of its number. Where numbers exceed the palette the true class comes first, then the most
    frequent others; those past its end share a grey.
    """
    classes, counts = np.unique(predicted[~np.isnan(predicted)].astype(int), return_counts=True)
    found = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    if max([label, *found]) < len(PALETTE):
        return {number: PALETTE[number] for number in sorted({label, *found})}
    ranked = [label, *sorted(found.keys() - {label}, key=lambda number: (-found[number], number))]
    return dict(sorted((number, [*PALETTE, OTHER][min(rank, len(PALETTE))]) for rank, number in enumerate(ranked)))


def draw_regions(axes: Axes, predicted: PlaneGrid, colours: Mapping[int, str], around: NDArray[np.float64]) -> None:
    """Fill each class's region with its colour, outline it, and write its number into its larger parts.

    Between points a class holds where it has the largest share by bilinear interpolation, so a boundary is known to
    half a step of the grid. Numbers keep clear of the points ``around`` ``(M, 2)``, where something else is drawn.
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
    """A patch for each class that has a colour of its own, and one for all others."""
    named = {colour: class_words(number, settings) for number, colour in colours.items() if colour != OTHER}
    named[colours[label]] += " (true)"
    if OTHER in colours.values():
        named[OTHER] = "other classes"
    return [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name) for colour, name in named.items()]


def _refined(predicted: PlaneGrid) -> tuple[PlaneGrid, dict[int, NDArray[np.float64]]]:
    """Classes on a finer grid, which keeps the given points, and each class's share there."""
    across, up = _interpolation(len(predicted.a)), _interpolation(len(predicted.b))
    classes = np.unique(predicted.grid[~np.isnan(predicted.grid)]).astype(int).tolist()
    shares = {number: up @ (predicted.grid == number) @ across.T for number in classes}
    undefined = up @ np.isnan(predicted.grid) @ across.T > 0.5
    values = np.full(undefined.shape, np.nan)
    if classes:
        values = np.asarray(classes, dtype=np.float64)[np.argmax(list(shares.values()), axis=0)]
    return PlaneGrid(across @ predicted.a, up @ predicted.b, np.where(undefined, np.nan, values)), shares


def _interpolation(points: int) -> NDArray[np.float64]:
    """Weights ``(F, points)`` that interpolate linearly to a grid of about 200 points."""
    factor = max(1, round(_FINE / (points - 1)))
    at = np.arange((points - 1) * factor + 1) / factor
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(points)))
    return weights


def _write_numbers(axes: Axes, fine: PlaneGrid, number: int, colour: str, around: NDArray[np.float64]) -> None:
    """The class's number where each of its parts is widest, if it is wide enough."""
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

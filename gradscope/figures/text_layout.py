"""Lay out a figure by hand in inches, with text in lines of equal height."""

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.figures import style

#: In multiples of the font's size: line height, height of capitals, of the tallest letters, and depth below the line.
_PITCH, _CAPITALS, _ABOVE, _BELOW = 1.2, 0.73, 0.8, 0.25


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of this size, with axes over all of it in inches from the upper left."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def height_of(text: str, size: float) -> float:
    """Measure the height of the lines of ``text`` in inches."""
    return (_PITCH * text.count("\n") + _ABOVE + _BELOW) * size / 72


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    size: float,
    anchor: Literal["top", "middle", "bottom"] = "middle",
    **look: Any,
) -> None:
    """Write the lines of ``text`` unchanged and equally spaced, with ``y`` at their top, middle or bottom in inches.

    One text object would set lines closer together wherever no letter reaches below the line.
    """
    lines = text.split("\n")
    last = {
        "top": height_of(text, size) - _BELOW * size / 72,
        "middle": (_PITCH * (len(lines) - 1) + _CAPITALS) * size / 144,
        "bottom": -_BELOW * size / 72,
    }[anchor]
    for place, line in enumerate(lines):
        baseline = y + last - _PITCH * (len(lines) - 1 - place) * size / 72
        usual: dict[str, Any] = {"ha": "center", "va": "baseline", "fontsize": size, "color": "black"}
        style.as_written(axes.text(x, baseline, line, **{**usual, **look}))

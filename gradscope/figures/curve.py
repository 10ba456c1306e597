"""Draw robust accuracy at every radius from ``curve.csv``."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gradscope.figures import style
from gradscope.figures.attack import after_all, looks_of
from gradscope.figures.style import Drawing, Look

#: The axis ends where every model's robust accuracy is at most this share, or at the largest attacked radius.
_NEGLIGIBLE = 0.01
_MARGIN = 0.03


def draw_curves(curves: pd.DataFrame, attacks: pd.DataFrame | None = None) -> list[Drawing]:
    """Draw ``attacks-curve`` (with several norms one ``attacks-curve-NORM`` each) from rows of the table CURVE.

    ``attacks``: rows of ATTACKS; a mark shows the robust accuracy after all attacks at each of their radii. Call it
    inside :func:`gradscope.figures.style.paper`.
    """
    table = looks_of(curves)
    norms = list(curves.groupby("norm", sort=True))
    return [
        _draw("attacks-curve" if len(norms) == 1 else f"attacks-curve-{norm}", str(norm), rows, attacks, table)
        for norm, rows in norms
    ]


def _draw(
    name: str, norm: str, curves: pd.DataFrame, attacks: pd.DataFrame | None, table: Mapping[str, Look]
) -> Drawing:
    shown = {checkpoint: look for checkpoint, look in table.items() if (curves["checkpoint"] == checkpoint).any()}
    figure, grid = style.panels((1, 1), style.COLUMN, 2.4, [*(look.label for look in shown.values()), "median"])
    axes = grid[0, 0]
    axes.axhline(0.5, color="0.7", linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
    marked = _marks(norm, attacks)
    largest = float(marked["epsilon"].max()) if len(marked) else 0.0
    for checkpoint, look in shown.items():
        line = curves[curves["checkpoint"] == checkpoint].sort_values("epsilon")
        few = line[line["value"] <= _NEGLIGIBLE]["epsilon"]
        largest = max(largest, float(few.min() if len(few) else line["epsilon"].max()))
        _draw_line(axes, line, marked[marked["checkpoint"] == checkpoint], look, style.strokes(len(shown)))
    axes.set_xlim(0, 1.04 * largest or 1.0)
    axes.set_ylim(-_MARGIN, 1 + _MARGIN)
    axes.set_xlabel(f"epsilon ({norm}, pixel units)")
    axes.set_ylabel("robust accuracy")
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=look.label) for look in shown.values()]
    median = Line2D([], [], color="0.4", linestyle="", marker="|", markersize=9, markeredgewidth=1.2, label="median")
    style.place_legend(figure, [*handles, median], 2)
    parts = [
        f"Robust accuracy at every radius ({norm}, pixel units), of all n = {int(curves['n'].max())} images",
        "line: share of images whose nearest adversarial point found by fmn is farther than epsilon, an upper bound",
        "band: Dvoretzky-Kiefer-Wolfowitz, 95 % for all radii at once",
        "upright mark: the median distance, where half of the images are fooled",
    ]
    if len(marked):
        parts.append(
            "points: robust accuracy after every attack that was run at that radius, of all images, with its Wilson "
            "score interval, 95 %"
        )
    return Drawing(name, figure, "; ".join(parts), ("budget",))


def _marks(norm: str, attacks: pd.DataFrame | None) -> pd.DataFrame:
    """Take the robust accuracy after all attacks for each checkpoint and radius."""
    columns = ["checkpoint", "attack", "epsilon", "value", "ci_low", "ci_high"]
    if attacks is None:
        return pd.DataFrame(columns=columns)
    attacks = attacks[attacks["norm"] == norm]
    return pd.concat([pd.DataFrame(columns=columns), *(after_all(own) for _, own in attacks.groupby("checkpoint"))])


def _draw_line(axes: Axes, line: pd.DataFrame, marked: pd.DataFrame, look: Look, strokes: tuple[float, float]) -> None:
    """Draw a step curve with its band, its median, and the marks of the attacks."""
    tone, width = strokes
    radii = np.append(line["epsilon"].to_numpy(), 1e9)  # the last value holds from its radius on
    low, high, value = (np.append(line[key].to_numpy(), line[key].iloc[-1]) for key in ("ci_low", "ci_high", "value"))
    axes.fill_between(radii, low, high, step="post", color=look.colour, alpha=tone, linewidth=0, zorder=1.5)
    axes.step(radii, value, where="post", color=look.colour, linewidth=width, zorder=2.5)
    half = line[line["value"] <= 0.5]["epsilon"]
    if len(half):
        axes.plot([half.iloc[0]], [0.5], color=look.colour, marker="|", markersize=11, markeredgewidth=1.4, zorder=3)
    if len(marked):
        ends = np.stack([marked["value"] - marked["ci_low"], marked["ci_high"] - marked["value"]]).astype(float)
        axes.errorbar(
            marked["epsilon"],
            marked["value"],
            yerr=ends.clip(min=0),
            linestyle="",
            color=look.colour,
            marker=look.marker,
            elinewidth=0.9,
            zorder=3.5,
        )

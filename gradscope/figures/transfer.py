"""The transfer matrix, from ``transfer.csv``: a heat map of sources by targets."""

import re
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.schemas import TRANSFER

_COLOURS = "viridis"
_CELL, _LABELS, _BAR, _TITLES = 0.62, 1.25, 0.75, 0.95
_LINE = 13
#: Below this share the cell is dark, and its text light.
_DARK = 0.6


def draw_transfer(transfer: pd.DataFrame) -> list[Drawing]:
    """The figure ``transfer-accuracy`` of rows of the table TRANSFER, or none where there are none.

    Call it inside :func:`gradscope.figures.style.paper`.
    """
    if transfer.empty:
        return []
    sources = [str(name) for name in transfer["source"].unique()]
    targets = [str(name) for name in transfer["checkpoint"].unique()]
    cells = transfer.set_index(["source", "checkpoint"])["accuracy"]
    if not cells.index.is_unique:
        raise GradscopeError(f"directory: {TRANSFER.file} must have one row for each source and checkpoint, got two")
    grid = np.array([[cells.get((source, target), np.nan) for target in targets] for source in sources])
    size = (_LABELS + _CELL * len(targets) + _BAR, _TITLES + 0.8 * _CELL * len(sources))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.pcolormesh(grid, cmap=_COLOURS, vmin=0, vmax=1, edgecolors="white", linewidth=1.0)
    axes.set_ylim(len(sources), 0)
    axes.grid(visible=False)
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            _annotate(axes, row, column, float(grid[row, column]), own=source == target)
    _name(axes, sources, targets)
    bar = figure.colorbar(image, ax=axes, label="accuracy of the target", ticks=[0, 0.25, 0.5, 0.75, 1], aspect=18)
    bar.outline.set_visible(False)
    balls = transfer[["norm", "epsilon"]].drop_duplicates().itertuples(index=False, name=None)
    widest = float((transfer["ci_high"] - transfer["ci_low"]).max() / 2)
    caption = "; ".join(
        [
            "Accuracy in % of each target (column) on the examples made on each source (row), of all "
            f"n = {int(transfer['n'].max())} images, {' and '.join(f'{norm}, epsilon {e:.4g}' for norm, e in balls)}",
            "framed: source and target are the same model",
            f"no interval is drawn, the widest 95 % Wilson interval is {100 * widest:.1f} points to either side",
        ]
    )
    attacks = tuple(str(name) for name in transfer["attack"].unique() if name != "none")
    return [Drawing("transfer-accuracy", figure, caption, attacks)]


def _annotate(axes: Axes, row: int, column: int, share: float, *, own: bool) -> None:
    ink = "white" if share < _DARK else "black"
    if np.isfinite(share):
        weight = "bold" if own else "normal"
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{100 * share:.1f}",
            ha="center",
            va="center",
            color=ink,
            fontsize=7.5,
            weight=weight,
        )
    if own:
        axes.add_patch(Rectangle((column + 0.05, row + 0.06), 0.9, 0.88, fill=False, edgecolor=ink, linewidth=1.2))


def _name(axes: Axes, sources: list[str], targets: list[str]) -> None:
    """Rows by source, the clean images above; columns by target, slanted where there are many."""
    rows = [_wrapped(source) if source else "clean images" for source in sources]
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks(
        np.arange(len(targets)) + 0.5,
        [_wrapped(target) for target in targets],
        **(slant if max(map(len, targets)) > 8 else {}),
    )
    axes.tick_params(length=0)
    axes.set_ylabel("examples made on")
    axes.set_xlabel("judged on")
    style.as_written(*axes.get_xticklabels(), *axes.get_yticklabels())
    for spine in axes.spines.values():
        spine.set_visible(False)


def _wrapped(name: str) -> str:
    """In short lines, broken after a colon where there is one."""
    parts = re.split("(?<=:)", style.shorten(name))
    return "\n".join(line for part in parts for line in textwrap.wrap(part, _LINE))

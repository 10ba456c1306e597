"""Draw heat maps of models by models: transfer of examples (``transfer.csv``) and similarity (``similarity.csv``)."""

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.schemas import SIMILARITY, TRANSFER, Table

Grid = NDArray[np.float64]

_CELL, _LABELS, _BAR, _TITLES = 0.62, 1.25, 0.75, 0.95
_LINE = 13


@dataclass(frozen=True)
class _Scale:
    """The colours of a matrix: colour map, range of values, ticks, label, and which cells are dark."""

    colours: str
    ends: tuple[float, float]
    ticks: tuple[float, ...]
    label: str
    is_dark: Callable[[float], bool]


_ACCURACY = _Scale("viridis", (0, 1), (0, 0.25, 0.5, 0.75, 1), "accuracy of the target", lambda share: share < 0.6)
_COSINE = _Scale("vlag", (-1, 1), (-1, -0.5, 0, 0.5, 1), "cosine of the gradients", lambda cosine: abs(cosine) > 0.85)


def draw_transfer(transfer: pd.DataFrame) -> list[Drawing]:
    """Draw ``transfer-accuracy`` from rows of the table TRANSFER; no rows give no figure.

    Call it inside :func:`gradscope.figures.style.paper`.
    """
    if transfer.empty:
        return []
    sources, targets, grid = _grid(transfer, "source", "accuracy", TRANSFER)
    figure, axes = _matrix(grid, sources, targets, _ACCURACY, "{:.1f}", 100)
    axes.set_ylabel("examples made on")
    axes.set_xlabel("judged on")
    balls = transfer[["norm", "epsilon"]].drop_duplicates().itertuples(index=False, name=None)
    widest = float((transfer["ci_high"] - transfer["ci_low"]).max() / 2)
    caption = "; ".join(
        [
            "Accuracy in % of each target (column) on adversarial examples made on each source (row), of all "
            f"n = {int(transfer['n'].max())} images, {' and '.join(f'{norm}, epsilon {e:.4g}' for norm, e in balls)}",
            "framed: source and target are the same model",
            f"no intervals are drawn; the widest 95 % Wilson interval is ± {100 * widest:.1f} points",
        ]
    )
    attacks = tuple(str(name) for name in transfer["attack"].unique() if name != "none")
    return [Drawing("transfer-accuracy", figure, caption, attacks)]


def draw_similarity(similarity: pd.DataFrame) -> list[Drawing]:
    """Draw ``transfer-similarity`` from rows of the table SIMILARITY; no rows give no figure.

    Call it inside :func:`gradscope.figures.style.paper`.
    """
    pairs = similarity[similarity["metric"] == "gradient-cosine"]
    if pairs.empty:
        return []
    others, models, grid = _grid(pairs, "other", "value", SIMILARITY)
    figure, axes = _matrix(grid, others, models, _COSINE, "{:.2f}")
    axes.set_ylabel("gradient of")
    axes.set_xlabel("and gradient of")
    widest = float((pairs["ci_high"] - pairs["ci_low"]).max() / 2)
    undefined = int(pairs["undefined"].max())
    curved = similarity[similarity["metric"] == "relative-curvature"].dropna(subset=["value"])
    curvatures = ", ".join(
        f"{name} {value:.3g}" for name, value in curved[["checkpoint", "value"]].itertuples(index=False, name=None)
    )
    caption = "; ".join(
        [
            "Mean cosine between the gradients of two models' margins at the same clean images, "
            f"n = {int(pairs['n'].max())}; framed: a model and itself",
            f"no intervals are drawn; the widest 95 % interval is ± {widest:.2g}",
            *([f"undefined on up to {undefined} images, where a gradient is exactly 0"] if undefined else []),
            *([f"relative curvature, median, per unit pixel range: {curvatures}"] if curvatures else []),
        ]
    )
    return [Drawing("transfer-similarity", figure, caption, ())]


def _grid(rows: pd.DataFrame, row: str, value: str, table: Table) -> tuple[list[str], list[str], Grid]:
    """Arrange values by source and target, with their names; NaN where the table has no row."""
    sources = [str(name) for name in rows[row].unique()]
    targets = [str(name) for name in rows["checkpoint"].unique()]
    cells = rows.set_index([row, "checkpoint"])[value]
    if not cells.index.is_unique:
        raise GradscopeError(f"directory: {table.file} must have one row for each {row} and checkpoint, got two")
    grid = np.array([[cells.get((source, target), np.nan) for target in targets] for source in sources])
    return sources, targets, grid


def _matrix(
    grid: Grid, sources: list[str], targets: list[str], scale: _Scale, form: str, times: float = 1
) -> tuple[Figure, Axes]:
    """Draw a heat map of ``grid``; write each value, multiplied by ``times``, into its cell."""
    size = (_LABELS + _CELL * len(targets) + _BAR, _TITLES + 0.8 * _CELL * len(sources))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    low, high = scale.ends
    image = axes.pcolormesh(grid, cmap=scale.colours, vmin=low, vmax=high, edgecolors="white", linewidth=1.0)
    axes.set_ylim(len(sources), 0)
    axes.grid(visible=False)
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            value = float(grid[row, column])
            text = form.format(times * value) if np.isfinite(value) else ""
            _annotate(axes, row, column, text, "white" if scale.is_dark(value) else "black", own=source == target)
    _name(axes, sources, targets)
    bar = figure.colorbar(image, ax=axes, label=scale.label, ticks=scale.ticks, aspect=18)
    bar.outline.set_visible(False)
    return figure, axes


def _annotate(axes: Axes, row: int, column: int, text: str, ink: str, *, own: bool) -> None:
    if text:
        weight = "bold" if own else "normal"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=7.5, weight=weight)
    if own:
        axes.add_patch(Rectangle((column + 0.05, row + 0.06), 0.9, 0.88, fill=False, edgecolor=ink, linewidth=1.2))


def _name(axes: Axes, sources: list[str], targets: list[str]) -> None:
    """Label rows by source, with clean images at the top, and columns by target, slanted if a name is long."""
    rows = [_wrapped(source) if source else "clean images" for source in sources]
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks(
        np.arange(len(targets)) + 0.5,
        [_wrapped(target) for target in targets],
        **(slant if max(map(len, targets)) > 8 else {}),
    )
    axes.tick_params(length=0)
    style.as_written(*axes.get_xticklabels(), *axes.get_yticklabels())
    for spine in axes.spines.values():
        spine.set_visible(False)


def _wrapped(name: str) -> str:
    """Wrap ``name`` into short lines, also after each colon."""
    parts = re.split("(?<=:)", style.shorten(name))
    return "\n".join(line for part in parts for line in textwrap.wrap(part, _LINE))

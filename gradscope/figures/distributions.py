"""Draw empirical distribution functions over the images from ``samples.csv``, one panel per point."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.figures import style
from gradscope.figures.style import Drawing, Look, Series
from gradscope.results.metrics import CURVATURE_MATRICES, METRICS
from gradscope.results.schemas import SAMPLES
from gradscope.results.tables import read_csv

POINTS = {"clean": "clean image", "final": "final point"}
_COLUMNS = ("checkpoint", "mode", "attack", "index", "metric", "point", "unit", "value")
#: Three of the usual metrics, every metric that is measured only when named, and the curvature in the image.
_METRICS = (
    *("norm", "entropy", "margin", *(name for name, metric in METRICS.items() if metric.extra)),
    *(f"{matrix}-eigenvalue" for matrix in CURVATURE_MATRICES),
)
_MOST_VERTICES = 2000
#: Eigenvalues below this share of the largest count as 0: float32 rounds.
_ROUNDING = 1e-6

#: Columns of panels: what the x axis adds to its label, and which images the column shows (None: all).
_ALL = {"": None}
_SPLIT = {", right predictions": 1.0, ", wrong predictions": 0.0}


def read_samples(path: Path) -> pd.DataFrame:
    """Read the drawn columns and rows of a ``samples.csv``; a damaged file raises GradscopeError."""
    kinds = {column.name: "category" for column in SAMPLES.columns if column.kind == "text" and column.name in _COLUMNS}
    options = {"dtype": {**kinds, "value": "float64"}, "na_values": {"value": ["", "nan"]}}
    return _drawn(read_csv(path, SAMPLES, usecols=list(_COLUMNS), **options))


def _drawn(samples: pd.DataFrame) -> pd.DataFrame:
    return samples[samples["metric"].isin([*_METRICS, "accuracy"]) & samples["point"].isin(list(POINTS))]


def draw_samples(samples: pd.DataFrame) -> list[Drawing]:
    """Draw ``distribution-METRIC`` for norm, entropy, margin, curvature, and each metric that was measured by name.

    ``samples``: rows of the table SAMPLES; a metric without values has no figure. Each line is the empirical
    distribution function over the images for which the value is defined: the share of them with a value of at most x.
    If the metric accuracy is present, entropy is split by whether the prediction at that point is right. Call it
    inside :func:`gradscope.figures.style.paper`.
    """
    samples = _drawn(samples)
    table = style.looks(samples)
    drawings = []
    for metric in _METRICS:
        rows = samples[samples["metric"] == metric]
        if rows["value"].notna().any():
            columns: Mapping[str, float | None] = _ALL
            if metric == "entropy" and (samples["metric"] == "accuracy").any():
                rows, columns = _with_accuracy(rows, samples[samples["metric"] == "accuracy"]), _SPLIT
            drawings.append(_draw_metric(metric, rows, columns, table))
    return drawings


def distribution(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[list[float], list[float]]:
    """Compute the empirical distribution function: sorted distinct values and the share of values at most as large.

    Undefined (NaN) values are left out. Of many distinct values about 2000 are kept, evenly spaced in rank; each is an
    exact point of the function.
    """
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    shares = np.cumsum(counts) / max(1, counts.sum())
    if len(distinct) > _MOST_VERTICES:
        kept = np.unique(np.searchsorted(shares, np.linspace(shares[0], 1, _MOST_VERTICES)).clip(max=len(shares) - 1))
        distinct, shares = distinct[kept], shares[kept]
    return distinct.tolist(), shares.tolist()


def _with_accuracy(rows: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Add a column "right" to ``rows``: 1 if the prediction at the same point of the same image is right, else 0."""
    keys = ["checkpoint", "attack", "point", "index"]
    right = accuracy[[*keys, "value"]].rename(columns={"value": "right"})
    return rows.merge(right, on=keys, how="left")


def _draw_metric(
    metric: str, rows: pd.DataFrame, columns: Mapping[str, float | None], table: dict[Series, Look]
) -> Drawing:
    shown = {series: look for series, look in table.items() if not style.rows_of(rows, series).empty}
    points = [point for point in POINTS if (rows["point"] == point).any()]
    handles = style.handles_of(shown)
    figure, grid = style.panels(
        (len(points), len(columns)),
        style.COLUMN if len(columns) == 1 else style.PAGE,
        1.75,
        [str(handle.get_label()) for handle in handles],
        sharex=True,
        sharey=True,
    )
    unit = str(rows["unit"].iloc[0])
    left, zeros = _scale(grid[0, 0], metric, rows)
    for row, point in enumerate(points):
        for column, (suffix, right) in enumerate(columns.items()):
            chosen = rows[rows["point"] == point]
            chosen = chosen if right is None else chosen[chosen["right"] == right]
            _draw_panel(grid[row, column], chosen, shown, left)
            if row == len(points) - 1:
                grid[row, column].set_xlabel(style.axis_label(metric, unit, " ") + suffix + zeros)
        grid[row, 0].set_ylabel(f"share of images,\n{POINTS[point]}")
    grid[0, 0].set_ylim(-0.02, 1.02)
    style.fit_legend(figure, handles)
    caption = _caption(metric, unit, rows, points, bool(zeros), len(columns) > 1)
    return Drawing(f"distribution-{metric}", figure, caption, tuple(dict.fromkeys(key.attack for key in shown)))


def _draw_panel(axes: Axes, rows: pd.DataFrame, shown: dict[Series, Look], left: float) -> None:
    """Draw one line per checkpoint and attack, from the left edge of the axis to its right edge."""
    right = axes.get_xlim()[1]
    for series, look in shown.items():
        values, shares = distribution(style.rows_of(rows, series)["value"].to_numpy(dtype=np.float64))
        if values:
            x = np.clip([left, *values, right], left, right)
            axes.plot(x, [0.0, *shares, 1.0], drawstyle="steps-post", **look.line(len(x)))
    if not axes.lines:
        axes.text(0.5, 0.5, "no images", transform=axes.transAxes, ha="center", va="center", color="0.4")


def _scale(axes: Axes, metric: str, rows: pd.DataFrame) -> tuple[float, str]:
    """Set scale and limits of the x axis; return its left edge, and what the label says of zeros drawn there."""
    rows = rows[np.isfinite(rows["value"])]
    values = rows["value"]
    if values.empty:
        return 0.0, ""
    low, high = float(values.min()), float(values.max())
    of_curvature = metric.endswith("-eigenvalue") and low > -_ROUNDING * high  # below 0 only by rounding
    if (metric == "norm" or of_curvature) and high > 0:
        low = max(float(values[values > 0].min()), _ROUNDING * high if of_curvature else 0.0)
        room = max((high / low) ** 0.03, 1.2)
        style.set_log(axes, "x", low / room, high * room)
        return low / room, "\n0 drawn at the left edge" if (values < low).any() else ""
    sizes = [float(group.abs().quantile(0.9)) for _, group in _by_line(rows)]
    if metric == "margin" and style.far_apart(sizes):
        style.set_symlog(axes, "x", [*sizes, max(-low, high)])
        axes.set_xlim(low * (1.5 if low < 0 else 0.5), high * (1.5 if high > 0 else 0.5))
    else:
        room = 0.02 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
    return axes.get_xlim()[0], ""


def _by_line(rows: pd.DataFrame) -> list[tuple[object, pd.Series]]:
    return list(rows.groupby(["checkpoint", "attack"], observed=True)["value"])


def _right_counts(rows: pd.DataFrame, points: list[str]) -> str:
    """Count the right predictions of each line at each point; the other images are wrong predictions."""
    right = rows[rows["right"] == 1].groupby(["checkpoint", "attack", "point"], observed=True).size()
    return ", ".join(
        f"{checkpoint} {attack} " + " / ".join(str(right.get((checkpoint, attack, point), 0)) for point in points)
        for checkpoint, attack in dict.fromkeys(zip(rows["checkpoint"], rows["attack"], strict=True))
    )


def _caption(metric: str, unit: str, rows: pd.DataFrame, points: list[str], zeros: bool, split: bool) -> str:
    sizes = rows.groupby(["checkpoint", "attack", "point"], observed=True)["value"].agg(["size", "count"])
    images, fewest = int(sizes["size"].max()), int(sizes["count"].min())
    where = " and at the ".join(POINTS[point] for point in points)
    return "".join(
        [
            f"Distribution over the images of the {style.axis_label(metric, unit, ' ')} at the {where}",
            ", separately for right and wrong predictions" if split else "",
            f", n = {images} images",
            f" (right predictions: {_right_counts(rows, points)})" if split else "",
            f"; for some lines it is defined on only {fewest} of them" if fewest < images else "",
            "; lines: empirical distribution function, the share of images with a value of at most x; no band",
            "; zeros drawn at the left edge" if zeros else "",
        ]
    )

"""Curves along an attack, from ``steps.csv``: one figure a metric, one line a (checkpoint, attack)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.figures import style
from gradscope.figures.style import Drawing, Look, Series
from gradscope.results.metrics import METRICS
from gradscope.results.stats import METHODS

#: Metrics that are shares, or bounded like one: always drawn on [0, 1].
SHARES = ("accuracy", "sign", "zero", "dispersion")
_LOGARITHMIC = ("norm",)
_MARGIN_OF_SHARES = 0.02


def draw_steps(steps: pd.DataFrame) -> list[Drawing]:
    """A figure ``steps-<metric>`` for every metric of ``steps``, rows of the table STEPS.

    The line is the mean, the band its 95 % interval. Where the metric is undefined for some image, a strip below
    shows the share of such images. Call it inside :func:`gradscope.figures.style.paper`.
    """
    table = style.looks(steps)
    return [
        _draw_metric(str(metric), rows.sort_values("step", kind="stable"), table)
        for metric, rows in steps.groupby("metric", sort=False)
    ]


def _draw_metric(metric: str, rows: pd.DataFrame, table: dict[Series, Look]) -> Drawing:
    lines = {look: style.rows_of(rows, series) for series, look in table.items()}
    lines = {look: line for look, line in lines.items() if not line.empty}
    any_undefined = bool((rows["undefined"] > 0).any())
    figure, grid = style.panels(
        (1 + any_undefined, 1),
        style.COLUMN,
        2.2 / (1 + any_undefined) + 0.3 * any_undefined,
        [look.label for look in lines],
        sharex=True,
        height_ratios=[3.5, 1][: 1 + any_undefined],
    )
    main = grid[0, 0]
    for look, line in lines.items():
        _draw_line(main, look, line)
    unit = str(rows["unit"].iloc[0])
    main.set_ylabel(style.axis_label(metric, unit))
    _scale(main, metric, lines)
    if any_undefined:
        _draw_undefined(grid[1, 0], lines)
    bottom = grid[-1, 0]
    bottom.set_xlabel("PGD step")
    _limit_steps(bottom, rows["step"])
    style.add_legend(figure, list(lines))
    return Drawing(f"steps-{metric}", figure, _caption(metric, rows), _attacks(rows))


def _draw_line(axes: Axes, look: Look, line: pd.DataFrame) -> None:
    axes.fill_between(
        line["step"], line["ci_low"], line["ci_high"], color=look.colour, alpha=0.2, linewidth=0, zorder=1.5
    )
    axes.plot(line["step"], line["mean"], **look.line(len(line)))


def _draw_undefined(axes: Axes, lines: dict[Look, pd.DataFrame]) -> None:
    """Share of images for which the metric is undefined, at every step."""
    for look, line in lines.items():
        if not (line["undefined"] > 0).any():
            continue
        share = line["undefined"] / (line["undefined"] + line["n"]).where(lambda images: images > 0)
        axes.plot(line["step"], share, **{**look.line(len(line)), "linewidth": 0.9, "markersize": 2.5})
    axes.set_ylabel("undefined\n(share)")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, min_n_ticks=2, steps=[1, 2, 5, 10]))


def _limit_steps(axes: Axes, steps: pd.Series) -> None:
    last = int(steps.max())
    if last == steps.min():
        axes.set_xlim(last - 0.5, last + 0.5)
        axes.set_xticks([last])
    else:
        room = 0.01 * last
        axes.set_xlim(-room, last + room)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _scale(axes: Axes, metric: str, lines: dict[Look, pd.DataFrame]) -> None:
    if metric in SHARES:
        axes.set_ylim(-_MARGIN_OF_SHARES, 1 + _MARGIN_OF_SHARES)
    elif metric in _LOGARITHMIC:
        _scale_log(axes, pd.concat(lines.values()))
    elif metric == "cosine":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1 - _MARGIN_OF_SHARES), min(high, 1 + _MARGIN_OF_SHARES))
    elif metric == "fosc":
        axes.set_ylim(bottom=0)
    elif metric in ("loss", "margin"):
        sizes = [float(line["mean"].abs().max()) for line in lines.values()]
        if style.far_apart(sizes):
            style.set_symlog(axes, "y", sizes)


def _scale_log(axes: Axes, rows: pd.DataFrame) -> None:
    """A log axis over the positive means; a mean of 0 runs to the lower edge, and the axis says so."""
    means = rows["mean"][np.isfinite(rows["mean"])]
    positive = means[means > 0]
    if positive.empty:
        return
    ends = pd.concat([rows["ci_low"], rows["ci_high"]])
    ends = ends[np.isfinite(ends) & (ends > positive.min() / 3)]
    low, high = min([positive.min(), *ends]), max([positive.max(), *ends])
    room = max((high / low) ** 0.05, 1.1)
    style.set_log(axes, "y", low / room, high * room)
    if (means <= 0).any():
        axes.set_ylabel(f"{axes.get_ylabel()}, 0 at the edge")


def _attacks(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(str(attack) for attack in rows["attack"].unique())


def _caption(metric: str, rows: pd.DataFrame) -> str:
    images = int((rows["n"] + rows["undefined"]).max())
    fewest = int(rows["n"].min())
    per_sample = metric not in METRICS or METRICS[metric].per_sample
    defined = f", {fewest} where it is defined for fewest" if fewest < images else ""
    quantity = "mean over" if per_sample else "value of the whole set of"
    method = METHODS.get(metric, METHODS["all others"])
    name = style.axis_label(metric, str(rows["unit"].iloc[0]), " ")
    return f"{name[0].upper()}{name[1:]} against PGD step: {quantity} n = {images} images{defined}; band: {method}"

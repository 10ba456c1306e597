"""Draw metrics along an attack from ``steps.csv``: one figure per metric, and one panel figure of four metrics."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.figures import style
from gradscope.figures.style import Drawing, Look, Series
from gradscope.results.metrics import METRICS
from gradscope.results.stats import METHODS

#: Metrics in [0, 1]. The axis shows [0, 1], unless all curves lie within ``_NARROW`` and all bands within twice that.
SHARES = ("accuracy", "sign", "zero", "dispersion")
_NARROW = 0.2
#: The smallest range of a zoomed axis, so that rounding does not look large, and the room around the curves.
_LEAST, _ROOM = 0.02, 0.08
_LOGARITHMIC = ("norm",)
_MARGIN_OF_SHARES = 0.02
#: Metrics that the panel figure shows side by side.
PANEL = ("accuracy", "cosine", "norm", "entropy")
#: Sizes in inches and points: a row of panels, their titles and the units beside them.
_PANEL_HEIGHT, _TITLE, _UNIT = 1.7, 8.0, 6.5


def draw_steps(steps: pd.DataFrame) -> list[Drawing]:
    """Draw ``steps-METRIC`` for every metric of ``steps``, rows of the table STEPS, and ``steps-panel``.

    The line is the mean, the band its 95 % interval. If the metric is undefined for some images, a strip below shows
    their share. ``steps-panel`` shows the metrics of :data:`PANEL` side by side if at least two are present. Call it
    inside :func:`gradscope.figures.style.paper`.
    """
    table = style.looks(steps)
    by_metric = steps.sort_values("step", kind="stable").groupby("metric", sort=False)
    found = {metric: by_metric.get_group(metric) for metric in map(str, steps["metric"].unique())}
    drawings = [_draw_metric(metric, rows, table) for metric, rows in found.items()]
    panel = {metric: found[metric] for metric in PANEL if metric in found}
    return drawings + ([_draw_panel(panel, table)] if len(panel) > 1 else [])


def _draw_panel(metrics: Mapping[str, pd.DataFrame], table: dict[Series, Look]) -> Drawing:
    """Draw the metrics in a row over one legend."""
    handles = style.handles_of(table)
    figure, grid = style.panels(
        (1, len(metrics)), style.PAGE, _PANEL_HEIGHT, [str(handle.get_label()) for handle in handles]
    )
    zooms = []
    for axes, (metric, rows) in zip(grid[0], metrics.items(), strict=True):
        lines = _lines_of(rows, table)
        for look, line in lines.items():
            _draw_line(axes, look, line, among=len(lines))
        axes.set_title(style.axis_label(metric, "-"), fontsize=_TITLE)
        if (unit := str(rows["unit"].iloc[0])) != "-":
            axes.set_ylabel(unit, fontsize=_UNIT, labelpad=2)
        if zoom := _scale(axes, metric, lines):
            zooms.append(f"{style.LABELS.get(metric, metric)}: {zoom}")
        axes.set_xlabel("PGD step")
        _limit_steps(axes, rows["step"], ticks=4)
    style.fit_legend(figure, handles)
    everything = pd.concat(metrics.values())
    names = ", ".join(style.LABELS.get(metric, metric) for metric in metrics)
    undefined = [
        f"{style.LABELS.get(metric, metric)} is undefined on up to {int(rows['undefined'].max())} images at a step"
        for metric, rows in metrics.items()
        if (rows["undefined"] > 0).any()
    ]
    images = int((everything["n"] + everything["undefined"]).max())
    caption = [
        f"Metrics along the attack, from left to right: {names}; mean over n = {images} images against PGD step",
        "bands: 95 % intervals, as in the figure of each metric",
        *zooms,
        *undefined,
    ]
    return Drawing("steps-panel", figure, "; ".join(caption), _attacks(everything))


def _lines_of(rows: pd.DataFrame, table: dict[Series, Look]) -> dict[Look, pd.DataFrame]:
    lines = {look: style.rows_of(rows, series) for series, look in table.items()}
    return {look: line for look, line in lines.items() if not line.empty}


def _draw_metric(metric: str, rows: pd.DataFrame, table: dict[Series, Look]) -> Drawing:
    lines = _lines_of(rows, table)
    handles = style.handles_of({series: look for series, look in table.items() if look in lines})
    any_undefined = bool((rows["undefined"] > 0).any())
    figure, grid = style.panels(
        (1 + any_undefined, 1),
        style.COLUMN,
        2.2 / (1 + any_undefined) + 0.3 * any_undefined,
        [str(handle.get_label()) for handle in handles],
        sharex=True,
        height_ratios=[3.5, 1][: 1 + any_undefined],
    )
    main = grid[0, 0]
    for look, line in lines.items():
        _draw_line(main, look, line, among=len(lines))
    unit = str(rows["unit"].iloc[0])
    main.set_ylabel(style.axis_label(metric, unit))
    zoom = _scale(main, metric, lines)
    if any_undefined:
        _draw_undefined(grid[1, 0], lines)
    bottom = grid[-1, 0]
    bottom.set_xlabel("PGD step")
    _limit_steps(bottom, rows["step"])
    style.fit_legend(figure, handles)
    caption = "; ".join([_caption(metric, rows), *([zoom] if zoom else [])])
    return Drawing(f"steps-{metric}", figure, caption, _attacks(rows))


def _draw_line(axes: Axes, look: Look, line: pd.DataFrame, among: int) -> None:
    tone, width = style.strokes(among)
    axes.fill_between(
        line["step"], line["ci_low"], line["ci_high"], color=look.colour, alpha=tone, linewidth=0, zorder=1.5
    )
    axes.plot(line["step"], line["mean"], **{**look.line(len(line)), "linewidth": width})


def _draw_undefined(axes: Axes, lines: dict[Look, pd.DataFrame]) -> None:
    """Draw the share of images for which the metric is undefined at each step."""
    for look, line in lines.items():
        if not (line["undefined"] > 0).any():
            continue
        share = line["undefined"] / (line["undefined"] + line["n"]).where(lambda images: images > 0)
        axes.plot(line["step"], share, **{**look.line(len(line)), "linewidth": 0.9, "markersize": 2.5})
    axes.set_ylabel("undefined\n(share)")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, min_n_ticks=2, steps=[1, 2, 5, 10]))


def _limit_steps(axes: Axes, steps: pd.Series, ticks: int = 6) -> None:
    last = int(steps.max())
    if last == steps.min():
        axes.set_xlim(last - 0.5, last + 0.5)
        axes.set_xticks([last])
    else:
        room = 0.01 * last
        axes.set_xlim(-room, last + room)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))


def _scale(axes: Axes, metric: str, lines: dict[Look, pd.DataFrame]) -> str:
    """Set the axis of a metric; return words for the caption if the axis shows only a part of [0, 1], else ""."""
    if metric in SHARES:
        return _scale_share(axes, pd.concat(lines.values()))
    if metric in _LOGARITHMIC:
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
    return ""


def _scale_share(axes: Axes, rows: pd.DataFrame) -> str:
    """Set the axis from 0 to 1, or to the part where all lines and bands lie if that part is narrow."""
    values = rows[["mean", "ci_low", "ci_high"]].to_numpy().clip(0, 1)
    means, ends = (part[np.isfinite(part)] for part in (values[:, 0], values))
    if not len(means) or np.ptp(means) >= _NARROW or np.ptp(ends) >= 2 * _NARROW:
        axes.set_ylim(-_MARGIN_OF_SHARES, 1 + _MARGIN_OF_SHARES)
        return ""
    span = max(float(np.ptp(ends)), _LEAST)
    middle = min(max((ends.min() + ends.max()) / 2, span / 2), 1 - span / 2)
    low, high = middle - span / 2, middle + span / 2
    axes.set_ylim(low - _ROOM * span, high + _ROOM * span)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return f"the axis shows only {low:.2f} to {high:.2f}, not 0 to 1"


def _scale_log(axes: Axes, rows: pd.DataFrame) -> None:
    """Set a log axis over the positive means; a mean of 0 is drawn at the lower edge, and the label says so."""
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
    defined = f", at some steps defined on only {fewest} of them" if fewest < images else ""
    quantity = "mean over" if per_sample else "value of the whole set of"
    method = METHODS.get(metric, METHODS["all others"])
    name = style.axis_label(metric, str(rows["unit"].iloc[0]), " ")
    return f"{name[0].upper()}{name[1:]} against PGD step: {quantity} n = {images} images{defined}; band: {method}"

"""Draw robust accuracy from ``attacks.csv``: attack by attack, and against the radius."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing, Look
from gradscope.results.schemas import ATTACKS

CLEAN = "none"
_MARGIN = 0.03
#: Sizes in inches: an attack's row, a panel's title, axis labels and edges, a row of the legend; then in points:
#: numbers, and words below a panel.
_ROW, _TITLE_ROW, _AROUND, _LEGEND_ROW, _NUMBER, _BELOW_PANEL = 0.14, 0.19, 0.42, 0.16, 6.0, 6.8
#: Up to ``_FEW`` models: two panels in a row of this width. More models: four panels in a row as wide as a page.
_FEW, _WIDTH, _ACROSS = 4, 1.25 * style.COLUMN, 4


def draw_attacks(attacks: pd.DataFrame) -> list[Drawing]:
    """Draw the figures of rows of the table ATTACKS.

    ``attacks-accuracy`` (with several radii one ``attacks-accuracy-NORM-EPSILON`` each) shows for each checkpoint the
    robust accuracy after each attack, in the order run; where an attack ran on all images, also the accuracy under it
    alone. ``attacks-epsilon``, with several radii, shows the robust accuracy after all attacks against the radius.
    Call it inside :func:`gradscope.figures.style.paper`.
    """
    balls = list(attacks.groupby(["norm", "epsilon"], sort=True))
    table = looks_of(attacks)
    drawings = []
    for (norm, epsilon), rows in balls:
        name = "attacks-accuracy" if len(balls) == 1 else f"attacks-accuracy-{norm}-{epsilon:.6g}"
        if (rows["attack"] != CLEAN).any():
            drawings.append(_draw_ball(name, f"{norm}, epsilon {epsilon:.4g}", rows, table))
    if len({epsilon for (_, epsilon), _ in balls}) > 1:
        drawings += [_draw_radii(str(norm), rows, table) for norm, rows in attacks.groupby("norm", sort=True)]
    return drawings


def looks_of(rows: pd.DataFrame) -> dict[str, Look]:
    """Give each checkpoint a look with a marker."""
    by_series = style.looks(rows.assign(attack=""))
    shapes = style.MARKERS[1:]
    return {
        series.checkpoint: Look(
            look.label, look.colour, look.dash, shapes[style.MARKERS.index(look.marker) % len(shapes)], look.rank
        )
        for series, look in by_series.items()
    }


def _draw_ball(name: str, ball: str, rows: pd.DataFrame, table: Mapping[str, Look]) -> Drawing:
    """Draw one panel per checkpoint: clean images at the top, then the attacks in the order run."""
    shown = {checkpoint: look for checkpoint, look in table.items() if (rows["checkpoint"] == checkpoint).any()}
    order = _order(rows)
    alone = rows[(rows["metric"] == "accuracy") & (rows["subset"] == "all") & (rows["attack"] != CLEAN)]
    so_far = rows[(rows["metric"] == "robust-accuracy") | (rows["attack"] == CLEAN) & (rows["metric"] == "accuracy")]
    later = [attack for attack in order[1:] if attack not in set(alone["attack"])]
    columns, width = _arrangement(len(shown))
    lines = -(-len(shown) // columns)
    legend = _handles(with_alone=not alone.empty)
    height = lines * (_TITLE_ROW + len(order) * _ROW) + _AROUND + _LEGEND_ROW * len(legend)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.02)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, checkpoint in zip_longest(grid.flat, shown):
        if checkpoint is None:
            axes.set_axis_off()
            continue
        own = [part[part["checkpoint"] == checkpoint] for part in (so_far, alone)]
        _draw_model(axes, shown[checkpoint], own[0], own[1], order)
    for axes in grid.flat[max(0, len(shown) - columns) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(f"share of images ({ball})", fontsize=_BELOW_PANEL)
    grid[0, 0].set_yticks(range(len(order)), ["clean" if attack == CLEAN else attack for attack in order])
    grid[0, 0].set_ylim(len(order) - 0.5, -0.5)
    grid[0, 0].set_xlim(-_MARGIN, 1 + _MARGIN)
    grid[0, 0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    style.place_legend(figure, legend, 1, handle_length=1.8)
    counts = rows[rows["subset"] == "all"]["n"]
    if counts.empty:
        raise GradscopeError(
            f"directory: {ATTACKS.file} must hold accuracies over all images (subset all), got only parts of the images"
        )
    images = int(counts.max())
    parts = [
        f"Accuracy under each attack in the order they were run, {ball}",
        "line, with its value in per cent where it falls: images that are right when clean, under this attack and "
        f"under all above it, of all n = {images} images, an upper bound of the robust accuracy",
    ]
    if not alone.empty:
        parts.append(f"dots: right under this attack alone, of all n = {images} images")
    if later:
        parts.append(f"{', '.join(later)}: run only on the images that no earlier attack fooled, so without a dot")
    parts.append("bands and bars: Wilson score interval over images, 95 %")
    return Drawing(name, figure, "; ".join(parts), ("budget",))


def _arrangement(models: int) -> tuple[int, float]:
    """Choose the columns of panels and the figure's width in inches."""
    if models == 1:
        return 1, style.COLUMN
    return (2, _WIDTH) if models <= _FEW else (_ACROSS, style.PAGE)


def _draw_model(axes: Axes, look: Look, so_far: pd.DataFrame, alone: pd.DataFrame, order: Sequence[str]) -> None:
    """Draw the robust accuracy after each attack as a staircase with its values, and a dot for each attack alone."""
    style.as_written(axes.set_title(look.label, fontsize=7.0, color="black", loc="left", pad=2))
    by_attack = {str(row["attack"]): row for row in so_far.to_dict("records")}
    present = [(place, by_attack[attack]) for place, attack in enumerate(order) if attack in by_attack]
    edges = np.repeat([place for place, _ in present], 2) + np.tile([-0.5, 0.5], len(present))
    values, low, high = (np.repeat([row[key] for _, row in present], 2) for key in ("value", "ci_low", "ci_high"))
    axes.fill_betweenx(edges, low, high, color=look.colour, alpha=0.25, linewidth=0, zorder=1.5)
    axes.plot(values, edges, color=look.colour, linewidth=1.4, zorder=2)
    previous = None
    for place, row in present:
        text = f"{100 * row['value']:.0f}"
        if text != previous:
            axes.annotate(
                *(text, (1, place), (2, 0)), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", ha="left", fontsize=_NUMBER, annotation_clip=False,
            )  # fmt: skip
        previous = text
    alone = alone[np.isfinite(alone["value"])]
    if len(alone):
        places, values = [order.index(attack) for attack in alone["attack"]], alone["value"].to_numpy()
        ends = np.stack([values - alone["ci_low"], alone["ci_high"] - values]).clip(min=0)
        axes.errorbar(values, places, xerr=ends, linestyle="", elinewidth=0.7, marker="o", markersize=3, color="0.25")
    axes.grid(visible=False, axis="y")
    for place in range(0, len(order), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=0)


def _order(rows: pd.DataFrame) -> list[str]:
    """List the clean images, then every attack in the order run; a checkpoint may have skipped some attacks."""
    order = [CLEAN]
    for _, own in rows.groupby(["checkpoint", "epsilon"], sort=False):
        place = 1
        for name in own["attack"].unique():
            if name in order:
                place = order.index(name) + 1
            else:
                order.insert(place, str(name))
                place += 1
    return order


def _handles(*, with_alone: bool) -> list[Line2D]:
    """Make the legend of the staircase and the dots."""
    line = Line2D([], [], color="0.35", linewidth=1.4, label="right under this attack and all above, of all images")
    dot = Line2D([], [], color="0.25", linestyle="", marker="o", markersize=3, label="right under this attack alone")
    return [line, dot] if with_alone else [line]


def _draw_radii(norm: str, attacks: pd.DataFrame, table: Mapping[str, Look]) -> Drawing:
    """Draw the robust accuracy after all attacks against the radius, with the clean accuracy at 0."""
    figure, grid = style.panels((1, 1), style.COLUMN, 2.3, [look.label for look in table.values()])
    axes = grid[0, 0]
    shown = []
    tone, width = style.strokes(len(table))
    for checkpoint, look in table.items():
        line = _curve(attacks[attacks["checkpoint"] == checkpoint])
        if len(line):
            shown.append(look)
            axes.fill_between(
                line["epsilon"], line["ci_low"], line["ci_high"], color=look.colour, alpha=tone, linewidth=0, zorder=1.5
            )
            axes.plot(line["epsilon"], line["value"], **{**look.line(len(line)), "markevery": 1, "linewidth": width})
    axes.set_xlabel(f"epsilon ({norm}, pixel units)")
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(-_MARGIN, 1 + _MARGIN)
    axes.set_xlim(left=0)
    style.add_legend(figure, shown)
    names = _order(attacks)[1:]
    images = int(attacks[attacks["subset"] == "all"]["n"].max())
    caption = "; ".join(
        [
            f"Robust accuracy against epsilon ({norm}, pixel units), with the clean accuracy at 0",
            f"line: share of all n = {images} images that are right when clean and under every attack "
            f"({', '.join(names)}), an upper bound",
            "band: Wilson score interval over images, 95 %",
        ]
    )
    return Drawing("attacks-epsilon", figure, caption, ("budget",))


def _curve(rows: pd.DataFrame) -> pd.DataFrame:
    """Take the clean accuracy at radius 0, then the robust accuracy after the last attack at each radius."""
    clean = rows[(rows["attack"] == CLEAN) & (rows["metric"] == "accuracy")].head(1).assign(epsilon=0.0)
    return pd.concat([clean, after_all(rows)])


def after_all(rows: pd.DataFrame) -> pd.DataFrame:
    """Take a checkpoint's robust accuracy after the last attack at each radius, in ascending order."""
    after = rows[rows["metric"] == "robust-accuracy"].drop_duplicates("epsilon", keep="last")
    return after.sort_values("epsilon")

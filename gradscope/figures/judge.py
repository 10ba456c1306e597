"""Draw a judgement from ``judge.csv``: accuracy under the attack, its repairs and gradscope's own attacks."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.figures.text_layout import height_of, write

Row = Mapping[Hashable, Any]

#: The mark of each role; a repair that the verdict names has a filled mark.
_MARKS: dict[str, dict[str, Any]] = {
    "attack": {"color": "black", "marker": "o"},
    "named": {"color": "#D55E00", "marker": "D"},
    "repair": {"color": "#D55E00", "marker": "D", "markerfacecolor": "white", "markeredgewidth": 1.0},
    "ours": {"color": "#0072B2", "marker": "s"},
    "all": {"color": "0.45", "marker": "v"},
}
_WORDS = {
    "attack": "the attack on trial",
    "named": "repaired, named",
    "repair": "repaired",
    "ours": "gradscope's attacks",
    "all": "all together, an upper bound",
}
#: Sizes in inches: a line, between groups, around a checkpoint, below all, a row of the legend; the names' column.
_LINE, _GROUP, _AROUND, _BELOW, _LEGEND_ROW = 0.165, 0.06, 0.08, 0.42, 0.165
_NAMES = 1.25
_TEXT, _SMALL = 7.0, 6.5
#: Room right of a share of 1, in shares.
_MARGIN = 0.03


def draw_judge(rows: pd.DataFrame) -> list[Drawing]:
    """Draw ``judge-repairs`` from rows of the table JUDGE; no rows give no figure.

    Each checkpoint has a block: the verdict, and a line each for the attack, its repairs, gradscope's attacks, and all
    together. Call it inside :func:`gradscope.figures.style.paper`.
    """
    blocks = [(str(name), _lines(own)) for name, own in rows.groupby("checkpoint", sort=False)]
    if not blocks:
        return []
    inside = style.COLUMN - 0.2
    heads = []
    for (name, _), (_, own) in zip(blocks, rows.groupby("checkpoint", sort=False), strict=True):
        first = own.iloc[0]
        title = style.wrapped(f"{first['attack']} on {style.shorten(name)}", inside, _TEXT, "bold")
        heads.append((title, style.wrapped(str(first["verdict"]), inside, _SMALL)))
    sizes = [
        2 * _AROUND + height_of(title, _TEXT) + height_of(verdict, _SMALL) + _height(lines)
        for (title, verdict), (_, lines) in zip(heads, blocks, strict=True)
    ]
    shown = {role for _, lines in blocks for role, _ in lines}
    handles = _handles(shown)
    height = sum(sizes) + _BELOW + _LEGEND_ROW * -(-len(handles) // 2)
    figure = Figure(figsize=(style.COLUMN, height), layout="constrained")
    axes = figure.subplots()
    left = -_NAMES / (style.COLUMN - _NAMES - 0.2)
    axes.set_xlim(left, 1 + _MARGIN)
    axes.set_ylim(sum(sizes), 0)
    top = 0.0
    for place, ((title, verdict), (_, lines), size) in enumerate(zip(heads, blocks, sizes, strict=True)):
        if place % 2:
            axes.axhspan(top, top + size, color="0.96", linewidth=0, zorder=0)
        write(axes, left, top + _AROUND, title, _TEXT, "top", ha="left", weight="bold")
        below = top + _AROUND + height_of(title, _TEXT)
        write(axes, left, below, verdict, _SMALL, "top", ha="left")
        _draw_lines(axes, below + height_of(verdict, _SMALL), left, lines)
        top += size
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    balls = " and ".join(dict.fromkeys(f"{row.norm}, epsilon {row.epsilon:.4g}" for row in rows.itertuples()))
    axes.set_xlabel(f"share of images right ({balls})")
    style.place_legend(figure, handles, 2, handle_length=1.8)
    return [Drawing("judge-repairs", figure, _caption(rows, balls), ("budget",))]


def _lines(rows: pd.DataFrame) -> list[tuple[str, Row]]:
    """List the lines of a checkpoint with their marks; repairs and our attacks with the lowest accuracy first."""
    lines: list[tuple[str, Row]] = []
    for role in ("attack", "repair", "ours", "all"):
        own = rows[(rows["role"] == role) & rows["left"].notna()].sort_values("left", kind="stable")
        lines += [("named" if row["named"] else role, row) for row in own.to_dict("records")]
    return lines


def _height(lines: list[tuple[str, Row]]) -> float:
    return _LINE * len(lines) + _GROUP * len({row["role"] for _, row in lines})


def _draw_lines(axes: Axes, top: float, left: float, lines: list[tuple[str, Row]]) -> None:
    y, role = top, None
    attack = next((row["left"] for mark, row in lines if mark == "attack"), None)
    if attack is not None:
        look: dict[str, Any] = {"color": "0.7", "linewidth": 0.8, "linestyle": (0, (3, 2)), "zorder": 1}
        axes.plot([attack, attack], [top, top + _height(lines)], **look)
    for mark, row in lines:
        y += _GROUP if row["role"] != role else 0
        role = row["role"]
        middle, look = y + _LINE / 2, _MARKS[mark]
        axes.plot([row["ci_low"], row["ci_high"]], [middle, middle], color=look["color"], linewidth=1.0, zorder=2)
        axes.plot([row["left"]], [middle], linestyle="", markersize=4.0, zorder=3, **look)
        weight = "bold" if mark in ("named", "attack") else "normal"
        write(axes, left, middle, _name(mark, row), _SMALL, ha="left", weight=weight)
        y += _LINE


def _name(mark: str, row: Row) -> str:
    if row["role"] == "repair":
        part, words = str(row["part"]), str(row["name"])
        loss = next((name for name in ("log-odds", "margin") if name in words), "")
        return f"{part}: {loss}" if loss else part
    return {"attack": "the attack", "all": "all together"}.get(mark, str(row["name"]))


def _handles(shown: set[str]) -> list[Artist]:
    return [
        Line2D([], [], linewidth=1.0, markersize=4.0, label=_WORDS[role], **mark)
        for role, mark in _MARKS.items()
        if role in shown
    ]


def _caption(rows: pd.DataFrame, balls: str) -> str:
    count = int(rows["n"].max())
    return "; ".join(
        [
            f"Accuracy under an attack on trial, {balls}, of n = {count} images, compared with repaired versions of it "
            "and with gradscope's attacks",
            "circle and dashed line: the attack on trial",
            "diamonds: the attack with one part repaired and the rest unchanged, filled where the verdict names the "
            "part",
            "squares: gradscope's attacks on the same images",
            "triangle: all together, an upper bound of the true robust accuracy",
            "the verdict names a part if its repair fools significantly more images (McNemar, one-sided, Holm), at "
            "most three parts",
            "lines: Wilson score interval over images, 95 %",
        ]
    )

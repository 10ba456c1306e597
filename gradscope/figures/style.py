"""The look of every figure: colours by mode, dashes by attack, markers by checkpoint, sizes, and saved files."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from fontTools import subset
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from gradscope.results.files import atomic

#: Okabe and Ito's colour-blind-safe colours: blues for supervised modes, oranges for reinforced ones.
COLOURS: dict[str, str] = {
    "sl": "#0072B2",
    "rl": "#D55E00",
    "sl-adv": "#56B4E9",
    "rl-adv": "#E69F00",
    "sl-rl": "#009E73",
    "rl-sl": "#CC79A7",
    "foreign": "#000000",
}
FALLBACK_COLOUR = "#7A7A7A"

#: One dash pattern per attack, in alphabetical order of the attacks.
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (8, 2)))
#: One marker per checkpoint of the same mode, in alphabetical order; the first has none.
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")

#: Widths in inches of one column and of a page of two columns.
COLUMN, PAGE = 3.4, 7.0

#: Axis labels of metrics whose name in the files is not plain enough.
LABELS: dict[str, str] = {
    "cosine": "gradient cosine",
    "sign": "gradient sign agreement",
    "zero": "zero gradient coordinates",
    "norm": "gradient norm",
    "loss": "loss",
    "alignment": "gradient alignment",
    "snr": "gradient signal-to-noise",
    "restart-spread": "spread of the loss over starts",
    "restart-distance": "distance between starts' ends",
    "linear-distance": "linear distance to the boundary",
    "distance": "distance to the boundary",
    "dispersion": "gradient dispersion",
    "fosc": "distance from convergence (FOSC)",
    "path-variance": "gradient variance along the path",
    "hessian-eigenvalue": "Hessian eigenvalue",
    "gauss-newton-eigenvalue": "Gauss-Newton eigenvalue",
}

#: Font tables that lay out text. No PDF reader uses them: a PDF places each letter itself.
_LAYOUT_TABLES = ("GDEF", "GPOS", "GSUB", "MATH", "kern")

_LEGEND_FONT = 7.0
_LEGEND_BORDER = 0.15
_LONGEST_LABEL = 46
_CROWDED = 9
_OVERRIDES: dict[str, Any] = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "0.3",
    "grid.linewidth": 0.5,
    "grid.color": "0.9",
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.bottom": True,
    "ytick.left": True,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.fontsize": _LEGEND_FONT,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.0,
    "savefig.dpi": 200,
    "axes.unicode_minus": True,
}


class Series(NamedTuple):
    """The key of one line of a figure: a checkpoint and an attack."""

    checkpoint: str
    attack: str


@dataclass(frozen=True)
class Look:
    """The style of one line, the same in every figure of a directory."""

    label: str
    colour: str
    dash: Any
    marker: str
    rank: int

    def line(self, points: int) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for a line of ``points`` points; a lone point always has a marker."""
        every = max(1, points // 7)
        return {
            "label": self.label,
            "color": self.colour,
            "linestyle": self.dash,
            "marker": self.marker or ("o" if points == 1 else ""),
            "markevery": ((self.rank * every // 5) % every, every),
        }


class Moving(NamedTuple):
    """A line that an animation draws step by step: its ``points`` ``(M, 2)`` so far (``trail``), or only the last."""

    line: Line2D
    points: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
    trail: bool

    def show(self, step: int) -> None:
        """Show the line at ``step``; a line that ended before stays as it was."""
        shown = self.points[: step + 1]
        self.line.set_data(*(shown if self.trail else shown[-1:]).T)


class Drawing(NamedTuple):
    """A finished figure, the name of its files and its caption.

    ``attacks``: attacks whose settings the caption ends with; ``moving``: lines that an animation draws step by step.
    """

    name: str
    figure: Figure
    caption: str
    attacks: tuple[str, ...]
    moving: tuple[Moving, ...] = ()


@contextmanager
def paper() -> Iterator[None]:
    """Set matplotlib up for every figure in this block; restore its settings after. Make and save figures inside."""
    settings = {**seaborn.axes_style("whitegrid"), **seaborn.plotting_context("paper"), **_OVERRIDES}
    with matplotlib.rc_context(settings):
        yield


def looks(rows: pd.DataFrame) -> dict[Series, Look]:
    """Choose a look for each (checkpoint, attack) in ``rows``, in order of appearance.

    The colour shows the mode, the dashes show the attack, markers tell checkpoints of one colour apart. All three
    depend on the set of names, not on the order of the rows. The label names the attack only if there are several.
    """
    found = rows[["checkpoint", "attack", "mode"]].drop_duplicates(["checkpoint", "attack"]).astype(str)
    attacks = sorted(found["attack"].unique())
    colours = found["mode"].map(colour_of)
    siblings = {colour: sorted(group["checkpoint"].unique()) for colour, group in found.groupby(colours)}
    table: dict[Series, Look] = {}
    for rank, (checkpoint, attack, mode) in enumerate(found.itertuples(index=False, name=None)):
        name = f"{checkpoint}, {attack}" if len(attacks) > 1 else checkpoint
        table[Series(checkpoint, attack)] = Look(
            label=shorten(name),
            colour=colour_of(mode),
            dash=DASHES[attacks.index(attack) % len(DASHES)],
            marker=MARKERS[siblings[colour_of(mode)].index(checkpoint) % len(MARKERS)],
            rank=rank,
        )
    return table


def colour_of(mode: str) -> str:
    """Find a mode's colour; a variant such as ``rl-x10`` or ``sl-adv-long`` has the colour of its base mode."""
    known = [name for name in COLOURS if mode == name or mode.startswith(f"{name}-")]
    return COLOURS[max(known, key=len)] if known else FALLBACK_COLOUR


def strokes(lines: int) -> tuple[float, float]:
    """Choose the opacity of bands and the width of lines in points: paler and thinner if there are many ``lines``."""
    return (0.2, 1.2) if lines < _CROWDED else (0.06, 0.8)


def rows_of(rows: pd.DataFrame, series: Series) -> pd.DataFrame:
    """Select the rows of one line."""
    return rows[(rows["checkpoint"] == series.checkpoint) & (rows["attack"] == series.attack)]


def shorten(name: str) -> str:
    """Shorten ``name`` in its middle if it is too long for a legend."""
    if len(name) <= _LONGEST_LABEL:
        return name
    half = (_LONGEST_LABEL - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Measure the widest line of ``text`` in inches, in the figures' font at ``size`` points."""
    font = FontProperties(family=_OVERRIDES["font.family"], size=size, weight=weight)
    with drawing_any_letters():
        widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in text.split("\n")]
    return max(widths) / 72


def wrapped(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Wrap ``text`` at ``inches``: at spaces; in a longer word after a punctuation mark, else anywhere."""

    def fits(line: str) -> bool:
        return text_width(line, size, weight) <= inches

    lines = [""]
    for word in text.split():
        for rank, piece in enumerate(_pieces(word, fits)):
            longer = f"{lines[-1]} {piece}" if lines[-1] and not rank else lines[-1] + piece
            if fits(longer) or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(piece)
    return "\n".join(lines)


def _pieces(word: str, fits: Callable[[str], bool]) -> list[str]:
    """Split the word into parts that fit a line each, at least one letter long."""
    if fits(word):
        return [word]
    pieces = []
    for part in re.findall(r"[^:/_.-]*[:/_.-]+|[^:/_.-]+", word):
        rest = part
        while len(rest) > 1 and not fits(rest):
            end = max(1, sum(fits(rest[:length]) for length in range(1, len(rest))))
            pieces.append(rest[:end])
            rest = rest[end:]
        pieces.append(rest)
    return pieces


def axis_label(metric: str, unit: str, separator: str = "\n") -> str:
    """Give the metric's name, and its unit in parentheses unless it has none ("-")."""
    name = LABELS.get(metric, metric)
    return name if unit == "-" else f"{name}{separator}({unit})"


def panels(
    shape: tuple[int, int], width: float, panel_height: float, labels: Sequence[str], **arrangement: Any
) -> tuple[Figure, "np.ndarray[tuple[int, int], np.dtype[Any]]"]:
    """Make a figure of ``shape`` panels, ``width`` inches wide, with room for a legend below; return it and its axes.

    ``panel_height`` is the height in inches of one row, axis labels included; ``arrangement`` goes to
    ``Figure.subplots``.
    """
    _, legend_rows = _legend_shape(labels, width)
    height = shape[0] * panel_height + 0.1 + legend_rows * _LEGEND_FONT * 1.6 / 72
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False, **arrangement)


def add_legend(figure: Figure, drawn: Sequence[Look]) -> None:
    """Add one legend below all panels, where it hides nothing."""
    fit_legend(figure, [_handle(look.label, look.colour, look.dash, look.marker) for look in drawn])


def handles_of(table: Mapping[Series, Look]) -> list[Line2D]:
    """Make legend entries: one per line; with several attacks one per checkpoint and one per attack."""
    attacks = {series.attack: look for series, look in table.items()}
    if len(attacks) == 1:
        return [_handle(look.label, look.colour, look.dash, look.marker) for look in table.values()]
    checkpoints = {series.checkpoint: look for series, look in table.items()}
    return [
        *(_handle(shorten(name), look.colour, "-", look.marker) for name, look in checkpoints.items()),
        *(_handle(shorten(name), "0.35", look.dash, "") for name, look in attacks.items()),
    ]


def _handle(label: str, colour: str, dash: Any, marker: str) -> Line2D:
    return Line2D([], [], label=label, color=colour, linestyle=dash, marker=marker)


def fit_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend of ``handles`` below all panels, in as many columns as fit."""
    columns, _ = _legend_shape([str(handle.get_label()) for handle in handles], figure.get_size_inches()[0])
    place_legend(figure, handles, columns)


def place_legend(figure: Figure, handles: Sequence[Artist], columns: int, handle_length: float = 2.8) -> None:
    """Add a legend of ``handles`` below all panels, in ``columns``; ``handle_length`` in multiples of its font."""
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=handle_length,
        columnspacing=1.2,
        labelspacing=0.35,
        borderaxespad=0.3,
        borderpad=0.2,
    )
    as_written(*legend.get_texts())


def casing(colour: str, width: float) -> withStroke:
    """Make an edge of ``colour`` that keeps a line or text readable on any background; ``width`` in points."""
    return withStroke(linewidth=width, foreground=colour)


def as_written(*texts: Text) -> None:
    """Show users' names unchanged: matplotlib would read text between two dollar signs as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def _legend_shape(labels: Sequence[str], width: float) -> tuple[int, int]:
    """Find columns and rows of the widest legend that fits ``width`` inches, filled column by column."""
    widths = [text_width(label, _LEGEND_FONT) for label in labels]
    handle = 5.0 * _LEGEND_FONT / 72
    for rows in range(1, len(widths)):
        columns = -(-len(widths) // rows)
        filled = np.array_split(widths, columns)
        if sum(max(column) + handle for column in filled) <= width - _LEGEND_BORDER:
            return columns, rows
    return 1, max(1, len(widths))


def far_apart(sizes: Sequence[float], ratio: float = 30.0) -> bool:
    """Whether lines with these largest magnitudes differ too much for one linear axis."""
    positive = [size for size in sizes if np.isfinite(size) and size > 0]
    return len(positive) > 1 and max(positive) / min(positive) > ratio


def set_symlog(axes: Axes, which: Literal["x", "y"], sizes: Sequence[float]) -> None:
    """Set a symmetric log scale, linear below the smallest line's magnitude, rounded down to a power of ten."""
    positive = [size for size in sizes if np.isfinite(size) and size > 0]
    threshold = 10.0 ** np.floor(np.log10(max(min(positive), max(positive) * 1e-6)))
    set_scale, axis = (axes.set_xscale, axes.xaxis) if which == "x" else (axes.set_yscale, axes.yaxis)
    set_scale("symlog", linthresh=threshold, linscale=0.5)
    decades = np.log10(max(positive) / threshold)
    stride = int(np.ceil(decades / (3 if which == "y" else 2.5)))
    powers = threshold * 10.0 ** np.arange(0, decades + 1e-9, max(1, stride))
    # A locator instead of `set_ticks`, which would widen the axis to ticks that no line reaches.
    axis.set_major_locator(FixedLocator([*(-powers[::-1]), 0.0, *powers]))
    axis.set_minor_locator(NullLocator())


def set_log(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Set a log scale from ``low`` to ``high``; values of 0 or less are drawn at the lower edge.

    Within two decades a few ticks have plain numbers, because matplotlib's own labels would overlap.
    """
    set_scale, set_limits, axis = (
        (axes.set_xscale, axes.set_xlim, axes.xaxis) if which == "x" else (axes.set_yscale, axes.set_ylim, axes.yaxis)
    )
    set_scale("log", nonpositive="clip")
    set_limits(low, high)
    if high / low > 1e3:
        axis.set_minor_locator(NullLocator())
        if which == "x":
            axis.set_major_locator(LogLocator(numticks=7))
    elif high / low <= 1e2:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 5 else MaxNLocator(4))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write ``name.pdf`` and ``name.png`` (200 dpi); the same figure always gives the same bytes.

    The figure is laid out once for both files.
    """
    metadata: Mapping[str, Mapping[str, str | None]] = {"pdf": {"CreationDate": None}, "png": {}}
    written = []
    layout = figure.get_layout_engine()
    with paper(), drawing_any_letters(), embedding_outlines_only():
        for kind, entries in metadata.items():
            path = directory / f"{name}.{kind}"
            drawn = io.BytesIO()  # on a full disk, matplotlib hides the disk's error behind another
            figure.savefig(drawn, format=kind, metadata=dict(entries))
            with atomic(path) as temporary:
                temporary.write_bytes(drawn.getbuffer())
            written.append(path)
            figure.set_layout_engine("none")
    figure.set_layout_engine(layout)
    return written


@contextmanager
def drawing_any_letters() -> Iterator[None]:
    """Silence warnings about letters that the font lacks: users' names may have them, and boxes show it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@contextmanager
def embedding_outlines_only() -> Iterator[None]:
    """Embed fonts in PDFs without layout tables, which take a third of the time to save a PDF.

    matplotlib has no option for this, so the block changes fontTools' default and restores it.
    """
    before = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*before, *_LAYOUT_TABLES]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = before

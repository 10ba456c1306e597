"""Draw spectral densities with eigenvalues as ticks, and traces by layer, from the tables of ``spectrum``."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from gradscope.figures import style
from gradscope.figures.attack import looks_of
from gradscope.figures.style import Drawing, Look

#: Decades of density shown below the largest.
_DECADES = 10
#: Decades of eigenvalues shown on either side of 0.
_DECADES_BESIDE_0 = 3
#: One dash pattern per matrix.
_DASHES: dict[str, Any] = {"hessian": "-", "gauss-newton": (0, (3, 1.5))}
_NAMES = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}
_SPACES = {
    "weights": "the mean cross-entropy in the weights",
    "input": "each image's own cross-entropy in the image, averaged",
}


def draw_spectra(numbers: pd.DataFrame, eigenvalues: pd.DataFrame, densities: pd.DataFrame) -> Iterator[Drawing]:
    """Draw ``spectrum-density``, one more for each layer's own block, and ``spectrum-layers``.

    Takes rows of the tables SPECTRUM, EIGENVALUES and DENSITY. Call it inside :func:`gradscope.figures.style.paper`.
    """
    table = looks_of(numbers)
    numbers, eigenvalues, densities = (rows.fillna({"layer": ""}) for rows in (numbers, eigenvalues, densities))
    for layer, rows in densities.groupby("layer", sort=False):
        own = [part[part["layer"] == layer] for part in (numbers, eigenvalues)]
        name = "spectrum-density" + (f"-{_file_name(str(layer))}" if layer else "")
        yield _density(name, str(layer), own[0], own[1], rows, table)
    by_layer = numbers[(numbers["layer"] != "") & (numbers["metric"] == "trace")]
    for matrix, rows in by_layer.groupby("matrix", sort=False):
        several = len(by_layer["matrix"].unique()) > 1
        yield _layers(f"spectrum-layers-{matrix}" if several else "spectrum-layers", str(matrix), rows, table)


def _file_name(layer: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", layer).strip("-") or "layer"


def _density(
    name: str,
    layer: str,
    numbers: pd.DataFrame,
    eigenvalues: pd.DataFrame,
    densities: pd.DataFrame,
    table: Mapping[str, Look],
) -> Drawing:
    """Draw one panel per model, all with the same axes."""
    models = list(densities["checkpoint"].unique())
    matrices = list(densities["matrix"].unique())
    labels = [*(_NAMES[matrix] for matrix in matrices), "largest eigenvalues"]
    figure, grid = style.panels((len(models), 1), style.COLUMN, 1.25, labels, sharex=True, sharey=True)
    top = float(densities["density"].max())
    ends = densities.groupby(["checkpoint", "matrix"])["eigenvalue"].agg(["min", "max"]).abs().max(axis=1)
    for axes, model in zip(grid[:, 0], models, strict=True):
        look = table[model]
        own = densities[densities["checkpoint"] == model]
        for matrix, line in own.groupby("matrix", sort=False):
            _draw_density(axes, line, look, _DASHES[str(matrix)], top)
        for matrix, values in eigenvalues[eigenvalues["checkpoint"] == model].groupby("matrix", sort=False):
            by_image = bool(values["index"].notna().any())
            shown = values[values["rank"] == 1] if by_image else values  # each image's largest
            _draw_ticks(axes, shown["value"].to_numpy(dtype=np.float64), matrices.index(matrix))
        axes.set_title(_title(look, numbers[numbers["checkpoint"] == model]), fontsize=7.0, loc="left", pad=3)
        axes.set_yscale("log")
        axes.set_ylim(top * 10.0**-_DECADES, top * 3)
        axes.set_ylabel("density")
    _scale_eigenvalues(grid[-1, 0], float(ends.max()) or 1.0)
    grid[-1, 0].set_xlabel("eigenvalue (nats per squared unit)")
    handles = [Line2D([], [], color="0.3", linestyle=_DASHES[matrix], label=_NAMES[matrix]) for matrix in matrices]
    mark = Line2D([], [], color="black", linestyle="", marker="|", markersize=7, markeredgewidth=1.2, label=labels[-1])
    style.place_legend(figure, [*handles, mark], 2)
    return Drawing(name, figure, _density_caption(layer, numbers, densities), tuple(_attacks(densities)))


def _scale_eigenvalues(axes: Axes, largest: float) -> None:
    """Set a symmetric log axis, linear around 0, with a tick for every decade."""
    highest = int(np.ceil(np.log10(largest)))
    powers = 10.0 ** np.arange(highest - _DECADES_BESIDE_0, highest + 1)
    axes.set_xscale("symlog", linthresh=powers[0], linscale=0.6)
    axes.xaxis.set_major_locator(FixedLocator([*(-powers[:0:-1]), 0.0, *powers[1:]]))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_density(axes: Axes, line: pd.DataFrame, look: Look, dash: Any, top: float) -> None:
    floor = top * 10.0 ** -(_DECADES + 1)
    x = line["eigenvalue"].to_numpy(dtype=np.float64)
    low, high, mean = (line[key].to_numpy(dtype=np.float64).clip(min=floor) for key in ("ci_low", "ci_high", "density"))
    axes.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0, zorder=1.5)
    axes.plot(x, mean, color=look.colour, linestyle=dash, linewidth=1.1, zorder=2.5)


def _draw_ticks(axes: Axes, values: "np.ndarray[tuple[int], np.dtype[np.float64]]", place: int) -> None:
    """Draw the eigenvalues as ticks on the lower edge; those of a second matrix lie above those of the first."""
    axes.plot(
        *(values, np.full(len(values), 0.05 + 0.1 * place)),
        linestyle="",
        marker="|",
        markersize=7,
        markeredgewidth=1.0,
        color=("black", "0.5")[place % 2],
        transform=axes.get_xaxis_transform(),
        zorder=3,
    )


def _title(look: Look, numbers: pd.DataFrame) -> str:
    """Write the model's label with the trace and the negative mass of its first matrix."""
    own = numbers[numbers["matrix"] == numbers["matrix"].iloc[0]]
    value, error = (dict(zip(own["metric"], own[column], strict=True)) for column in ("value", "error"))
    negative = value["negative-mass"]
    mass = f", negative mass {100 * negative:.0f} %" if np.isfinite(negative) else ""
    return f"{look.label}: trace {value['trace']:.3g} ± {error['trace']:.2g}{mass}"


def _density_caption(layer: str, numbers: pd.DataFrame, densities: pd.DataFrame) -> str:
    space = str(densities["space"].iloc[0])
    block = f", the block of the parameters of {layer}" if layer else ""
    count = int(numbers["n"].max())
    over = "random vectors" if space == "weights" else "images"
    return "; ".join(
        [
            f"Spectral density of the {' and the '.join(_NAMES[name] for name in densities['matrix'].unique())} of "
            f"{_SPACES[space]}{block}",
            f"line: mean over n = {count} {over} (stochastic Lanczos quadrature), area 1, on a log axis; each peak is "
            "as wide as its eigenvalue is uncertain, and at least 2 % of the eigenvalue",
            f"band: Student t interval over the {over}, 95 %, at each point",
            "ticks: the eigenvalues of largest size"
            if space == "weights"
            else "ticks: each image's largest eigenvalue",
            "eigenvalues near 0 are not resolved; more iterations narrow that range",
            "all panels have the same axes",
            f"title: trace{' of the first matrix' if len(numbers['matrix'].unique()) > 1 else ''} with its standard "
            "error, and negative mass, the share of negative eigenvalues in the sum of the sizes of all",
        ]
    )


def _attacks(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows["attack"].unique() if name != "none"]


def _layers(name: str, matrix: str, rows: pd.DataFrame, table: Mapping[str, Look]) -> Drawing:
    """Draw the trace of each layer's block, in the network's order from the top; one mark per model."""
    layers = list(rows["layer"].unique())
    models = list(rows["checkpoint"].unique())
    labels = [table[model].label for model in models]
    height = 0.35 + len(layers) * (0.1 + 0.07 * len(models))
    figure, grid = style.panels((1, 1), style.COLUMN, height, labels)
    axes = grid[0, 0]
    for number, model in enumerate(models):
        own = rows[rows["checkpoint"] == model]
        places = own["layer"].map(layers.index) + (number + 1) / (len(models) + 1) - 0.5
        value = own["value"].to_numpy(dtype=np.float64)
        ends = np.stack([value - own["ci_low"], own["ci_high"] - value]).astype(float)
        look = table[model]
        axes.errorbar(
            *(value, places),
            xerr=np.nan_to_num(ends).clip(min=0),
            linestyle="",
            color=look.colour,
            marker=look.marker or "o",
            elinewidth=0.9,
            label=look.label,
        )
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_ylabel("layer")
    axes.set_yticks(range(len(layers)), [style.shorten(layer) for layer in layers])
    style.as_written(*axes.get_yticklabels())
    axes.grid(visible=False, axis="y")
    for between in range(1, len(layers)):
        axes.axhline(between - 0.5, color="0.9", linewidth=0.5, zorder=0)
    if style.far_apart(list(rows["value"].abs())):
        style.set_symlog(axes, "x", list(rows["value"].abs()))
    axes.set_xlabel("trace (nats per squared unit)")
    handles = [
        Line2D([], [], color=table[model].colour, linestyle="", marker=table[model].marker or "o", label=label)
        for model, label in zip(models, labels, strict=True)
    ]
    style.place_legend(figure, handles, min(len(handles), 3), handle_length=1.0)
    caption = "; ".join(
        [
            f"Trace of the {_NAMES[matrix]} by layer",
            "mark: the sum of the diagonal entries of the layer's parameters; up to noise, the marks add up to the "
            "whole trace",
            f"lines: Student t interval over n = {int(rows['n'].max())} random vectors, 95 %",
        ]
    )
    return Drawing(name, figure, caption, tuple(_attacks(rows)))

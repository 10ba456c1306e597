"""Write landscapes as one self-contained HTML page: one surface per checkpoint, which the reader can turn."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from gradscope.figures import style
from gradscope.figures.landscape import MOST_IMAGES
from gradscope.figures.planes import (
    COLOURS,
    LOSS,
    QUANTITIES,
    ColourScale,
    PlaneGrid,
    axis_words,
    class_words,
    grid_words,
    plane,
    quantity_words,
    range_words,
    scale_of,
    weights_words,
)
from gradscope.figures.rendering import render, script_json, source
from gradscope.figures.style import Series
from gradscope.results.files import atomic
from gradscope.results.landscape import bands

#: Most surfaces on a page. A browser draws at most 16.
MOST_SCENES = 12
#: Most values over all views. Larger grids are thinned, so that the page stays below 6 MB.
MOST_VALUES = 140_000


class View(NamedTuple):
    """One view of the page: a plane for each checkpoint that has one, all on one scale."""

    name: str
    quantity: str
    words: str
    sentence: str
    planes: dict[Series, PlaneGrid]


def write_surfaces(landscape: pd.DataFrame, settings: Mapping[str, Any], path: Path) -> None:
    """Write rows of the table LANDSCAPE, which span a plane, as an interactive page; see :func:`surfaces`."""
    from plotly.offline import get_plotlyjs

    page = render(
        "figures/templates/surfaces.html",
        title=title(landscape),
        plotly=Markup(get_plotlyjs()),
        payload=script_json(surfaces(landscape, settings)),
        script=source("figures/templates/surfaces.js"),
    )
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def title(landscape: pd.DataFrame) -> str:
    """Choose the title of the page: around images or around weights."""
    return f"Loss landscape around {'images' if (landscape['space'] == 'input').any() else 'weights'}"


def surfaces(landscape: pd.DataFrame, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare the data that ``templates/surfaces.js`` draws, from rows of the table LANDSCAPE that span a plane.

    In input space the page shows the median over the images or one of the first images; in weight space one quantity.
    Rows of both spaces give the input space. ``settings`` is the manifest's mapping landscape.
    """
    images = landscape[landscape["space"] == "input"]
    rows = images if len(images) else landscape[landscape["space"] == "weights"]
    table = style.looks(rows)
    shown = dict(list(table.items())[:MOST_SCENES])
    views = _input_views(images, list(shown), settings) if len(images) else _weight_views(rows, list(shown), settings)
    values = sum(one.grid.size for view in views for one in view.planes.values())
    kept = min(1.0, (MOST_VALUES / max(1, values)) ** 0.5)
    left_out = f"; the first {len(shown)} of {len(table)} checkpoints are shown" if len(shown) < len(table) else ""
    return {
        "trace": _trace(),
        "layout": _layout([_scene_text(words) for words in axis_words(settings, "\n")]),
        "config": {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetCameraLastSave3d"]]},
        "scenes": [look.label for look in shown.values()],
        "views": [_packed(view, list(shown), settings, kept, left_out) for view in views],
    }


def _input_views(images: pd.DataFrame, shown: Sequence[Series], settings: Mapping[str, Any]) -> list[View]:
    quantiles = bands(images)
    epsilon = f", epsilon {settings['epsilon']:.4g}" if isinstance(settings.get("epsilon"), int | float) else ""
    attack = f", attack {' and '.join(dict.fromkeys(series.attack for series in shown))}{epsilon}"
    losses = quantiles[quantiles["metric"] == "loss"]
    indices = images["index"].unique().tolist()
    drawn = indices[:MOST_IMAGES]
    first = View(
        "median over images",
        "loss",
        LOSS,
        f"Median over n = {int(losses['n'].max())} images of the {LOSS} on the plane around each{attack}",
        {series: plane(style.rows_of(losses, series), "median") for series in shown},
    )
    views = [first]
    for index in drawn:
        rows = images[images["index"] == index]
        label = int(rows["label"].iloc[0])
        planes = {series: plane(style.rows_of(rows, series), "loss") for series in shown}
        which = f"; {len(drawn)} of {len(indices)} images can be shown"
        named = class_words(label, settings)
        sentence = f"Image {int(index)} of {named}: {LOSS} on the plane around it{attack}{which}"
        found = {series: one for series, one in planes.items() if one.grid.size}
        views.append(View(f"image {int(index)}, {named}", "loss", LOSS, sentence, found))
    return views


def _weight_views(weights: pd.DataFrame, shown: Sequence[Series], settings: Mapping[str, Any]) -> list[View]:
    views = []
    for quantity in QUANTITIES:
        if weights[quantity].notna().any():
            words = quantity_words(quantity, settings)
            planes = {series: plane(style.rows_of(weights, series), quantity) for series in shown}
            views.append(View(words, quantity, words, weights_words(quantity, settings), planes))
    return views


def _packed(
    view: View, shown: Sequence[Series], settings: Mapping[str, Any], kept: float, left_out: str
) -> dict[str, Any]:
    """Encode a view for the page's script: grids as base64 of little-endian float32, one row per b."""
    planes = list(view.planes.values())
    scale = scale_of(view.quantity, planes)
    thinned = {series: _thinned(one, kept) for series, one in view.planes.items()}
    one = next(iter(thinned.values()))
    thinning = f"; drawn at {len(one.a)} x {len(one.b)} of these" if kept < 1 else ""
    values = range_words(planes, "left out", "at the end of the scale")
    facts = f"heights and {scale.words()}; all surfaces share the scale; {values}"
    return {
        "name": view.name,
        "words": _pseudo_html(view.words),
        "title": _scene_text(view.words),
        "sentence": f"{view.sentence}{left_out}; {facts}; {grid_words(planes[0], settings)}{thinning}.",
        "threshold": scale.threshold,
        "ends": scale.ends,
        "ticks": scale.ticks,
        "planes": [_encoded(thinned[series], scale) if series in thinned else None for series in shown],
    }


def _thinned(one: PlaneGrid, kept: float) -> PlaneGrid:
    """Keep about the share ``kept`` of the rows and columns: both ends and, of an odd number, the centre."""
    rows, columns = (_kept(len(axis), kept) for axis in (one.b, one.a))
    return PlaneGrid(one.a[columns], one.b[rows], one.grid[np.ix_(rows, columns)])


def _kept(points: int, share: float) -> NDArray[np.intp]:
    count = points if share >= 1 else max(2, int(points * share) - (int(points * share) + 1) % 2)
    return np.unique(np.linspace(0, points - 1, count).round().astype(np.intp))


def _encoded(one: PlaneGrid, scale: ColourScale) -> dict[str, Any]:
    return {
        "a": one.a.tolist(),
        "b": one.b.tolist(),
        "values": base64.b64encode(scale.clipped(one.grid).astype("<f4").tobytes()).decode(),
    }


def _trace() -> dict[str, Any]:
    """Settings common to all surfaces; the script adds heights and ticks."""
    palette = colormaps[COLOURS].resampled(11)
    bar = {"orientation": "h", "thickness": 10, "len": 0.85, "x": 0.5, "y": -0.02, "yanchor": "top"}
    return {
        "type": "surface",
        "colorscale": [[step / 10, to_hex(palette(step))] for step in range(11)],
        "colorbar": {**bar, "outlinewidth": 0, "title": {"text": "", "side": "top"}},
        "lighting": {"ambient": 0.9, "diffuse": 0.3, "specular": 0.05, "roughness": 0.9, "fresnel": 0.1},
        "hovertemplate": "",
    }


def _layout(axes: Sequence[str]) -> dict[str, Any]:
    plain = {"backgroundcolor": "#f5f5f5", "showbackground": True, "gridcolor": "#d0d0d0", "zerolinecolor": "#a0a0a0"}
    across, up = ({**plain, "title": {"text": text, "font": {"size": 11}}} for text in axes)
    return {
        "font": {"family": "DejaVu Sans, Verdana, sans-serif", "size": 11, "color": "#222222"},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 60},
        "paper_bgcolor": "#ffffff",
        "scene": {
            "xaxis": across,
            "yaxis": up,
            "zaxis": {**plain, "title": {"text": "", "font": {"size": 11}}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.8},
            "camera": {"eye": {"x": -1.35, "y": -1.45, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}},
        },
    }


def _pseudo_html(text: str) -> str:
    """Escape ``text`` so that plotly, which reads labels as a kind of HTML, shows it unchanged."""
    return html.escape(text, quote=False)


def _scene_text(text: str) -> str:
    """Prepare ``text`` for the axes of a scene, which read tags but no escaped ``<``: replace it by another mark."""
    lines = (style.shorten(line) for line in text.replace("<", "\u2039").replace(">", "\u203a").split("\n"))
    return "<br>".join(lines)

"""Draw landscapes from ``landscape.csv`` and ``path.csv``: the loss on planes around images and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist

from gradscope.figures import style
from gradscope.figures.maps import (
    add_bar,
    centre,
    draw_path,
    fill,
    label_contours,
    line_handle,
    mosaic,
    outline,
)
from gradscope.figures.planes import (
    LOSS,
    QUANTITIES,
    class_words,
    grid_words,
    is_plane,
    plane,
    quantity_words,
    range_words,
    scale_of,
    weights_words,
)
from gradscope.figures.regions import class_handles, draw_regions, palette
from gradscope.figures.slices import WAYS, draw_slices, draw_ways, draw_weight_line
from gradscope.figures.stills import draw_surfaces
from gradscope.figures.style import Drawing, Look, Series
from gradscope.figures.two_attacks import draw_two_attacks
from gradscope.figures.walks import occupied, walk_words, walks
from gradscope.results.landscape import bands
from gradscope.results.schemas import PATH

#: Most images with a figure of their own.
MOST_IMAGES = 8
NO_ATTACKS: Mapping[str, Any] = {}


def draw_landscapes(
    landscape: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any], attacks: Mapping[str, Any] = NO_ATTACKS
) -> list[Drawing]:
    """Draw the figures of rows of the tables LANDSCAPE and PATH (which may be empty).

    In input space: ``landscape-median``, ``landscape-image-INDEX`` for the first images, and ``landscape-slices``. In
    weight space: ``weights-QUANTITY``, or ``weights-line-QUANTITY`` if all b are 0, and ``weights-ways`` for lines and
    curves to another checkpoint. ``settings`` is the manifest's mapping landscape, ``attacks`` its settings of each
    attack by name. Call it inside :func:`gradscope.figures.style.paper`.
    """
    path = path if len(path) else pd.DataFrame(columns=PATH.names)
    drawings: list[Drawing] = []
    images = landscape[landscape["space"] == "input"]
    if len(images):
        quantiles = bands(images)
        if is_plane(images):
            drawings += [*_draw_median(quantiles, settings), *_draw_images(images, path, settings, attacks)]
        drawings.append(draw_slices(quantiles, settings))
        if versus := settings.get("versus"):  # the plane depends on this attack, though the table has no rows for it
            drawings = [
                drawing._replace(attacks=tuple(dict.fromkeys([*drawing.attacks, str(versus)]))) for drawing in drawings
            ]
    weights = landscape[landscape["space"] == "weights"]
    if weights["way"].isin(WAYS).any() and not is_plane(weights):
        drawings += draw_ways(weights, settings)
        weights = weights[weights["way"] == "line"]
    for quantity in QUANTITIES:
        if weights[quantity].notna().any():
            attack_names = ("adversarial",) if quantity.startswith("adversarial") else ()
            if is_plane(weights):
                drawings += _draw_weights(quantity, weights, path, settings, attack_names)
            else:
                drawings.append(draw_weight_line(quantity, weights, settings, attack_names))
    return drawings


def _draw_median(quantiles: pd.DataFrame, settings: Mapping[str, Any]) -> list[Drawing]:
    """Draw the median loss as contours and as surfaces."""
    table = style.looks(quantiles)
    rows = quantiles[quantiles["metric"] == "loss"]
    planes = {series: plane(style.rows_of(rows, series), "median") for series in table}
    shares = {series: plane(style.rows_of(rows, series), "right") for series in table}
    images = int(quantiles["n"].max())
    half = 0.5 - 0.25 / max(1, images)
    crossed = {
        series: bool((share.grid < half).any() and (share.grid > half).any()) for series, share in shares.items()
    }
    scale = scale_of("loss", list(planes.values()))
    handles = [*([line_handle("half of the images right")] if any(crossed.values()) else []), centre("the image")]
    figure, panels, bars = mosaic(list(table.values()), 1, handles, settings)
    for (axes,), series in zip(panels, table, strict=True):
        fill(axes, planes[series], scale)
        if crossed[series]:
            outline(axes, shares[series], half)
        axes.add_line(centre("centre"))
    add_bar(figure, bars, scale, LOSS)
    sentence = f"Median over n = {images} images of the {LOSS} on the plane around each"
    uncrossed = [look.label for series, look in table.items() if not crossed[series]]
    caption = "; ".join(
        [
            f"{sentence}, + the image itself",
            "white line: half of the images are right" + (f", nowhere for {', '.join(uncrossed)}" if uncrossed else ""),
            f"{scale.words()}; all panels share scale and axes; {range_words(list(planes.values()))}",
            grid_words(next(iter(planes.values())), settings),
        ]
    )
    contours = Drawing("landscape-median", figure, caption, _attacks(table))
    return [contours, draw_surfaces(contours, table, planes, scale, LOSS, sentence, settings)]


def _draw_images(
    images: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any], attacks: Mapping[str, Any]
) -> list[Drawing]:
    table, checkpoints = style.looks(images), images.drop_duplicates("checkpoint")
    modes = dict(zip(checkpoints["checkpoint"].astype(str), checkpoints["mode"].astype(str), strict=True))
    indices = images["index"].unique().tolist()
    path = path[path["space"] == "input"]
    versus = bool(settings.get("versus")) and len(path) > 0
    others = not versus and (path["walker"] != path["checkpoint"]).any()
    walkers = _walker_looks(path["walker"].unique().tolist(), modes) if others else {}
    drawings = []
    for index in indices[:MOST_IMAGES]:
        rows, walked = images[images["index"] == index], path[path["index"] == index]
        shown = {series: look for series, look in table.items() if not style.rows_of(rows, series).empty}
        if versus:
            drawing = draw_two_attacks(int(index), rows, walked, shown, settings, attacks)
        else:
            drawing = _draw_image(int(index), rows, walked, shown, walkers, settings)
        which = f"; {min(MOST_IMAGES, len(indices))} of {len(indices)} images are drawn"
        drawings.append(drawing._replace(caption=drawing.caption + which))
    return drawings


def _draw_image(
    index: int,
    rows: pd.DataFrame,
    path: pd.DataFrame,
    shown: Mapping[Series, Look],
    walkers: Mapping[str, Look],
    settings: Mapping[str, Any],
) -> Drawing:
    """Draw losses above, decision regions below, and paths on both; ``walkers`` maps paths to their looks."""
    label = int(rows["label"].iloc[0])
    losses = {series: plane(style.rows_of(rows, series), "loss") for series in shown}
    classes = {series: plane(style.rows_of(rows, series), "predicted") for series in shown}
    paths = {series: walks(style.rows_of(path, series)) for series in shown}
    colours = palette(np.concatenate([regions.grid.ravel() for regions in classes.values()]), label)
    scale = scale_of("loss", list(losses.values()))
    handles = [*class_handles(colours, label, settings), centre("the image"), *_walk_handles(path, walkers)]
    figure, panels, bars = mosaic(list(shown.values()), 2, handles, settings)
    for (above, below), series in zip(panels, shown, strict=True):
        fill(above, losses[series], scale)
        draw_regions(below, classes[series], colours, occupied(paths[series]))
        for axes in (above, below):
            axes.add_line(centre("centre"))
            for walk in paths[series]:
                draw_path(axes, walk.points, walkers.get(walk.walker))
    for row in bars:
        add_bar(figure, [row], scale, LOSS)
    caption = "; ".join(
        [
            f"Image {index} of {class_words(label, settings)}: {LOSS} and, below, the predicted class on the plane "
            "around it, + the image itself",
            *walk_words("the attack", paths),
            f"{scale.words()}; all panels share scale and axes; {range_words(list(losses.values()))}",
            grid_words(next(iter(losses.values())), settings),
        ]
    )
    return Drawing(f"landscape-image-{index}", figure, caption, _attacks(shown))


def _draw_weights(
    quantity: str, weights: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any], attacks: tuple[str, ...]
) -> list[Drawing]:
    """Draw a quantity as contours and as surfaces."""
    table = style.looks(weights)
    path = path[path["space"] == "weights"]
    planes = {series: plane(style.rows_of(weights, series), quantity) for series in table}
    paths = {series: walks(style.rows_of(path, series)) for series in table}
    scale = scale_of(quantity, list(planes.values()))
    handles = [centre("the checkpoint"), *([line_handle("training, o to x")] if any(paths.values()) else [])]
    figure, panels, bars = mosaic(list(table.values()), 1, handles, settings)
    for (axes,), series in zip(panels, table, strict=True):
        fill(axes, planes[series], scale)
        label_contours(axes, planes[series], scale, occupied(paths[series]))
        axes.add_line(centre("centre"))
        for walk in paths[series]:
            draw_path(axes, walk.points)
    words, sentence = quantity_words(quantity, settings), weights_words(quantity, settings)
    add_bar(figure, bars, scale, words)
    caption = "; ".join(
        [
            f"{sentence}, + the checkpoint itself",
            *walk_words("training", paths),
            f"{scale.words()}; all panels share scale and axes; {range_words(list(planes.values()))}",
            grid_words(next(iter(planes.values())), settings),
        ]
    )
    contours = Drawing(f"weights-{quantity.replace('_', '-')}", figure, caption, attacks)
    return [contours, draw_surfaces(contours, table, planes, scale, words, sentence, settings)]


def _attacks(table: Mapping[Series, Look]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(series.attack for series in table))


def _walk_handles(path: pd.DataFrame, walkers: Mapping[str, Look]) -> list[Artist]:
    if path.empty:
        return []
    named = [look for name, look in walkers.items() if (path["walker"] == name).any()]
    return [line_handle(f"attack on {look.label}", look) for look in named] or [line_handle("attack, o to x")]


def _walker_looks(walkers: Sequence[str], modes: Mapping[str, str]) -> dict[str, Look]:
    """Give each path its mode's colour, and a dash pattern that tells paths of one colour apart."""
    named = [name for name in modes if name in walkers] + [name for name in walkers if name not in modes]
    rows = pd.DataFrame({"checkpoint": named, "attack": "", "mode": [modes.get(name, "") for name in named]})
    table: dict[str, Look] = {}
    for series, look in style.looks(rows).items():
        same_colour = sum(other.colour == look.colour for other in table.values())
        table[series.checkpoint] = Look(
            look.label, look.colour, style.DASHES[same_colour % len(style.DASHES)], "", look.rank
        )
    return table

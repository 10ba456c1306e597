"""Landscapes, from ``landscape.csv`` and ``path.csv``: the loss on planes around images and around weights."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.patches import Patch
from numpy.typing import NDArray

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
from gradscope.figures.regions import OTHER, draw_regions, palette
from gradscope.figures.slices import WAYS, draw_slices, draw_ways, draw_weight_line
from gradscope.figures.style import Drawing, Look, Series
from gradscope.results.landscape import bands
from gradscope.results.schemas import PATH

#: At most so many images get a figure of their own.
MOST_IMAGES = 8
LOSS = "loss (nats)"


class Walk(NamedTuple):
    """A path over a plane: who walked, its points ``(T + 1, 2)``, and how far from the plane they are at most."""

    walker: str
    points: NDArray[np.float64]
    off: float


def draw_landscapes(landscape: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any]) -> list[Drawing]:
    """The figures of rows of the tables LANDSCAPE and PATH (which may be empty).

    In input space ``landscape-median``, ``landscape-image-INDEX`` for the first images and ``landscape-slices``; in
    weight space ``weights-QUANTITY``, or ``weights-line-QUANTITY`` where all b are 0, and ``weights-ways`` where they
    lead to another checkpoint. ``settings`` is the manifest's mapping landscape. Call it inside
    :func:`gradscope.figures.style.paper`.
    """
    path = path if len(path) else pd.DataFrame(columns=PATH.names)
    drawings: list[Drawing] = []
    images = landscape[landscape["space"] == "input"]
    if len(images):
        quantiles = bands(images)
        if is_plane(images):
            drawings += [_draw_median(quantiles, settings), *_draw_images(images, path, settings)]
        drawings.append(draw_slices(quantiles, settings))
    weights = landscape[landscape["space"] == "weights"]
    if weights["way"].isin(WAYS).any() and not is_plane(weights):
        drawings += draw_ways(weights, settings)
        weights = weights[weights["way"] == "line"]
    for quantity in QUANTITIES:
        if weights[quantity].notna().any():
            attacks = ("adversarial",) if quantity.startswith("adversarial") else ()
            if is_plane(weights):
                drawings.append(_draw_weights(quantity, weights, path, settings, attacks))
            else:
                drawings.append(draw_weight_line(quantity, weights, settings, attacks))
    return drawings


def _draw_median(quantiles: pd.DataFrame, settings: Mapping[str, Any]) -> Drawing:
    table = style.looks(quantiles)
    rows = quantiles[quantiles["metric"] == "loss"]
    planes = {series: plane(style.rows_of(rows, series), "median") for series in table}
    shares = {series: plane(style.rows_of(rows, series), "right") for series in table}
    images = int(quantiles["n"].max())
    half = 0.5 - 0.25 / max(1, images)
    crossed = {series: bool((one.grid < half).any() and (one.grid > half).any()) for series, one in shares.items()}
    scale = scale_of("loss", list(planes.values()))
    handles = [*([line_handle("half of the images right")] if any(crossed.values()) else []), centre("the image")]
    figure, panels, bars = mosaic(list(table.values()), 1, handles, settings)
    for (axes,), series in zip(panels, table, strict=True):
        fill(axes, planes[series], scale)
        if crossed[series]:
            outline(axes, shares[series], half)
        axes.add_line(centre("centre"))
    add_bar(figure, bars, scale, LOSS)
    uncrossed = [look.label for series, look in table.items() if not crossed[series]]
    caption = "; ".join(
        [
            f"Median over n = {images} images of the {LOSS} on the plane around each, + the image itself",
            "white line: where the share of images that are right crosses half"
            + (f", nowhere for {', '.join(uncrossed)}" if uncrossed else ""),
            f"{scale.words()}, shared by all panels; {range_words(list(planes.values()))}",
            grid_words(next(iter(planes.values())), settings),
        ]
    )
    return Drawing("landscape-median", figure, caption, _attacks(table))


def _draw_images(images: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any]) -> list[Drawing]:
    table, found = style.looks(images), images.drop_duplicates("checkpoint")
    modes = dict(zip(found["checkpoint"].astype(str), found["mode"].astype(str), strict=True))
    indices = images["index"].unique().tolist()
    path = path[path["space"] == "input"]
    others = (path["walker"] != path["checkpoint"]).any()
    walkers = _walker_looks(path["walker"].unique().tolist(), modes) if others else {}
    drawings = []
    for index in indices[:MOST_IMAGES]:
        rows, walks = images[images["index"] == index], path[path["index"] == index]
        shown = {series: look for series, look in table.items() if not style.rows_of(rows, series).empty}
        drawing = _draw_image(int(index), rows, walks, shown, walkers, settings)
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
    """Losses above, decision regions below, the attacks' paths on both; ``walkers`` are those with a look."""
    label = int(rows["label"].iloc[0])
    losses = {series: plane(style.rows_of(rows, series), "loss") for series in shown}
    classes = {series: plane(style.rows_of(rows, series), "predicted") for series in shown}
    walks = {series: _walks(style.rows_of(path, series)) for series in shown}
    colours = palette(np.concatenate([one.grid.ravel() for one in classes.values()]), label)
    scale = scale_of("loss", list(losses.values()))
    handles = [*_class_handles(colours, label, settings), centre("the image"), *_walk_handles(path, walkers)]
    figure, panels, bars = mosaic(list(shown.values()), 2, handles, settings)
    for (above, below), series in zip(panels, shown, strict=True):
        fill(above, losses[series], scale)
        draw_regions(below, classes[series], colours, _occupied(walks[series]))
        for axes in (above, below):
            axes.add_line(centre("centre"))
            for walk in walks[series]:
                draw_path(axes, walk.points, walkers.get(walk.walker))
    for row in bars:
        add_bar(figure, [row], scale, LOSS)
    caption = "; ".join(
        [
            f"Image {index} of {class_words(label, settings)}: {LOSS} and, below, the predicted class on the plane "
            "around it, + the image itself",
            *_walk_words("the attack", walks),
            f"{scale.words()}, shared by all panels; {range_words(list(losses.values()))}",
            grid_words(next(iter(losses.values())), settings),
        ]
    )
    return Drawing(f"landscape-image-{index}", figure, caption, _attacks(shown))


def _draw_weights(
    quantity: str, weights: pd.DataFrame, path: pd.DataFrame, settings: Mapping[str, Any], attacks: tuple[str, ...]
) -> Drawing:
    table = style.looks(weights)
    path = path[path["space"] == "weights"]
    planes = {series: plane(style.rows_of(weights, series), quantity) for series in table}
    walks = {series: _walks(style.rows_of(path, series)) for series in table}
    scale = scale_of(quantity, list(planes.values()))
    handles = [centre("the checkpoint"), *([line_handle("training, o to x")] if any(walks.values()) else [])]
    figure, panels, bars = mosaic(list(table.values()), 1, handles, settings)
    for (axes,), series in zip(panels, table, strict=True):
        fill(axes, planes[series], scale)
        label_contours(axes, planes[series], scale, _occupied(walks[series]))
        axes.add_line(centre("centre"))
        for walk in walks[series]:
            draw_path(axes, walk.points)
    add_bar(figure, bars, scale, quantity_words(quantity, settings))
    caption = "; ".join(
        [
            f"{weights_words(quantity, settings)}, + the checkpoint itself",
            *_walk_words("training", walks),
            f"{scale.words()}, shared by all panels; {range_words(list(planes.values()))}",
            grid_words(next(iter(planes.values())), settings),
        ]
    )
    return Drawing(f"weights-{quantity.replace('_', '-')}", figure, caption, attacks)


def _attacks(table: Mapping[Series, Look]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(series.attack for series in table))


def _class_handles(colours: Mapping[int, str], label: int, settings: Mapping[str, Any]) -> list[Patch]:
    """A patch for each class that has a colour of its own, and one for all others."""
    named = {colour: class_words(number, settings) for number, colour in colours.items() if colour != OTHER}
    named[colours[label]] += " (true)"
    if OTHER in colours.values():
        named[OTHER] = "other classes"
    return [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name) for colour, name in named.items()]


def _walk_handles(path: pd.DataFrame, walkers: Mapping[str, Look]) -> list[Artist]:
    if path.empty:
        return []
    named = [look for name, look in walkers.items() if (path["walker"] == name).any()]
    return [line_handle(f"attack on {look.label}", look) for look in named] or [line_handle("attack, o to x")]


def _walker_looks(walkers: Sequence[str], modes: Mapping[str, str]) -> dict[str, Look]:
    """Each walker's look: its mode's colour, a dash pattern among those of one colour."""
    named = [name for name in modes if name in walkers] + [name for name in walkers if name not in modes]
    rows = pd.DataFrame({"checkpoint": named, "attack": "", "mode": [modes.get(name, "") for name in named]})
    table: dict[str, Look] = {}
    for series, look in style.looks(rows).items():
        alike = sum(other.colour == look.colour for other in table.values())
        table[series.checkpoint] = Look(look.label, look.colour, style.DASHES[alike % len(style.DASHES)], "", look.rank)
    return table


def _walks(path: pd.DataFrame) -> list[Walk]:
    ordered = path.sort_values("step", kind="stable")
    return [
        Walk(str(walker), steps[["a", "b"]].to_numpy(dtype=np.float64), float(steps["off"].max()))
        for walker, steps in ordered.groupby("walker", sort=True)
    ]


def _walk_words(walker: str, walks: Mapping[Series, Sequence[Walk]]) -> list[str]:
    off = [walk.off for paths in walks.values() for walk in paths]
    return [f"path of {walker} from o to x, projected onto the plane, at most {max(off):.2g} off it"] if off else []


def _occupied(walks: Sequence[Walk]) -> NDArray[np.float64]:
    """The centre and points along the whole of each path, not just its vertices, ``(M, 2)``."""
    points = [np.zeros((1, 2))]
    for walk in walks:
        steps = len(walk.points)
        at = np.linspace(0, steps - 1, 20 * steps)
        points.append(np.stack([np.interp(at, np.arange(steps), along) for along in walk.points.T], axis=1))
    return np.concatenate(points)

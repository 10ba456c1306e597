"""Draw two attacks step by step on the plane through an image and their end points, and show why one stops."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from gradscope.figures import style
from gradscope.figures.maps import add_bar, centre, fill, mosaic
from gradscope.figures.planes import LOSS, class_words, grid_words, plane, range_words, scale_of
from gradscope.figures.regions import class_handles, draw_regions, palette
from gradscope.figures.style import Drawing, Look, Moving, Series
from gradscope.figures.walks import Walk, occupied, walks

#: Colour and marker of the first attack's steps and of the second's.
_LOOKS = (("#000000", "o"), ("#D55E00", "^"))
#: Paths with more points than this have smaller marks.
_FEW = 40
#: Coordinates below this, in multiples of epsilon, count as 0: rounding.
_NOWHERE = 1e-4
_BALL: dict[str, Any] = {"color": "white", "linewidth": 0.9, "path_effects": [style.casing("0.3", 1.8)]}
_GRADIENT = "gradient's norm\n(nats per unit)"


def draw_two_attacks(
    index: int,
    rows: pd.DataFrame,
    path: pd.DataFrame,
    shown: Mapping[Series, Look],
    settings: Mapping[str, Any],
    attacks: Mapping[str, Any],
) -> Drawing:
    """Draw ``landscape-image-INDEX`` on the plane through an image and the end points of two attacks.

    Shows loss, predicted class and, per step, the norm of the gradient that each attack follows, with the floor below
    which its steps get shorter. ``attacks``: the manifest's settings of each attack by name.
    """
    label = int(rows["label"].iloc[0])
    losses = {series: plane(style.rows_of(rows, series), "loss") for series in shown}
    classes = {series: plane(style.rows_of(rows, series), "predicted") for series in shown}
    other = str(settings["versus"])
    paths = {series: _ordered(walks(style.rows_of(path, series)), other) for series in shown}
    names = list(dict.fromkeys(walk.walker for both in paths.values() for walk in both))
    colours = palette(np.concatenate([regions.grid.ravel() for regions in classes.values()]), label)
    scale = scale_of("loss", list(losses.values()))
    known_settings = {name: found if isinstance(found := attacks.get(name), Mapping) else {} for name in names}
    has_ball = all(known_settings[name].get("norm") == "l2" for name in names)
    several, unit = len(shown) > 1, "epsilon" if has_ball else "units of the axes"
    # Steps along the sign of the gradient have no floor.
    floors = {name: float(known_settings[name].get("norm_floor") or 0) * has_ball for name in names}
    handles = [*class_handles(colours, label, settings), centre("the image")]
    handles += [_handle(name, rank) for rank, name in enumerate(names)]
    handles += [Line2D([], [], label="ball of radius epsilon", **_BALL)] if has_ball else []
    handles += [_floor(name, rank) for rank, name in enumerate(names) if floors[name]]
    figure, panels, bars = mosaic(list(shown.values()), 2, handles, settings, strip=True)
    _share_gradients([strip for *_, strip in panels], paths, floors)
    moving: list[Moving] = []
    for (above, below, strip), series in zip(panels, shown, strict=True):
        strip.set_ylabel(_GRADIENT if above.get_ylabel() else "")
        fill(above, losses[series], scale)
        draw_regions(below, classes[series], colours, occupied(paths[series]))
        for axes in (above, below):
            if has_ball:
                axes.add_patch(Circle((0, 0), 1, fill=False, zorder=2.5, **_BALL))
            axes.add_line(centre("centre"))
            for rank, walk in enumerate(paths[series]):
                moving += _draw_walk(axes, walk, rank)
        for rank, walk in enumerate(paths[series]):
            moving += _draw_gradients(strip, walk, rank, floors[walk.walker])
    for row in bars:
        add_bar(figure, [row], scale, LOSS)
    caption = "; ".join(
        [
            f"Image {index} of {class_words(label, settings)} under {' and '.join(names)}, from o to x, one mark per "
            f"step: {LOSS} and, below, the predicted class on the plane through the image (+) and both ends",
            *(said for series, look in shown.items() for said in _words(look, paths[series], floors, unit, several)),
            *_off_words(paths, unit),
            "bottom: norm of the gradient that each attack follows"
            + (", dashed: the floor below which its steps get shorter" if any(floors.values()) else ""),
            f"{scale.words()}; all panels share scale and axes; {range_words(list(losses.values()))}",
            grid_words(next(iter(losses.values())), settings),
        ]
    )
    return Drawing(f"landscape-image-{index}", figure, caption, tuple(names), tuple(moving))


def _ordered(found: Sequence[Walk], other: str) -> list[Walk]:
    """Sort: first the attack that gives the first direction, then the other."""
    return sorted(found, key=lambda walk: walk.walker == other)


def _handle(name: str, rank: int) -> Line2D:
    colour, marker = _LOOKS[rank]
    return Line2D([], [], color=colour, marker=marker, markersize=3.5, linewidth=1.0, label=f"{name}, o to x")


def _floor(name: str, rank: int) -> Line2D:
    return Line2D([], [], color=_LOOKS[rank][0], linestyle="--", linewidth=0.9, label=f"floor of {name}")


def _draw_walk(axes: Axes, walk: Walk, rank: int) -> Iterator[Moving]:
    """Draw the path with one mark per step, a ring at its start and a cross at its current point."""
    colour, marker = _LOOKS[rank]
    (edge,) = axes.plot(*walk.points.T, color="white", linewidth=2.4, zorder=2.9 + 0.2 * rank)
    few = len(walk.points) <= _FEW
    marks: dict[str, Any] = {"marker": marker, "markersize": 3.0 if few else 1.8, "markeredgecolor": "white"}
    marks["markeredgewidth"] = 0.25 if few else 0.0
    (line,) = axes.plot(*walk.points.T, color=colour, linewidth=0.8, zorder=3 + 0.2 * rank, **marks)
    ring: dict[str, Any] = {"marker": "o", "markersize": 8.5, "markerfacecolor": "none", "markeredgewidth": 1.2}
    axes.plot(*walk.points[0], linestyle="", markeredgecolor=colour, zorder=3.1 + 0.2 * rank, **ring)
    cross: dict[str, Any] = {"marker": "X", "markersize": 6.5, "markeredgewidth": 0.7, "markeredgecolor": "white"}
    (head,) = axes.plot(*walk.points[-1], linestyle="", color=colour, zorder=3.8, **cross)
    yield from (Moving(edge, walk.points, trail=True), Moving(line, walk.points, trail=True))
    yield Moving(head, walk.points, trail=False)


def _draw_gradients(axes: Axes, walk: Walk, rank: int, floor: float) -> Iterator[Moving]:
    """Draw the gradient norms per step, and shade where they are too small for a full step."""
    colour, marker = _LOOKS[rank]
    points = np.stack([np.arange(len(walk.gradients), dtype=np.float64), walk.gradients], axis=1)
    (line,) = axes.plot(*points.T, color=colour, linewidth=0.9, marker=marker, markersize=2.0, zorder=3 + 0.2 * rank)
    if floor:
        axes.axhline(floor, color=colour, linestyle="--", linewidth=0.9, zorder=2)
        look: dict[str, Any] = {"fontsize": 6, "color": "0.25", "path_effects": [style.casing("white", 1.5)]}
        spot: dict[str, Any] = {"xytext": (-3, -2), "textcoords": "offset points", "ha": "right", "va": "top"}
        axes.annotate("steps shrink", (1, floor), xycoords=("axes fraction", "data"), **spot, **look)
        axes.axhspan(0, floor, color=colour, alpha=0.12, linewidth=0, zorder=1)
    yield Moving(line, points, trail=True)


def _share_gradients(
    strips: Sequence[Axes], found: Mapping[Series, Sequence[Walk]], floors: Mapping[str, float]
) -> None:
    """Set one log axis for all strips; gradients of exactly 0 are drawn at its lower edge."""
    norms = np.concatenate([np.empty(0), *(walk.gradients for both in found.values() for walk in both)])
    norms = np.concatenate([norms, [floor for floor in floors.values() if floor]])
    norms = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (float(norms.min()), float(norms.max())) if norms.size else (0.1, 10.0)
    steps = max([1, *(len(walk.gradients) for both in found.values() for walk in both)])
    for axes in strips:
        style.set_log(axes, "y", low / 3, high * 3)
        axes.set_xlim(-0.02 * steps, 1.02 * steps)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True))


def _words(look: Look, both: Sequence[Walk], floors: Mapping[str, float], unit: str, several: bool) -> Iterator[str]:
    """Say how far each attack went on a model, at which loss it ended, and what shortened its steps."""
    before = f"on {look.label} " if several else ""
    for walk in both:
        loss = walk.losses[-1] + 0.0  # of -0 too
        if walk.length < _NOWHERE:
            sentence = f"{before}{walk.walker} stays where it starts, at loss {loss:.3g}"
        else:
            sentence = (
                f"{before}{walk.walker} ends {walk.length:.2g} {unit} from its start and {walk.distance:.2g} from the "
                f"image, at loss {loss:.3g}"
            )
        floor, norms = floors[walk.walker], walk.gradients
        short = norms[norms < floor]
        if len(short):
            sentence += (
                f", because its gradient is below its floor of {floor:g} at {len(short)} of {len(norms)} steps, which "
                f"have {float(np.quantile(short, 0.5)) / floor:.2g} of their full length (median)"
            )
        zero = int((norms == 0).sum())
        if zero:
            sentence += f", exactly 0 at {zero}"
        yield sentence
    if both and both[0].distance < _NOWHERE:
        yield f"{before}{both[0].walker} ends at the image, so the first direction is a random one"
    elif len(both) == 2 and abs(both[1].points[-1, 1]) < _NOWHERE:
        yield f"{before}the image and both ends lie on one line, so the second direction is a random one"


def _off_words(found: Mapping[Series, Sequence[Walk]], unit: str) -> list[str]:
    """Say how far the starts and the whole paths lie from the plane that they are projected onto."""
    every = [walk for both in found.values() for walk in both]
    if not every:
        return []
    most, start = max(float(walk.off.max()) for walk in every), max(float(walk.off[0]) for walk in every)
    return [f"paths are projected onto the plane, at most {most:.2g} {unit} off it, the starts {start:.2g}"]

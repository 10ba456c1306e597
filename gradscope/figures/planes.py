"""Planes of a landscape as arrays, the colour scale that they share, and their words in captions and axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.figures import style

COLOURS = "viridis"
LOSS = "loss (nats)"

#: Quantities of weight space: name and unit.
QUANTITIES = {
    "loss": ("loss", "nats"),
    "adversarial_loss": ("loss under attack", "nats"),
    "accuracy": ("accuracy", "-"),
    "adversarial_accuracy": ("accuracy under attack", "-"),
    "custom": ("custom", "-"),
}
_BANDS = 24
_BANDS_A_DECADE = 6
_STEPS = (1, 2, 2.5, 5, 10)
_LARGEST_RATIO = 10.0
_MOST_DECADES = 3


class PlaneGrid(NamedTuple):
    """A grid of values ``(B, A)`` at ascending coordinates ``(A,)`` and ``(B,)``; NaN marks a missing value."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    grid: NDArray[np.float64]


def plane(rows: pd.DataFrame, column: str) -> PlaneGrid:
    """Arrange the values of ``column`` on the grid that the points of ``rows`` span."""
    across, a = pd.factorize(rows["a"].to_numpy(dtype=np.float64), sort=True)
    up, b = pd.factorize(rows["b"].to_numpy(dtype=np.float64), sort=True)
    values = np.full((len(b), len(a)), np.nan)
    values[up, across] = rows[column].to_numpy(dtype=np.float64)
    return PlaneGrid(a, b, values)


def is_plane(landscape: pd.DataFrame) -> bool:
    """Whether the rows span a plane, not just a line."""
    return all(bool(landscape[axis].max() > landscape[axis].min()) for axis in ("a", "b"))


def is_share(quantity: str) -> bool:
    """Whether the quantity is a share, always drawn on the whole range 0 to 1."""
    return quantity in ("accuracy", "adversarial_accuracy")


@dataclass(frozen=True)
class ColourScale:
    """The colours of one quantity on several planes: bands between ``edges``, marked at ``ticks``.

    Linear if ``threshold`` is None. Else linear up to that magnitude and logarithmic above; the linear part is as long
    as a decade.
    """

    edges: tuple[float, ...]
    ticks: tuple[float, ...]
    threshold: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value with a colour."""
        return self.edges[0], self.edges[-1]

    def norm(self) -> Normalize:
        """Convert to a norm of matplotlib."""
        low, high = self.ends
        if self.threshold is None:
            return Normalize(low, high)
        return SymLogNorm(self.threshold, linscale=0.9, vmin=low, vmax=high)

    def clipped(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Clip ``values`` to the ends of the scale; NaN stays NaN."""
        return np.clip(values, *self.ends)

    def height(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert ``values`` to heights of a surface: the linear part is as high as a decade."""
        if self.threshold is None:
            return values
        size = np.abs(values) / self.threshold
        heights: NDArray[np.float64] = np.sign(values) * np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))
        return heights

    def words(self) -> str:
        """Name the scale and its ends for a caption."""
        if self.threshold is None:
            kind = "linear"
        elif self.ends[0] >= self.threshold:
            kind = "logarithmic"
        else:
            kind = f"linear up to {self.threshold:g} and logarithmic above"
        return f"colours {kind}, from {self.ends[0]:.5g} to {self.ends[1]:.5g}"


SHARE = ColourScale(tuple(np.linspace(0, 1, 21).tolist()), (0.0, 0.25, 0.5, 0.75, 1.0), None)


def scale_of(quantity: str, planes: Sequence[PlaneGrid]) -> ColourScale:
    """Choose the scale that ``planes`` share: 0 to 1 for a share, else one that shows small and large values."""
    if is_share(quantity):
        return SHARE
    finite = [values[np.isfinite(values)] for _, _, values in planes]
    pooled = np.concatenate([np.empty(0), *finite])
    if not pooled.size:
        return _linear(0.0, 1.0)
    low, high = float(pooled.min()), float(pooled.max())
    largest = max(abs(low), abs(high))
    typical = min(float(np.quantile(np.abs(values), 0.75)) for values in finite if values.size)
    typical = max(typical, largest / 10**_MOST_DECADES)
    if largest <= _LARGEST_RATIO * typical:
        return _linear(0.0 if 0 <= low <= 0.2 * high else low, high)
    return _symmetric_log(low, high, 10.0 ** np.floor(np.log10(typical)))


def _linear(low: float, high: float) -> ColourScale:
    if not high > low:
        high = low + max(1.0, abs(low))
    edges = np.asarray(MaxNLocator(_BANDS, steps=_STEPS).tick_values(low, high))
    ticks = np.asarray(MaxNLocator(6, steps=_STEPS).tick_values(edges[0], edges[-1]))
    room = 1e-9 * (edges[-1] - edges[0])
    inside = ticks[(ticks >= edges[0] - room) & (ticks <= edges[-1] + room)]
    return ColourScale(tuple(edges.tolist()), tuple(inside.tolist()), None)


def _symmetric_log(low: float, high: float, threshold: float) -> ColourScale:
    decades = int(np.ceil(np.log10(max(abs(low), abs(high)) / threshold)))
    linear = np.linspace(0, threshold, _BANDS_A_DECADE + 1)
    logarithmic = threshold * 10.0 ** (np.arange(1, decades * _BANDS_A_DECADE + 1) / _BANDS_A_DECADE)
    positive = np.concatenate([linear, logarithmic])
    edges = np.concatenate([-positive[:0:-1], positive])
    first, last = np.searchsorted(edges, low, "right") - 1, np.searchsorted(edges, high, "left")
    edges = edges[max(0, first) : last + 1]
    powers = threshold * 10.0 ** np.arange(decades + 1)
    ticks = np.concatenate([-powers[::-1], [0.0], powers])
    return ColourScale(
        tuple(edges.tolist()), tuple(ticks[(ticks >= edges[0]) & (ticks <= edges[-1])].tolist()), float(threshold)
    )


def quantity_words(quantity: str, settings: Mapping[str, Any], separator: str = " ") -> str:
    """Give name and unit of a quantity; a user's own metric has the name in the manifest."""
    name, unit = QUANTITIES[quantity]
    if quantity == "custom" and settings.get("custom"):
        name = str(settings["custom"])
    return _with_unit(name, unit, separator)


def weights_words(quantity: str, settings: Mapping[str, Any]) -> str:
    """Begin a caption in weight space: quantity, number of images, plane or line, and treatment of batch norm."""
    words = quantity_words(quantity, settings)
    images = f" over n = {settings['images']} images" if isinstance(settings.get("images"), int) else ""
    norms = f", batch norm {settings['batch_norm']}" if settings.get("batch_norm") else ""
    where = "line" if settings.get("line") else "plane"
    return f"{words[0].upper()}{words[1:]}{images} on a {where} through the weights{norms}"


def axis_words(settings: Mapping[str, Any], separator: str = " ") -> tuple[str, str]:
    """Give name and unit of both directions; "a" and "b" if ``settings`` do not name them."""
    axes = settings.get("axes")
    named = axes if isinstance(axes, list) else []
    words = ["a", "b"]
    for position, axis in enumerate(named[:2]):
        if isinstance(axis, Mapping) and axis.get("name"):
            words[position] = _with_unit(str(axis["name"]), str(axis.get("unit") or "-"), separator)
    return words[0], words[1]


def class_words(number: int, settings: Mapping[str, Any]) -> str:
    """Name a class by its number, and by its name if ``settings`` have one other than the number."""
    names = settings.get("classes")
    name = str(names[number]) if isinstance(names, list) and number < len(names) else ""
    return f"class {number}" if name in ("", str(number)) else f"class {number}, {style.shorten(name)}"


def _with_unit(name: str, unit: str, separator: str) -> str:
    return name if unit == "-" else f"{name}{separator}({unit})"


def range_words(
    planes: Sequence[PlaneGrid], undefined_are: str = "grey", infinite_are: str = "in the last colour"
) -> str:
    """Give the range of values, and count undefined and infinite points and say how they are drawn."""
    values = np.concatenate([np.empty(0), *(values.ravel() for _, _, values in planes)])
    finite = values[np.isfinite(values)]
    undefined, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return ", ".join(
        [
            f"values from {finite.min() + 0.0:.5g} to {finite.max() + 0.0:.5g}" if finite.size else "no finite value",
            *([f"undefined at {undefined} points, {undefined_are}"] if undefined else []),
            *([f"infinite at {infinite} points, {infinite_are}"] if infinite else []),
        ]
    )


def grid_words(grid: PlaneGrid, settings: Mapping[str, Any]) -> str:
    """Give directions, points and extent of a plane, and the seed of its random direction."""
    first, second = axis_words(settings)
    plain = _plain_words(settings, 1 if len(grid.b) == 1 else 2)
    across = f"{first} from {grid.a[0]:.5g} to {grid.a[-1]:.5g}"
    seed = f", seed {settings['seed']}" if settings.get("seed") is not None else ""
    if len(grid.b) == 1:
        return f"{len(grid.a)} points along {across}{plain}{seed}"
    up = f"{second} from {grid.b[0]:.5g} to {grid.b[-1]:.5g}"
    return f"{len(grid.a)} x {len(grid.b)} points: {across}, {up}{plain}{seed}"


def _plain_words(settings: Mapping[str, Any], directions: int) -> str:
    """Name the weight directions that are not filter-normalised; names of normalised directions already say so."""
    known = settings.get("space") == "weights" and settings.get("axes")
    named = [words.partition("\n")[0] for words in axis_words(settings, "\n")[:directions]] if known else []
    plain = [name for name in named if "filter-normalised" not in name]
    return f", {' and '.join(plain)} not filter-normalised" if plain else ""

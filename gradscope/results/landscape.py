"""Values computed from ``landscape.csv``: quantiles over the images at every point, and the height of a barrier."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.errors import GradscopeError
from gradscope.results.metrics import METRICS
from gradscope.results.schemas import BANDS, IDENTITY, LANDSCAPE

_GRID_OF = ["checkpoint", "attack", "space", "way"]
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
_METRICS = ("loss", "margin")


def require_whole(landscape: pd.DataFrame) -> None:
    """Check that the LANDSCAPE rows form complete grids; raises :class:`GradscopeError` for a truncated file."""
    if landscape.empty:
        raise GradscopeError(f"directory: {LANDSCAPE.file} holds no rows")
    grids = landscape.groupby(_GRID_OF, sort=False, dropna=False, as_index=False)[["a", "b"]].nunique()
    counts = landscape.groupby([*_GRID_OF, "index"], sort=False, dropna=False, as_index=False).size()
    counts = counts.merge(grids, on=_GRID_OF)
    short = counts[counts["size"] != counts["a"] * counts["b"]]
    if not short.empty:
        first = short.iloc[0]
        where = "" if pd.isna(first["index"]) else f" around image {first['index']:g}"
        where += f" on the way {first['way']}" if pd.notna(first["way"]) and first["way"] else ""
        points = f"{first['size']} of {first['a'] * first['b']} points"
        raise GradscopeError(f"directory: {LANDSCAPE.file} is incomplete: {first['checkpoint']}{where} has {points}")


def barrier(shares: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Compute the barrier on a way between two ends: ``max over t in [0, 1] of v(t) - ((1 - t) v(0) + t v(1))``.

    (Frankle et al. 2020; at least 0.) ``values`` ``(..., T)`` are given at the ``shares`` t ``(T,)``, which include 0
    and 1; shares outside [0, 1] are ignored. Returns the heights ``(...)`` and the index into ``shares`` at which each
    is reached. If a value is undefined, so is the height.

    >>> barrier(np.array([0.0, 0.5, 1.0]), np.array([1.0, 3.0, 2.0]))
    (np.float64(1.5), np.int64(1))
    """
    (start,), (end,) = (np.flatnonzero(shares == share) for share in (0, 1))
    between = np.flatnonzero((shares >= 0) & (shares <= 1))
    with np.errstate(invalid="ignore"):
        chord = (1 - shares) * values[..., [start]] + shares * values[..., [end]]
        above = (values - chord)[..., between]
    return above.max(axis=-1), between[above.argmax(axis=-1)]


def bands(landscape: pd.DataFrame) -> pd.DataFrame:
    """Compute the rows of the table BANDS from the LANDSCAPE rows of input space.

    Order: checkpoints and attacks as they appear, then loss and margin, then a and b ascending. Quantiles are linear
    between order statistics. An image with NaN for a metric is left out of its quantiles and its n; an image with NaN
    margin is left out of the share that is right. A missing seed becomes None, as
    :func:`gradscope.results.tables.write_table` needs it.
    """
    rows = landscape[landscape["space"] == "input"]
    lines = [group for _, group in rows.groupby(["checkpoint", "attack"], sort=False, observed=True)]
    if not lines:
        return pd.DataFrame(columns=BANDS.names)
    return pd.concat([table for line in lines for table in _tables(line)], ignore_index=True)[BANDS.names]


def _tables(line: pd.DataFrame) -> list[pd.DataFrame]:
    """Compute the rows of one checkpoint under one attack, one table per metric."""
    column, a = pd.factorize(line["a"].to_numpy(), sort=True)
    row, b = pd.factorize(line["b"].to_numpy(), sort=True)
    image, images = pd.factorize(line["index"].to_numpy())
    cell, point = np.unique(column * len(b) + row, return_inverse=True)
    values = {metric: np.full((len(cell), len(images)), np.nan) for metric in _METRICS}
    for metric, table in values.items():
        table[point, image] = line[metric].to_numpy(dtype=np.float64)
    named: dict[str, Any] = {name.name: line[name.name].iloc[0] for name in IDENTITY}
    named["seed"] = None if pd.isna(named["seed"]) else int(named["seed"])
    named |= {"a": a[cell // len(b)], "b": b[cell % len(b)], "right": _share_right(values["margin"])}
    return [
        pd.DataFrame(
            named
            | {"metric": metric, "unit": METRICS[metric].unit}
            | dict(zip(QUANTILES, quantiles(table, list(QUANTILES.values())).T, strict=True))
            | {"n": (~np.isnan(table)).sum(axis=1)}
        )
        for metric, table in values.items()
    ]


def _share_right(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = (~np.isnan(margins)).sum(axis=1)
    shares: NDArray[np.float64] = (margins > 0).sum(axis=1) / np.where(defined > 0, defined, np.nan)
    return shares


def quantiles(values: NDArray[np.float64], levels: list[float]) -> NDArray[np.float64]:
    """Compute quantiles ``(P, Q)`` of each row of ``values`` ``(P, N)``, without NaN, as numpy's "linear" method does.

    Infinite values count; a quantile between a finite and an infinite value is infinite.

    >>> quantiles(np.array([[3.0, 1.0, np.nan, 2.0]]), [0.5, 1.0])
    array([[2., 3.]])
    """
    ordered = np.sort(values, axis=1)
    last = (~np.isnan(ordered)).sum(axis=1, keepdims=True) - 1
    at = np.maximum(last, 0) * np.asarray(levels)
    below = np.floor(at).astype(np.intp)
    low = np.take_along_axis(ordered, below, axis=1)
    high = np.take_along_axis(ordered, np.minimum(below + 1, np.maximum(last, 0)), axis=1)
    share = at - below
    with np.errstate(invalid="ignore"):
        between = low * (1 - share) + high * share
    return np.where((share > 0) & (low != high), between, low)

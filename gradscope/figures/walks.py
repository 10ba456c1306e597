"""Paths over a plane: the iterates of an attack or the epochs of a training run, from ``path.csv``."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.figures.style import Series


class Walk(NamedTuple):
    """A path over a plane.

    ``points`` ``(T + 1, 2)`` and their distance ``off`` ``(T + 1,)`` from the plane, both in the unit of the axes;
    ``losses`` ``(T + 1,)`` in nats; ``gradients`` ``(T,)``: norms of the gradients that the steps followed. NaN marks
    values that the file does not have.
    """

    walker: str
    points: NDArray[np.float64]
    off: NDArray[np.float64]
    losses: NDArray[np.float64]
    gradients: NDArray[np.float64]

    @property
    def length(self) -> float:
        """Distance from the first point to the last, exact if the last lies on the plane."""
        return float(np.hypot(np.linalg.norm(self.points[-1] - self.points[0]), self.off[0]))

    @property
    def distance(self) -> float:
        """Distance from the centre to the last point."""
        return float(np.hypot(np.linalg.norm(self.points[-1]), self.off[-1]))


def walks(path: pd.DataFrame) -> list[Walk]:
    """Read the paths of one plane from rows of the table PATH, sorted by name."""
    ordered = path.sort_values("step", kind="stable")
    return [
        Walk(
            str(walker),
            steps[["a", "b"]].to_numpy(dtype=np.float64),
            steps["off"].to_numpy(dtype=np.float64),
            _column(steps, "loss"),
            _column(steps, "gradient")[:-1],
        )
        for walker, steps in ordered.groupby("walker", sort=True)
    ]


def _column(steps: pd.DataFrame, name: str) -> NDArray[np.float64]:
    return np.full(len(steps), steps.get(name, np.nan), dtype=np.float64)


def walk_words(walker: str, found: Mapping[Series, Sequence[Walk]]) -> list[str]:
    """Say for a caption whose path is drawn, and how far off the plane it lies."""
    off = [float(walk.off.max()) for walks_of_plane in found.values() for walk in walks_of_plane]
    return [f"path of {walker} from o to x, projected onto the plane, at most {max(off):.2g} off it"] if off else []


def occupied(found: Sequence[Walk]) -> NDArray[np.float64]:
    """Sample the centre and all of each path, also between its vertices, ``(M, 2)``."""
    points = [np.zeros((1, 2))]
    for walk in found:
        steps = len(walk.points)
        at = np.linspace(0, steps - 1, 20 * steps)
        points.append(np.stack([np.interp(at, np.arange(steps), along) for along in walk.points.T], axis=1))
    return np.concatenate(points)

"""What walks over a plane: iterates of attacks and epochs of training, from ``path.csv``."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.figures.style import Series


class Walk(NamedTuple):
    """A path over a plane.

    ``points`` ``(T + 1, 2)`` in the unit of the axes, ``off`` ``(T + 1,)`` how far from the plane they are, in that
    unit; ``losses`` ``(T + 1,)`` nats, and ``gradients`` ``(T,)``: the norms of the gradients stepped along; NaN where
    the file has none.
    """

    walker: str
    points: NDArray[np.float64]
    off: NDArray[np.float64]
    losses: NDArray[np.float64]
    gradients: NDArray[np.float64]

    @property
    def length(self) -> float:
        """From the first point to the last, what is off the plane included where the last lies on it."""
        return float(np.hypot(np.linalg.norm(self.points[-1] - self.points[0]), self.off[0]))

    @property
    def distance(self) -> float:
        """From the centre to the last point."""
        return float(np.hypot(np.linalg.norm(self.points[-1]), self.off[-1]))


def walks(path: pd.DataFrame) -> list[Walk]:
    """The walks in rows of the table PATH of one plane, by name."""
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
    """The sentence part that says whose path is drawn, and how far off the plane it is."""
    off = [float(walk.off.max()) for walks_of_plane in found.values() for walk in walks_of_plane]
    return [f"path of {walker} from o to x, projected onto the plane, at most {max(off):.2g} off it"] if off else []


def occupied(found: Sequence[Walk]) -> NDArray[np.float64]:
    """The centre and points along the whole of each path, not just its vertices, ``(M, 2)``."""
    points = [np.zeros((1, 2))]
    for walk in found:
        steps = len(walk.points)
        at = np.linspace(0, steps - 1, 20 * steps)
        points.append(np.stack([np.interp(at, np.arange(steps), along) for along in walk.points.T], axis=1))
    return np.concatenate(points)

"""Results of trajectories, landscapes and spectra."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.errors import GradscopeError, lookup
from gradscope.measure.result.base import Result
from gradscope.results.metrics import METRICS


class Trace(Result):
    """Gradients along attacks: ``steps`` (by step), ``samples`` (by image), ``summary``."""

    kind, main = "analysis", "steps"

    def mean(self, metric: str) -> pd.Series:
        """Return the mean of ``metric`` over the images, by checkpoint, attack and step."""
        steps = self.frame()
        measured = dict.fromkeys(steps["metric"])
        if metric in METRICS and metric not in measured:
            raise GradscopeError(f"metric must be one of the measured {', '.join(measured)}, got {metric!r}")
        lookup(measured, metric, "metric")
        return steps[steps["metric"] == metric].set_index(["checkpoint", "attack", "step"])["mean"]

    def _findings(self) -> Iterator[str]:
        rows = self.frame("summary")
        accuracy = rows[(rows["metric"] == "accuracy") & rows["subset"].str.endswith("/all")]
        steps = self.frame()
        cosines = steps[steps["metric"] == "cosine"].groupby(["checkpoint", "attack"])["mean"].last().to_dict()
        for names, own in accuracy.groupby(["checkpoint", "attack"], sort=False):
            (model, attack), at = names, own.set_index("subset")["value"]
            last = f", cosine {cosines[names]:.3g}" if names in cosines else ""
            yield f"{model}: accuracy {at['clean/all']:.1%} clean, {at['worst/all']:.1%} under {attack}{last}"


class Landscape(Result):
    """Planes around images or weights: ``landscape`` (by point), ``summary``, ``samples``, ``path``."""

    kind, main = "landscape", "landscape"

    def _findings(self) -> Iterator[str]:
        facts, summary = self.manifest["landscape"], self.frame("summary")
        rows = summary[(summary["metric"] == "sharpness") & (summary["subset"] == "around/all")]
        where = f"{facts['space']} space, {facts['points']} points a side"
        for model, sharpness in zip(rows["checkpoint"], rows["value"], strict=True):
            own = summary[(summary["checkpoint"] == model) & (summary["metric"] == "loss-barrier")]
            ways = [f"{way} {height:.3g}" for way, height in zip(own["subset"], own["value"], strict=True)]
            barrier = f", barrier {', '.join(ways).replace('/all', '')} nats" if ways else ""
            yield f"{model}: {where}, sharpness {sharpness:.3g} nats{barrier}"


class Spectrum(Result):
    """The spectrum of the loss's curvature: ``spectrum`` (trace and others), ``eigenvalues``, ``density``.

    The attributes cover all parameters, or all images; they need one model and one matrix.
    """

    kind, main = "spectrum", "spectrum"

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """The eigenvalues of largest absolute value ``(k,)``; in input space ``(images, k)``. Nats per squared unit."""
        rows = self._whole("eigenvalues", "eigenvalues")
        values: NDArray[np.float64] = rows["value"].to_numpy(dtype=np.float64)
        return values.reshape(-1, int(rows["rank"].max())) if rows["index"].notna().any() else values

    @property
    def residuals(self) -> NDArray[np.float64]:
        """Residuals, in the shape of :attr:`eigenvalues`: a true eigenvalue lies within this distance of each."""
        rows = self._whole("residuals", "eigenvalues")
        return rows["residual"].to_numpy(dtype=np.float64).reshape(self.eigenvalues.shape)

    @property
    def negative_mass(self) -> float:
        """The share of the negative eigenvalues in the sum of all absolute values."""
        return self._number("negative_mass", "negative-mass", "value")

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues; in input space its mean over the images."""
        return self._number("trace", "trace", "value")

    @property
    def trace_error(self) -> float:
        """The standard error of :attr:`trace`, over random vectors; in input space over images."""
        return self._number("trace_error", "trace", "error")

    @property
    def density(self) -> pd.DataFrame:
        """The density of the eigenvalues with its 95 % band: ``eigenvalue``, ``density``, ``ci_low``, ``ci_high``."""
        rows = self._whole("density", "density")
        return rows[["eigenvalue", "density", "ci_low", "ci_high"]].reset_index(drop=True)

    def _whole(self, name: str, table: str) -> pd.DataFrame:
        """Return the rows of ``table`` for all parameters together; needs one matrix of one model."""
        self._require_one(name)
        rows = self.frame(table)
        rows = rows[rows["layer"].isna() | (rows["layer"] == "")]
        if len(matrices := rows["matrix"].unique()) != 1:
            raise GradscopeError(f"{name} must be of one matrix, got {', '.join(matrices)}; see .frame({table!r})")
        return rows

    def _number(self, name: str, metric: str, column: str) -> float:
        rows = self._whole(name, "spectrum")
        return float(rows.loc[rows["metric"] == metric, column].iloc[0])

    def _findings(self) -> Iterator[str]:
        rows = self.frame()
        rows = rows[rows["layer"].isna() | (rows["layer"] == "")]
        for (model, matrix), own in rows.groupby(["checkpoint", "matrix"], sort=False):
            value, error = (dict(zip(own["metric"], own[column], strict=True)) for column in ("value", "error"))
            trace = f"trace {value['trace']:.3g} ± {error['trace']:.2g}"
            where = _SPACES[own["space"].iloc[0]]
            yield f"{model}: {matrix} in the {where}, {trace}, largest eigenvalue {value['eigenvalue']:.3g}"


#: The variable of the derivatives in each space.
_SPACES = {"weights": "weights", "input": "image"}

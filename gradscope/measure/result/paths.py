"""Results of trajectories and landscapes."""

from collections.abc import Iterator

import pandas as pd

from gradscope.errors import GradscopeError, lookup
from gradscope.measure.result.base import Result
from gradscope.results.metrics import METRICS


class Trace(Result):
    """What the gradients do along attacks: ``steps`` (by step), ``samples`` (by image), ``summary``."""

    kind, main = "analysis", "steps"

    def mean(self, metric: str) -> pd.Series:
        """The mean of ``metric`` over the images, by checkpoint, attack and step."""
        steps = self.frame()
        measured = dict.fromkeys(steps["metric"])
        if metric in METRICS and metric not in measured:
            raise GradscopeError(f"metric must be one that was measured, {', '.join(measured)}, got {metric!r}")
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
        facts, rows = self.manifest["landscape"], self.frame("summary")
        rows = rows[(rows["metric"] == "sharpness") & (rows["subset"] == "around/all")]
        where = f"{facts['space']} space, {facts['points']} points a side"
        for model, sharpness in zip(rows["checkpoint"], rows["value"], strict=True):
            yield f"{model}: {where}, sharpness {sharpness:.3g} nats"

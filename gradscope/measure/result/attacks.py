"""Results of attacks, on their own models and transferred to others."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from gradscope.errors import GradscopeError
from gradscope.measure.directory import IMAGES
from gradscope.measure.result.base import Result
from gradscope.results.schemas import ATTACK_SAMPLES, CURVE, TRANSFER_SAMPLES, Table
from gradscope.results.stats import Interval


class Attacks(Result):
    """Robust accuracy under a set of attacks: ``attacks``, ``samples``, and ``curve`` at every radius."""

    kind, main = "attack", "attacks"

    @property
    def _samples(self) -> Table:
        return ATTACK_SAMPLES

    @property
    def robust_accuracy(self) -> float:
        """The share of all images right when clean and under every attack; needs one model and one radius."""
        return float(self._robust("robust_accuracy")["value"])

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of :attr:`robust_accuracy`."""
        lowest = self._robust("interval")
        return Interval(float(lowest["ci_low"]), float(lowest["ci_high"]))

    def _robust(self, name: str) -> pd.Series:
        self._require_one(name)
        rows = self._lowest
        if len(rows) != 1:
            radii = ", ".join(f"{radius:g}" for radius in self.manifest["epsilons"])
            raise GradscopeError(f"{name} must be of attacks that ran at one radius, got {radii}; see .frame()")
        return rows.iloc[0]

    @property
    def curve(self) -> pd.DataFrame:
        """Robust accuracy at every radius, one row for each radius at which it falls; needs ``curve=True``."""
        self._require_curve()
        return self.frame("curve")

    @property
    def distances(self) -> pd.DataFrame:
        """Distance of each image's nearest fooling point, by image (rows) and model; needs ``curve=True``."""
        self._require_curve()
        rows = self.frame("samples")
        rows = rows[(rows["metric"] == "distance") & (rows["point"] == "nearest")]
        return rows.pivot_table(index="index", columns="checkpoint", values="value")

    @property
    def median_distance(self) -> float:
        """The radius at which half of the images are wrong (0 if wrong when clean); needs ``curve=True``."""
        self._require_one("median_distance", ".distances")
        return float(self.distances.median().iloc[0])

    def _require_curve(self) -> None:
        if CURVE.file not in self.files:
            raise GradscopeError("curve must be True to measure distances, got False")

    @property
    def _lowest(self) -> pd.DataFrame:
        """The lowest robust accuracy of each model at each radius."""
        rows = self.frame()
        rows = rows[(rows["metric"] == "robust-accuracy") & (rows["subset"] == "all") & (rows["attack"] != "none")]
        rows = rows.sort_values("value", kind="stable").drop_duplicates(["checkpoint", "norm", "epsilon"])
        return rows.sort_index()

    def _findings(self) -> Iterator[str]:
        lowest = self._lowest
        for row in lowest.to_dict("records"):
            ball = f"{row['norm']} {row['epsilon']:.3g}"
            yield f"{row['checkpoint']}: robust accuracy at most {row['value']:.1%}, {ball}"
        yield from (
            f"{model}: no attack could be run" for model in self.models if model not in set(lowest["checkpoint"])
        )

    @property
    def adversarial(self) -> dict[str, Any]:
        """The arrays of ``adversarial.npz``: every point that fooled a model; needs ``save_images=True``."""
        arrays = self._arrays(IMAGES)
        if arrays is None:
            raise GradscopeError("save_images must be True to keep adversarial images, got False")
        return arrays


class TransferMatrix(Result):
    """Accuracy of each model on each model's examples: ``transfer``, ``samples``; gradient ``similarity``."""

    kind, main = "transfer", "transfer"

    @property
    def _samples(self) -> Table:
        return TRANSFER_SAMPLES

    @property
    def matrix(self) -> pd.DataFrame:
        """Accuracy by source (rows; "" for the clean images) and target (columns), in the order of the models."""
        cells = self.frame().pivot_table(index="source", columns="checkpoint", values="accuracy")
        return cells.loc[["", *self.models], self.models]

    @property
    def similarity(self) -> pd.DataFrame:
        """Mean cosine of the input gradients of every two models at the clean images, in the order of the models."""
        rows = self.frame("similarity")
        rows = rows[rows["metric"] == "gradient-cosine"]
        cells = rows.pivot_table(index="other", columns="checkpoint", values="value", dropna=False)
        return cells.loc[self.models, self.models]

    def _findings(self) -> Iterator[str]:
        cells = self.matrix
        for target in self.models:
            others = cells[target].drop(["", target])
            yield f"{target}: accuracy {cells[target][target]:.1%} on its own examples, {others.min():.1%} on others'"

"""Every CSV schema: which columns a file has, in which order, what they mean and in what unit."""

from dataclasses import dataclass
from math import inf
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: Literal["text", "integer", "number"]
    meaning: str


@dataclass(frozen=True)
class Table:
    """One CSV file: its name and its columns, in order."""

    file: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Column names, in order."""
        return [column.name for column in self.columns]


@dataclass(frozen=True)
class Metric:
    """A quantity measured along an attack; its values and intervals lie between ``low`` and ``high``.

    ``per_sample`` is False where it is a property of the whole set.
    """

    unit: str
    meaning: str
    low: float = -inf
    high: float = inf
    per_sample: bool = True


IDENTITY = (
    Column("checkpoint", "text", "short name of the checkpoint"),
    Column("mode", "text", "training mode, or 'foreign' for a model trained elsewhere"),
    Column("dataset", "text", "data set that was attacked"),
    Column("arch", "text", "architecture"),
    Column("seed", "integer", "training seed; empty for a foreign model"),
    Column("attack", "text", "attack along which it was measured"),
)

STEPS = Table(
    "steps.csv",
    (
        *IDENTITY,
        Column("step", "integer", "iterate x_t the value belongs to; 0 is the start, T the final point"),
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column("unit", "text", "unit of mean, std and interval"),
        Column("mean", "number", "mean over the images for which the metric is defined"),
        Column("std", "number", "sample standard deviation over those images"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "images for which the metric is defined"),
        Column("undefined", "integer", "images for which it is not (a gradient is exactly 0)"),
    ),
)

SAMPLES = Table(
    "samples.csv",
    (
        *IDENTITY,
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column(
            "point",
            "text",
            "clean: the image; final: x_T; worst: the strongest iterate of all starts; path: over x_0 .. x_T-1",
        ),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; nan where undefined"),
    ),
)

SUMMARY = Table(
    "summary.csv",
    (
        *IDENTITY,
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column("subset", "text", "point, and after a slash which images: all, correct or wrong at that point"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "mean over the subset, or the value of the whole set"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "images in the subset for which the metric is defined"),
    ),
)

HISTORY = Table(
    "history.csv",
    (
        Column("epoch", "integer", "epochs done, from 1"),
        Column("phase", "integer", "index of the phase, from 0"),
        Column("loss", "number", "mean training loss, adversarial share included"),
        Column("accuracy", "number", "share of training predictions (argmax, training mode) that are right"),
        Column("reward", "number", "mean reward of the sampled actions; empty where none are sampled"),
        Column("validation_loss", "number", "mean cross-entropy on the validation images, nats"),
        Column("validation_accuracy", "number", "share of validation images that are right"),
        Column("learning_rate", "number", "learning rate of the last update"),
        Column("images_per_second", "number", "training images a second, all devices"),
        Column("seconds", "number", "seconds the epoch took, validation included"),
    ),
)

#: What `analyze --metrics` knows.
METRICS: dict[str, Metric] = {
    "cosine": Metric("-", "cosine of the gradients at consecutive iterates, <g_t, g_t-1> / (|g_t| |g_t-1|)", -1, 1),
    "sign": Metric("-", "share of coordinates with equal sign in g_t and g_t-1, among those non-zero in both", 0, 1),
    "zero": Metric("-", "share of coordinates where g_t or g_t-1 is zero; comes with sign", 0, 1),
    "norm": Metric("nats per unit pixel range", "L2 norm of the gradient of the sample's own loss in the image", 0),
    "loss": Metric("nats", "cross-entropy", 0),
    "margin": Metric("logits", "logit of the label minus the largest other"),
    "entropy": Metric("bits", "entropy of the softmax", 0),
    "accuracy": Metric("-", "share of images whose prediction is the label", 0, 1),
    "dispersion": Metric("-", "1 - norm of the mean over the set of the unit gradients", 0, 1, per_sample=False),
    "path-variance": Metric("-", "1 - mean pairwise cosine of an image's gradients along the path", 0, 2),
    "displacement": Metric("-", "|x_T - x_0| / sum of the step lengths", 0, 1),
}

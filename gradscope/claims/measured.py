"""The measurements of a study: values of each image, their models, and the training of each model."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

Values = pd.Series  # by index of the image in the test set

#: The name of the attack in rows of clean images.
CLEAN = "none"
#: The kinds of measurements of an image, the closest to the paper's own first.
KINDS = ("analysis", "battery", "transfer", "landscape", "spectrum")


class Ball(NamedTuple):
    """The norm ball that an attack may search around an image; pixel units."""

    norm: str
    epsilon: float

    def __str__(self) -> str:
        return f"{self.norm}, epsilon {self.epsilon:.4g}"


class Steps(NamedTuple):
    """The step size of an attack, in pixel units, and its number of steps."""

    size: float
    number: int

    def __str__(self) -> str:
        return f"{self.number} steps of {self.size:.4g}"

    def equal(self, other: "Steps") -> bool:
        """Whether both are equal, up to the rounding of a product."""
        return self.number == other.number and math.isclose(self.size, other.size, rel_tol=1e-6)


@dataclass(frozen=True)
class MeasuredModel:
    """A checkpoint: its training, its name in the results, its file's SHA-256, and its fingerprint if known."""

    dataset: str
    arch: str
    mode: str
    seed: int | None
    name: str
    file: str
    fingerprint: str = ""

    def is_same(self, other: "MeasuredModel") -> bool:
        """Whether both are the same model: the same file, or trained again to the same weights."""
        own, others = ((model.dataset, model.arch, model.mode, model.seed) for model in (self, other))
        same = self.file == other.file or (self.fingerprint != "" and self.fingerprint == other.fingerprint)
        return own == others and same


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of one model on many images, at one point of one attack.

    ``settings``: two models' values are compared only if these are equal. ``whole``: whether every image that is right
    when clean was attacked; otherwise images that were not have NaN. ``source``: the model on which the examples were
    made. ``floor``: the gradient norm below which the attack's steps shrink. ``steps``: those of PGD, None if unknown.
    ``how``: how it was measured, in words.
    """

    model: MeasuredModel
    kind: str
    attack: str
    ball: Ball
    metric: str
    point: str
    settings: str
    of_images: Values
    labels: Values
    source: MeasuredModel | None = None
    boxed: bool = True
    whole: bool = True
    floor: float = 0.0
    steps: Steps | None = None
    how: str = ""


@dataclass(frozen=True)
class Course:
    """The training of a model: epochs, epochs with an adversary, machine, and the share of images trained on.

    ``history`` has one row per epoch. ``ended`` is the time of its end, in seconds since 1970, NaN if unknown. A copy
    with multiplied logits has a ``logit_factor``, and its ``mode`` is that of the original. ``jobs`` is the number of
    stages that its study ran at a time.
    """

    epochs: int
    adversarial: int
    machine: str
    share: float
    history: pd.DataFrame | None = None
    mode: str = ""
    logit_factor: float = 1.0
    ended: float = math.nan
    jobs: int = 1

    @property
    def seconds(self) -> float:
        """Seconds of all epochs; NaN without a history."""
        return math.nan if self.history is None else float(self.history["seconds"].sum())

    def overlaps(self, other: "Course") -> bool:
        """Whether both trainings overlapped on one machine by more than a tenth of the shorter one's seconds.

        Two more seconds are tolerated, because ends are known to the second. If a time is unknown, they do not overlap.
        """
        if self.machine != other.machine or math.isnan(self.seconds + other.seconds + self.ended + other.ended):
            return False
        together = min(self.ended, other.ended) - max(self.ended - self.seconds, other.ended - other.seconds)
        return together > 2 + 0.1 * min(self.seconds, other.seconds)


@dataclass
class Findings:
    """Everything read from a study. ``notes``: what was left out, and why.

    ``similarities``: the mean cosine of the input gradients of two models, keyed by the pair.
    """

    models: list[MeasuredModel] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    courses: dict[MeasuredModel, Course] = field(default_factory=dict)
    verdicts: dict[MeasuredModel, str] = field(default_factory=dict)
    similarities: dict[tuple[MeasuredModel, MeasuredModel], float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

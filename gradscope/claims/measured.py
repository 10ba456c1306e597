"""What a study measured: values by image, whose they are, and how each model was trained."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

Values = pd.Series  # by index of the image in the test set

#: The attack that clean images are filed under.
CLEAN = "none"
#: What measured an image, the closest to the paper's own measurement first.
KINDS = ("analysis", "battery", "transfer", "landscape", "spectrum")


class Ball(NamedTuple):
    """What an attack may do to an image; pixel units."""

    norm: str
    epsilon: float

    def __str__(self) -> str:
        return f"{self.norm}, epsilon {self.epsilon:.4g}"


class Steps(NamedTuple):
    """How an attack walks: how long each step is, in pixel units, and how many there are."""

    size: float
    number: int

    def __str__(self) -> str:
        return f"{self.number} steps of {self.size:.4g}"

    def equal(self, other: "Steps") -> bool:
        """Whether both are the same, to the rounding of a product."""
        return self.number == other.number and math.isclose(self.size, other.size, rel_tol=1e-6)


@dataclass(frozen=True)
class MeasuredModel:
    """A checkpoint: what it was trained as, its name in the results, its file's SHA-256, its fingerprint if known."""

    dataset: str
    arch: str
    mode: str
    seed: int | None
    name: str
    file: str
    fingerprint: str = ""

    def is_same(self, other: "MeasuredModel") -> bool:
        """Whether both are one model: the same file, or trained again to the same weights."""
        ours, theirs = ((one.dataset, one.arch, one.mode, one.seed) for one in (self, other))
        alike = self.file == other.file or (self.fingerprint != "" and self.fingerprint == other.fingerprint)
        return ours == theirs and alike


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of one model on many images, at one point of one attack.

    ``settings``: two models' values are compared only where these are equal. ``whole``: every image that is right when
    clean was attacked; elsewhere the values of the others are NaN. ``source``: the model the attack was made on.
    ``floor``: below which gradient norm the attack's steps shrink. ``steps``: those of an attack that is PGD, None
    where they are not known. ``how`` it was measured, in words.
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
    """How a model was trained: epochs, those with an adversary, the machine, the share of images that was trained on.

    ``history`` has a row an epoch. ``ended``: when the training had, in seconds since 1970, NaN where unknown. A copy
    whose logits were multiplied has a ``logit_factor``, and in ``mode`` that of its original. ``jobs``: how many stages
    of its study ran side by side.
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
        """What all epochs took; NaN where there is no history."""
        return math.nan if self.history is None else float(self.history["seconds"].sum())

    def overlaps(self, other: "Course") -> bool:
        """Whether both were trained on one machine at one time, by more than a tenth of the shorter one's seconds.

        Two seconds more are allowed, for ends are known to the second; what is not known does not overlap.
        """
        if self.machine != other.machine or math.isnan(self.seconds + other.seconds + self.ended + other.ended):
            return False
        together = min(self.ended, other.ended) - max(self.ended - self.seconds, other.ended - other.seconds)
        return together > 2 + 0.1 * min(self.seconds, other.seconds)


@dataclass
class Findings:
    """Everything that was found. ``notes``: what was left out of it, and why.

    ``similarities``: mean cosine of the input gradients of two models, by both.
    """

    models: list[MeasuredModel] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    courses: dict[MeasuredModel, Course] = field(default_factory=dict)
    verdicts: dict[MeasuredModel, str] = field(default_factory=dict)
    similarities: dict[tuple[MeasuredModel, MeasuredModel], float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

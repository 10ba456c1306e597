"""``manifest.json`` as typed entries: how a result was made. Keys that a manifest lacks are None or empty."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradscope.errors import GradscopeError
from gradscope.reading import read_json

MANIFEST = "manifest.json"
#: The commands that make results or checkpoints.
_COMMANDS = frozenset(("train", "analyze", "landscape", "spectrum", "attack", "transfer", "audit", "judge", "study"))


class _Entry(BaseModel):
    """A part of the manifest. Unknown keys are ignored, so that later versions may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


M = TypeVar("M", bound=_Entry)


class ImagesOf(_Entry):
    """The images of a data set that were measured."""

    name: str = ""
    split: str = ""
    images: int | None = None
    of: int | None = None
    fingerprint: str | None = None


class Provenance(_Entry):
    """Versions, machine and time."""

    gradscope: str | None = None
    commit: str | None = None
    python: str | None = None
    packages: dict[str, str | None] = {}
    platform: str | None = None
    processor: str | None = None
    device: str | None = None
    command: tuple[str, ...] = ()
    time: str | None = None

    @property
    def shell_command(self) -> str:
        """The command for a shell; empty if it was no gradscope command, as in a notebook or a test."""
        return shlex.join(self.command) if len(self.command) > 1 and self.command[1] in _COMMANDS else ""


class FirstLook(_Entry):
    """The checks of a model before measurement: on all ``images``, and on the ``probed`` ones among them."""

    images: int = Field(ge=1)
    classes: int = Field(ge=1)
    right: int = Field(ge=0)
    classes_labelled: int
    classes_predicted: int
    probed: int
    pixels: int | None = None  # values of an image, C x H x W; not in older manifests
    random: bool
    depends_on_batch: bool
    probabilities: bool
    flips: int = 0  # not in older manifests
    zero_gradients: int | None
    not_finite_gradients: int | None = None  # None in older manifests, too


class GradientsOf(_Entry):
    """Counts of images, of the ``images`` attacked, whose gradient was zero or not finite at some step."""

    images: int = Field(ge=0)
    zero_gradient: int = Field(ge=0)
    not_finite_gradient: int = Field(ge=0)


class EpochsOf(_Entry):
    """Epochs of a checkpoint's training done and planned, and the epoch whose weights were kept."""

    done: int
    planned: int
    kept: int | None = None  # None in older manifests, too


class Examined(_Entry):
    """A measured checkpoint, as in the manifest."""

    label: str = ""
    source: str | None = None
    weights: str | None = None
    sha256: str | None = None
    fingerprint: str | None = None
    config: dict[str, Any] | None = None
    training: EpochsOf | None = Field(default=None, alias="epochs")
    trained: Provenance | None = None
    data: ImagesOf | None = None
    first_look: FirstLook | None = None
    gradients: dict[str, GradientsOf] = {}
    seconds: float | dict[str, float] | None = None
    skipped: dict[str, str] = {}

    @property
    def epochs(self) -> int | None:
        """Training epochs, summed over the phases; None if the manifest does not say."""
        phases = (self.config or {}).get("phases")
        if not isinstance(phases, list) or not phases:
            return None
        epochs = [phase.get("epochs") for phase in phases if isinstance(phase, Mapping)]
        counts = [count for count in epochs if isinstance(count, int)]
        return sum(counts) if len(counts) == len(phases) else None

    @property
    def total_seconds(self) -> float | None:
        """Seconds that measuring it took; None if the manifest does not say."""
        if isinstance(self.seconds, dict):
            return sum(self.seconds.values()) if self.seconds else None
        return self.seconds


class Manifest(_Entry):
    """The manifest of one command's results; ``complete`` is None if the manifest does not say."""

    kind: str = ""
    complete: bool | None = None
    seed: int | None = None
    norm: str | None = None
    epsilon: float | None = None
    epsilons: tuple[float, ...] = ()
    attacks: dict[str, Any] = {}
    landscape: dict[str, Any] = {}
    backward: dict[str, str] = {}
    draws: int | None = None
    loss: str | None = None
    checkpoints: tuple[Examined, ...] = ()
    provenance: Provenance | None = None

    @property
    def adapted(self) -> list[str]:
        """How the attacks were adapted to the model, each item a part of a sentence."""
        parts = ", ".join(f"{part} ({standin})" for part, standin in self.backward.items())
        sentences = {
            f"the attacks take the gradient from a stand-in for {parts}; values are the model's own": parts,
            f"attacked through, and judged by, the mean of {self.draws} draws": self.draws,
            f"pgd-own climbs {self.loss}": self.loss,
        }
        return [sentence for sentence, holds in sentences.items() if holds]

    @property
    def balls(self) -> set[tuple[str, float]]:
        """Norm and radius of every ball in which attacks ran, as far as the manifest says."""
        radii = [*self.epsilons, *([] if self.epsilon is None else [self.epsilon])]
        balls = [(self.norm, radius) for radius in radii]
        balls += [
            (settings.get("norm"), settings["epsilon"])
            for settings in self.attacks.values()
            if isinstance(settings, Mapping) and isinstance(settings.get("epsilon"), int | float)
        ]
        return {(norm, radius) for norm, radius in balls if norm is not None}

    def ball(self, attack: str) -> str:
        """Name norm and radius of ``attack`` in words; empty if the manifest does not give them."""
        settings = self.attacks.get(attack)
        if not isinstance(settings, Mapping) or not isinstance(settings.get("epsilon"), int | float):
            return ""
        return f"{settings.get('norm', '')} {settings['epsilon']:.4g}".strip()


class StageOf(_Entry):
    """A stage of a study: its state, its cost, and where it ran."""

    label: str = ""
    kind: str = ""
    place: str = ""
    needs: tuple[str, ...] = ()
    state: str = ""
    seconds: float | None = None
    when: str | None = None
    where: dict[str, str | int | None] = {}
    log: str | None = None
    error: str | None = None
    blocked_by: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The sub-directory of the study to which a measurement writes; empty for other stages."""
        return self.place.partition("/")[2] if self.kind == "measure" else ""


class Absent(_Entry):
    """Missing data of a study: each data set with the reason, and the stages left out because of it."""

    data: dict[str, str] = {}
    stages: tuple[str, ...] = ()


class StudyManifest(_Entry):
    """The manifest of a whole study; ``complete`` is None if it is not the manifest of a study."""

    study: str = ""
    complete: bool | None = None
    stages: tuple[StageOf, ...] = ()
    absent: Absent = Absent()
    seconds: float | None = None


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in ``path``; raises :class:`GradscopeError` if it cannot be read or is no object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise GradscopeError(f"directory: {path} is damaged: it must hold a JSON object, got {type(content).__name__}")
    return content


def read_manifest(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Read the manifest in ``path``, typed and as plain JSON; raises :class:`GradscopeError` if it is damaged."""
    content = read_object(path)
    return _typed(Manifest, content, path), content


def read_study_manifest(path: Path) -> tuple[StudyManifest, dict[str, Any]]:
    """Read a study's manifest in ``path``, typed and as plain JSON; raises :class:`GradscopeError` if it is damaged."""
    content = read_object(path)
    return _typed(StudyManifest, content, path), content


def _typed(kind: type[M], content: dict[str, Any], path: Path) -> M:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise GradscopeError(f"directory: {path} is damaged: {first_mistake(error)}") from None


def first_mistake(error: ValidationError) -> str:
    """Format the first mistake that pydantic found: its place and its message, on one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return " ".join(f"{where}: {first['msg']}".split()).removeprefix(": ")

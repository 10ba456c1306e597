"""The plan of a study: every stage, named by the content of what it depends on.

A stage's name is a digest of its resolved configuration, the images it is made from, the names of the stages it
needs, and gradscope's version. Equal names stand for equal results to rounding, wherever and whenever they are made;
what changes in a recipe changes the names of what depends on it, and of nothing else. Torch's version is recorded with
the stage, not part of its name: a GPU's results and a CPU's go together.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradscope
from gradscope.config import Data, Training
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError, lookup
from gradscope.models.architectures import ARCHITECTURES, ModelSpec
from gradscope.results.rows import CLAIMS, PAGE
from gradscope.study.commands import Options, plain
from gradscope.study.expansion import Measurement, Model, Study
from gradscope.study.recipe import Resources
from gradscope.training.phases import resolve

#: Roots of what stages write: a file's place is one of these and the path below it.
CHECKPOINTS, RESULTS = "checkpoints", "results"


@dataclass(frozen=True)
class ImageFacts:
    """What a plan knows of a data set whose images are there."""

    source: Data
    name: str
    fingerprint: str
    train: int
    test: int
    channels: int
    image_size: int
    classes: int

    @classmethod
    def of(cls, source: Data, splits: Splits) -> "ImageFacts":
        """The facts of the images that ``source`` names."""
        digest = hashlib.sha256(f"{splits.train.fingerprint} {splits.test.fingerprint}".encode())
        train = splits.train
        return cls(
            *(source, train.name, digest.hexdigest(), len(train), len(splits.test)),
            *(train.channels, train.image_size, len(train.classes)),
        )


@dataclass(frozen=True)
class TrainTask:
    """A model to be trained, as it is resolved; from the weights of the model ``start`` where it is given."""

    images: ImageFacts
    training: Training
    start: str | None
    keep_epochs: bool


@dataclass(frozen=True)
class ScaleTask:
    """A model whose logits are multiplied; ``name`` is what it is called."""

    images: ImageFacts
    name: str
    source: str
    factor: float | str


@dataclass(frozen=True)
class MeasureTask:
    """A command over models; ``others`` are those it names in other roles."""

    images: ImageFacts
    command: str
    options: Options
    models: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ClaimsTask:
    """The paper's claims, judged on those of the places of ``results`` that are there."""

    results: tuple[str, ...]


@dataclass(frozen=True)
class ReportTask:
    """The page of the whole study, made of everything that is there and of the study's manifest."""


Task = TrainTask | ScaleTask | MeasureTask | ClaimsTask | ReportTask


@dataclass(frozen=True)
class Stage:
    """One piece of a study. ``kind`` is a key of the table of stage kinds; ``needs`` are labels of other stages.

    ``settings`` is what the ``name`` is made of, beside the needs. The stage writes below ``place``, a file or a
    directory under one of the two roots.
    """

    kind: str
    label: str
    name: str
    place: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    task: Task
    resources: Resources

    @property
    def gathers(self) -> bool:
        """Whether it runs on those of its needs that are done, however many are not."""
        return isinstance(self.task, ClaimsTask | ReportTask)

    @property
    def reads_manifest(self) -> bool:
        """Whether it is made from the study's manifest, too, which then says nothing of it."""
        return isinstance(self.task, ReportTask)


@dataclass(frozen=True)
class Plan:
    """All stages, each after those it needs; ``absent``: why images are missing, and what is left out for that."""

    study: Study
    stages: tuple[Stage, ...]
    images: Mapping[str, ImageFacts]
    absent: Mapping[str, str]
    left_out: tuple[str, ...]


def train_label(model: str) -> str:
    """The stage that makes a model."""
    return f"model-{model}"


def make_plan(study: Study, *, download: bool = False, with_report: bool = True) -> Plan:
    """Resolve every model on its images. Images that are missing leave out what needs them, unless all are.

    What no run could do raises :class:`GradscopeError`.
    """
    images, absent = _look_for_images(study, download)
    stages: dict[str, Stage] = {}
    for model in study.models:
        if model.data in images:
            stage = _model_stage(model, images[model.data], study.recipe.resources, stages)
            stages[stage.label] = stage
    for measurement in study.measurements:
        if measurement.data in images:
            stage = _measure_stage(measurement, images[measurement.data], study.recipe.resources, stages)
            stages[stage.label] = stage
    stages = _by_measurement(stages)
    _add_conclusions(stages, study.recipe.resources)
    if not with_report:
        stages.pop("report", None)
    left_out = [train_label(model.label) for model in study.models if model.data in absent]
    left_out += [f"measure-{one.name}" for one in study.measurements if one.data in absent]
    return Plan(study, tuple(stages.values()), images, absent, tuple(left_out))


def _look_for_images(study: Study, download: bool) -> tuple[dict[str, ImageFacts], dict[str, str]]:
    """What is known of each data set that a model is trained on, and why the others are missing."""
    images: dict[str, ImageFacts] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys(model.data for model in study.models):
        source = study.source(name)
        # Kept in checkpoints and sent to other machines, so it must hold in any working directory.
        source = source.model_copy(update={"data_root": source.data_root and source.data_root.expanduser().resolve()})
        try:
            images[name] = ImageFacts.of(source, sources.load(source, download=download))
        except GradscopeError as error:
            absent[name] = str(error)
    if not images:
        raise GradscopeError("; ".join(absent.values()))
    return images, absent


def _model_stage(model: Model, images: ImageFacts, resources: Resources, stages: Mapping[str, Stage]) -> Stage:
    needs = () if model.of is None else (train_label(model.of),)
    settings: dict[str, Any]
    task: Task
    if model.factor is not None:
        assert model.of is not None
        resources = resources.model_copy(update={"devices": 1})
        kind, task = "scale", ScaleTask(images, model.name, model.of, model.factor)
        settings = {"factor": model.factor, "name": model.name}
    else:
        training = _resolve(model, images)
        kind, task = "train", TrainTask(images, training, model.of, bool(model.options.keep_epochs))
        decisive = training.model_dump(mode="json")
        del decisive["data"]["data_root"]
        settings = {"training": decisive, "images": images.fingerprint, "keep_epochs": task.keep_epochs}
        if resources.devices > 1:  # each has dropout and, on a CPU, batch norm of its own
            settings["devices"] = resources.devices
    place = f"{CHECKPOINTS}/{model.label}.pt"
    return _stage(kind, train_label(model.label), place, needs, settings, task, resources, stages)


def _resolve(model: Model, images: ImageFacts) -> Training:
    """The whole configuration of a model's training; its mode is called what the model is called."""
    options = model.options
    given = {
        "architecture": model.architecture,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "seed": model.seed,
        "data": images.source.model_dump(),
    }
    try:
        training = resolve(
            model.mode,
            images.source,
            images.image_size,
            paper=bool(options.paper),
            table={} if options.phases is None else {"phases": list(options.phases)},
            settings=options.set,
            epochs=options.epochs,
            options={key: value for key, value in given.items() if value is not None},
        )
        lookup(ARCHITECTURES, training.architecture, "architecture")
        ModelSpec(training.architecture, images.classes, images.channels, images.image_size, (0.5,), (0.5,))
    except GradscopeError as error:
        raise GradscopeError(f"model {model.label}: {error}") from None
    return training.model_copy(update={"mode": model.name})


def _measure_stage(
    measurement: Measurement, images: ImageFacts, resources: Resources, stages: Mapping[str, Stage]
) -> Stage:
    _require_images(measurement, images)
    everyone = [*measurement.models, *(label for labels in measurement.others.values() for label in labels)]
    needs = tuple(train_label(label) for label in dict.fromkeys(everyone))
    task = MeasureTask(images, measurement.command, measurement.options, measurement.models, measurement.others)
    settings = {
        "command": measurement.command,
        "options": measurement.options.resolved(),
        "models": list(measurement.models),
        "others": plain(measurement.others),
        "images": images.fingerprint,
    }
    label, place = f"measure-{measurement.name}", f"{RESULTS}/{measurement.name}"
    return _stage("measure", label, place, needs, settings, task, resources, stages)


def _by_measurement(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """The measurements as the recipe has them, each after the models that it needs; then the other models.

    So the results that the recipe names first come first, before the models of later ones are trained.
    """
    ordered: dict[str, Stage] = {}

    def place(stage: Stage) -> None:
        for need in stage.needs:
            place(stages[need])
        ordered.setdefault(stage.label, stage)

    for stage in sorted(stages.values(), key=lambda stage: stage.kind != "measure"):
        place(stage)
    return ordered


def _add_conclusions(stages: dict[str, Stage], resources: Resources) -> None:
    """Claims and report, where anything is measured; neither needs a GPU."""
    measured = [stage for stage in stages.values() if stage.kind == "measure"]
    if not measured:
        return
    modest = resources.model_copy(update={"gpus": 0.0, "devices": 1})
    claims = ClaimsTask(tuple(stage.place for stage in measured))
    for kind, needs, place, task in (
        ("claims", tuple(stages), f"{RESULTS}/{CLAIMS.file}", claims),
        ("report", (*(stage.label for stage in measured), "claims"), f"{RESULTS}/{PAGE}", ReportTask()),
    ):
        stages[kind] = _stage(kind, kind, place, needs, {}, task, modest, stages)


def _require_images(measurement: Measurement, images: ImageFacts) -> None:
    """As many test images as are asked for; to find that out after days of training would be late."""
    for name in ("samples", "images"):
        count = getattr(measurement.options, name, None)
        if count is not None and not 1 <= count <= images.test:
            raise GradscopeError(
                f"measure {measurement.name}: {name}: 1 to {images.test} is allowed, {images.name} has so many test "
                f"images, got {count}"
            )
    for index in getattr(measurement.options, "index", ()):
        if not 0 <= index < images.test:
            raise GradscopeError(
                f"measure {measurement.name}: index: 0 to {images.test - 1} is allowed, {images.name} ends there, "
                f"got {index}"
            )


def _stage(
    kind: str,
    label: str,
    place: str,
    needs: tuple[str, ...],
    settings: Mapping[str, Any],
    task: Task,
    resources: Resources,
    stages: Mapping[str, Stage],
) -> Stage:
    content = {
        "kind": kind,
        "settings": settings,
        "needs": [stages[need].name for need in needs],
        "gradscope": gradscope.__version__,
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    return Stage(kind, label, name, place, needs, settings, task, resources)

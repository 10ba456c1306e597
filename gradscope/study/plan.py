"""Plan a study: every stage, named by the content of everything it depends on.

A stage's name is a digest of its resolved configuration, its images, the names of the stages it needs, and gradscope's
version. Stages with equal names give equal results, up to rounding, at any place and time. A change in a recipe changes
the names of the stages that depend on it, and no others. Torch's version is in the stage's record but not in its name,
so that results of a GPU and of a CPU can be combined.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradscope
from gradscope.config import Training
from gradscope.data import sources
from gradscope.data.places import in_any_directory
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options.common import ForeignOptions, plain
from gradscope.models.architectures import ModelSpec
from gradscope.models.names import ARCHITECTURES
from gradscope.models.references import check_references
from gradscope.results.schemas import CLAIMS, PAGE
from gradscope.study.expansion import PlannedMeasurement, Study, StudyModel
from gradscope.study.model_tasks import ScaleTask, TrainTask
from gradscope.study.recipe import ForeignModel, Resources
from gradscope.study.tasks import CHECKPOINTS, RESULTS, ClaimsTask, ImageFacts, MeasureTask, ReportTask, Stage, Task
from gradscope.training.options import TrainOptions


@dataclass(frozen=True)
class Plan:
    """All stages, each after those it needs.

    ``absent`` gives the reason for each data set whose images are missing, ``left_out`` the stages left out for that.
    """

    study: Study
    stages: tuple[Stage, ...]
    images: Mapping[str, ImageFacts]
    absent: Mapping[str, str]
    left_out: tuple[str, ...]


def train_label(model: str) -> str:
    """Return the label of the stage that makes a model."""
    return f"model-{model}"


def make_plan(study: Study, *, download: bool = False, with_report: bool = True, trust_code: bool = False) -> Plan:
    """Resolve every model on its images; if the images of a data set are missing, leave out the stages that need them.

    Raises :class:`GradscopeError` if all images are missing, and for everything that no run could do.
    """
    images, absent = _look_for_images(study, download)
    stages: dict[str, Stage] = {}
    for model in study.models:
        if model.data in images:
            stage = _model_stage(model, images[model.data], study.recipe.resources, stages)
            stages[stage.label] = stage
    for measurement in study.measurements:
        if measurement.data in images:
            stage = _measure_stage(
                measurement,
                images[measurement.data],
                study.recipe.resources,
                stages,
                study.foreign,
                trust_code=trust_code,
            )
            stages[stage.label] = stage
    stages = _by_measurement(stages)
    _add_conclusions(stages, study.recipe.resources)
    if not with_report:
        stages.pop("report", None)
    left_out = [train_label(model.label) for model in study.models if model.data in absent]
    left_out += [f"measure-{measurement.name}" for measurement in study.measurements if measurement.data in absent]
    return Plan(study, tuple(stages.values()), images, absent, tuple(left_out))


def _look_for_images(study: Study, download: bool) -> tuple[dict[str, ImageFacts], dict[str, str]]:
    """Load the facts of each data set, and the reasons why the others are missing."""
    images: dict[str, ImageFacts] = {}
    absent: dict[str, str] = {}
    names = [model.data for model in study.models] + [measurement.data for measurement in study.measurements]
    for name in dict.fromkeys(names):
        # Saved in checkpoints and sent to other machines, so it must be valid in any working directory.
        source = in_any_directory(study.source(name))
        try:
            images[name] = ImageFacts.of(source, sources.load(source, download=download))
        except GradscopeError as error:
            absent[name] = str(error)
    if not images:
        raise GradscopeError("; ".join(absent.values()))
    return images, absent


def _model_stage(model: StudyModel, images: ImageFacts, resources: Resources, stages: Mapping[str, Stage]) -> Stage:
    needs = () if model.of is None else (train_label(model.of),)
    settings: dict[str, Any]
    task: Task
    if model.factor is not None:
        assert model.of is not None
        resources = resources.model_copy(update={"devices": 1})
        task = ScaleTask(images, model.name, model.of, model.factor)
        settings = {"factor": model.factor, "name": model.name}
    else:
        training = _resolve(model, images)
        task = TrainTask(images, training, model.of, model.options.keep_epochs)
        decisive = training.model_dump(mode="json")
        del decisive["data"]["data_root"]
        settings = {"training": decisive, "images": images.fingerprint, "keep_epochs": task.keep_epochs}
        if resources.devices > 1:  # each has its own dropout and, on a CPU, its own batch norm
            settings["devices"] = resources.devices
    place = f"{CHECKPOINTS}/{model.label}.pt"
    return _stage(train_label(model.label), place, needs, settings, task, resources, stages)


def _resolve(model: StudyModel, images: ImageFacts) -> Training:
    """Resolve the configuration of a model's training; its mode gets the name of the model."""
    chosen = {"mode": model.mode, "architecture": model.architecture, "seed": model.seed}
    try:
        training = TrainOptions(**model.options.model_dump(), **chosen).resolved(images.source, images.image_size)
        lookup(ARCHITECTURES, training.architecture, "architecture")
        ModelSpec(training.architecture, images.classes, images.channels, images.image_size, (0.5,), (0.5,))
    except GradscopeError as error:
        raise GradscopeError(f"model {model.label}: {error}") from None
    return training.model_copy(update={"mode": model.name})


def _measure_stage(
    measurement: PlannedMeasurement,
    images: ImageFacts,
    resources: Resources,
    stages: Mapping[str, Stage],
    foreign: Mapping[str, ForeignModel],
    *,
    trust_code: bool,
) -> Stage:
    _require_images(measurement, images)
    everyone = [*measurement.models, *(label for labels in measurement.others.values() for label in labels)]
    needs = tuple(train_label(label) for label in dict.fromkeys(everyone) if label not in foreign)
    outsiders = {label: foreign[label] for label in dict.fromkeys(everyone) if label in foreign}
    task = MeasureTask(
        images,
        measurement.command,
        measurement.options,
        measurement.models,
        measurement.others,
        outsiders,
        _normalisation(measurement, outsiders, trust_code=trust_code),
    )
    settings = {
        "command": measurement.command,
        "options": measurement.options.content(),
        "models": list(measurement.models),
        "others": plain(measurement.others),
        "images": images.fingerprint,
    }
    if outsiders:
        settings["foreign"] = {label: _facts(model) for label, model in outsiders.items()}
    label, place = f"measure-{measurement.name}", f"{RESULTS}/{measurement.name}"
    return _stage(label, place, needs, settings, task, resources, stages)


def _normalisation(
    measurement: PlannedMeasurement, foreign: Mapping[str, ForeignModel], *, trust_code: bool
) -> ForeignOptions:
    """Collect the options of a measurement's foreign models; raises :class:`GradscopeError` if one cannot be loaded."""
    models = list(foreign.values())
    both = {(model.mean, model.std) for model in models}
    if len(both) > 1:
        raise GradscopeError(
            f"measure {measurement.name}: foreign models must share one mean and std, got {len(both)}; "
            "use separate measurements"
        )
    mean, std = next(iter(both), (None, None))
    weights = tuple(model.weights for model in models if model.weights is not None)
    try:
        check_references([model.model for model in models], weights=weights, mean=mean, std=std, trust_code=trust_code)
    except GradscopeError as error:
        raise GradscopeError(f"measure {measurement.name}: {error}") from None
    return ForeignOptions(weights=weights, mean=mean, std=std, trust_code=trust_code)


def _facts(model: ForeignModel) -> dict[str, Any]:
    """Collect everything that determines a foreign model's results."""
    weights = None if model.weights is None else hashlib.sha256(model.weights.read_bytes()).hexdigest()
    return {"model": model.model, "weights": weights, "mean": plain(model.mean), "std": plain(model.std)}


def _by_measurement(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Order the measurements as in the recipe, each after the models it needs; then the other models.

    So the results that the recipe names first are ready before the models of later ones are trained.
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
    """Add the stages of claims and report if anything is measured; neither needs a GPU."""
    measured = [stage for stage in stages.values() if stage.kind == "measure"]
    if not measured:
        return
    modest = resources.model_copy(update={"gpus": 0.0, "devices": 1})
    claims = ClaimsTask(tuple(stage.place for stage in measured))
    for task, needs, place in (
        (claims, tuple(stages), f"{RESULTS}/{CLAIMS.file}"),
        (ReportTask(), (*(stage.label for stage in measured), "claims"), f"{RESULTS}/{PAGE}"),
    ):
        stages[task.kind] = _stage(task.kind, place, needs, {}, task, modest, stages)


def _require_images(measurement: PlannedMeasurement, images: ImageFacts) -> None:
    """Check now, not after days of training, that there are enough test images; raises GradscopeError if not."""
    for name in ("samples", "images"):
        count = getattr(measurement.options, name, None)
        if count is not None and not 1 <= count <= images.test:
            raise GradscopeError(
                f"measure {measurement.name}: {name} must be from 1 to {images.test} ({images.name} has {images.test} "
                f"test images), got {count}"
            )
    for index in getattr(measurement.options, "index", ()):
        if not 0 <= index < images.test:
            raise GradscopeError(
                f"measure {measurement.name}: index must be from 0 to {images.test - 1} ({images.name} has "
                f"{images.test} test images), got {index}"
            )


def _stage(
    label: str,
    place: str,
    needs: tuple[str, ...],
    settings: Mapping[str, Any],
    task: Task,
    resources: Resources,
    stages: Mapping[str, Stage],
) -> Stage:
    content = {
        "kind": task.kind,
        "settings": settings,
        "needs": [stages[need].name for need in needs],
        "gradscope": gradscope.__version__,
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    return Stage(label, name, place, needs, settings, task, resources)

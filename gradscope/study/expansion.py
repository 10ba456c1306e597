"""Expand a recipe: every model and measurement of a study by name.

Contradictions in the recipe are refused here, before anything runs. :mod:`gradscope.study.plan` resolves what needs the
images, such as the presets, which depend on their size.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, Literal

from gradscope.config import Data
from gradscope.data.names import DATASETS
from gradscope.errors import GradscopeError, lookup, unknown_name
from gradscope.measure.options import COMMANDS
from gradscope.measure.options.common import Options
from gradscope.models.names import ARCHITECTURES
from gradscope.options import Names
from gradscope.study.recipe import CALIBRATED, ForeignModel, NamedModel, Recipe, read_recipe
from gradscope.training.options import TrainingOptions
from gradscope.training.phases import MODES
from gradscope.validation import Config

#: A name that may become part of a file's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: The names that a study itself writes beside its measurements.
_RESERVED = ("figures", "tables", "paper", "manifest.json", "claims.csv", "report.html")
#: The keys of a measurement that are not options of its command.
_MEASURE_KEYS = ("name", "command", "models")


@dataclass(frozen=True)
class StudyModel:
    """One checkpoint of a study; ``label`` is its file's stem and its name in the results.

    It is trained in ``mode``, from new weights or those of the model labelled ``of``. With a ``factor`` it is the model
    ``of`` with its logits multiplied.
    """

    name: str
    label: str
    data: str
    architecture: str | None
    seed: int
    options: TrainingOptions
    mode: str = ""
    of: str | None = None
    factor: float | Literal["calibrated"] | None = None


@dataclass(frozen=True)
class PlannedMeasurement:
    """One directory of results: a command on ``models``; ``others`` holds models in other roles, such as surrogates."""

    name: str
    command: str
    data: str
    models: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    options: Options


@dataclass(frozen=True)
class Study:
    """An expanded recipe: every model and measurement, by name."""

    name: str
    recipe: Recipe
    models: tuple[StudyModel, ...]
    measurements: tuple[PlannedMeasurement, ...]
    foreign: Mapping[str, ForeignModel] = field(default_factory=dict)

    def source(self, data: str) -> Data:
        """Return the source of the images of one of the recipe's data sets."""
        return self.recipe.data[data]


def read_study(
    path: Path,
    *,
    settings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data_root: Path | None = None,
) -> Study:
    """Read the recipe in ``path`` and expand it; see :func:`gradscope.study.recipe.read_recipe`."""
    return expand(path.stem, read_recipe(path, settings=settings, seeds=seeds, data_root=data_root))


def expand(name: str, recipe: Recipe) -> Study:
    """Expand ``recipe`` to every model and measurement; raises :class:`GradscopeError` for names that do not fit."""
    _check_names(name, recipe)
    trained = [*_grid_models(recipe), *_named_models(recipe)]
    _require_distinct([model.label for model in trained], "models")
    models = [*trained, *_scaled_models(recipe, trained)]
    _require_distinct([model.label for model in models], "models")
    ordered = _in_order(models)
    foreign = list(_foreign_models(recipe))
    _require_distinct([model.label for model in (*models, *foreign)], "foreign")
    measurements = list(_measurements(recipe, [*ordered, *foreign]))
    _require_distinct([*_RESERVED, *(measurement.name for measurement in measurements)], "measure")
    if not models and not foreign:
        raise GradscopeError("grid.modes must be given, or a table [models.NAME] or [foreign.NAME], got none")
    return Study(name, recipe, tuple(ordered), tuple(measurements), recipe.foreign)


def _check_names(name: str, recipe: Recipe) -> None:
    """Raise :class:`GradscopeError` unless every name in the recipe is known, unique and usable in a file's name."""
    for key, names in {
        "RECIPE": [name],
        "data": recipe.data,
        "models": recipe.models,
        "foreign": recipe.foreign,
        "measure": [table["name"] for table in recipe.measure if isinstance(table.get("name"), str)],
    }.items():
        for entry in names:
            if not _NAME.fullmatch(entry):
                raise GradscopeError(
                    f"{key}: names must consist of letters, digits, '.', '_', '+' and '-' and begin with a letter "
                    f"or digit, got {entry!r}"
                )
    for key, data in recipe.data.items():
        lookup(DATASETS, data.dataset, f"data.{key}.dataset")
    _check_grid("grid", recipe, recipe.grid.data, recipe.grid.architectures, recipe.grid.seeds)
    _require_distinct(recipe.grid.modes, "grid.modes")
    for mode in recipe.grid.modes:
        lookup(MODES, mode, "grid.modes")
    for mode in recipe.modes:
        lookup(dict.fromkeys(recipe.grid.modes), mode, "modes")
    for key, model in recipe.models.items():
        if key in recipe.grid.modes:
            raise GradscopeError(
                f"models.{key}: the name must differ from the modes of the grid, as both would write the same file"
            )
        _check_grid(f"models.{key}", recipe, model.data or (), model.architectures or (), model.seeds or ())
        if model.mode is None and model.phases is None:
            raise GradscopeError(f"models.{key}: mode or phases must be given, got neither")
        if model.mode is not None and model.phases is None:
            lookup(MODES, model.mode, f"models.{key}.mode")
        if model.start is not None:
            lookup(dict.fromkeys([*recipe.grid.modes, *recipe.models]), model.start, f"models.{key}.from")
    _require_no_cycle(recipe.models)


def _check_grid(
    key: str, recipe: Recipe, data: Sequence[str], architectures: Sequence[str], seeds: Sequence[int]
) -> None:
    for name in data:
        lookup(recipe.data, name, f"{key}.data")
    for name in architectures:
        lookup(ARCHITECTURES, name, f"{key}.architectures")
    for name, values in (("data", data), ("architectures", architectures), ("seeds", seeds)):
        _require_distinct(values, f"{key}.{name}")


def _require_no_cycle(models: Mapping[str, NamedModel]) -> None:
    for first in models:
        chain = [first]
        while (start := models[chain[-1]].start if chain[-1] in models else None) is not None:
            chain.append(start)
            if start == first:
                raise GradscopeError(f"models.{first}.from must not form a cycle, got {' from '.join(chain)}")
            if start in chain[:-1]:
                break  # a cycle without `first`; the loop reports it for a model in the cycle


def _require_distinct(names: Sequence[object], key: str) -> None:
    """Raise :class:`GradscopeError` if two names are equal, also on a file system that ignores case."""
    seen: set[str] = set()
    for name in names:
        plain = str(name).casefold()
        if plain in seen:
            raise GradscopeError(f"{key}: names must be distinct, got {name!r} twice; both would write the same file")
        seen.add(plain)


def _label(recipe: Recipe, data: str, architecture: str | None, name: str, seed: int) -> str:
    """Make a model's label: its name and seed, with data set and architecture in front if the recipe has several."""
    several_data, several_architectures = len(_all_data(recipe)) > 1, len(_all_architectures(recipe)) > 1
    parts = [data] * several_data + [architecture or "preset"] * several_architectures
    return "-".join([*parts, name, f"s{seed}"])


def _all_data(recipe: Recipe) -> set[str]:
    return {*recipe.grid.data, *(name for model in recipe.models.values() for name in model.data or ())}


def _all_architectures(recipe: Recipe) -> set[str | None]:
    grid: set[str | None] = set(recipe.grid.architectures or (None,))
    return grid | {name for model in recipe.models.values() for name in model.architectures or ()}


def _grid_models(recipe: Recipe) -> Iterator[StudyModel]:
    grid = recipe.grid
    for data, architecture, mode, seed in product(grid.data, grid.architectures or (None,), grid.modes, grid.seeds):
        options = recipe.modes.get(mode, TrainingOptions()).over(recipe.training)
        label = _label(recipe, data, architecture, mode, seed)
        yield StudyModel(mode, label, data, architecture, seed, options, mode)


def _named_models(recipe: Recipe) -> Iterator[StudyModel]:
    grid = recipe.grid
    for name, model in recipe.models.items():
        options = model.over(recipe.training)
        every = (
            model.data or grid.data,
            model.architectures or grid.architectures or (None,),
            model.seeds or grid.seeds,
        )
        for data, architecture, seed in product(*every):
            of = None if model.start is None else _label(recipe, data, architecture, model.start, seed)
            label = _label(recipe, data, architecture, name, seed)
            yield StudyModel(name, label, data, architecture, seed, options, model.mode or name, of)


def _foreign_models(recipe: Recipe) -> Iterator[StudyModel]:
    for name, foreign in recipe.foreign.items():
        data = recipe.grid.data[0] if foreign.data is None else foreign.data
        lookup(recipe.data, data, f"foreign.{name}.data")
        yield StudyModel(name, name, data, None, 0, TrainingOptions())


def _scaled_models(recipe: Recipe, trained: Sequence[StudyModel]) -> Iterator[StudyModel]:
    for number, scale in enumerate(recipe.scale):
        for model in choose_models(trained, scale.models, f"scale.{number}.models"):
            for factor in scale.factors:
                name = f"{model.name}-{factor if factor == CALIBRATED else f'x{factor:g}'}"
                label = _label(recipe, model.data, model.architecture, name, model.seed)
                yield replace(model, name=name, label=label, of=model.label, factor=factor)


def _in_order(models: Sequence[StudyModel]) -> list[StudyModel]:
    """Order the models, each after the one it is made from; raises GradscopeError if that one does not exist."""
    known = {model.label: model for model in models}
    placed: dict[str, StudyModel] = {}

    def place(model: StudyModel) -> None:
        if model.of is not None and model.of not in placed:
            if model.of not in known:
                raise GradscopeError(
                    f"models.{model.name}.from: {model.label!r} needs {model.of!r}, which does not exist"
                )
            place(known[model.of])
        placed.setdefault(model.label, model)

    for model in models:
        place(model)
    return list(placed.values())


def choose_models(models: Sequence[StudyModel], patterns: Sequence[str], key: str) -> list[StudyModel]:
    """Choose the models whose name or label matches one of ``patterns``; ``!pattern`` removes matches.

    Raises :class:`GradscopeError` with the known names if a pattern that adds models matches none.
    """
    chosen: dict[str, StudyModel] = {}
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        matches = [model for model in models if fnmatchcase(model.name, plain) or fnmatchcase(model.label, plain)]
        if not matches and plain == pattern:
            raise unknown_name(key, pattern, dict.fromkeys(model.name for model in models))
        for model in matches:
            if pattern.startswith("!"):
                chosen.pop(model.label, None)
            else:
                chosen[model.label] = model
    if not chosen:
        raise GradscopeError(f"{key} must choose at least one model, got none for {', '.join(patterns)}")
    return list(chosen.values())


def _measurements(recipe: Recipe, models: Sequence[StudyModel]) -> Iterator[PlannedMeasurement]:
    for number, table in enumerate(recipe.measure):
        command = table.get("command")
        if not isinstance(command, str):
            raise GradscopeError(f"measure.{number}.command must be one of {', '.join(COMMANDS)}, got {command!r}")
        options_type = lookup(COMMANDS, command, f"measure.{number}.command")
        heading = _MeasureHeading.parse({key: table[key] for key in _MEASURE_KEYS if key in table})
        name = heading.name or command
        key = f"measure {name}"
        _require_known_keys(key, table, options_type)
        try:
            options = options_type.parse({name: value for name, value in table.items() if name not in _MEASURE_KEYS})
        except GradscopeError as error:
            raise GradscopeError(f"{key}: {error}") from None
        yield from _one_for_each_data_set(name, command, heading.models, options, models)


class _MeasureHeading(Config):
    name: str | None = None
    command: str
    models: Names | None = None


def _require_known_keys(key: str, table: Mapping[str, Any], options: type[Options]) -> None:
    for name in table:
        if name not in (*_MEASURE_KEYS, *options.model_fields):
            raise unknown_name(key, name, [*_MEASURE_KEYS, *options.model_fields])


def _one_for_each_data_set(
    name: str, command: str, patterns: Sequence[str] | None, options: Options, models: Sequence[StudyModel]
) -> Iterator[PlannedMeasurement]:
    """Yield a measurement for the models of each data set, because a command compares models on the same images."""
    trained = [model for model in models if model.factor is None]
    chosen = trained if patterns is None else choose_models(models, patterns, f"measure {name}: models")
    data_sets = list(dict.fromkeys(model.data for model in chosen))
    for data in data_sets:
        own = [model for model in models if model.data == data]
        others = {
            role: tuple(model.label for model in choose_models(own, named, f"measure {name}: {role}"))
            for role, named in options.others.items()
        }
        for role, names in others.items():
            if isinstance(getattr(options, role), str) and len(names) != 1:
                raise GradscopeError(f"measure {name}: {role} must be one model, got {', '.join(names)}")
        labels = tuple(model.label for model in chosen if model.data == data)
        try:
            options.check(len(labels))
        except GradscopeError as error:
            raise GradscopeError(f"measure {name}: {error}") from None
        folder = f"{name}-{data}" if len(data_sets) > 1 else name
        yield PlannedMeasurement(folder, command, data, labels, others, options)

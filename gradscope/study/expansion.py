"""A recipe taken apart: every model and measurement of a study by name.

Whatever does not fit together is refused here, before anything runs; what needs the images (the presets depend on
their size) is resolved in :mod:`gradscope.study.plan`.
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

#: What becomes part of a file's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: What a study writes itself beside its measurements.
_RESERVED = ("figures", "tables", "paper", "manifest.json", "claims.csv", "report.html")
#: Keys of a measurement that are not the command's options.
_MEASURE_KEYS = ("name", "command", "models")


@dataclass(frozen=True)
class StudyModel:
    """One checkpoint of a study; ``label`` is its file's stem and what results call it.

    It is trained in ``mode``, from fresh weights or those of the model labelled ``of``; where there is a ``factor``,
    it is the model ``of`` with its logits multiplied.
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
    """One directory of results: a command over models, ``surrogates`` and the like by role."""

    name: str
    command: str
    data: str
    models: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    options: Options


@dataclass(frozen=True)
class Study:
    """A recipe taken apart: every model and measurement there is, by name."""

    name: str
    recipe: Recipe
    models: tuple[StudyModel, ...]
    measurements: tuple[PlannedMeasurement, ...]
    foreign: Mapping[str, ForeignModel] = field(default_factory=dict)

    def source(self, data: str) -> Data:
        """Where the images of a data set of the recipe come from."""
        return self.recipe.data[data]


def read_study(
    path: Path,
    *,
    settings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data_root: Path | None = None,
) -> Study:
    """The study whose recipe is in ``path``; see :func:`gradscope.study.recipe.read_recipe`."""
    return expand(path.stem, read_recipe(path, settings=settings, seeds=seeds, data_root=data_root))


def expand(name: str, recipe: Recipe) -> Study:
    """Every model and measurement of ``recipe``; names that do not fit together raise :class:`GradscopeError`."""
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
        raise GradscopeError(
            "grid.modes: a recipe needs modes in its grid, a table [models.NAME] or [foreign.NAME], got none"
        )
    return Study(name, recipe, tuple(ordered), tuple(measurements), recipe.foreign)


def _check_names(name: str, recipe: Recipe) -> None:
    """Every name in the recipe is known, usable in a file's name, and there once."""
    for key, names in {
        "RECIPE": [name],
        "data": recipe.data,
        "models": recipe.models,
        "foreign": recipe.foreign,
        "measure": [one["name"] for one in recipe.measure if isinstance(one.get("name"), str)],
    }.items():
        for one in names:
            if not _NAME.fullmatch(one):
                raise GradscopeError(
                    f"{key}: letters, digits, '.', '_', '+' and '-' are allowed in a name, which begins with a letter "
                    f"or digit, got {one!r}"
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
            raise GradscopeError(f"models.{key}: the grid has a model of this name; they would write one file")
        _check_grid(f"models.{key}", recipe, model.data or (), model.architectures or (), model.seeds or ())
        if model.mode is None and model.phases is None:
            raise GradscopeError(f"models.{key}: mode or phases are needed, got neither")
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
    for what, values in (("data", data), ("architectures", architectures), ("seeds", seeds)):
        _require_distinct(values, f"{key}.{what}")


def _require_no_cycle(models: Mapping[str, NamedModel]) -> None:
    for first in models:
        chain = [first]
        while (start := models[chain[-1]].start if chain[-1] in models else None) is not None:
            chain.append(start)
            if start == first:
                raise GradscopeError(f"models.{first}.from: a cycle is not allowed, got {' from '.join(chain)}")
            if start in chain[:-1]:
                break  # A cycle that this one only leads to; it is named from within.


def _require_distinct(names: Sequence[object], key: str) -> None:
    """No name twice, nor two that a file system without capitals would take for one."""
    seen: set[str] = set()
    for name in names:
        plain = str(name).casefold()
        if plain in seen:
            raise GradscopeError(f"{key}: {name!r} is there twice; two entries would write one file")
        seen.add(plain)


def _label(recipe: Recipe, data: str, architecture: str | None, name: str, seed: int) -> str:
    """The name and the seed, behind what the recipe has more than one of."""
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
    """The models, each after the one it is made of; one that is made of none there is raises GradscopeError."""
    known = {model.label: model for model in models}
    placed: dict[str, StudyModel] = {}

    def place(model: StudyModel) -> None:
        if model.of is not None and model.of not in placed:
            if model.of not in known:
                raise GradscopeError(f"models.{model.name}.from: there is no {model.of!r} for {model.label!r}")
            place(known[model.of])
        placed.setdefault(model.label, model)

    for model in models:
        place(model)
    return list(placed.values())


def choose_models(models: Sequence[StudyModel], patterns: Sequence[str], key: str) -> list[StudyModel]:
    """The models whose name or label one of ``patterns`` matches, ``!pattern`` taking some out again.

    Each pattern that puts some in has to match one; else :class:`GradscopeError` says which names there are.
    """
    chosen: dict[str, StudyModel] = {}
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        found = [one for one in models if fnmatchcase(one.name, plain) or fnmatchcase(one.label, plain)]
        if not found and plain == pattern:
            raise unknown_name(key, pattern, dict.fromkeys(one.name for one in models))
        for one in found:
            if pattern.startswith("!"):
                chosen.pop(one.label, None)
            else:
                chosen[one.label] = one
    if not chosen:
        raise GradscopeError(f"{key}: at least one model is needed, got none of {', '.join(patterns)}")
    return list(chosen.values())


def _measurements(recipe: Recipe, models: Sequence[StudyModel]) -> Iterator[PlannedMeasurement]:
    for number, table in enumerate(recipe.measure):
        command = table.get("command")
        if not isinstance(command, str):
            raise GradscopeError(f"measure.{number}.command: one of {', '.join(COMMANDS)} is needed, got {command!r}")
        options_type = lookup(COMMANDS, command, f"measure.{number}.command")
        heading = _MeasureHeading.parse({key: table[key] for key in _MEASURE_KEYS if key in table})
        name = heading.name or command
        key = f"measure {name}"
        _require_known_keys(key, table, options_type)
        try:
            options = options_type.parse({one: value for one, value in table.items() if one not in _MEASURE_KEYS})
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
    """A directory for the models of each data set: commands that compare models want them on the same images."""
    trained = [model for model in models if model.factor is None]
    chosen = trained if patterns is None else choose_models(models, patterns, f"measure {name}: models")
    data_sets = list(dict.fromkeys(model.data for model in chosen))
    for data in data_sets:
        own = [model for model in models if model.data == data]
        others = {
            role: tuple(model.label for model in choose_models(own, named, f"measure {name}: {role}"))
            for role, named in options.others.items()
        }
        for role, found in others.items():
            if isinstance(getattr(options, role), str) and len(found) != 1:
                raise GradscopeError(f"measure {name}: {role} must be one model, got {', '.join(found)}")
        labels = tuple(model.label for model in chosen if model.data == data)
        try:
            options.check(len(labels))
        except GradscopeError as error:
            raise GradscopeError(f"measure {name}: {error}") from None
        folder = f"{name}-{data}" if len(data_sets) > 1 else name
        yield PlannedMeasurement(folder, command, data, labels, others, options)

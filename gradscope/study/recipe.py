"""Read recipes: a study as a TOML file with the models to train and the measurements on them.

A recipe consists of a grid (data x architecture x mode x seed) of models, named models beside it, models with scaled
logits, and measurements of models chosen by pattern. This module checks keys and values;
:mod:`gradscope.study.expansion` checks that the names fit together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gradscope.config import Data, Seed, apply_setting, merge, read_toml
from gradscope.errors import GradscopeError
from gradscope.options import Names
from gradscope.training.options import TrainingOptions
from gradscope.validation import Config, FilePath

CALIBRATED: Literal["calibrated"] = "calibrated"

#: The factor of the logits: a number, or "calibrated" for the one that calibrates them.
Factor = Annotated[float, Field(gt=0)] | Literal["calibrated"]


class ModelGrid(Config):
    """One model for every data set, architecture, mode and seed; without ``architectures``, the preset's is used."""

    data: Names = ("digits",)
    architectures: Names = ()
    modes: Names = ()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)


class NamedModel(TrainingOptions):
    """A model beside the grid, for each data set, architecture and seed of its own or else of the grid.

    ``mode`` is a preset, or any label if ``phases`` are given. ``start`` (in the file: ``from``) is the model whose
    weights it begins with.
    """

    mode: str | None = None
    start: str | None = Field(default=None, alias="from")
    data: Names | None = None
    architectures: Names | None = None
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)


class ForeignModel(Config):
    """A model trained elsewhere, which is measured but not trained.

    ``model``: as a command's CKPT, such as ``torchvision:resnet18``; its code runs only with ``--trust-code``.
    ``data``: the recipe's data set to measure it on; by default the grid's first.
    """

    model: str
    weights: FilePath | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: str | None = None


class Scale(Config):
    """Copies of models with their logits multiplied by each of ``factors``.

    The factor "calibrated" is the number that minimises the cross-entropy on the validation images.
    """

    models: Names = ("*",)
    factors: tuple[Factor, ...] = Field(min_length=1)


class Resources(Config):
    """The resources of a stage: CPU threads (None: all), and GPUs or a share of one.

    ``devices``: processes that share a stage, each with that many threads and, if there are some, one GPU.
    """

    cpus: int | None = Field(default=None, ge=1)
    gpus: float | None = Field(default=None, ge=0)
    devices: int = Field(default=1, ge=1)


class Recipe(Config):
    """A whole study as written in a file; :func:`read_recipe` reads one."""

    description: str = ""
    grid: ModelGrid = ModelGrid()
    data: dict[str, Data] = Field(default_factory=dict)
    training: TrainingOptions = TrainingOptions()
    modes: dict[str, TrainingOptions] = Field(default_factory=dict)
    models: dict[str, NamedModel] = Field(default_factory=dict)
    foreign: dict[str, ForeignModel] = Field(default_factory=dict)
    scale: tuple[Scale, ...] = ()
    measure: tuple[dict[str, Any], ...] = ()
    resources: Resources = Resources()


def read_recipe(
    path: Path,
    *,
    settings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data_root: Path | None = None,
) -> Recipe:
    """Read the recipe in ``path``; ``settings`` (KEY=VALUE), ``seeds`` and ``data_root`` replace its values.

    Raises :class:`GradscopeError` with one line about the first mistake.
    """
    values = _read_extended(path)
    _name_the_data(values)
    for setting in settings:
        apply_setting(values, setting)
    recipe = Recipe.parse(values)
    if seeds is not None:
        grid = ModelGrid.parse(recipe.grid.model_dump() | {"seeds": tuple(seeds)})
        recipe = recipe.model_copy(update={"grid": grid})
    if data_root is not None:
        moved = {
            name: data.model_copy(update={"data_root": data_root}) if data.dataset != "digits" else data
            for name, data in recipe.data.items()
        }
        recipe = recipe.model_copy(update={"data": moved})
    return recipe


def _read_extended(path: Path, below: Sequence[Path] = ()) -> dict[str, Any]:
    """Read the tables in ``path`` and merge them over those of the recipe that it ``extends``, a relative path.

    Measurements are merged with those of the same name; other lists are replaced.
    """
    values = read_toml(path, "recipe")
    if path.resolve() in below:
        raise GradscopeError(f"extends must not lead back to {path}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise GradscopeError(f"extends must be the path of another recipe, got {base!r}", "extends")
    extended = _read_extended(path.parent / base, [*below, path.resolve()])
    measure = _merged(extended.get("measure", ()), values.get("measure", ()))
    return merge(extended, values) | ({"measure": measure} if measure else {})


def _merged(base: Any, changes: Any) -> Any:
    """Merge the measurements ``changes`` over those of ``base`` with the same name, and append the others."""
    tables = [*base, *changes] if isinstance(base, list | tuple) and isinstance(changes, list | tuple) else changes
    named: dict[object, Any] = {}
    for table in tables:
        if not isinstance(table, dict):
            return changes
        name = table.get("name", table.get("command"))
        named[name] = {**named.get(name, {}), **table}
    return list(named.values())


def _name_the_data(values: dict[str, Any]) -> None:
    """Add a table for every data set of the grid; a table without ``dataset`` gets its own name as data set."""
    values.setdefault("training", {})
    grid = values.setdefault("grid", {})
    tables = values.setdefault("data", {})
    if isinstance(grid, dict) and isinstance(tables, dict):
        named = grid.get("data", ModelGrid().data)
        for name in [named] if isinstance(named, str) else named if isinstance(named, list | tuple) else []:
            if isinstance(name, str):  # other types are refused later
                tables.setdefault(name, {})
        for name, table in tables.items():
            if isinstance(table, dict):
                table.setdefault("dataset", name)

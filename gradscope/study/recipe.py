"""Recipes: a study as a TOML file. Which models are trained, and what is measured on them.

A recipe is a grid (data x architecture x mode x seed) of models, named models beside it, models whose logits are
scaled, and measurements over models chosen by pattern. Its keys and values are checked here; whether its names fit
together in :mod:`gradscope.study.expansion`.
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

#: What logits are multiplied by: a number, or what calibrates them.
Factor = Annotated[float, Field(gt=0)] | Literal["calibrated"]


class ModelGrid(Config):
    """One model for every data set, architecture, mode and seed; no architecture is that of the preset."""

    data: Names = ("digits",)
    architectures: Names = ()
    modes: Names = ()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)


class NamedModel(TrainingOptions):
    """A model beside the grid, for each of the grid's data sets, architectures and seeds or those it names itself.

    ``mode`` is a preset, or any label where ``phases`` are given. ``start`` (in the file: ``from``) is the model
    whose weights it begins with.
    """

    mode: str | None = None
    start: str | None = Field(default=None, alias="from")
    data: Names | None = None
    architectures: Names | None = None
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)


class ForeignModel(Config):
    """A model trained elsewhere, which is measured but not trained.

    ``model``: as a command's CKPT, such as ``torchvision:resnet18``; its code runs only where the study is told to
    trust it. ``data``: on which of the recipe's data sets; the grid's first where it does not say.
    """

    model: str
    weights: FilePath | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: str | None = None


class Scale(Config):
    """Copies of models whose logits are multiplied by each of ``factors``; "calibrated" is a factor, too.

    It multiplies by the number that makes the cross-entropy on the validation images smallest.
    """

    models: Names = ("*",)
    factors: tuple[Factor, ...] = Field(min_length=1)


class Resources(Config):
    """What a stage asks for: threads of a CPU (all there are where None), and GPUs or a share of one.

    ``devices``: processes that share a stage, each with so many threads and a GPU where there are some.
    """

    cpus: int | None = Field(default=None, ge=1)
    gpus: float | None = Field(default=None, ge=0)
    devices: int = Field(default=1, ge=1)


class Recipe(Config):
    """A whole study as it is written; :func:`read_recipe` makes one."""

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
    """The recipe written in ``path``, with ``settings`` (KEY=VALUE), ``seeds`` and ``data_root`` laid over it.

    Raises :class:`GradscopeError` in one line at the first thing that is wrong.
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
    """The tables in ``path`` laid over those of the recipe that it ``extends``, a path beside it.

    Measurements are laid over those of the same name; lists else are replaced.
    """
    values = read_toml(path, "recipe")
    if path.resolve() in below:
        raise GradscopeError(f"extends must not lead back to {path}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise GradscopeError(f"extends must be the path of another recipe, got {base!r}", "extends")
    found = _read_extended(path.parent / base, [*below, path.resolve()])
    measure = _laid_over(found.get("measure", ()), values.get("measure", ()))
    return merge(found, values) | ({"measure": measure} if measure else {})


def _laid_over(base: Any, changes: Any) -> Any:
    """The measurements of ``base``, each with those of ``changes`` that have its name laid over it, then the others."""
    tables = [*base, *changes] if isinstance(base, list | tuple) and isinstance(changes, list | tuple) else changes
    named: dict[object, Any] = {}
    for table in tables:
        if not isinstance(table, dict):
            return changes
        name = table.get("name", table.get("command"))
        named[name] = {**named.get(name, {}), **table}
    return list(named.values())


def _name_the_data(values: dict[str, Any]) -> None:
    """A table for every data set of the grid; its name is its data set where it does not say."""
    values.setdefault("training", {})
    grid = values.setdefault("grid", {})
    tables = values.setdefault("data", {})
    if isinstance(grid, dict) and isinstance(tables, dict):
        named = grid.get("data", ModelGrid().data)
        for name in [named] if isinstance(named, str) else named if isinstance(named, list | tuple) else []:
            if isinstance(name, str):  # what is none is refused later
                tables.setdefault(name, {})
        for name, table in tables.items():
            if isinstance(table, dict):
                table.setdefault("dataset", name)

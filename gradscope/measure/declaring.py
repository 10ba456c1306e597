"""How options are declared: once, without torch, as the fields of a class.

The command's signature, the recipe's keys, the keyword arguments, the manifest's record and the names of a study's
stages come from these classes: a new option is a new field. ``gradscope COMMAND --help`` shows the fields' texts.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from gradscope.config import PGD, Config, Norm, StepSize, attack_settings
from gradscope.errors import GradscopeError

#: Groups of options in ``--help``, in order.
GROUPS = MEASURING, ATTACK, IMAGES, MODEL, DATA, RUNNING = "measuring", "attack", "images", "model", "data", "running"


def split(value: object) -> object:
    """Split ``"a,b"`` as on the command line; a list stays, one number alone becomes one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _split_names(value: object) -> object:
    parts = split(value)
    return tuple(part for part in parts if part != "") if isinstance(parts, tuple) else parts


def _several(value: object) -> object:
    """One path alone as several."""
    return (value,) if isinstance(value, str | Path) else value


def _single(value: object) -> object:
    """The one name of a list, as recipes may write it."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


#: Names as a list, or between commas.
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Number = Annotated[str | float, Field(union_mode="left_to_right")]
OneName = Annotated[str | None, BeforeValidator(_single)]


def option(
    default: Any,
    text: str,
    group: str = MEASURING,
    *,
    names: str | None = None,
    metavar: str | None = None,
    repeatable: bool = False,
    both_ways: bool = False,
    **bounds: Any,
) -> Any:
    """Declare an option: its default, its help text, its group in ``--help``, and pydantic's bounds.

    ``names``: "module:TABLE" whose names complete it on the command line. ``repeatable``: on the command line it is
    given once for each value, not with commas. ``both_ways``: a switch that can be turned on and off there.
    """
    extra: dict[str, Any] = {"group": group, "names": names, "metavar": metavar, "repeatable": repeatable}
    extra["both_ways"] = both_ways
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class Options(Config):
    """What decides the numbers of a measurement."""

    #: The command, and what its help says first.
    command: ClassVar[str]
    summary: ClassVar[str]
    #: "module:class" of the measurement itself, which imports torch.
    measurement: ClassVar[str]
    #: The function that says in lines what came out, of :mod:`gradscope.reporting.console`.
    lines: ClassVar[str]
    #: Options that name other models.
    roles: ClassVar[tuple[str, ...]] = ()
    #: Options whose meaning is in :meth:`resolved`, where equal meanings are equal values.
    settled: ClassVar[frozenset[str]] = frozenset()
    #: What a run is called in errors, and the manifest's ``kind``.
    kind: ClassVar[str]
    #: What is added to the first model's name where the directory of results is not named.
    suffix: ClassVar[str]
    #: Images where none are asked for: ``samples`` or ``images`` of them.
    default_images: ClassVar[int] = 500

    seed: int = option(0, "decides images and random starts", IMAGES, ge=0)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of the balls that are attacked in, pixel units."""
        return ()

    def require_pixel_units(self, shape: Sequence[int] = ()) -> None:
        """Refuse radii that look like units of 0..255: above the diameter of the box of images, ``(C, H, W)``.

        In L2 that depends on the shape, without which only L-infinity radii are refused.
        """
        linf = bool(self.radii) and getattr(self, "norm", None) == "linf"
        diameter = 1.0 if linf else math.sqrt(math.prod(shape)) if shape else math.inf
        for radius in self.radii:
            if radius > diameter:
                name = "epsilons" if getattr(self, "epsilon", None) is None else "epsilon"
                most = "" if linf else f" at most {diameter:.4g} in l2 for {' x '.join(map(str, shape))} pixels,"
                raise GradscopeError(
                    f'{name} must be in pixel units of images in [0, 1],{most} e.g. 0.03 or "8/255"; got {radius:g}'
                )

    @model_validator(mode="after")
    def _in_pixel_units(self) -> Self:
        self.require_pixel_units()
        return self

    @property
    def others(self) -> dict[str, tuple[str, ...]]:
        """The other models that are named, by role."""
        named = {role: getattr(self, role) for role in self.roles}
        return {role: (value,) if isinstance(value, str) else value for role, value in named.items() if value}

    @property
    def other_models(self) -> tuple[str, ...]:
        """The other models that are named, as CKPT are."""
        return tuple(name for role, names in self.others.items() if role != "epochs" for name in names)

    def naming(self, others: Mapping[str, Sequence[str]]) -> Self:
        """These options with other models in the places of those that they name, by role."""
        names = {
            role: found[0] if isinstance(getattr(self, role), str) else tuple(found) for role, found in others.items()
        }
        return self.model_copy(update=names)

    def check(self, models: int) -> None:
        """Validate what depends on how many ``models`` are measured."""

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """What the options come to, as the manifest records it: attacks with all of their settings, radii, budgets."""

    def content(self) -> dict[str, Any]:
        """Everything that decides the results, as plain JSON values: equal where the options mean the same."""
        given = self.model_dump(exclude={*self.roles, *self.settled})
        content: dict[str, Any] = plain(given | self.resolved())
        return content


def plain(value: Any) -> Any:
    """``value`` as JSON holds it, equal values alike; sets are sorted, paths are text."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


class Sampled(Options):
    """Options of a measurement on test images that are drawn and attacked in batches."""

    samples: int | None = option(None, "test images, drawn by --seed; 500 or all there are", IMAGES)
    batch_size: int | None = option(
        None, "images attacked at once; 128 where the attack averages over them", RUNNING, ge=1
    )


#: What may be given of a named attack.
_CHANGES = frozenset({*PGD.model_fields, *StepSize.model_fields})


class GradientAttack(Options):
    """Options of attacks along the gradient."""

    settled = _CHANGES | {"attack"}

    norm: Norm = option("l2", "l2 or linf", ATTACK)
    epsilon: Number | None = option(None, "radius in pixel units, 0.5 or 8/255; 1.0 for l2, 8/255 for linf", ATTACK)
    step_size: Number | None = option(
        None, "length of a step, pixel units; 2.5 epsilon / steps, of pgd-paper epsilon / 10", ATTACK
    )
    relative_step_size: Number | None = option(None, "the same in multiples of epsilon", ATTACK)
    steps: int | None = option(None, "steps of the attack; 100", ATTACK)
    loss: str | None = option(
        None, "what the attack climbs: cross-entropy, log-odds, rescaled-cross-entropy, margin or dlr", ATTACK
    )
    start: str | None = option(None, "none, ball or cube; of the attack where not given", ATTACK)
    box: bool | None = option(None, "keep iterates in [0, 1]; of the attack", ATTACK, both_ways=True)
    reduction: str | None = option(None, "of the attack's loss over the batch: sum or mean", ATTACK)
    norm_floor: float | None = option(None, "L2 gradient norm below which a step shrinks", ATTACK)
    precision: str | None = option(None, "of the attack: float32 or float64", ATTACK)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radius."""
        return (attack_settings("pgd", self.changes()).epsilon,)

    def changes(self) -> dict[str, Any]:
        """What is given of the attack."""
        given = {key: getattr(self, key) for key in type(self).model_fields if key in _CHANGES}
        return {key: value for key, value in given.items() if value is not None}


class Circumstances(Config):
    """Where a measurement runs, and what becomes of what lies there; decides none of its numbers."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "CUDA where there is one, or as said", RUNNING)
    devices: int = option(1, "processes, one a device, that share the images; the same results", RUNNING, ge=1)
    resume: bool = option(False, "continue the unfinished run at --out", RUNNING)
    overwrite: bool = option(False, "replace what --out holds", RUNNING)
    no_figures: bool = option(False, "write tables alone; `gradscope figures` draws them later", RUNNING)


class DataOptions(Config):
    """Which images a model is examined on, where that is not what its checkpoint says."""

    dataset: str | None = option(
        None, "data to examine on; the checkpoint's own where not given", DATA, names="gradscope.data.names:DATASETS"
    )
    data_root: Path | None = option(None, "where the data set's files are", DATA)
    image_size: int | None = option(None, "side in pixels to which 'folder' and 'imagenet100' are resized", DATA)
    download: bool = option(False, "allow downloading the data set", DATA)

    def given(self) -> dict[str, Any]:
        """What is given of the data set."""
        return {key: value for key, value in self.model_dump(exclude={"download"}).items() if value is not None}


class ForeignOptions(Config):
    """What there is to say about models trained elsewhere; ``weights`` has a file for each, in order, or none."""

    weights: Annotated[tuple[Path, ...], BeforeValidator(_several)] = option(
        (), "weights of a foreign model; once for each, in order", MODEL, repeatable=True
    )
    mean: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(
        None, "normalisation of a foreign model, such as 0.49,0.48,0.45", MODEL
    )
    std: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(None, "see --mean", MODEL)
    trust_code: bool = option(False, "run the code of package.module:factory", MODEL)
    ignore_class_names: bool = option(False, "take the checkpoint's classes for the data's, in order", MODEL)

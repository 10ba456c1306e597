"""Options that all measurements, or several of them, have in common."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from gradscope.config import (
    PGD,
    PGD_ATTACKS,
    Arithmetic,
    AttackLoss,
    Balls,
    Norm,
    Reduction,
    Seed,
    Start,
    StepSize,
    attack_settings,
)
from gradscope.errors import GradscopeError
from gradscope.options import ATTACK, IMAGES, MODEL, RUNNING, RunOptions, default_of, option, several, split
from gradscope.validation import Config, FilePath


def _single(value: object) -> object:
    """Unwrap a list of one name, which recipes may write."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


Number = Annotated[str | float, Field(union_mode="left_to_right")]
OneName = Annotated[str | None, BeforeValidator(_single)]


class Options(Config):
    """Base of a measurement's options: everything that decides its numbers."""

    #: The command, and the first sentence of its help.
    command: ClassVar[str]
    summary: ClassVar[str]
    #: "module:class" of the measurement itself, which imports torch.
    measurement: ClassVar[str]
    #: Options that name other models.
    roles: ClassVar[tuple[str, ...]] = ()
    #: Options that :meth:`resolved` records by their meaning, so that equal meanings give equal values.
    settled: ClassVar[frozenset[str]] = frozenset()
    #: The manifest's ``kind``, which errors use too.
    kind: ClassVar[str]
    #: Ending that is added to the first model's name to name the directory of results by default.
    suffix: ClassVar[str]
    #: Default number of images, for ``samples`` or ``images``.
    default_images: ClassVar[int] = 500

    seed: Seed = option(0, "seed of all random numbers, such as the choice of images and random starts", IMAGES)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of the balls around the images, pixel units."""
        return ()

    def require_pixel_units(self, shape: Sequence[int] = ()) -> None:
        """Raise :class:`GradscopeError` for lengths that look like units of 0..255, not pixel units.

        Such a length is larger than the diameter of the box of images, ``(C, H, W)``. In L2 the diameter depends on the
        shape; without a shape only L-infinity radii are checked.
        """
        linf = bool(self.radii) and getattr(self, "norm", None) == "linf"
        diameter = 1.0 if linf else math.sqrt(math.prod(shape)) if shape else math.inf
        radius = "epsilons" if getattr(self, "epsilon", None) is None else "epsilon"
        lengths = [(radius, length) for length in self.radii]
        if (step := getattr(self, "step_size", None)) is not None:
            lengths.append(("step_size", StepSize.parse({"step_size": step}).step_size or 0.0))
        for name, length in lengths:
            if length > diameter:
                most = "" if linf else f" at most {diameter:.4g} in l2 for {' x '.join(map(str, shape))} pixels,"
                meant = f'; did you mean "{length:g}/255"?' if length <= 255 else ""
                raise GradscopeError(
                    f'{name} must be in pixel units of images in [0, 1],{most} e.g. 0.03 or "8/255"; '
                    f"got {length:g}{meant}"
                )

    @model_validator(mode="after")
    def _in_pixel_units(self) -> Self:
        self.require_pixel_units()
        return self

    @property
    def others(self) -> dict[str, tuple[str, ...]]:
        """The names of other models in the options, by role."""
        named = {role: getattr(self, role) for role in self.roles}
        return {role: (value,) if isinstance(value, str) else value for role, value in named.items() if value}

    @property
    def other_models(self) -> tuple[str, ...]:
        """The names of other models in the options, written like CKPT."""
        return tuple(name for role, names in self.others.items() if role != "epochs" for name in names)

    def naming(self, others: Mapping[str, Sequence[str]]) -> Self:
        """Return these options with the names of other models replaced by ``others``, by role."""
        names = {
            role: models[0] if isinstance(getattr(self, role), str) else tuple(models)
            for role, models in others.items()
        }
        return self.model_copy(update=names)

    def check(self, models: int) -> None:
        """Validate options that depend on the number of ``models`` measured."""

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """Resolve the options for the manifest: attacks with all of their settings, radii, budgets."""

    def content(self) -> dict[str, Any]:
        """Return everything that decides the results, as JSON values; options with equal meaning give equal content."""
        given = self.model_dump(exclude={*self.roles, *self.settled})
        content: dict[str, Any] = plain(given | self.resolved())
        return content


def plain(value: Any) -> Any:
    """Convert ``value`` to plain JSON values; sets are sorted, paths become text. Equal values give equal results."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(entry) for entry in value)
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


class Sampled(Options):
    """Options of a measurement that attacks a random sample of test images in batches."""

    samples: int | None = option(
        None, "number of test images", IMAGES, usual=f"{Options.default_images}, or all if there are fewer", ge=1
    )
    batch_size: int | None = option(
        None,
        "number of images attacked at once",
        RUNNING,
        usual="32 on a CPU, 512 on a GPU; 128 if the attack takes the mean loss of the batch",
        ge=1,
        le=1_000_000,
    )


#: Settings that override those of a named attack.
_CHANGES = frozenset({*PGD.model_fields, *StepSize.model_fields})


class InBall(Options):
    """Options of attacks inside a ball around the image."""

    norm: Norm = option("l2", "norm of the ball", ATTACK)
    epsilon: Number | None = option(
        None, "radius of the ball in pixel units, such as 0.5 or 8/255", ATTACK, usual="1.0 for l2, 8/255 for linf"
    )

    @property
    def radius(self) -> float:
        """The ball's radius; pixel units."""
        given = {"norm": self.norm} | ({} if self.epsilon is None else {"epsilon": self.epsilon})
        return Balls.parse(given).radii[0]

    @property
    def radii(self) -> tuple[float, ...]:
        """The one radius; pixel units."""
        return (self.radius,)


#: The default, in words, of a setting that the named attack decides.
_OWN = "the attack's own"


def pgd_option() -> Any:
    """Declare the option for the one PGD attack of a measurement."""
    return option(
        "pgd",
        f"attack, one of {', '.join(PGD_ATTACKS)}; pgd is exact, pgd-paper is the paper's attack",
        ATTACK,
        names="gradscope.config:PGD_ATTACKS",
    )


class Stepping(InBall):
    """Options for the number and size of attack steps."""

    step_size: Number | None = option(
        None, "length of PGD's steps, in pixel units", ATTACK, usual="2.5 epsilon / steps; epsilon / 10 for pgd-paper"
    )
    relative_step_size: Number | None = option(
        None, "length of PGD's steps, in multiples of epsilon; replaces --step-size", ATTACK
    )
    steps: int | None = option(None, "number of steps of every gradient attack", ATTACK, usual=default_of(PGD, "steps"))


class GradientAttack(Stepping):
    """Options of a PGD attack; each overrides a setting of the named attack."""

    settled = _CHANGES | {"attack"}

    loss: AttackLoss | None = option(None, "loss that the attack maximises", ATTACK, usual=_OWN)
    start: Start | None = option(
        None,
        "first point: the image (none), or a random point of the ball or of the cube around it",
        ATTACK,
        usual=_OWN,
    )
    box: bool | None = option(
        None, "keep iterates in [0, 1], or allow them outside", ATTACK, usual=_OWN, both_ways=True
    )
    reduction: Reduction | None = option(
        None, "attack the sum or the mean of the losses in a batch", ATTACK, usual=_OWN
    )
    norm_floor: float | None = option(
        None, "L2 norm of the gradient below which steps are shortened", ATTACK, usual=_OWN
    )
    precision: Arithmetic | None = option(None, "floating-point precision of the attack", ATTACK, usual=_OWN)

    @property
    def radii(self) -> tuple[float, ...]:
        """The one radius; pixel units."""
        return (attack_settings("pgd", self.changes()).epsilon,)

    def changes(self) -> dict[str, Any]:
        """Return the attack settings that were given."""
        given = {key: getattr(self, key) for key in type(self).model_fields if key in _CHANGES}
        return {key: value for key, value in given.items() if value is not None}


class Circumstances(RunOptions):
    """Where a measurement runs, and whether it draws figures."""

    devices: int = option(
        1, "number of processes that share the images, one per device; results stay the same", RUNNING, ge=1
    )
    no_figures: bool = option(False, "write tables only; `gradscope figures` draws the figures later", RUNNING)


class ForeignOptions(Config):
    """Facts about models trained elsewhere; ``weights`` has one file for each such model, in order, or is empty."""

    weights: Annotated[tuple[FilePath, ...], BeforeValidator(several)] = option(
        (),
        "file of weights for a foreign model; repeat it for each foreign model, in the same order",
        MODEL,
        metavar="FILE",
        repeatable=True,
    )
    mean: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(
        None,
        "mean of each channel, subtracted from images in [0, 1] before a foreign model, such as 0.49,0.48,0.45",
        MODEL,
        metavar="X,...",
    )
    std: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(
        None, "standard deviation of each channel, by which images are then divided", MODEL, metavar="X,..."
    )
    trust_code: bool = option(False, "allow running the code of package.module:factory", MODEL)
    ignore_class_names: bool = option(
        False, "match the checkpoint's classes to the data set's by order instead of by name", MODEL
    )

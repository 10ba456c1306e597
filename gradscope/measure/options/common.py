"""What the options of all measurements have in common."""

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
    """The one name of a list, as recipes may write it."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


Number = Annotated[str | float, Field(union_mode="left_to_right")]
OneName = Annotated[str | None, BeforeValidator(_single)]


class Options(Config):
    """What decides the numbers of a measurement."""

    #: The command, and what its help says first.
    command: ClassVar[str]
    summary: ClassVar[str]
    #: "module:class" of the measurement itself, which imports torch.
    measurement: ClassVar[str]
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

    seed: Seed = option(0, "seed of all random numbers: which images are drawn, random starts", IMAGES)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of the balls that are attacked in, pixel units."""
        return ()

    def require_pixel_units(self, shape: Sequence[int] = ()) -> None:
        """Refuse lengths that look like units of 0..255: above the diameter of the box of images, ``(C, H, W)``.

        In L2 that depends on the shape, without which only L-infinity radii are refused.
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

    samples: int | None = option(
        None, "test images to draw", IMAGES, usual=f"{Options.default_images}, or all if there are fewer", ge=1
    )
    batch_size: int | None = option(
        None,
        "images attacked at once",
        RUNNING,
        usual="32 on a CPU, 512 on a GPU; 128 where the attack takes the mean loss of the batch",
        ge=1,
        le=1_000_000,
    )


#: What may be given of a named attack.
_CHANGES = frozenset({*PGD.model_fields, *StepSize.model_fields})


class InBall(Options):
    """Options of attacks inside a ball around the image."""

    norm: Norm = option("l2", "norm that the ball is measured in", ATTACK)
    epsilon: Number | None = option(
        None, "radius of the ball in pixel units, such as 0.5 or 8/255", ATTACK, usual="1.0 for l2, 8/255 for linf"
    )

    @property
    def radius(self) -> float:
        """The ball's radius, pixel units."""
        given = {"norm": self.norm} | ({} if self.epsilon is None else {"epsilon": self.epsilon})
        return Balls.parse(given).radii[0]

    @property
    def radii(self) -> tuple[float, ...]:
        """The radius."""
        return (self.radius,)


#: The default of what a named attack decides.
_OWN = "the attack's own"


def pgd_option() -> Any:
    """Declare the one PGD that a measurement uses."""
    return option(
        "pgd",
        f"one of {', '.join(PGD_ATTACKS)}; pgd is exact, pgd-paper is the paper's attack",
        ATTACK,
        names="gradscope.config:PGD_ATTACKS",
    )


class Stepping(InBall):
    """Options of how PGD walks through the ball."""

    step_size: Number | None = option(
        None, "length of PGD's steps, in pixel units", ATTACK, usual="2.5 epsilon / steps; of pgd-paper epsilon / 10"
    )
    relative_step_size: Number | None = option(
        None, "length of PGD's steps in multiples of epsilon, instead of --step-size", ATTACK
    )
    steps: int | None = option(
        None, "steps of every attack that follows the gradient", ATTACK, usual=default_of(PGD, "steps")
    )


class GradientAttack(Stepping):
    """Options of attacks along the gradient."""

    settled = _CHANGES | {"attack"}

    loss: AttackLoss | None = option(None, "loss that the attack climbs", ATTACK, usual=_OWN)
    start: Start | None = option(
        None, "start at the image (none), or at a random point of the ball or of the cube around it", ATTACK, usual=_OWN
    )
    box: bool | None = option(None, "keep iterates in [0, 1], or let them leave it", ATTACK, usual=_OWN, both_ways=True)
    reduction: Reduction | None = option(
        None, "take the sum or the mean of the loss over the batch", ATTACK, usual=_OWN
    )
    norm_floor: float | None = option(
        None, "L2 norm of the gradient below which a step gets shorter", ATTACK, usual=_OWN
    )
    precision: Arithmetic | None = option(None, "arithmetic of the attack", ATTACK, usual=_OWN)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radius."""
        return (attack_settings("pgd", self.changes()).epsilon,)

    def changes(self) -> dict[str, Any]:
        """What is given of the attack."""
        given = {key: getattr(self, key) for key in type(self).model_fields if key in _CHANGES}
        return {key: value for key, value in given.items() if value is not None}


class Circumstances(RunOptions):
    """Where a measurement runs, and whether its figures are drawn."""

    devices: int = option(1, "processes, one a device, that share the images; the same results", RUNNING, ge=1)
    no_figures: bool = option(False, "write tables alone; `gradscope figures` draws them later", RUNNING)


class ForeignOptions(Config):
    """What there is to say about models trained elsewhere; ``weights`` has a file for each, in order, or none."""

    weights: Annotated[tuple[FilePath, ...], BeforeValidator(several)] = option(
        (),
        "file of weights for a foreign model; give one for each foreign model, in their order",
        MODEL,
        metavar="FILE",
        repeatable=True,
    )
    mean: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(
        None,
        "what a foreign model subtracts from each channel of images in [0, 1], such as 0.49,0.48,0.45",
        MODEL,
        metavar="X,...",
    )
    std: Annotated[tuple[float, ...] | None, BeforeValidator(split)] = option(
        None, "what it divides each channel by after that", MODEL, metavar="X,..."
    )
    trust_code: bool = option(False, "run the code of package.module:factory", MODEL)
    ignore_class_names: bool = option(
        False, "match the checkpoint's classes to the data's by their order, not by their names", MODEL
    )

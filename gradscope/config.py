"""Frozen, validated configurations. No torch here: ``--help`` and the reports read these too.

Precedence, lowest first: the preset of the mode, a TOML file, ``--set KEY=VALUE``, the command's own options.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from gradscope.errors import GradscopeError, lookup, reason_of, unknown_name
from gradscope.limits import most, raising
from gradscope.reading import parse_toml, read_text
from gradscope.validation import Config, FilePath, is_plain_name

Objective = Literal["cross-entropy", "policy-gradient", "expected-reward"]
AttackLoss = Literal["cross-entropy", "log-odds", "margin", "dlr", "rescaled-cross-entropy"]
Norm = Literal["linf", "l2"]
Start = Literal["none", "ball", "cube"]
#: Which epoch of the last phase a checkpoint holds: of highest accuracy on the validation images, clean or under PGD
#: (ties go to the later epoch), or the last.
Selection = Literal["best", "robust", "last"]
Reduction = Literal["sum", "mean"]
Arithmetic = Literal["float32", "float64"]
Precision = Annotated[
    Literal["auto", "32", "bf16"], BeforeValidator(lambda value: str(value) if value == 32 else value)
]
Seed = Annotated[int, Field(ge=0)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
BatchSize = Annotated[int, Field(ge=2, le=1_000_000)]
TrainSamples = Annotated[int, Field(ge=2)]


def _require_few_pixels(side: int) -> int:
    if side > most("SIDE"):
        raise GradscopeError(f"image_size must be at most {most('SIDE')}, got {side}; {raising('SIDE')}")
    return side


ImageSize = Annotated[int, Field(ge=4), AfterValidator(_require_few_pixels)]


def parse_radius(value: object) -> float:
    """A radius in pixel units ([0, 1] images) from ``0.03``, ``"0.03"`` or ``"8/255"``; never negative or NaN."""
    try:
        radius = float(Fraction(value.strip())) if isinstance(value, str) else float(value)  # type: ignore[arg-type]  # TypeError is caught
    except (ValueError, TypeError, ArithmeticError):
        radius = float("nan")
    if not isfinite(radius) or radius < 0:
        raise ValueError("must be a number not below 0 such as 0.03 or 8/255")
    return radius


Radius = Annotated[float, BeforeValidator(parse_radius)]

#: Radius where only the norm is named: the paper's in L2, the field's usual one in L-infinity. Pixel units.
DEFAULT_RADII: dict[str, float] = {"l2": 1.0, "linf": 8 / 255}


class StepSize(Config):
    """How long a step is: ``step_size`` in pixel units, or ``relative_step_size`` in multiples of epsilon."""

    step_size: Radius | None = None
    relative_step_size: Radius | None = None

    def at(self, epsilon: float, steps: int) -> float:
        """Resolve to pixel units; where neither is given 2.5 epsilon / steps, across the ball and back (Madry 2018)."""
        if self.step_size is not None:
            return self.step_size
        return 2.5 * epsilon / steps if self.relative_step_size is None else self.relative_step_size * epsilon

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.step_size is not None and self.relative_step_size is not None:
            given = f"got {self.step_size:g} and {self.relative_step_size:g}"
            raise ValueError(f"step_size must not be given beside `relative_step_size`, {given}")
        return self


#: One objective, or several by weight. The tags choose which of the two a mistake is explained against.
Mix = Annotated[
    Annotated[Objective, Tag("[one]")]
    | Annotated[dict[Objective, Annotated[float, Field(gt=0)]], Field(min_length=1), Tag("[mix]")],
    Discriminator(lambda value: "[mix]" if isinstance(value, dict) else "[one]"),
]


class Adversary(Config):
    """Adversarial examples made during a phase: FGSM (one step of ``epsilon``) or PGD, in any threat model.

    ``objective`` is the loss it climbs: ``own`` (the phase's, with the very actions that were sampled) or
    ``cross-entropy``. The phase's loss is ``loss(x) + weight * loss(x_adv)``.
    """

    method: Literal["fgsm", "pgd"] = "fgsm"
    norm: Norm = "linf"
    epsilon: Radius = 0.01
    step_size: Radius | None = None
    steps: int = Field(default=10, ge=1)
    random_start: bool = True
    objective: Literal["own", "cross-entropy"] = "own"
    weight: float = Field(default=1.0, ge=0)

    @property
    def resolved_step_size(self) -> float:
        """``step_size``, or 2.5 epsilon / steps where none is given."""
        return StepSize(step_size=self.step_size).at(self.epsilon, self.steps)


class Phase(Config):
    """A stretch of epochs with one objective, or a mix of them by weight.

    The learning rate warms up linearly over ``warmup_epochs``, then goes in a line from ``learning_rate`` to
    ``final_learning_rate``. ``exploration`` is the chance that actions are uniform, drawn once a batch (the
    paper) or for each sample; ``baseline`` subtracts the batch's mean reward.
    """

    objective: Mix = "cross-entropy"
    epochs: Epochs
    learning_rate: float = Field(gt=0, le=1e37)
    final_learning_rate: float | None = Field(default=None, gt=0, le=1e37)
    warmup_epochs: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0, le=1e37)
    clip_norm: float | None = Field(default=None, gt=0)
    exploration: float = Field(default=0.0, ge=0, le=1)
    exploration_scope: Literal["batch", "sample"] = "batch"
    baseline: Literal["none", "batch-mean"] = "none"
    adversary: Adversary | None = None

    @property
    def mix(self) -> dict[Objective, float]:
        """The objectives with their weights."""
        return self.objective if isinstance(self.objective, dict) else {self.objective: 1.0}

    def learning_rate_at(self, epoch: float) -> float:
        """Learning rate at ``epoch`` epochs into the phase (a fraction is part of an epoch)."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.final_learning_rate is None:
            return self.learning_rate
        done = (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs)
        return self.learning_rate + done * (self.final_learning_rate - self.learning_rate)


class Data(Config):
    """Which images: a name from ``gradscope list datasets`` and where its files are."""

    dataset: str = "digits"
    data_root: FilePath | None = None
    image_size: ImageSize | None = None


def _require_label(mode: str) -> str:
    """``mode``, which is part of a checkpoint's name."""
    if len(mode) > 100 or not is_plain_name(mode):
        raise GradscopeError(f"mode must be a name of at most 100 characters and no path, got {mode!r}")
    return mode


class Training(Config):
    """Everything that decides a checkpoint, resolved. ``mode`` is a label: the phases say what is done.

    ``architecture`` is a name or a user's ``package.module:factory(...)``. ``initial`` is the fingerprint of the
    checkpoint whose weights the run begins with; None: fresh ones, by the seed. ``train_samples``: how many of the
    training images are used, for validation too, every class in its share.
    """

    mode: Annotated[str, AfterValidator(_require_label)]
    data: Data = Data()
    architecture: str
    phases: tuple[Phase, ...] = Field(min_length=1)
    batch_size: BatchSize = 128
    horizontal_flip: bool = False
    vertical_flip: bool = False
    shift: float = Field(default=0.0, ge=0, lt=0.5)
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    selection: Selection = "best"
    seed: Seed = 0
    precision: Precision = "auto"
    initial: str | None = None
    train_samples: TrainSamples | None = None

    @model_validator(mode="after")
    def _robust_epochs_to_select(self) -> Self:
        if self.selection == "robust" and self.phases[-1].adversary is None:
            raise ValueError("selection must be best or last where the last phase has no adversary, got robust")
        return self

    @model_serializer(mode="wrap")
    def _without_new_keys(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what older versions did not know, where it is not used: stages and checkpoints keep their names."""
        values: dict[str, Any] = values_of(self)
        return values if self.train_samples is not None else {k: v for k, v in values.items() if k != "train_samples"}

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)


class PGD(Config):
    """One projected gradient attack, with its numerics in the open.

    The defaults are exact: summed loss, the gradient's own norm, iterates inside [0, 1]. ``reduction`` "mean"
    divides each sample's gradient by the batch size; ``norm_floor`` shortens an L2 step whose gradient norm is
    below it; ``start`` "ball" is uniform in the ball, "cube" uniform in [-epsilon, epsilon]^D, then projected.
    Each step follows the mean gradient of ``smoothing`` copies of the point, each with Gaussian noise of standard
    deviation ``smoothing_radius`` in every coordinate (pixel units); one copy without noise is the plain gradient.

    ``epsilon`` is that of :data:`DEFAULT_RADII` where none is given, ``step_size`` that of :class:`StepSize`.
    """

    norm: Norm = "l2"
    epsilon: Radius = Field(default_factory=lambda given: DEFAULT_RADII[given["norm"]])
    steps: int = Field(default=100, ge=1)
    step_size: Radius = Field(default_factory=lambda given: StepSize().at(given["epsilon"], given["steps"]))
    loss: AttackLoss = "cross-entropy"
    start: Start = "ball"
    restarts: int = Field(default=1, ge=1)
    box: bool = True
    reduction: Reduction = "sum"
    norm_floor: float = Field(default=0.0, ge=0)
    precision: Arithmetic = "float32"
    smoothing: int = Field(default=1, ge=1)
    smoothing_radius: Radius = 0.0

    @property
    def ball(self) -> dict[str, Any]:
        """The norm and the radius, as rows of results name them."""
        return {"norm": self.norm, "epsilon": self.epsilon}

    @property
    def smooths(self) -> bool:
        """Whether the step's gradient is a mean over copies."""
        return self.smoothing > 1 or self.smoothing_radius > 0

    @model_validator(mode="after")
    def _restarts_differ(self) -> Self:
        if self.restarts > 1 and self.start == "none":
            raise ValueError("restarts must be 1 without a random start, got start 'none'")
        return self


class Budget(StepSize):
    """How much work the attacks of an evaluation may take, and how long the steps of PGD are where that is given.

    ``steps`` of every gradient attack; ``restarts`` of pgd-restarts; ``smoothing`` copies a step of pgd-smooth;
    ``targets``: how many wrong classes apgd-t, fab-t and fmn aim at, likeliest first; ``queries`` of square, rays and
    hop-skip-jump; ``noise_points``: random points of noise, which manifests call ``draws`` as they always did.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=10, ge=1)
    smoothing: int = Field(default=16, ge=1)
    targets: int = Field(default=9, ge=1)
    queries: int = Field(default=5000, ge=1)
    noise_points: int = Field(default=1000, ge=1, serialization_alias="draws")

    @property
    def walk(self) -> dict[str, Any]:
        """The part of the budget that every PGD takes: its steps, and their size where one is given."""
        given = {key: getattr(self, key) for key in ("steps", "step_size", "relative_step_size")}
        return {key: value for key, value in given.items() if value is not None}


class Balls(Config):
    """The threat models of a battery: a norm, and its radii; where none is given, the usual one of the norm."""

    norm: Norm = "l2"
    epsilon: Radius | None = None
    epsilons: tuple[Radius, ...] = ()

    @property
    def radii(self) -> tuple[float, ...]:
        """Every radius once, ascending."""
        given = {*self.epsilons, *([] if self.epsilon is None else [self.epsilon])}
        return tuple(sorted(given)) or (DEFAULT_RADII[self.norm],)

    @model_validator(mode="after")
    def _not_a_point(self) -> Self:
        if 0 in self.radii:
            raise ValueError("epsilon must be above 0 in an attack, got 0")
        return self


class Grid(Config):
    """The points of a landscape: ``points`` a side over [-span, span], in multiples of epsilon."""

    points: int = Field(default=51, ge=2, le=10_000)
    span: float = Field(default=3.0, gt=0)


#: The attacks that are PGD along one loss: what each changes of :class:`PGD`'s exact defaults. An attack that sets its
#: ``steps`` keeps them and their size, whatever is given. ``step_factor``: steps so many times as long, at most across
#: the ball.
PGD_ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "fgsm": {"start": "none", "steps": 1, "relative_step_size": 1.0},
    "pgd-paper": {"start": "cube", "box": False, "reduction": "mean", "norm_floor": 1e-6, "relative_step_size": 0.1},
    "pgd-log-odds": {"loss": "log-odds"},
    "pgd-margin": {"loss": "margin"},
    "pgd-dlr": {"loss": "dlr"},
    "pgd-rescaled": {"loss": "rescaled-cross-entropy"},
    "pgd-float64": {"precision": "float64"},
    "pgd-large-steps": {"step_factor": 10.0},
}

OBJECTIVES: dict[str, str] = {
    "cross-entropy": "-log p_y",
    "policy-gradient": "-log pi(a|x) * reward, with a sampled from the softmax and reward 1 where a is the label",
    "expected-reward": "1 - p_y, the policy gradient's expectation without exploration",
}


def read_toml(path: Path, argument: str = "config") -> dict[str, Any]:
    """Read the tables of the TOML file that ``argument`` names; a missing or malformed one raises GradscopeError."""
    text = read_text(path, argument)
    try:
        return parse_toml(text)
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} is not TOML: {reason_of(error)}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, table by table; lists are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Apply one ``--set KEY=VALUE`` to ``values`` in place; ``phases.0.epochs=3`` reaches into lists.

    The value is read as TOML and taken as text where it is none.
    """
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise GradscopeError(f"set must be KEY=VALUE, such as phases.0.epochs=3, got {setting!r}")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text
    *path, last = key.split(".")
    target: Any = values
    for part in path:
        target = _child(target, part, key)
        if not isinstance(target, dict | list):
            raise GradscopeError(f"set: {key!r} goes below {part!r}, which holds no table")
    if isinstance(target, list):
        _child(target, last, key)
        target[int(last)] = value
    else:
        target[last] = value


def _child(target: Any, part: str, key: str) -> Any:
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            has = "1 entry, so 0 alone" if len(target) == 1 else f"{len(target)} entries, so 0 to {len(target) - 1}"
            name = key.partition(f".{part}")[0]
            raise GradscopeError(f"set: {key!r}: {name} has {has} can be named, got {part!r}")
        return target[int(part)]
    if part not in target:
        raise unknown_name(f"set: {key}", part, target)
    return target[part]


def attack_settings(name: str, given: Mapping[str, Any]) -> PGD:
    """Resolve the attack called ``name`` of :data:`PGD_ATTACKS` with what is ``given`` laid over it.

    Raises :class:`GradscopeError` where it would no longer be the attack of that name: with another loss or precision.
    """
    changes = lookup(PGD_ATTACKS, name, "attack")
    for key in ("loss", "precision"):
        if key in changes and given.get(key, changes[key]) != changes[key]:
            raise GradscopeError(f"{key} must be {changes[key]} in {name}, got {given[key]}; pgd takes any")
    sizes = StepSize.model_fields.keys()
    if "steps" in changes:
        given = {key: value for key, value in given.items() if key not in {"steps", *sizes}}
    elif sizes & given.keys():
        changes = {key: value for key, value in changes.items() if key not in sizes}
    values = {**changes, **given}
    size = StepSize.parse({key: values.pop(key) for key in sizes & values.keys()})
    factor = values.pop("step_factor", None)
    settings = PGD.parse(values)
    length = size.at(settings.epsilon, settings.steps)
    length = length if factor is None else min(factor * length, 2 * settings.epsilon)
    return settings.model_copy(update={"step_size": length})


def short_attack_settings(name: str, given: Mapping[str, Any]) -> PGD:
    """Resolve the attack in 5 steps where their number is not given, for where it is made thousands of times."""
    return attack_settings(name, {"steps": 5, **given})

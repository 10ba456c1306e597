"""Frozen, validated configurations. They do not import torch, because ``--help`` and the reports read them too.

Later sources override earlier ones: the mode's preset, a TOML file, ``--set KEY=VALUE``, the command's own options.
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
#: Which epoch of the last phase the checkpoint keeps. "best" and "robust": the highest validation accuracy, clean or
#: under PGD (the later epoch on a tie). "last": the last epoch.
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
    """Parse a radius in pixel units ([0, 1] images) from ``0.03``, ``"0.03"`` or ``"8/255"``.

    Raises ValueError for a negative number, NaN or infinity, and for anything that is not a number.

    >>> parse_radius("8/255")
    0.03137254901960784
    """
    try:
        radius = float(Fraction(value.strip())) if isinstance(value, str) else float(value)  # type: ignore[arg-type]  # TypeError is caught
    except (ValueError, TypeError, ArithmeticError):
        radius = float("nan")
    if not isfinite(radius) or radius < 0:
        raise ValueError("must be a number of at least 0, such as 0.03 or 8/255")
    return radius


Radius = Annotated[float, BeforeValidator(parse_radius)]

#: Default radius of each norm, in pixel units: the paper's in L2, the field's usual one in L-infinity.
DEFAULT_RADII: dict[str, float] = {"l2": 1.0, "linf": 8 / 255}


class StepSize(Config):
    """Length of a step: ``step_size`` in pixel units, or ``relative_step_size`` in multiples of epsilon."""

    step_size: Radius | None = None
    relative_step_size: Radius | None = None

    def at(self, epsilon: float, steps: int) -> float:
        """Resolve the step size to pixel units; the default is 2.5 epsilon / steps (Madry et al. 2018).

        With the default, the steps together are 2.5 times as long as the radius, enough to cross the ball.
        """
        if self.step_size is not None:
            return self.step_size
        return 2.5 * epsilon / steps if self.relative_step_size is None else self.relative_step_size * epsilon

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.step_size is not None and self.relative_step_size is not None:
            given = f"got {self.step_size:g} and {self.relative_step_size:g}"
            raise ValueError(f"step_size must not be given together with `relative_step_size`, {given}")
        return self


#: One objective, or several with weights. The tags decide against which of the two forms a mistake is explained.
Mix = Annotated[
    Annotated[Objective, Tag("[one]")]
    | Annotated[dict[Objective, Annotated[float, Field(gt=0)]], Field(min_length=1), Tag("[mix]")],
    Discriminator(lambda value: "[mix]" if isinstance(value, dict) else "[one]"),
]


class Adversary(Config):
    """Adversarial training in a phase: the attack is FGSM (one step of ``epsilon``) or PGD, in any threat model.

    ``objective`` is the loss that the attack maximises: ``own`` (the phase's loss, with the same sampled actions) or
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
        """``step_size``, or 2.5 epsilon / steps by default; pixel units."""
        return StepSize(step_size=self.step_size).at(self.epsilon, self.steps)


class Phase(Config):
    """A run of training epochs with one objective, or with several objectives summed with weights.

    The learning rate rises linearly over ``warmup_epochs``, then changes linearly from ``learning_rate`` to
    ``final_learning_rate``. ``exploration`` is the probability that actions are drawn uniformly; the draw is made once
    per batch (as in the paper) or for each sample. ``baseline`` subtracts the batch's mean reward.
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
        """Compute the learning rate after ``epoch`` epochs of the phase; ``epoch`` may be a fraction."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.final_learning_rate is None:
            return self.learning_rate
        done = (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs)
        return self.learning_rate + done * (self.final_learning_rate - self.learning_rate)


class Data(Config):
    """The data set: a name from ``gradscope list datasets``, and the place of its files."""

    dataset: str = "digits"
    data_root: FilePath | None = None
    image_size: ImageSize | None = None


def _require_label(mode: str) -> str:
    """Return ``mode`` if it can be part of a checkpoint's file name; else raise GradscopeError."""
    if len(mode) > 100 or not is_plain_name(mode):
        raise GradscopeError(f"mode must be a plain name of at most 100 characters, not a path, got {mode!r}")
    return mode


class Training(Config):
    """All resolved settings that determine a checkpoint. ``mode`` is a label; ``phases`` decide how training runs.

    ``architecture`` is a name or a user's ``package.module:factory(...)``. ``initial`` is the fingerprint of the
    checkpoint that training starts from; None starts from fresh weights drawn with the seed. ``train_samples`` is the
    number of training images used, validation images included; the classes keep their shares.
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
        """Leave out unused keys that older versions did not know, so that stages and checkpoints keep their names."""
        values: dict[str, Any] = values_of(self)
        return values if self.train_samples is not None else {k: v for k, v in values.items() if k != "train_samples"}

    @property
    def epochs(self) -> int:
        """Total number of epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)


class PGD(Config):
    """Settings of one projected gradient descent (PGD) attack, with every numerical choice explicit.

    The defaults are exact: the loss is summed, steps are divided by the gradient's own norm, and iterates stay in
    [0, 1]. ``reduction`` "mean" divides each sample's gradient by the batch size. ``norm_floor`` shortens an L2 step
    whose gradient norm is below it. ``start`` "ball" is uniform in the ball; "cube" is uniform in
    [-epsilon, epsilon]^D and then projected onto the ball. Each step follows the mean gradient of ``smoothing`` copies
    of the point; each copy has Gaussian noise of standard deviation ``smoothing_radius`` in every coordinate (pixel
    units). One copy without noise gives the plain gradient.

    The default of ``epsilon`` comes from :data:`DEFAULT_RADII`, that of ``step_size`` from :class:`StepSize`.
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
        """The norm and the radius, under the column names of result tables."""
        return {"norm": self.norm, "epsilon": self.epsilon}

    @property
    def smooths(self) -> bool:
        """Whether steps follow a mean gradient over noisy copies."""
        return self.smoothing > 1 or self.smoothing_radius > 0

    @model_validator(mode="after")
    def _restarts_differ(self) -> Self:
        if self.restarts > 1 and self.start == "none":
            raise ValueError("restarts must be 1 without a random start, got start 'none'")
        return self


class Budget(StepSize):
    """Limits on the work of the attacks in an evaluation, and optionally the step size of PGD.

    ``steps``: steps of every gradient attack. ``restarts``: restarts of pgd-restarts. ``smoothing``: copies per step of
    pgd-smooth. ``targets``: number of wrong classes that apgd-t, fab-t and fmn aim at, likeliest first. ``queries``:
    queries of square, rays and hop-skip-jump. ``noise_points``: random points of noise; manifests call this ``draws``,
    as in older versions.
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
        """The part of the budget that every PGD attack uses: the steps, and their size if one is set."""
        given = {key: getattr(self, key) for key in ("steps", "step_size", "relative_step_size")}
        return {key: value for key, value in given.items() if value is not None}


class Balls(Config):
    """The threat models of an evaluation: one norm and its radii; the default radius is the norm's usual one."""

    norm: Norm = "l2"
    epsilon: Radius | None = None
    epsilons: tuple[Radius, ...] = ()

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii without duplicates, ascending; pixel units."""
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


#: The variants of PGD, with the settings in which each differs from the exact defaults of :class:`PGD`. A variant that
#: sets its own ``steps`` keeps them and their size, whatever the user gives. ``step_factor`` multiplies the step size,
#: up to the diameter of the ball.
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
    """Read a TOML file; raises :class:`GradscopeError`, naming ``argument``, if it is missing or malformed."""
    text = read_text(path, argument)
    try:
        return parse_toml(text)
    except ValueError as error:
        raise GradscopeError(f"{argument}: {path} is not TOML: {reason_of(error)}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``changes`` into a copy of ``base``: nested tables are merged, lists and values replaced.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Apply one ``--set KEY=VALUE`` to ``values`` in place; a key such as ``phases.0.epochs=3`` reaches into lists.

    The value is parsed as TOML; if that fails, it is taken as text.
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
            raise GradscopeError(f"set: {key!r} reaches into {part!r}, which must be a table or a list")
    if isinstance(target, list):
        _child(target, last, key)
        target[int(last)] = value
    else:
        target[last] = value


def _child(target: Any, part: str, key: str) -> Any:
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            entries, allowed = (
                ("1 entry", "0") if len(target) == 1 else (f"{len(target)} entries", f"0 to {len(target) - 1}")
            )
            name = key.partition(f".{part}")[0]
            raise GradscopeError(f"set: {key!r}: {name} has {entries}; its index must be {allowed}, got {part!r}")
        return target[int(part)]
    if part not in target:
        raise unknown_name(f"set: {key}", part, target)
    return target[part]


def attack_settings(name: str, given: Mapping[str, Any]) -> PGD:
    """Resolve the settings of the attack ``name`` of :data:`PGD_ATTACKS`; the ``given`` settings override its own.

    Raises :class:`GradscopeError` if ``given`` changes the loss or precision that the attack's name stands for.

    >>> attack_settings("pgd-margin", {"norm": "linf", "epsilon": 0.03, "steps": 10}).loss
    'margin'
    """
    changes = lookup(PGD_ATTACKS, name, "attack")
    for key in ("loss", "precision"):
        if key in changes and given.get(key, changes[key]) != changes[key]:
            raise GradscopeError(f"{key} must be {changes[key]} in {name}, got {given[key]}; use pgd for another {key}")
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
    """Resolve an attack like :func:`attack_settings`, with 5 steps by default: for attacks run thousands of times."""
    return attack_settings(name, {"steps": 5, **given})

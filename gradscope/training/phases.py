"""The presets: the phases of each mode, at the paper's size or sized for the data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradscope.config import Adversary, Data, Phase, Training, apply_setting, merge
from gradscope.errors import GradscopeError, lookup, unknown_name


@dataclass(frozen=True)
class Size:
    """The settings of training for images of one kind."""

    architecture: str
    batch_size: int
    sl_epochs: int
    rl_epochs: int
    sl_learning_rate: float
    rl_learning_rate: float
    adversary_epsilon: float
    horizontal_flip: bool = False
    vertical_flip: bool = False
    shift: float = 0.0
    warmup_epochs: int = 1


DIGITS = Size("cnn2", 64, 30, 60, 2e-3, 2e-3, adversary_epsilon=0.1)
FASHION = Size("cnn4", 128, 8, 20, 1e-3, 5e-4, adversary_epsilon=0.05, horizontal_flip=True, shift=0.1)
NATURAL = Size("cnn4", 128, 30, 60, 1e-3, 5e-4, adversary_epsilon=0.01, horizontal_flip=True, shift=0.1)
LARGE = Size("resnet18", 128, 60, 120, 1e-3, 5e-4, adversary_epsilon=0.01, horizontal_flip=True, shift=0.1)

#: The paper's numbers (its scripts: 100 epochs of SL with five of warm-up, 600 of RL, batch 256).
PAPER = Size(
    "cnn6",
    256,
    100,
    600,
    2e-4,
    1e-4,
    adversary_epsilon=0.01,
    horizontal_flip=True,
    vertical_flip=True,
    shift=0.1,
    warmup_epochs=5,
)

SIZES: dict[str, Size] = {"digits": DIGITS, "fashion-mnist": FASHION, "cifar10": NATURAL, "cifar100": NATURAL}

MODES: dict[str, str] = {
    "sl": "supervised: cross-entropy",
    "rl": "policy gradient with epsilon-greedy exploration 0.1 per batch, as in the paper",
    "sl-adv": "sl, with its last fifth on clean and FGSM images",
    "rl-adv": "rl, with its last third on clean and FGSM images",
    "sl-rl": "half of sl's epochs, then half of rl's",
    "rl-sl": "half of rl's epochs, then half of sl's",
}

#: Other common names for settings of a phase.
_ALSO = {"lr": "learning_rate", "wd": "weight_decay", "warmup": "warmup_epochs"}


def size_for(data: Data, image_size: int, *, paper: bool) -> Size:
    """Choose the settings for a data set whose images are ``image_size`` pixels wide."""
    if paper:
        return PAPER
    if data.dataset in SIZES:
        return SIZES[data.dataset]
    if image_size < 16:
        return DIGITS
    return NATURAL if image_size < 64 else LARGE


def phases_for(mode: str, size: Size) -> list[Phase]:
    """Make the phases of a preset mode."""
    lookup(MODES, mode, "mode")
    adversary = Adversary(epsilon=size.adversary_epsilon)
    if mode in ("sl", "rl"):
        return [_supervised(size, size.sl_epochs) if mode == "sl" else _reinforced(size, size.rl_epochs)]
    if mode == "sl-adv":
        whole = _supervised(size, size.sl_epochs)
        return _split(whole, size.sl_epochs - max(1, size.sl_epochs // 5), adversary)
    if mode == "rl-adv":
        whole = _reinforced(size, size.rl_epochs)
        return _split(whole, size.rl_epochs - max(1, size.rl_epochs // 3), adversary)
    halves = [_supervised(size, max(1, size.sl_epochs // 2)), _reinforced(size, max(1, size.rl_epochs // 2))]
    return halves if mode == "sl-rl" else halves[::-1]


def _supervised(size: Size, epochs: int) -> Phase:
    """Make a supervised phase: warm-up, then linear decay to a tenth; gradient norm clipped at 1."""
    return Phase(
        objective="cross-entropy",
        epochs=epochs,
        learning_rate=size.sl_learning_rate,
        final_learning_rate=size.sl_learning_rate / 10,
        warmup_epochs=min(size.warmup_epochs, epochs - 1),
        clip_norm=1.0,
    )


def _reinforced(size: Size, epochs: int) -> Phase:
    """Make a policy-gradient phase: constant learning rate, no clipping, exploration 0.1 per batch, no baseline."""
    return Phase(
        objective="policy-gradient",
        epochs=epochs,
        learning_rate=size.rl_learning_rate,
        exploration=0.1,
        exploration_scope="batch",
    )


def _split(whole: Phase, clean_epochs: int, adversary: Adversary) -> list[Phase]:
    """Split ``whole`` after ``clean_epochs``: the learning-rate line goes on, the second part has the adversary."""
    if clean_epochs < 1:
        return [whole.model_copy(update={"adversary": adversary})]
    rate = whole.learning_rate_at(clean_epochs)
    decays = whole.final_learning_rate is not None
    first = {
        "epochs": clean_epochs,
        "warmup_epochs": min(whole.warmup_epochs, clean_epochs - 1),
        "final_learning_rate": rate if decays else None,
    }
    second = {
        "epochs": whole.epochs - clean_epochs,
        "warmup_epochs": 0,
        "learning_rate": rate,
        "adversary": adversary,
    }
    return [whole.model_copy(update=first), whole.model_copy(update=second)]


def scale_epochs(phases: Sequence[Phase], epochs: int) -> list[Phase]:
    """Scale the phases to ``epochs`` in total, in their proportions, each at least one epoch.

    >>> [phase.epochs for phase in scale_epochs(phases_for("sl-adv", DIGITS), 10)]
    [8, 2]
    """
    if epochs < len(phases):
        raise GradscopeError(f"epochs must be at least {len(phases)}, one per phase, got {epochs}")
    total = sum(phase.epochs for phase in phases)
    scaled = [max(1, round(phase.epochs * epochs / total)) for phase in phases]
    scaled[scaled.index(max(scaled))] += epochs - sum(scaled)
    return [
        phase.model_copy(update={"epochs": count, "warmup_epochs": min(phase.warmup_epochs, count - 1)})
        for phase, count in zip(phases, scaled, strict=True)
    ]


def _require_known(setting: str) -> None:
    """Raise :class:`GradscopeError` if KEY of KEY=VALUE is not a setting; say where a phase's setting goes."""
    key, equals, value = setting.partition("=")
    first, dot, rest = key.partition(".")
    if not first or not equals or first in Training.model_fields:
        return
    field = _ALSO.get(first, first)
    if field in Phase.model_fields:
        raise GradscopeError(
            f"set: {first!r} is a setting of a phase, and there may be several phases; "
            f"pass phases.0.{field}{dot}{rest}={value} for the first"
        )
    raise unknown_name("set", first, Training.model_fields)


def resolve(
    mode: str,
    data: Data,
    image_size: int,
    *,
    paper: bool = False,
    table: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Training:
    """Resolve the configuration: preset of ``mode`` < ``table`` (TOML) < ``settings`` (KEY=VALUE) < ``options``.

    A mode without a preset is accepted if ``table`` gives the phases.
    """
    table = table or {}
    size = size_for(data, image_size, paper=paper)
    if "phases" in table and mode not in MODES:
        phases: list[Any] = []
    else:
        phases = [phase.model_dump() for phase in phases_for(mode, size)]
    values: dict[str, Any] = {
        "mode": mode,
        "data": data.model_dump(),
        "architecture": size.architecture,
        "phases": phases,
        "batch_size": size.batch_size,
        "horizontal_flip": size.horizontal_flip,
        "vertical_flip": size.vertical_flip,
        "shift": size.shift,
    }
    values = merge(values, table)
    for setting in settings:
        _require_known(setting)
        apply_setting(values, setting)
    values = merge(values, {**(options or {}), "mode": mode})
    training = Training.parse(values)
    if epochs is not None:
        training = training.model_copy(update={"phases": tuple(scale_epochs(training.phases, epochs))})
    return training

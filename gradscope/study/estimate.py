"""Estimate how long the stages of a plan will take: from records of earlier stages on this machine, or from a probe.

Work is counted in passes of one image through the network: forward, and forward with backward. The counts come from the
configuration. They ignore figures, loading and the passes that a cascade saves. So the record of the same stage comes
first, then records of the same kind of stage on the same network, then a timed probe.
"""

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from gradscope.attacks.distances import ATTACK as DISTANCE
from gradscope.auditing.budgets import BUDGETS
from gradscope.auditing.known_points import MOST_INNER, RANDOM_POINTS
from gradscope.config import PGD, Budget, Training
from gradscope.distributed.processes import resolve_device
from gradscope.distributed.units import halving
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy
from gradscope.measure.options import (
    AnalyzeOptions,
    AttackOptions,
    AuditOptions,
    LandscapeOptions,
    SpectrumOptions,
    TransferOptions,
)
from gradscope.measure.options.adaptive import Adaptive
from gradscope.measure.options.common import Options, Sampled
from gradscope.measure.options.judge import JudgeOptions
from gradscope.measure.transfer import CURVED
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.inspection import laid_out, strict_float32
from gradscope.probes.connection import IMAGES as CURVE_IMAGES
from gradscope.probes.similarity import PRODUCTS
from gradscope.reading import read_bytes
from gradscope.seeding import seeded
from gradscope.study.model_tasks import TrainTask
from gradscope.study.plan import Plan
from gradscope.study.state import FOLDER, Record
from gradscope.study.tasks import ImageFacts, MeasureTask, Stage
from gradscope.training.held_out import ATTACKED, STEPS
from gradscope.training.precision import SMALL_SIDE, auto_precision

Source = Literal["record", "records", "probe", "fixed"]

#: Seconds of a stage beside its passes: reading models and images, writing files.
_FIXED_SECONDS = {"train": 1.0, "scale": 0.5, "measure": 3.0, "claims": 2.0, "report": 10.0}
#: Images per pass of the probe, by device (with few images a GPU waits for launches), and seconds of repetition.
_PROBE_BATCH, _PROBE_SECONDS = {"cpu": 32, "cuda": 512}, 0.3


@dataclass(frozen=True)
class Passes:
    """Numbers of passes of one image: ``forward`` only, and ``gradient`` (forward and backward)."""

    forward: float = 0.0
    gradient: float = 0.0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.gradient + other.gradient)

    def __mul__(self, count: float) -> "Passes":
        return Passes(self.forward * count, self.gradient * count)


@dataclass(frozen=True)
class Estimate:
    """The estimated seconds of a stage, and their source.

    ``most``: the stage may take far less, because attacks are counted as if every image resisted to the end.
    """

    seconds: float
    source: Source
    most: bool = False

    @property
    def likely(self) -> float:
        """Seconds by which stages are ordered: half of the estimate if it is ``most``."""
        return self.seconds / 2 if self.most else self.seconds


def work_of(plan: Plan) -> dict[str, dict[str, float]]:
    """Count the passes of every stage, by network and precision; records keep them for later estimates."""
    networks = _networks(plan)
    return {stage.label: _stage_work(stage, networks) for stage in plan.stages}


def _networks(plan: Plan) -> dict[str, str]:
    """Name architecture and images of each model, by the label of its stage."""
    networks: dict[str, str] = {}
    for stage in plan.stages:
        if isinstance(stage.task, TrainTask):
            networks[stage.label] = network_name(stage.task.training.architecture, stage.task.images)
        elif stage.kind == "scale":
            networks[stage.label] = networks[stage.needs[0]]
    return networks


def network_name(architecture: str, images: ImageFacts) -> str:
    """Name everything that the time of a pass depends on, such as ``cnn4 3x32x32 10``."""
    return f"{architecture} {images.channels}x{images.image_size}x{images.image_size} {images.classes}"


def _stage_work(stage: Stage, networks: Mapping[str, str]) -> dict[str, float]:
    work: dict[str, float] = {}

    def add(network: str, passes: Passes, precision: str = "32") -> None:
        for key, count in (("forward", passes.forward), ("gradient", passes.gradient)):
            if count:
                kind = key if precision == "32" else f"{key}-{precision}"
                work[f"{network} {kind}"] = work.get(f"{network} {kind}", 0.0) + count

    if isinstance(stage.task, TrainTask):
        training = stage.task.training
        # Small images are trained in float32 on every machine; for larger ones "auto" depends on the machine.
        small = training.precision == "auto" and stage.task.images.image_size < SMALL_SIDE
        precision = "32" if small else training.precision
        add(networks[stage.label], training_passes(training, stage.task.images), precision)
    elif isinstance(stage.task, MeasureTask):
        task = stage.task
        options, models = task.options, len(task.models)
        for label in set(task.models) - task.foreign.keys():
            add(networks[f"model-{label}"], measuring_passes(options, task.images, models))
        if isinstance(options, AttackOptions | AuditOptions):
            examples = Passes(gradient=_images(options, task.images) * _steps(options)) * models
            for label in set(task.others.get("surrogate", ())) - task.foreign.keys():
                add(networks[f"model-{label}"], examples)
    return work


def training_passes(training: Training, images: ImageFacts) -> Passes:
    """Count the passes of a training: updates, making adversarial images and updates on them, and validation."""
    train = training.train_samples or images.train
    held_out = train * training.validation_fraction
    passes = Passes(forward=float(images.test))
    for phase in training.phases:
        gradients = 1.0
        if phase.adversary is not None:
            shared = phase.adversary.method == "fgsm" and phase.adversary.objective == "own"
            gradients += 1.0 + (0 if shared else 1 if phase.adversary.method == "fgsm" else phase.adversary.steps)
            # FGSM and PGD on the validation images.
            passes += Passes(gradient=2.0 + STEPS) * min(ATTACKED, held_out) * phase.epochs
        passes += Passes(held_out, gradients * (train - held_out)) * phase.epochs
    return passes


def measuring_passes(options: Options, images: ImageFacts, models: int) -> Passes:
    """Count the passes of one of ``models`` models in a measurement, as if every image resisted attacks to the end."""
    draws = options.draws if isinstance(options, Adaptive) else None
    return _passes_of_a_draw(options, images, models) * (draws or 1)


def _passes_of_a_draw(options: Options, images: ImageFacts, models: int) -> Passes:
    count = _images(options, images)
    if isinstance(options, AnalyzeOptions):
        return _sum(_pgd(settings) for settings in options.attacks.values()) * count
    if isinstance(options, TransferOptions):
        # The gradient to compare with other models', and for some images Hessian products of about two passes each.
        bent = Passes(gradient=2.0 * PRODUCTS) * min(CURVED, count)
        return (_pgd(options.settings) + Passes(forward=models, gradient=1)) * count + bent
    if isinstance(options, LandscapeOptions):
        attack = _sum(_pgd(settings) for settings in (options.settings, options.rival) if settings is not None)
        if options.space == "input":
            # Beside the plane: nine rays of 64 points, 128 points of the sharpness, 8 ascents, some Hessian products.
            return (Passes(options.points**2 + 9 * 64 + 128, 150) + attack) * count
        points = options.points ** (1 if options.line else 2) * len(options.ways)
        trained = Passes(gradient=0.0 if options.curve is None else float(options.curve_updates * CURVE_IMAGES))
        return ((Passes(forward=1) + attack) * points + Passes(gradient=60)) * count + trained
    if isinstance(options, SpectrumOptions):
        # A product is a forward and a backward pass, and the backward of both. Input space has low rank: few products.
        products = (
            len(options.matrices)
            * (1 + options.probes)
            * min(options.iterations, 50 if options.space == "weights" else 20)
        )
        attack = Passes() if options.settings is None else _pgd(options.settings)
        return (Passes(gradient=2.5 * products) + attack) * count
    if isinstance(options, AttackOptions):
        attacks = _sum(_attack(name, options.budget) for name in options.names)
        return (attacks + Passes(forward=1)) * (count * len(options.balls.radii))
    if isinstance(options, JudgeOptions):
        # Our attacks, and the judged attack with a dozen repairs, each as long as one of ours.
        attacks = _sum(_attack(name, BUDGETS[options.budget].attacks) for name in ("apgd-ce", "apgd-t", "square"))
        return (attacks + Passes(gradient=15 * BUDGETS[options.budget].attacks.steps)) * count
    assert isinstance(options, AuditOptions)
    budget = options.spending_of(with_examples=bool(options.surrogate))
    probed = Passes(2 * budget.directions, 8) * budget.probed
    if budget.unit_test:
        probed += Passes(MOST_INNER + RANDOM_POINTS, 2 * budget.attacks.steps) * budget.probed
    scaled = Passes(gradient=budget.scale.steps * budget.scale.runs) * min(count, budget.scale.images)
    # The checks of radius, unbounded ball and budget attack again.
    spent = {name: budget.for_distances if name == DISTANCE else budget.attacks for name in budget.names}
    attacks = _sum(_attack(name, given) for name, given in spent.items())
    return (attacks + Passes(gradient=6 * budget.attacks.steps)) * count + probed + scaled


def _images(options: Options, images: ImageFacts) -> int:
    if isinstance(options, SpectrumOptions):
        return min(options.images or options.default_images, images.test)
    if isinstance(options, LandscapeOptions):
        return len(options.index) or options.images or options.default_images
    samples = options.samples if isinstance(options, Sampled) else None
    return min(options.default_images if samples is None else samples, images.test)


def _steps(options: AttackOptions | AuditOptions) -> int:
    budget = options.budget if isinstance(options, AttackOptions) else BUDGETS[options.budget].attacks
    return budget.steps


def _pgd(settings: PGD) -> Passes:
    return Passes(gradient=(settings.steps + 1) * settings.restarts * settings.smoothing)


def _attack(name: str, budget: Budget) -> Passes:
    """Count the passes of one attack on an image that resists to the end."""
    if name == "autoattack":
        return _sum(_attack(part, budget) for part in ("apgd-ce", "apgd-t", "fab-t", "square"))
    if name in ("square", "rays", "hop-skip-jump"):
        return Passes(forward=budget.queries)
    if name == "noise":
        return Passes(forward=budget.noise_points)
    if name in ("fgsm", "transfer"):
        return Passes(1, 1)
    times = {
        "pgd-smooth": budget.smoothing,
        "pgd-restarts": budget.restarts,
        "apgd-t": budget.targets,
        "fab-t": 2 * budget.targets,
        "fab": 9,
        DISTANCE: 1 + budget.targets,
        "pgd-float64": 2,
    }
    return Passes(gradient=budget.steps * times.get(name, 1))


def _sum(parts: Iterable[Passes]) -> Passes:
    return sum(parts, Passes())


class Estimator:
    """Estimates how long stages take on ``device``, with the records of the studies below ``reports``.

    ``work`` holds the passes of every stage that may be estimated, by label.
    """

    def __init__(self, work: Mapping[str, Mapping[str, float]], reports: Path, device: str) -> None:
        self.work, self.reports = work, reports
        self._probe = _Probe(device)

    def estimate(self, stages: Sequence[Stage]) -> dict[str, Estimate]:
        """Estimate how long each of ``stages`` takes, with the current records."""
        on_cpu = self._probe.device.type == "cpu"
        known = [
            record
            for record in read_records(self.reports)
            if record.where.get("host") == platform.node() and (record.where.get("device") == "cpu") == on_cpu
        ]
        same = {record.name: record.seconds for record in known if record.seconds is not None}
        estimates = {}
        for stage in stages:
            work = self.work[stage.label]
            if (seconds := same.get(stage.name)) is not None:
                estimates[stage.label] = Estimate(seconds, "record")
                continue
            of_kind = [record for record in known if record.kind == stage.kind and record.seconds]
            similar = [record for record in of_kind if _is_similar(stage, record, work)]
            unit = sum(self._probe.seconds(record.work) for record in similar) if similar else 0.0
            if unit:
                spent = sum(record.seconds or 0.0 for record in similar)
                estimates[stage.label] = Estimate(self._probe.seconds(work) * spent / unit, "records")
            else:
                fixed = _FIXED_SECONDS.get(stage.kind, 1.0)
                most = stage.settings.get("command") in ("attack", "audit")
                estimates[stage.label] = Estimate(fixed + self._probe.seconds(work), "probe" if work else "fixed", most)
        return estimates


@dataclass(frozen=True)
class Limit:
    """The time at which a run of a study must end (``time.time()``), and the estimator of its stages."""

    deadline: float
    estimator: Estimator

    def objection(self, stage: Stage) -> str | None:
        """Say why ``stage`` cannot begin; None if it can.

        A training may begin if one epoch fits, because it can stop after any epoch. Every other stage must end in time.
        """
        left = max(0.0, self.deadline - time.time())
        needed, subject = self.estimator.estimate([stage])[stage.label].seconds, "it takes"
        if isinstance(stage.task, TrainTask):
            needed, subject = needed / stage.task.training.epochs, "one epoch takes"
        return f"{subject} about {needed:.1f} s, {left:.1f} s are left" if needed > left else None


def _is_similar(stage: Stage, record: Record, work: Mapping[str, float]) -> bool:
    """Whether a record is of the same kind of work on the same networks, and of the same command."""
    return record.work.keys() == work.keys() and record.command == stage.settings.get("command")


def read_records(reports: Path) -> list[Record]:
    """Read the records of finished stages of every study in the folder ``reports``."""
    records = []
    for path in sorted(chain(reports.glob(f"*/{FOLDER}/*.json"), reports.glob(f"{FOLDER}/*.json"))):
        try:
            record = Record.model_validate_json(read_bytes(path))
        except (OSError, ValueError):
            continue
        if record.state == "done":
            records.append(record)
    return records


class _Probe:
    """Times passes; each kind is timed once, when first needed."""

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self._timed: dict[str, float] = {}

    def seconds(self, work: Mapping[str, float]) -> float:
        return sum(count * self._pass(key) for key, count in work.items())

    def _pass(self, key: str) -> float:
        if key not in self._timed:
            network, _, kind = key.rpartition(" ")
            kind, _, precision = kind.partition("-")
            self._timed[key] = self._time(network, gradient=kind == "gradient", precision=precision or "32")
        return self._timed[key]

    def _time(self, network: str, *, gradient: bool, precision: str) -> float:
        """Time one pass per image, in batches that fit the memory, in a training's ``precision``; seconds."""
        architecture, shape, classes = network.split(" ")
        channels, size, _ = (int(part) for part in shape.split("x"))
        rounded = precision == "bf16" or (precision == "auto" and auto_precision(self.device, size) == "bf16")
        with seeded(0, "probe"):
            model = build(ModelSpec(architecture, int(classes), channels, size, (0.5,), (0.5,))).to(self.device).eval()

        def per_image(batch: int) -> float:
            """Return the median of a few passes, after one to warm up."""
            with seeded(0, "probe images"):
                images = torch.rand(batch, channels, size, size, device=self.device)
            images = images.contiguous(memory_format=torch.channels_last) if rounded else laid_out(images)
            images.requires_grad_(gradient)
            labels = torch.zeros(batch, dtype=torch.int64, device=self.device)
            times: list[float] = []
            while sum(times) < _PROBE_SECONDS or len(times) < 3:
                started = time.perf_counter()
                with (
                    nullcontext() if rounded else strict_float32(),
                    torch.set_grad_enabled(gradient),
                    torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=rounded),
                ):
                    loss = cross_entropy(model(images), labels).sum()
                    if gradient:
                        torch.autograd.grad(loss, [images, *model.parameters()])
                loss.item()
                times.append(time.perf_counter() - started)
            return sorted(times[1:])[len(times[1:]) // 2] / batch

        try:
            return halving(per_image, _PROBE_BATCH[self.device.type])
        except RuntimeError as error:
            raise GradscopeError(
                f"device: {architecture} must run on {self.device}, it raised: {error}".splitlines()[0]
            ) from None

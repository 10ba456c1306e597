"""How long the stages of a plan will take: from records of earlier ones on this machine, or from a timed probe.

Work is counted in passes of one image through the network: forward, and forward with backward. The counts follow
from the configuration; of what they leave out (figures, loading, what a cascade spares) they are blind, so the same
stage's record, and after it records of the same kind on the same network, come first.
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

#: What a stage takes before and after its passes: reading models and images, writing files.
_FIXED_SECONDS = {"train": 1.0, "scale": 0.5, "measure": 3.0, "claims": 2.0, "report": 10.0}
#: Images a pass of the probe, by device (a GPU given few waits for the next launch), and how long it repeats.
_PROBE_BATCH, _PROBE_SECONDS = {"cpu": 32, "cuda": 512}, 0.3


@dataclass(frozen=True)
class Passes:
    """Passes of one image: ``forward`` alone, and ``gradient`` (forward and backward)."""

    forward: float = 0.0
    gradient: float = 0.0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.gradient + other.gradient)

    def __mul__(self, count: float) -> "Passes":
        return Passes(self.forward * count, self.gradient * count)


@dataclass(frozen=True)
class Estimate:
    """Seconds a stage is thought to take, and what they are taken from.

    ``most``: it may take far less, for attacks were counted as if every image stood to the end.
    """

    seconds: float
    source: Source
    most: bool = False

    @property
    def likely(self) -> float:
        """Seconds by which stages are put in order: half of ``most``."""
        return self.seconds / 2 if self.most else self.seconds


def work_of(plan: Plan) -> dict[str, dict[str, float]]:
    """The passes of every stage, by network and precision: what its record keeps for later estimates."""
    networks = _networks(plan)
    return {stage.label: _stage_work(stage, networks) for stage in plan.stages}


def _networks(plan: Plan) -> dict[str, str]:
    """Architecture and images of each model, by the label of its stage."""
    found: dict[str, str] = {}
    for stage in plan.stages:
        if isinstance(stage.task, TrainTask):
            found[stage.label] = network_name(stage.task.training.architecture, stage.task.images)
        elif stage.kind == "scale":
            found[stage.label] = found[stage.needs[0]]
    return found


def network_name(architecture: str, images: ImageFacts) -> str:
    """What the time of a pass depends on: ``cnn4 3x32x32 10``."""
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
        # Small images are in float32 on every machine; what larger ones are in, the machine decides.
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
    """Each epoch's updates, those on adversarial images with the making of these, and its validation."""
    train = training.train_samples or images.train
    held_out = train * training.validation_fraction
    passes = Passes(forward=float(images.test))
    for phase in training.phases:
        gradients = 1.0
        if phase.adversary is not None:
            shared = phase.adversary.method == "fgsm" and phase.adversary.objective == "own"
            gradients += 1.0 + (0 if shared else 1 if phase.adversary.method == "fgsm" else phase.adversary.steps)
            # FGSM and PGD on validation images.
            passes += Passes(gradient=2.0 + STEPS) * min(ATTACKED, held_out) * phase.epochs
        passes += Passes(held_out, gradients * (train - held_out)) * phase.epochs
    return passes


def measuring_passes(options: Options, images: ImageFacts, models: int) -> Passes:
    """One model's share of a measurement of ``models``; attacks as if every image stood to the end."""
    draws = options.draws if isinstance(options, Adaptive) else None
    return _passes_of_a_draw(options, images, models) * (draws or 1)


def _passes_of_a_draw(options: Options, images: ImageFacts, models: int) -> Passes:
    count = _images(options, images)
    if isinstance(options, AnalyzeOptions):
        return _sum(_pgd(settings) for settings in options.attacks.values()) * count
    if isinstance(options, TransferOptions):
        # The gradient that is compared with others'; of some images the Hessian's products, each of about two passes.
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
        # A product is a forward pass, its backward pass, and theirs. In input space few are needed: ranks are low.
        products = (
            len(options.matrices)
            * (1 + options.probes)
            * min(options.iterations, 50 if options.space == "weights" else 20)
        )
        made = Passes() if options.settings is None else _pgd(options.settings)
        return (Passes(gradient=2.5 * products) + made) * count
    if isinstance(options, AttackOptions):
        attacks = _sum(_attack(name, options.budget) for name in options.names)
        return (attacks + Passes(forward=1)) * (count * len(options.balls.radii))
    if isinstance(options, JudgeOptions):
        # Ours, and the attack itself with a dozen repairs, as long as ours.
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
    """One attack on an image that stands to its end."""
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
    """How long stages take on ``device``; records are looked for in the studies below ``reports``.

    ``work`` is that of every stage that may be asked for, by label.
    """

    def __init__(self, work: Mapping[str, Mapping[str, float]], reports: Path, device: str) -> None:
        self.work, self.reports = work, reports
        self._probe = _Probe(device)

    def estimate(self, stages: Sequence[Stage]) -> dict[str, Estimate]:
        """About how long each of ``stages`` takes, by the records there are now."""
        on_cpu = self._probe.device.type == "cpu"
        known = [
            record
            for record in read_records(self.reports)
            if record.where.get("host") == platform.node() and (record.where.get("device") == "cpu") == on_cpu
        ]
        same = {record.name: record.seconds for record in known if record.seconds is not None}
        found = {}
        for stage in stages:
            mine = self.work[stage.label]
            if (seconds := same.get(stage.name)) is not None:
                found[stage.label] = Estimate(seconds, "record")
                continue
            alike = [one for one in known if one.kind == stage.kind and one.seconds and _alike(stage, one, mine)]
            unit = sum(self._probe.seconds(one.work) for one in alike) if alike else 0.0
            if unit:
                spent = sum(one.seconds or 0.0 for one in alike)
                found[stage.label] = Estimate(self._probe.seconds(mine) * spent / unit, "records")
            else:
                fixed = _FIXED_SECONDS.get(stage.kind, 1.0)
                most = stage.settings.get("command") in ("attack", "audit")
                found[stage.label] = Estimate(fixed + self._probe.seconds(mine), "probe" if mine else "fixed", most)
        return found


@dataclass(frozen=True)
class Limit:
    """When a run of a study has to end (``time.time()``), and how long a stage is thought to take."""

    deadline: float
    estimator: Estimator

    def objection(self, stage: Stage) -> str | None:
        """Why ``stage`` cannot begin; None where it can.

        A training begins where one epoch fits, for it stops after any; everything else has to end in time.
        """
        left = max(0.0, self.deadline - time.time())
        needed, what = self.estimator.estimate([stage])[stage.label].seconds, "it takes"
        if isinstance(stage.task, TrainTask):
            needed, what = needed / stage.task.training.epochs, "one epoch takes"
        return f"{what} about {needed:.1f} s, {left:.1f} s are left" if needed > left else None


def _alike(stage: Stage, record: Record, work: Mapping[str, float]) -> bool:
    """Whether a record is of the same kind of work on the same networks, a measurement by the same command."""
    return record.work.keys() == work.keys() and record.command == stage.settings.get("command")


def read_records(reports: Path) -> list[Record]:
    """The records of finished stages of every study in a folder ``reports``."""
    found = []
    for path in sorted(chain(reports.glob(f"*/{FOLDER}/*.json"), reports.glob(f"{FOLDER}/*.json"))):
        try:
            record = Record.model_validate_json(read_bytes(path))
        except (OSError, ValueError):
            continue
        if record.state == "done":
            found.append(record)
    return found


class _Probe:
    """Seconds of passes, each kind timed once, when it is first asked for."""

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
        """Seconds an image of one pass in batches that fit the memory, in a training's ``precision``."""
        architecture, shape, classes = network.split(" ")
        channels, size, _ = (int(part) for part in shape.split("x"))
        rounded = precision == "bf16" or (precision == "auto" and auto_precision(self.device, size) == "bf16")
        with seeded(0, "probe"):
            model = build(ModelSpec(architecture, int(classes), channels, size, (0.5,), (0.5,))).to(self.device).eval()

        def per_image(batch: int) -> float:
            """The median of a few passes, after one to warm up."""
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
                f"device: {self.device} does not run {architecture}: {error}".splitlines()[0]
            ) from None

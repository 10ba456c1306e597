"""The stages a study is made of. Each reads files, does one thing and writes files; each command runs one."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gradscope.config import PGD, Data, Training, apply_setting, merge
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.errors import GradscopeError, lookup
from gradscope.models.architectures import ARCHITECTURES
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.inspection import evaluating
from gradscope.models.subject import Foreign, Reference, Subject, load_subject, read_references
from gradscope.probes.trajectory import Trajectory, measure_trajectory, usual_batch_size
from gradscope.progress import progress_bar
from gradscope.report import figures
from gradscope.results.manifest import provenance
from gradscope.results.rows import SAMPLES, STEPS, SUMMARY
from gradscope.results.stats import METHODS, Interval, wilson_interval
from gradscope.results.tables import ensure_writable, exclusive, write_json, write_table
from gradscope.seeding import generator
from gradscope.training.loop import Hardware, state_path, train
from gradscope.training.phases import MODES, resolve

#: Images analysed where the command does not say.
DEFAULT_SAMPLES = 500
#: What an analysis writes beside its figures.
FILES = (STEPS.file, SAMPLES.file, SUMMARY.file, "manifest.json")


@dataclass(frozen=True)
class Trained:
    """What a training stage made."""

    path: Path
    checkpoint: Checkpoint
    test_accuracy: float
    test_interval: Interval
    test_images: int


def configure_training(
    mode: str,
    data: Mapping[str, Any],
    *,
    paper: bool,
    table: Mapping[str, Any],
    settings: Sequence[str],
    epochs: int | None,
    options: Mapping[str, Any],
    download: bool,
) -> tuple[Training, Splits]:
    """The resolved configuration of a run and its images, on whose size the presets depend.

    ``data`` and ``options`` are what the command line gave; see :func:`gradscope.training.phases.resolve`.
    """
    if "phases" not in table:
        lookup(MODES, mode, "--mode")
    source = _data(data, table, settings)
    splits = sources.load(source, download=download)
    training = resolve(
        mode,
        source,
        splits.train.image_size,
        paper=paper,
        table=table,
        settings=settings,
        epochs=epochs,
        options=merge(options, {"data": source.model_dump()}),
    )
    lookup(ARCHITECTURES, training.architecture, "--arch")
    return training, splits


def _data(data: Mapping[str, Any], table: Mapping[str, Any], settings: Sequence[str]) -> Data:
    """What ``table`` < ``settings`` < ``data`` say of the images."""
    values = merge({"data": {}}, {"data": table.get("data", {})})
    for setting in settings:
        if setting.partition("=")[0].partition(".")[0] == "data":
            apply_setting(values, setting)
    if not isinstance(values["data"], Mapping):
        keys = ", ".join(Data.model_fields)
        raise GradscopeError(f"data: a table with {keys} is allowed, got {values['data']!r}")
    parsed = Data.parse(merge(values["data"], data))
    # Kept in the checkpoint, so it must hold in any working directory.
    return parsed.model_copy(update={"data_root": parsed.data_root and parsed.data_root.resolve()})


def run_training(
    training: Training, splits: Splits, out: Path, hardware: Hardware, *, resume: bool, overwrite: bool
) -> Trained:
    """Train a checkpoint and judge it on the test images."""
    device = resolve_device(hardware.device)
    if out.is_dir():
        raise GradscopeError(f"--out: a file is allowed, {out} is a directory")
    with exclusive(out) if hardware.is_first else nullcontext():
        if out.exists() and not (resume or overwrite):
            unfinished = "; it is unfinished: --resume continues it" if state_path(out).exists() else ""
            raise GradscopeError(f"--out: {out} exists; pass --overwrite to replace it or another name{unfinished}")
        checkpoint = train(training, splits.train, out, hardware, resume=resume)
    right, total = count_right(checkpoint, splits.test, device), len(splits.test)
    return Trained(out, checkpoint, right / total, wilson_interval(right, total), total)


def count_right(checkpoint: Checkpoint, images: ImageSet, device: torch.device) -> int:
    """How many images the checkpoint's prediction is right for."""
    model = checkpoint.build().to(device)
    right = 0
    with evaluating(model), torch.no_grad():
        for _, batch, labels in images.batches(256, device):
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            right += int((logits.argmax(dim=1) == labels).sum())
    return right


@dataclass(frozen=True)
class Analysis:
    """What ``analyze`` measures: which attacks and metrics, on how many test images.

    ``data`` is what the command says of the data set; the rest is as the checkpoint has it.
    """

    attacks: Mapping[str, PGD]
    metrics: frozenset[str]
    samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    data: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    overwrite: bool = False


def run_analysis(texts: Sequence[str], analysis: Analysis, foreign: Foreign, out: Path) -> Path:
    """Attack every checkpoint with every attack, measure along the way, write CSV, manifest and figures to ``out``.

    Every checkpoint is loaded and checked before the first is attacked. The files are rewritten after each attack, so
    what has been measured is on disk.
    """
    new = not out.exists()
    with exclusive(out):
        if any((out / name).exists() for name in FILES) and not analysis.overwrite:
            raise GradscopeError(f"--out: {out} holds results; pass --overwrite to replace them or another directory")
        ensure_writable(out)
        try:
            checked = _check(texts, analysis, foreign)
        except GradscopeError:
            if new:
                out.rmdir()
            raise
        _measure_all(checked, analysis, foreign, out)
        figures.draw(out)
    return out


def _check(texts: Sequence[str], analysis: Analysis, foreign: Foreign) -> list[tuple[Reference, "Chosen"]]:
    """Every checkpoint with its images, each loaded once to see that it fits them."""
    device = resolve_device(analysis.device)
    checked = []
    for reference in read_references(texts, foreign):
        chosen = choose(_test_images(reference, analysis), analysis.samples, analysis.seed)
        load_subject(reference, chosen.images, foreign, device)
        checked.append((reference, chosen))
    return checked


def _measure_all(
    checked: Sequence[tuple[Reference, "Chosen"]], analysis: Analysis, foreign: Foreign, out: Path
) -> None:
    device = resolve_device(analysis.device)
    report = AnalysisFiles(out, analysis, foreign, device)
    for reference, chosen in checked:
        subject = load_subject(reference, chosen.images, foreign, device)
        report.begin(reference, chosen)
        for name, settings in analysis.attacks.items():
            started = time.perf_counter()
            measured = _measure(subject, chosen, name, settings, analysis, device)
            report.add(subject.identity(chosen.images.name, name), measured, time.perf_counter() - started)
    report.complete()


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise GradscopeError(f"--device: auto, cpu or cuda is allowed, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise GradscopeError("--device: cuda was asked for, but torch sees no CUDA device here; use auto or cpu")
    return torch.device(name)


@dataclass(frozen=True)
class Chosen:
    """The images that are analysed and their indices in the test set."""

    images: ImageSet
    numbers: torch.Tensor
    available: int


def choose(test: ImageSet, samples: int | None, seed: int) -> Chosen:
    """``samples`` test images drawn by ``seed`` without replacement, in the set's order."""
    available = len(test)
    count = min(DEFAULT_SAMPLES, available) if samples is None else samples
    if not 1 <= count <= available:
        raise GradscopeError(
            f"--samples: 1 to {available} is allowed, {test.name} has so many test images, got {count}"
        )
    drawn = torch.randperm(available, generator=generator(seed, "images"))[:count]
    numbers = drawn.sort().values
    return Chosen(test.subset(numbers), numbers, available)


def _test_images(reference: Reference, analysis: Analysis) -> ImageSet:
    """The data set the command names, or the checkpoint's own, with what the command says of where it is."""
    own = reference.data
    if own is None and "dataset" not in analysis.data:
        raise GradscopeError(f"--dataset: {reference.text} is a foreign model; name the data set it is examined on")
    known = own.model_dump() if own is not None and "dataset" not in analysis.data else {}
    try:
        return sources.load(Data.parse(known | dict(analysis.data)), download=analysis.download).test
    except GradscopeError as error:
        if known.get("data_root") is None or "data_root" in analysis.data:
            raise
        raise GradscopeError(
            f"{error} ({reference.label} was trained from there; --data-root says where now)"
        ) from None


def _measure(
    subject: Subject, chosen: Chosen, attack: str, settings: PGD, analysis: Analysis, device: torch.device
) -> Trajectory:
    with progress_bar(f"{subject.label} {attack}", len(chosen.images)) as advance:
        return measure_trajectory(
            subject.model,
            chosen.images,
            settings,
            analysis.metrics,
            numbers=chosen.numbers,
            batch_size=analysis.batch_size,
            seed=analysis.seed,
            device=device,
            advanced=advance,
        )


class AnalysisFiles:
    """The files of an analysis, rewritten whenever something has been measured."""

    def __init__(self, out: Path, analysis: Analysis, foreign: Foreign, device: torch.device) -> None:
        self.out = out
        self.measured: list[tuple[dict[str, Any], Trajectory]] = []
        self.manifest: dict[str, Any] = {
            "kind": "analysis",
            "attacks": {name: settings.model_dump() for name, settings in analysis.attacks.items()},
            "metrics": sorted(analysis.metrics),
            "batch_sizes": {
                name: analysis.batch_size or usual_batch_size(settings, device)
                for name, settings in analysis.attacks.items()
            },
            "seed": analysis.seed,
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [],
            "provenance": provenance(device_name(device)),
        }

    def begin(self, reference: Reference, chosen: Chosen) -> None:
        """Name the next checkpoint and its images in the manifest."""
        ours = reference.checkpoint
        self.manifest["checkpoints"].append(
            {
                "label": reference.label,
                "source": reference.text,
                "weights": None if reference.weights is None else str(reference.weights),
                "sha256": _digest(reference),
                "config": None if ours is None else _published(ours.config),
                "trained": None if ours is None else ours.provenance,
                "data": {
                    "name": chosen.images.name,
                    "split": "test",
                    "images": len(chosen.images),
                    "of": chosen.available,
                    "fingerprint": chosen.images.fingerprint,
                },
                "seconds": {},
            }
        )

    def add(self, identity: dict[str, Any], measured: Trajectory, seconds: float) -> None:
        """Add one attack's results on the checkpoint that was begun, and write everything."""
        self.measured.append((identity, measured))
        self.manifest["checkpoints"][-1]["seconds"][identity["attack"]] = seconds
        results = self.measured
        if len(results) == 1:
            self._remove_figures()
        write_table(self.out / STEPS.file, STEPS, chain.from_iterable(one.step_rows(who) for who, one in results))
        write_table(self.out / SAMPLES.file, SAMPLES, chain.from_iterable(one.sample_rows(who) for who, one in results))
        write_table(
            self.out / SUMMARY.file, SUMMARY, chain.from_iterable(one.summary_rows(who) for who, one in results)
        )
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Say in the manifest that everything asked for has been measured."""
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

    def _remove_figures(self) -> None:
        """Remove the figures of results that are about to be replaced: they show other numbers."""
        for path in (self.out / "figures").glob("*-*.p[dn][fg]"):
            path.unlink()


def _digest(reference: Reference) -> str | None:
    """SHA-256 of the file the weights came from; None where a factory brought its own."""
    file = Path(reference.text) if reference.checkpoint is not None else reference.weights
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration without where its images lay: the fingerprint says which they were."""
    return config | {"data": {key: value for key, value in config["data"].items() if key != "data_root"}}


def device_name(device: torch.device) -> str:
    """The device's product name where it has one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

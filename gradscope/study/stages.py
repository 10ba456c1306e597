"""The stages a study is made of. Each reads files, does one thing and writes files; each command runs one."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from gradscope.config import Data, Training, apply_setting, merge
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.errors import GradscopeError, lookup
from gradscope.models.architectures import ARCHITECTURES
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.inspection import measuring
from gradscope.models.subject import Foreign, Reference, Subject, load_subject, read_references
from gradscope.probes.trajectory import Trajectory, measure_trajectory
from gradscope.progress import progress_bar
from gradscope.results.stats import Interval, wilson_interval
from gradscope.results.tables import exclusive
from gradscope.sharing import Team
from gradscope.study.analysis import Analysis, AnalysisFiles
from gradscope.study.directory import resumable_directory
from gradscope.study.inputs import DEFAULT_SAMPLES, Chosen, choose, draw_figures, read_data, resolve_device
from gradscope.study.ranks import on_every_rank
from gradscope.study.tiles import Tiles
from gradscope.training.hardware import Hardware
from gradscope.training.loop import state_path, train
from gradscope.training.phases import MODES, resolve

#: Seconds between two times that it is written down how far an analysis is: the sums of the directions may be large.
KEEP_EVERY = 5.0


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
    training: Training,
    splits: Splits,
    out: Path,
    hardware: Hardware,
    *,
    resume: bool,
    overwrite: bool,
    keep_epochs: bool = False,
    initial: Path | None = None,
    deadline: float = inf,
) -> Trained:
    """Train a checkpoint, from the weights of ``initial`` where it is given, and judge it on the test images.

    A run that ``deadline`` (``time.time()``) stops is left unfinished.
    """
    device = resolve_device(hardware.device)
    if out.is_dir():
        raise GradscopeError(f"--out: a file is allowed, {out} is a directory")
    with exclusive(out) if hardware.is_first else nullcontext():
        if out.exists() and not (resume or overwrite):
            unfinished = "; it is unfinished: --resume continues it" if state_path(out).exists() else ""
            raise GradscopeError(f"--out: {out} exists; pass --overwrite to replace it or another name{unfinished}")
        checkpoint = train(
            training,
            splits.train,
            out,
            hardware,
            resume=resume,
            keep_epochs=keep_epochs,
            initial=initial,
            deadline=deadline,
        )
    right, total = count_right(checkpoint, splits.test, device), len(splits.test)
    return Trained(out, checkpoint, right / total, wilson_interval(right, total), total)


def count_right(checkpoint: Checkpoint, images: ImageSet, device: torch.device) -> int:
    """How many images the checkpoint's prediction is right for."""
    model = checkpoint.build().to(device)
    right = 0
    with measuring(model), torch.no_grad():
        for _, batch, labels in images.batches(256, device):
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            right += int((logits.argmax(dim=1) == labels).sum())
    return right


def run_analysis(texts: Sequence[str], analysis: Analysis, foreign: Foreign, out: Path) -> Path:
    """Attack every checkpoint with every attack, measure along the way, write CSV, manifest and figures to ``out``.

    Every checkpoint is loaded and checked before the first is attacked. The files are rewritten after each attack, so
    what has been measured is on disk. How far the attacks are is kept until all is done, so that an interrupted run can
    be resumed, to the same files.
    """
    on_every_rank(analysis, partial(_analyze, texts, analysis, foreign, out))
    return out


def _analyze(texts: Sequence[str], analysis: Analysis, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "analysis", team, resume=analysis.resume, overwrite=analysis.overwrite):
        checked = _check(texts, analysis, foreign, team)
        files = AnalysisFiles(out, analysis, foreign, team, checked)
        for position, (reference, chosen) in enumerate(checked):
            subject = load_subject(reference, chosen.images, foreign, team.device)
            files.begin()
            for name in analysis.attacks:
                started = time.perf_counter()
                measured = _measure(subject, chosen, name, analysis, files.tiles, f"{position}-{name}")
                if team.is_first:
                    files.add(subject.identity(chosen.images.name, name), measured, time.perf_counter() - started)
        if team.is_first:
            files.complete()
            draw_figures(out, analysis)
            files.tiles.remove()


def _check(texts: Sequence[str], analysis: Analysis, foreign: Foreign, team: Team) -> list[tuple[Reference, Chosen]]:
    """Every checkpoint with its images, each loaded once to see that it fits them."""
    loaded: dict[Data, Splits] = {}
    checked = []
    for reference in read_references(texts, foreign):
        test = read_data(reference, analysis, loaded).test
        chosen = choose(test, analysis.samples, DEFAULT_SAMPLES, analysis.seed, "--samples")
        load_subject(reference, chosen.images, foreign, team.device)
        checked.append((reference, chosen))
    return checked


def _measure(subject: Subject, chosen: Chosen, attack: str, analysis: Analysis, tiles: Tiles, piece: str) -> Trajectory:
    """The trajectory of an attack, from where ``piece`` says that it was interrupted, or from the beginning."""
    team = tiles.team
    with progress_bar(f"{subject.label} {attack}", len(chosen.images), visible=team.is_first) as advance:
        return measure_trajectory(
            subject.model,
            chosen.images,
            analysis.attacks[attack],
            analysis.metrics,
            numbers=chosen.numbers,
            batch_size=analysis.batch_size,
            seed=analysis.seed,
            device=team.device,
            each=team.each,
            begun=team.of_first(tiles.read(piece) if team.is_first else None),
            keep=_keeping(tiles, piece) if team.is_first else lambda so_far: None,
            advanced=advance,
        )


def _keeping(tiles: Tiles, name: str) -> Callable[[Trajectory], None]:
    """What writes down how far a trajectory is: now and then, and at its end."""
    last = time.perf_counter()

    def keep(so_far: Trajectory) -> None:
        nonlocal last
        if so_far.is_complete or time.perf_counter() - last >= KEEP_EVERY:
            tiles.write(name, so_far.state())
            last = time.perf_counter()

    return keep

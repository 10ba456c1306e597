"""The kinds of stages a study is made of: what each runs, which files are its own, and how they are removed."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from gradscope.claims.table import write_claims
from gradscope.data import sources
from gradscope.data.image_set import Splits, stratified_split
from gradscope.errors import GradscopeError
from gradscope.models.checkpoint import Checkpoint, load, save
from gradscope.models.rescaling import calibrating_factor, rescaled
from gradscope.results.manifests import MANIFEST
from gradscope.results.rows import CLAIMS, HISTORY, PAPER
from gradscope.results.tables import ensure_writable, find_table, read_table, write_table
from gradscope.study.commands import Circumstances
from gradscope.study.directory import FILES
from gradscope.study.inputs import resolve_device
from gradscope.study.plan import CHECKPOINTS, ClaimsTask, MeasureTask, ScaleTask, Stage, TrainTask
from gradscope.study.recipe import CALIBRATED
from gradscope.study.records import Places
from gradscope.study.stages import run_training
from gradscope.study.tiles import FOLDER as TILES
from gradscope.training.hardware import Hardware
from gradscope.training.loop import epochs_folder, state_path


@dataclass(frozen=True)
class Job:
    """A stage with everything that a worker, here or elsewhere, needs to run it.

    ``inputs`` are the digests of the files of the stages it needs. ``threads`` None leaves torch's own number.
    Training stops before an epoch that would end after ``deadline`` (``time.time()``). ``figures``: whether
    measurements draw theirs.
    """

    stage: Stage
    places: Places
    inputs: dict[str, str]
    work: dict[str, float]
    device: str = "auto"
    threads: int | None = None
    deadline: float = inf
    figures: bool = True

    @property
    def out(self) -> Path:
        """The file or directory that the stage writes."""
        return self.places.path(self.stage.place)

    def checkpoint(self, model: str) -> Path:
        """The file of a model of the study."""
        return self.places.path(f"{CHECKPOINTS}/{model}.pt")


class UnfinishedError(Exception):
    """A stage that was stopped for its deadline and goes on later. The message says how far it is."""


@dataclass(frozen=True)
class Kind:
    """What is done for a stage: ``run(job, resume)`` gives the lines it prints; ``files(path)`` are those it has there.

    ``adopt(job)`` says whether files that no record knows are the very ones that the stage would make, or may go.
    """

    run: Callable[[Job, bool], str]
    files: Callable[[Path], Iterable[Path]]
    remove: Callable[[Path], None]
    adopt: Callable[[Job], bool] = lambda job: False


def _images(job: Job) -> Splits:
    assert isinstance(job.stage.task, TrainTask | ScaleTask | MeasureTask)
    images = job.stage.task.images
    splits = sources.load(images.source)
    if (splits.train.name, len(splits.train)) != (images.name, images.train):
        raise GradscopeError(f"--data-root: {images.name} is not what it was when the study was planned")
    return splits


# --- a model is trained ---


def _train(job: Job, resume: bool) -> str:
    task = job.stage.task
    assert isinstance(task, TrainTask)
    if not _is_complete(job):
        splits = _images(job)
        initial = None if task.start is None else job.checkpoint(task.start)

        def run(go_on: bool) -> None:
            run_training(
                *(task.training, splits, job.out, Hardware(job.device, job.stage.resources.devices)),
                resume=go_on,
                overwrite=True,
                keep_epochs=task.keep_epochs,
                initial=initial,
                deadline=job.deadline,
            )

        try:
            run(resume and state_path(job.out).exists())
        except GradscopeError as error:
            # The state of an unfinished run that cannot be gone on with is no loss but of time.
            if not str(error).startswith("--resume"):
                raise
            _remove_model(job.out)
            run(False)
    checkpoint = load(job.out)
    if state_path(job.out).exists():
        raise UnfinishedError(f"{checkpoint.epochs} of {checkpoint.planned_epochs} epochs")
    history = checkpoint.history
    write_table(job.out.with_suffix(".history.csv"), HISTORY, history)
    # Of the weights that are kept: the best, or the last, within the last phase.
    accuracies = [row["validation_accuracy"] for row in history if row["phase"] == history[-1]["phase"]]
    kept = max(accuracies) if task.training.selection == "best" else accuracies[-1]
    epochs = f"{len(history)} epoch" + ("s" if len(history) > 1 else "")
    return f"{epochs}, validation accuracy {100 * kept:.1f} %"


def _is_complete(job: Job) -> bool:
    """Whether the checkpoint is there, whole, and of this very configuration: a run that was killed just after it."""
    task = job.stage.task
    assert isinstance(task, TrainTask)
    if not job.out.exists() or state_path(job.out).exists() or not _history(job.out):
        return False
    try:
        found = load(job.out)
    except GradscopeError:
        return False
    training = task.training
    if task.start is not None:
        training = training.model_copy(
            update={"initial": job.inputs[job.places.place(job.checkpoint(task.start))]},
        )
    wanted = training.model_dump(mode="json")
    return found.config == wanted and len(found.history) == training.epochs and _same_images(found, job)


def _same_images(found: Checkpoint, job: Job) -> bool:
    return found.data_fingerprint == _images(job).train.fingerprint


def _history(out: Path) -> Path | None:
    return find_table(out.with_suffix(".history.csv"))


def _model_files(out: Path) -> Iterator[Path]:
    yield from (path for path in (out, _history(out)) if path and path.exists())
    if epochs_folder(out).is_dir():
        yield from sorted(epochs_folder(out).glob("*.pt"))


def _remove_model(out: Path) -> None:
    for path in (state_path(out), *_model_files(out)):
        path.unlink(missing_ok=True)
    if epochs_folder(out).is_dir():
        shutil.rmtree(epochs_folder(out))


# --- a model's logits are multiplied ---


def _scale(job: Job, resume: bool) -> str:
    task = job.stage.task
    assert isinstance(task, ScaleTask)
    source = load(job.checkpoint(task.source))
    factor = task.factor
    if factor == CALIBRATED:
        train = _images(job).train
        config = source.config
        _, held_out = stratified_split(train.labels, config["validation_fraction"], config["seed"])
        factor = calibrating_factor(source, train.subset(held_out), resolve_device(job.device))
    ensure_writable(job.out.parent)
    save(job.out, rescaled(source, float(factor), task.name))
    return f"logits of {task.source} times {float(factor):.4g}"


def _is_copy(job: Job) -> bool:
    """Whether what lies there is a copy of this name, as this stage makes one: it costs nothing to make it anew."""
    task = job.stage.task
    assert isinstance(task, ScaleTask)
    try:
        found = load(job.out)
    except GradscopeError:
        return False
    return found.mode == task.name and "logit_factor" in found.config


# --- models are measured ---


def _measure(job: Job, resume: bool) -> str:
    task = job.stage.task
    assert isinstance(task, MeasureTask)
    data = {key: value for key, value in task.images.source.model_dump().items() if value is not None}
    others = {role: [str(job.checkpoint(model)) for model in models] for role, models in task.others.items()}
    texts = [str(job.checkpoint(model)) for model in task.models]
    devices = job.stage.resources.devices

    def run(go_on: bool) -> str:
        return task.options.run(texts, Circumstances(data, job.device, go_on, others, devices, job.figures), job.out)

    try:
        return run(resume)
    except GradscopeError as error:
        if not str(error).startswith("--resume"):
            raise
        return run(False)


def _result_files(out: Path) -> Iterator[Path]:
    """What was measured; figures are drawn again from it at any time."""
    for path in sorted(out.rglob("*")) if out.is_dir() else []:
        if path.is_file() and not {TILES, "figures"}.intersection(path.relative_to(out).parts):
            yield path


def _remove_results(out: Path) -> None:
    """Remove what a measurement writes; whatever else lies in the directory stays."""
    for name in (*FILES, "figures", TILES):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# --- what was measured is concluded from ---


def _judge_claims(job: Job, resume: bool) -> str:
    task = job.stage.task
    assert isinstance(task, ClaimsTask)
    measured = [job.places.path(place) for place in task.results if f"{place}/{MANIFEST}" in job.inputs]
    write_claims([*measured, job.places.checkpoints], job.out)
    verdicts = Counter(read_table(job.out, CLAIMS)["verdict"])
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())


def _claims_files(out: Path) -> Iterator[Path]:
    yield from (path for path in (out,) if path.exists())


def _write_report(job: Job, resume: bool) -> str:
    from gradscope.report.page import write_report

    write_report(job.out.parent)
    return ""


def _report_files(out: Path) -> Iterator[Path]:
    yield from (path for path in (out, *sorted(out.with_name(PAPER).glob("*"))) if path.is_file())


def _remove_report(out: Path) -> None:
    for path in _report_files(out):
        path.unlink()


#: Every kind of stage by name. Claims and report may replace what no record knows: `gradscope report` writes one, too.
KINDS: dict[str, Kind] = {
    "train": Kind(_train, _model_files, _remove_model, _is_complete),
    "scale": Kind(_scale, _model_files, _remove_model, _is_copy),
    "measure": Kind(_measure, _result_files, _remove_results),
    "claims": Kind(_judge_claims, _claims_files, lambda out: out.unlink(missing_ok=True), lambda job: True),
    "report": Kind(_write_report, _report_files, _remove_report, lambda job: True),
}

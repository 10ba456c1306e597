"""The tasks that make models: train a model, and multiply the logits of a model."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradscope.config import Training
from gradscope.data.image_set import training_split
from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.models.checkpoint import load, save
from gradscope.models.rescaling import calibrating_factor, rescaled
from gradscope.results.files import ensure_writable
from gradscope.results.schemas import HISTORY
from gradscope.results.tables import find_table, write_table
from gradscope.study.recipe import CALIBRATED
from gradscope.study.tasks import ImageFacts, Job, Task, UnfinishedError
from gradscope.training.history import kept_epoch
from gradscope.training.request import epochs_folder, state_path
from gradscope.training.runs import run_training


class _ModelTask(Task):
    """A task that writes a checkpoint, its history, and the weights after each epoch if they are kept."""

    def files(self, out: Path) -> Iterator[Path]:
        """List the model's existing files."""
        yield from (path for path in (out, _history(out)) if path and path.exists())
        if epochs_folder(out).is_dir():
            yield from sorted(epochs_folder(out).glob("[!.]*.pt"))

    def remove(self, out: Path) -> None:
        """Remove the model's files, and the state of an unfinished run."""
        for path in (state_path(out), *self.files(out)):
            path.unlink(missing_ok=True)
        if epochs_folder(out).is_dir():
            shutil.rmtree(epochs_folder(out))


@dataclass(frozen=True)
class TrainTask(_ModelTask):
    """Train a model with a resolved configuration, from the weights of the model ``start`` if given."""

    kind = "train"

    images: ImageFacts
    training: Training
    start: str | None
    keep_epochs: bool

    def run(self, job: Job, *, resume: bool) -> str:
        """Train; if the saved state cannot be resumed, start again: only time is lost."""
        chance = None
        if not self.adopts(job):
            try:
                chance = self._train(job, resume=resume and state_path(job.out).exists())
            except CannotResumeError:
                self.remove(job.out)
                chance = self._train(job, resume=False)
        checkpoint = load(job.out)
        if state_path(job.out).exists():
            raise UnfinishedError(f"{checkpoint.epochs} of {checkpoint.planned_epochs} epochs")
        history = checkpoint.history
        write_table(job.out.with_suffix(".history.csv"), HISTORY, history)
        accuracy = history[kept_epoch(history, self.training.selection) - 1]["validation_accuracy"]
        epochs = f"{len(history)} epoch" + ("s" if len(history) > 1 else "")
        said = [f"{epochs}, validation accuracy {100 * accuracy:.1f} %"] + ([f"caution: {chance}"] if chance else [])
        return "\n".join(said)

    def _train(self, job: Job, *, resume: bool) -> str | None:
        """Train; returns a warning if the model is no better than guessing, else None."""
        trained = run_training(
            *(self.training, self.images.read(), job.out, Hardware(job.device, job.stage.resources.devices)),
            resume=resume,
            overwrite=True,
            keep_epochs=self.keep_epochs,
            initial=None if self.start is None else job.checkpoint(self.start),
            deadline=job.deadline,
        )
        return trained.chance

    def adopts(self, job: Job) -> bool:
        """Whether a complete checkpoint of this exact configuration exists, from a run killed just after writing it."""
        if not job.out.exists() or state_path(job.out).exists() or not _history(job.out):
            return False
        try:
            checkpoint = load(job.out)
        except GradscopeError:
            return False
        training = self.training
        if self.start is not None:
            initial = job.inputs[job.places.place(job.checkpoint(self.start))]
            training = training.model_copy(update={"initial": initial})
        if training.precision == "auto":  # the checkpoint holds its resolved value
            training = training.model_copy(update={"precision": checkpoint.config.get("precision")})
        same_images = checkpoint.data_fingerprint == self.images.read().train.fingerprint
        same_config = checkpoint.config == training.model_dump(mode="json")
        return same_config and len(checkpoint.history) == training.epochs and same_images


@dataclass(frozen=True)
class ScaleTask(_ModelTask):
    """Multiply the logits of the model ``source``; ``name`` is the name of the copy."""

    kind = "scale"

    images: ImageFacts
    name: str
    source: str
    factor: float | str

    def run(self, job: Job, *, resume: bool) -> str:
        """Multiply the logits; "calibrated" finds the factor on the validation images."""
        source, factor = load(job.checkpoint(self.source)), self.factor
        if factor == CALIBRATED:
            train = self.images.read().train
            config = source.config
            _, held_out = training_split(
                train.labels, config["validation_fraction"], config["seed"], config.get("train_samples")
            )
            factor = calibrating_factor(source, train.subset(held_out), resolve_device(job.device))
        ensure_writable(job.out.parent)
        save(job.out, rescaled(source, float(factor), self.name))
        return f"logits of {self.source} times {float(factor):.4g}"

    def adopts(self, job: Job) -> bool:
        """Whether a copy of this name exists, which may be replaced, as making it costs nothing."""
        try:
            checkpoint = load(job.out)
        except GradscopeError:
            return False
        return checkpoint.mode == self.name and "logit_factor" in checkpoint.config


def _history(out: Path) -> Path | None:
    return find_table(out.with_suffix(".history.csv"))

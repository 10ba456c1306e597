"""The tasks that make models: training one, and multiplying the logits of one."""

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
    """A checkpoint, its history, and the weights after each epoch where they are kept."""

    def files(self, out: Path) -> Iterator[Path]:
        """What is there of a model."""
        yield from (path for path in (out, _history(out)) if path and path.exists())
        if epochs_folder(out).is_dir():
            yield from sorted(epochs_folder(out).glob("[!.]*.pt"))

    def remove(self, out: Path) -> None:
        """Remove it, and the state of an unfinished run."""
        for path in (state_path(out), *self.files(out)):
            path.unlink(missing_ok=True)
        if epochs_folder(out).is_dir():
            shutil.rmtree(epochs_folder(out))


@dataclass(frozen=True)
class TrainTask(_ModelTask):
    """A model to be trained, as it is resolved; from the weights of the model ``start`` where it is given."""

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
        """Train; the sentence that says so where the model is at chance."""
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
        """A checkpoint that is whole and of this very configuration: of a run that was killed just after it."""
        if not job.out.exists() or state_path(job.out).exists() or not _history(job.out):
            return False
        try:
            found = load(job.out)
        except GradscopeError:
            return False
        training = self.training
        if self.start is not None:
            initial = job.inputs[job.places.place(job.checkpoint(self.start))]
            training = training.model_copy(update={"initial": initial})
        if training.precision == "auto":  # where it was trained, it meant what the checkpoint says
            training = training.model_copy(update={"precision": found.config.get("precision")})
        same_images = found.data_fingerprint == self.images.read().train.fingerprint
        return (
            found.config == training.model_dump(mode="json") and len(found.history) == training.epochs and same_images
        )


@dataclass(frozen=True)
class ScaleTask(_ModelTask):
    """A model whose logits are multiplied; ``name`` is what it is called."""

    kind = "scale"

    images: ImageFacts
    name: str
    source: str
    factor: float | str

    def run(self, job: Job, *, resume: bool) -> str:
        """Multiply, by the factor that calibrates where it is to be found."""
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
        """A copy of this name, which costs nothing to make anew."""
        try:
            found = load(job.out)
        except GradscopeError:
            return False
        return found.mode == self.name and "logit_factor" in found.config


def _history(out: Path) -> Path | None:
    return find_table(out.with_suffix(".history.csv"))

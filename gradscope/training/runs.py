"""Run a training from its request to a checkpoint that is evaluated on the test images."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from gradscope.config import Training
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.errors import caution
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.failures import explained_failures
from gradscope.models.inspection import laid_out, measuring
from gradscope.models.names import is_own
from gradscope.results.cautions import CHECK_TRAINING, at_chance, past_grey
from gradscope.results.files import exclusive, sweep
from gradscope.results.stats import Interval, wilson_interval
from gradscope.training.loop import train
from gradscope.training.request import TrainingRequest, epochs_folder, require_free, state_path


@dataclass(frozen=True)
class Trained:
    """A trained checkpoint and its accuracy on the test images.

    ``chance`` is a warning if the accuracy is no better than guessing. It is None if the model is better than guessing,
    and while its training is unfinished.
    """

    path: Path
    checkpoint: Checkpoint
    test_accuracy: float
    test_interval: Interval
    test_images: int
    chance: str | None = None


def configure_training(request: TrainingRequest) -> tuple[Training, Splits]:
    """Load the images of a run and resolve its configuration, whose presets depend on their size."""
    source = request.source
    splits = sources.load(source, download=request.data.download)
    return request.resolved(source, splits.train.height), splits


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
    trust_code: bool = False,
) -> Trained:
    """Train a checkpoint, from the weights of ``initial`` if given, and evaluate it on the test images.

    A user's own architecture runs code, which needs ``trust_code``. A run that stops at ``deadline`` (``time.time()``)
    stays unfinished and can be resumed.
    """
    device = resolve_device(hardware.device)
    if hardware.is_first:
        for said in _of_adversaries(training, splits.train.images[0].numel()):
            caution(said)
    own = training.architecture if is_own(training.architecture) else None
    with _held(out) if hardware.is_first else nullcontext(), explained_failures(lambda value: own, "architecture"):
        require_free(out, resume=resume, overwrite=overwrite)
        checkpoint = train(
            training,
            splits.train,
            out,
            hardware,
            resume=resume,
            keep_epochs=keep_epochs,
            initial=initial,
            deadline=deadline,
            trust_code=trust_code,
        )
        right, total = count_right(checkpoint.build().to(device), splits.test, device), len(splits.test)
    done = checkpoint.epochs == checkpoint.planned_epochs
    chance = at_chance(right, total, len(splits.test.classes), CHECK_TRAINING) if done else None
    if chance and hardware.is_first:
        caution(f"{out.stem}: {chance}")
    return Trained(out, checkpoint, right / total, wilson_interval(right, total), total, chance)


def _of_adversaries(training: Training, pixels: int) -> set[str]:
    """Make a warning for each adversary whose radius is too large for images of ``pixels`` values."""
    adversaries = [phase.adversary for phase in training.phases if phase.adversary is not None]
    warnings = (past_grey(adversary.norm, adversary.epsilon, pixels) for adversary in adversaries)
    return {f"adversary: {warning}" for warning in warnings if warning}


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the lock of ``out``, and remove the temporary files that a killed run left beside it."""
    with exclusive(out):
        sweep(out.parent, (path.name for path in (out, state_path(out), out.with_suffix(".history.csv"))))
        sweep(epochs_folder(out))
        yield


def count_right(model: nn.Module, images: ImageSet, device: torch.device) -> int:
    """Count the images that ``model``, which is on ``device``, classifies correctly."""
    right = 0
    with measuring(model), torch.no_grad():
        for _, batch, labels in images.batches(256, device):
            logits = model(laid_out(batch))
            right += int((logits.argmax(dim=1) == labels).sum())
    return right

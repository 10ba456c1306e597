"""One training loop for every mode: phases in turn, an update at a time, resumable after each epoch.

Every random number comes from a stream named by its purpose and the epoch, drawn for the global batch. So a resumed
run continues bit for bit, and processes that share a batch see the numbers one process would have seen; dropout
alone has a stream for each process, and batch norm its own statistics on each CPU process.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn

from gradscope.config import Phase, Training
from gradscope.data import augment
from gradscope.data.image_set import ImageSet, as_floats, training_split
from gradscope.data.names import DATASETS
from gradscope.distributed.processes import Hardware
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.losses import cross_entropy
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint, load, load_strictly, load_weights_only, save
from gradscope.models.inspection import check_fits, evaluating
from gradscope.models.names import is_own
from gradscope.progress import Advance, progress_bar
from gradscope.results.files import atomic, ensure_writable
from gradscope.results.provenance import provenance
from gradscope.results.schemas import HISTORY
from gradscope.results.tables import write_table
from gradscope.seeding import generator, seeded
from gradscope.training.objectives import (
    Draws,
    adversarial_example,
    fast_gradient_example,
    phase_outcome,
    shares_the_clean_pass,
)
from gradscope.training.request import epochs_folder, state_path
from gradscope.training.totals import Totals

#: Updates between two looks at the loss: each look waits for the device.
LOOK_EVERY = 20


@dataclass
class Progress:
    """What a run has reached, beside its weights: all that resuming needs to know."""

    epochs_done: int = 0
    best_accuracy: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    training: Training,
    train_set: ImageSet,
    out: Path,
    hardware: Hardware,
    *,
    resume: bool = False,
    keep_epochs: bool = False,
    initial: Path | None = None,
    deadline: float = inf,
    trust_code: bool = False,
) -> Checkpoint:
    """Train a classifier and write it to ``out``; the history goes beside it as CSV.

    The checkpoint kept is the best on the validation images within the last phase (ties go to the later epoch), or
    the last, as ``training.selection`` says. The state after each epoch is kept in ``out`` + ``.resume`` until the run
    is complete. A loss that is not finite raises :class:`GradscopeError`; the last good checkpoint stays. With
    ``keep_epochs`` the weights before the first and after each epoch are kept too, as checkpoints in
    :func:`gradscope.training.request.epochs_folder`. The run begins with the weights of the checkpoint ``initial``,
    where it is given.

    No epoch begins that would end after ``deadline`` (``time.time()``), if it takes as long as the last one; the run
    is then left as an interrupted one is, and its checkpoint says how many epochs are done. A user's own architecture
    runs code, which takes ``trust_code``.
    """
    ensure_writable(out.parent)
    if resume and out.exists() and not state_path(out).exists():
        raise CannotResumeError(f"resume: {out} is complete; nothing is left to do")
    begin: Checkpoint | None = None
    if initial is not None:
        begin = load(initial)
        training = training.model_copy(update={"initial": begin.fingerprint})
    hardware.launch(
        training.precision,
        partial(
            _run,
            training=training,
            train_set=train_set,
            out=out,
            resume=resume,
            keep_epochs=keep_epochs,
            initial=begin,
            deadline=deadline,
            trust_code=trust_code,
        ),
    )
    return load(out, trust_code=trust_code)


def _run(
    fabric: Fabric,
    training: Training,
    train_set: ImageSet,
    out: Path,
    resume: bool,
    keep_epochs: bool,
    initial: Checkpoint | None,
    deadline: float,
    trust_code: bool,
) -> None:
    run = Run(fabric, training, train_set, out, keep_epochs=keep_epochs, initial=initial, trust_code=trust_code)
    if resume:
        run.resume()
    elif fabric.is_global_zero:
        run.begin_epochs()
    updates = training.epochs * run.updates
    with progress_bar(f"train {training.mode}", updates, visible=fabric.is_global_zero) as advance:
        advance(run.progress.epochs_done * run.updates, "")
        run.complete(advance, deadline)


def _require_trainable(train_set: ImageSet, training: Training, held_out: int) -> None:
    """Raise :class:`GradscopeError` where there is one class, or no image is held out to validate on."""
    argument = "dataset" if training.data.dataset in DATASETS else "y"
    if len(train_set.classes) < 2:
        raise GradscopeError(f"{argument} must hold at least 2 classes, got {len(train_set.classes)}")
    if held_out:
        return
    _, counts = train_set.labels.unique(return_counts=True)
    if int(counts.max()) > 1:
        raise GradscopeError(
            "train_samples must be large enough for 2 images of a class, one to validate on, as "
            f"{len(counts) + 1} are of {train_set.name}; got {training.train_samples}"
        )
    raise GradscopeError(
        f"{argument} must have a class with at least 2 training images, one to validate on; {train_set.name} has none"
    )


class Run:
    """One training run: network, optimiser, data and what has been reached."""

    def __init__(
        self,
        fabric: Fabric,
        training: Training,
        train_set: ImageSet,
        out: Path,
        *,
        keep_epochs: bool = False,
        initial: Checkpoint | None = None,
        trust_code: bool = False,
    ) -> None:
        self.fabric = fabric
        self.keep_epochs = keep_epochs
        self.training = training
        self.out = out
        self.advance: Advance = lambda done, note: None
        # Indices, not copies: a set larger than memory stays the memory map it is.
        self.trained, self.held_out = training_split(
            train_set.labels, training.validation_fraction, training.seed, training.train_samples
        )
        _require_trainable(train_set, training, len(self.held_out))
        self.batch_size = min(training.batch_size, len(self.trained))
        self.updates = len(self.trained) // self.batch_size
        self.images = train_set.on(fabric.device)
        own = is_own(training.architecture)
        mean, std = ((0.0,), (1.0,)) if own else train_set.channel_statistics(self.trained)
        height, width = train_set.height, train_set.width
        self.spec = ModelSpec(
            architecture=training.architecture,
            classes=len(train_set.classes),
            channels=train_set.channels,
            image_size=height if height == width else (height, width),
            mean=mean,
            std=std,
        )
        with seeded(training.seed, "weights"):
            network = build(self.spec, trust_code=trust_code)
        if own:
            name = f"architecture: {training.architecture}"
            check_fits(network, train_set, name=name, device=torch.device("cpu"))
        if initial is not None:
            load_strictly(network, initial.state_dict, f"from: the weights of {initial.mode!r} do not fit this model")
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # The overload is there, torch's stubs lack it.
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=training.phases[0].learning_rate)
        self.model: _FabricModule
        self.optimizer: _FabricOptimizer
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        self.progress = Progress()
        self.best: Checkpoint | None = None

    def resume(self) -> None:
        """Continue where the state file says; a run of another configuration or other data is refused."""
        path = state_path(self.out)
        if not path.exists():
            raise CannotResumeError(f"resume: there is no unfinished run at {path}")
        try:
            state = load_weights_only(path, "resume")
        except GradscopeError as error:
            raise CannotResumeError(str(error)) from None
        if state["config"] != self._config() or state["fingerprint"] != self.images.fingerprint:
            changed = [key for key, value in self._config().items() if state["config"].get(key) != value]
            what = ", ".join(changed) or "the images"
            raise CannotResumeError(f"resume: {path} belongs to another run; it differs in {what}")
        load_strictly(self.network, state["network"], f"resume: {path} does not fit {self.training.architecture}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["epochs_done"], state["best_accuracy"], state["history"])
        self.best = None if state["best"] is None else replace(self._checkpoint(), state_dict=state["best"])

    def begin_epochs(self) -> None:
        """Keep the weights as they are before the first epoch, if epochs are kept; those of an earlier run go."""
        for stale in epochs_folder(self.out).glob("*.pt"):
            stale.unlink()
        self._keep_epoch()

    def _keep_epoch(self) -> None:
        if self.keep_epochs:
            path = epochs_folder(self.out) / f"{self.progress.epochs_done:04}.pt"
            save(path, replace(self._checkpoint(), history=self.progress.history))

    def complete(self, advance: Advance, deadline: float = inf) -> None:
        """Train all epochs that are left and write the checkpoint; ``advance`` is told of every few updates.

        Stop before the first epoch that cannot end by ``deadline``; the state after the one before it is on disk.
        """
        self.advance = advance
        first = 0
        for number, phase in enumerate(self.training.phases):
            for epoch in range(max(first, self.progress.epochs_done), first + phase.epochs):
                if self._is_late(deadline):
                    return
                self._epoch(number, phase, epoch, epoch - first)
            first += phase.epochs
        kept = self.best or self._checkpoint()
        if self.fabric.is_global_zero:
            save(self.out, replace(kept, history=self.progress.history, provenance=self._provenance()))
            state_path(self.out).unlink(missing_ok=True)
        self.fabric.barrier()

    def _is_late(self, deadline: float) -> bool:
        """Whether another epoch as long as the last would end after ``deadline``; the first process decides."""
        history = self.progress.history
        if deadline == inf or not history:
            return False
        return bool(self.fabric.broadcast(time.time() + history[-1]["seconds"] > deadline))

    def _epoch(self, number: int, phase: Phase, epoch: int, epoch_of_phase: int) -> None:
        started = time.perf_counter()
        trained = self._train_epoch(phase, epoch, epoch_of_phase)
        seconds = time.perf_counter() - started
        validation_loss, validation_accuracy = self._validate()
        row = {
            "epoch": epoch + 1,
            "phase": number,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "reward": trained.reward,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": trained.images / seconds,
            "seconds": time.perf_counter() - started,
        }
        self.progress.history.append(row)
        self.progress.epochs_done = epoch + 1
        if epoch_of_phase == 0:
            # An earlier phase's best is no checkpoint of this one: an "-adv" run that kept it would be none.
            self.progress.best_accuracy = -1.0
        if self.training.selection == "last" or validation_accuracy >= self.progress.best_accuracy:
            self.progress.best_accuracy = validation_accuracy
            self.best = self._checkpoint()
        self._store()

    def _train_epoch(self, phase: Phase, epoch: int, epoch_of_phase: int) -> Totals:
        seed = self.training.seed
        order = self.trained[torch.randperm(len(self.trained), generator=generator(seed, "order", epoch))]
        batches = order[: self.updates * self.batch_size].split(self.batch_size)
        stream = generator(seed, "augmentation and actions", epoch)
        totals = Totals(self.fabric.device)
        started = time.perf_counter()
        self.model.train()
        with seeded(seed, "dropout", epoch, self.fabric.global_rank):
            for position, indices in enumerate(batches):
                rate = phase.learning_rate_at(epoch_of_phase + (position + 1) / len(batches))
                for group in self.optimizer.param_groups:
                    group["lr"], group["weight_decay"] = rate, phase.weight_decay
                self._update(phase, indices, stream, totals)
                if (position + 1) % LOOK_EVERY == 0:
                    totals.require_finite(epoch + 1, self.out)
                    self._show(LOOK_EVERY, epoch, totals, time.perf_counter() - started)
        self._show(len(batches) % LOOK_EVERY, epoch, totals, time.perf_counter() - started)
        totals.sums = self._summed(totals.sums)
        totals.require_finite(epoch + 1, self.out)
        return totals

    def _show(self, updates: int, epoch: int, totals: Totals, seconds: float) -> None:
        """Move the progress bar by ``updates``; accuracy and images are those of this process so far this epoch."""
        speed = totals.images * self.fabric.world_size / seconds
        note = f"epoch {epoch + 1}/{self.training.epochs} accuracy {100 * totals.accuracy:.1f} %"
        self.advance(updates, f"{note} {speed:,.0f} images/s")

    def _update(self, phase: Phase, indices: Tensor, stream: torch.Generator, totals: Totals) -> None:
        """One optimiser step on the global batch ``indices``, of which this process takes its share.

        FGSM on the phase's own loss takes its gradient from the clean pass, so an adversarial update costs two
        forward and two backward passes.
        """
        count = len(indices)
        images, labels, (clean_draws, adversarial_draws), noise = self._batch(phase, indices, stream)
        adversary = phase.adversary
        shared = adversary is not None and shares_the_clean_pass(adversary)
        # DDP averages over the processes, and each divides by the global count.
        scale = self.fabric.world_size / count
        self.optimizer.zero_grad()
        images.requires_grad_(shared)
        with self.fabric.no_backward_sync(self.model, enabled=adversary is not None and self.fabric.world_size > 1):
            logits = self.model(images)
            clean = phase_outcome(logits, labels, phase, clean_draws)
            self.fabric.backward(clean.losses.sum() * scale)
        losses = clean.losses.detach()
        if adversary is not None:
            clean_images = images.detach()
            if shared:
                assert images.grad is not None
                example = fast_gradient_example(clean_images, images.grad, adversary)
            else:
                with self.fabric.autocast():  # the network itself is not wrapped, and would compute in float32
                    example = adversarial_example(
                        self.network, clean_images, labels, phase, adversary, clean_draws, noise
                    )
            outcome = phase_outcome(self.model(example), labels, phase, adversarial_draws)
            self.fabric.backward(adversary.weight * outcome.losses.sum() * scale)
            losses = losses + adversary.weight * outcome.losses.detach()
        if phase.clip_norm is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=phase.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        totals.add(losses, logits.detach().argmax(dim=1) == labels, clean.rewards)

    def _batch(
        self, phase: Phase, indices: Tensor, stream: torch.Generator
    ) -> tuple[Tensor, Tensor, tuple[Draws, Draws], Tensor]:
        """A process's share of a batch: float images, labels, the draws of both passes, the adversary's noise."""
        training, device = self.training, self.fabric.device
        count = len(indices)
        transforms = augment.draw(
            count,
            self.images.height,
            self.images.width,
            horizontal_flip=training.horizontal_flip,
            vertical_flip=training.vertical_flip,
            shift=training.shift,
            generator=stream,
        )
        draws = Draws.make(count, stream), Draws.make(count, stream)
        rank = self.fabric.global_rank
        start, stop = (count * part // self.fabric.world_size for part in (rank, rank + 1))
        noise = torch.empty(0)
        if phase.adversary is not None and phase.adversary.method == "pgd" and phase.adversary.random_start:
            noise = torch.rand((count, *self.images.images.shape[1:]), generator=stream)[start:stop].mul_(2).sub_(1)
        raw, labels = self.images.raw_batch(indices[start:stop], device)
        images = as_floats(augment.apply(raw, transforms[start:stop]))
        images = images.contiguous(memory_format=torch.channels_last)
        clean, adversarial = (part.share(start, stop, device) for part in draws)
        return images, labels, (clean, adversarial), noise.to(device)

    def _summed(self, sums: Tensor) -> Tensor:
        """The sums over all processes; a tensor gives a tensor, which Fabric's signature does not say."""
        total: Tensor = self.fabric.all_reduce(sums, reduce_op="sum")  # type: ignore[assignment]
        return total

    def _validate(self) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy on the validation images, float32, shared by all processes."""
        mine = self.held_out[self.fabric.global_rank :: self.fabric.world_size]
        sums = torch.zeros(2, dtype=torch.float64, device=self.fabric.device)
        with evaluating(self.network), torch.no_grad():
            for indices in mine.split(self.training.batch_size):
                images, labels = self.images.batch(indices, self.fabric.device)
                logits = self.network(images.contiguous(memory_format=torch.channels_last))
                sums[0] += cross_entropy(logits, labels).sum()
                sums[1] += (logits.argmax(dim=1) == labels).sum()
        loss, accuracy = (self._summed(sums) / len(self.held_out)).tolist()
        return loss, accuracy

    def _store(self) -> None:
        """Write what resuming needs, the best checkpoint so far and the history; one process does."""
        if not self.fabric.is_global_zero:
            return
        assert self.best is not None
        state = {
            "config": self._config(),
            "fingerprint": self.images.fingerprint,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best.state_dict,
            "epochs_done": self.progress.epochs_done,
            "best_accuracy": self.progress.best_accuracy,
            "history": self.progress.history,
        }
        save(self.out, replace(self.best, history=self.progress.history))
        self._keep_epoch()
        with atomic(state_path(self.out)) as temporary:
            torch.save(state, temporary)
        write_table(self.out.with_suffix(".history.csv"), HISTORY, self.progress.history)

    def _checkpoint(self) -> Checkpoint:
        weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return Checkpoint(
            spec=self.spec,
            state_dict=weights,
            mode=self.training.mode,
            dataset=self.images.name,
            classes=self.images.classes,
            data_fingerprint=self.images.fingerprint,
            config=self._config(),
            history=[],
            provenance=self._provenance(),
        )

    def _config(self) -> dict[str, Any]:
        return self.training.model_dump(mode="json")

    def _provenance(self) -> dict[str, Any]:
        return provenance(str(self.fabric.device)) | {"processes": self.fabric.world_size}

"""Train a network, in every mode: phase by phase, resumable after each epoch.

Every random number comes from a stream named by its purpose and the epoch, and is drawn for the global batch. So a
resumed run continues bit for bit, and processes that share a batch use the numbers that one process would use. There
are two exceptions: dropout has one stream per process, and batch norm has its own statistics on each CPU process.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradscope.config import Phase, Training
from gradscope.data.image_set import ImageSet, as_floats
from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.errors import GradscopeError, caution
from gradscope.models.checkpoint import Checkpoint, load
from gradscope.models.names import is_own
from gradscope.process import ending_on_sigterm
from gradscope.progress import Advance, progress_bar
from gradscope.results.files import ensure_writable
from gradscope.seeding import generator, seeded
from gradscope.training.batches import Batch, Batches
from gradscope.training.graphs import Replayed
from gradscope.training.held_out import HeldOut
from gradscope.training.history import warnings_of
from gradscope.training.objectives import (
    adversarial_example,
    fast_gradient_example,
    phase_outcome,
    shares_the_clean_pass,
)
from gradscope.training.precision import chosen_precision
from gradscope.training.start import new_network, split
from gradscope.training.state import RunState, begun_precision, require_unfinished
from gradscope.training.totals import Means, Totals

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

#: Seconds between two reads of the loss; each read waits for the device.
LOOK_EVERY = 0.5
#: Whether to record the update as a CUDA graph if possible. Eager updates give the same bits; tests compare with them.
CUDA_GRAPHS = True


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
    """Train a classifier, write it to ``out``, and write its history beside it as CSV.

    ``training.selection`` says which epoch of the last phase is kept: the best on the validation images, clean or under
    PGD (ties go to the later epoch), or the last. The file ``out`` + ``.resume`` holds the state to resume from until
    the run is complete. It is written at the beginning, after the first epoch, then at most every
    :data:`gradscope.training.state.STORE_EVERY` seconds, and when an error, SIGINT or SIGTERM stops the run. Raises
    :class:`GradscopeError` if the loss is not finite; the last good checkpoint stays. With ``keep_epochs`` the weights
    before the first and after each epoch are kept as checkpoints in
    :func:`gradscope.training.request.epochs_folder`. With ``initial`` the run begins with the weights of that
    checkpoint.

    An epoch that would end after ``deadline`` (``time.time()``), if it takes as long as the last one, does not begin.
    The run then stays unfinished and can be resumed; its checkpoint says how many epochs are done. A user's own
    architecture runs code, which needs ``trust_code``.
    """
    ensure_writable(out.parent)
    weights: Checkpoint | None = None
    if initial is not None:
        weights = load(initial)
        training = training.model_copy(update={"initial": weights.fingerprint})
    if resume:
        require_unfinished(out, training, train_set, keep_epochs=keep_epochs)
    begun = begun_precision(out) if resume else None
    side = min(train_set.height, train_set.width)
    chosen = chosen_precision(training.precision, resolve_device(hardware.device), side, begun)
    training = training.model_copy(update={"precision": chosen})
    begin = partial(
        Run,
        training=training,
        train_set=train_set,
        out=out,
        keep_epochs=keep_epochs,
        initial=weights,
        trust_code=trust_code,
    )
    hardware.launch(training.precision, partial(_run, begin=begin, resume=resume, deadline=deadline))
    return load(out, trust_code=trust_code)


def _run(fabric: "Fabric", begin: "Callable[[Fabric], Run]", resume: bool, deadline: float) -> None:
    run = begin(fabric)
    if resume:
        run.state.resume()
    if not run.state.epochs_done:
        run.state.begin()
    updates = run.training.epochs * run.updates
    bar = progress_bar(f"train {run.training.mode}", updates, "updates", visible=fabric.is_global_zero)
    with bar as advance, ending_on_sigterm():
        advance(run.state.epochs_done * run.updates, "")
        run.complete(advance, deadline)


class Run:
    """One training run: network, optimiser, data and the state it has reached."""

    def __init__(
        self,
        fabric: "Fabric",
        training: Training,
        train_set: ImageSet,
        out: Path,
        *,
        keep_epochs: bool = False,
        initial: Checkpoint | None = None,
        trust_code: bool = False,
    ) -> None:
        self.fabric = fabric
        self.training = training
        self.advance: Advance = lambda done, note: None
        self.trained, held_out = split(training, train_set)
        self.batch_size = min(training.batch_size, len(self.trained))
        self.updates = len(self.trained) // self.batch_size
        self.images = train_set.on(fabric.device)
        spec, network = new_network(training, train_set, self.trained, initial, trust_code=trust_code)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # The overload exists, but torch's stubs lack it.
        self.network: nn.Module = network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: _FabricModule
        self.optimizer: _FabricOptimizer
        self.model, self.optimizer = fabric.setup(self.network, self._new_optimizer())
        self.validation = HeldOut(fabric, self.images, training, held_out)
        self.batches = Batches(self.images, training, fabric.device, fabric.global_rank, fabric.world_size)
        self.totals = Totals(fabric.device)
        self.state = RunState(fabric, training, self.images, spec, self.network, self.optimizer, out, keep_epochs)
        self.update: Callable[[Batch], None] = partial(self._update, training.phases[0], self.batch_size)

    def _new_optimizer(self) -> torch.optim.AdamW:
        """Make AdamW; on a GPU fused and with a learning rate in a tensor, so that a CUDA graph can record it."""
        rate = self.training.phases[0].learning_rate
        if self.fabric.device.type != "cuda":
            return torch.optim.AdamW(self.network.parameters(), lr=rate)
        kept = torch.tensor(rate, device=self.fabric.device)
        return torch.optim.AdamW(self.network.parameters(), lr=kept, fused=True, capturable=True)

    def complete(self, advance: Advance, deadline: float = inf) -> None:
        """Train all remaining epochs and write the checkpoint; call ``advance`` after every few updates.

        Stop before the first epoch that cannot end by ``deadline``; the state after the last epoch is then on disk.
        """
        self.advance = advance
        try:
            if not self._all_epochs(deadline):
                return
        finally:
            del self.update  # it refers to this run and would keep the GPU's memory allocated
            self.state.write()
        self.state.complete()
        self.fabric.barrier()

    def _all_epochs(self, deadline: float) -> bool:
        """Train the remaining epochs; returns False if ``deadline`` comes before the last of them."""
        first = 0
        for number, phase in enumerate(self.training.phases):
            self.update = self.update_of(phase)
            for epoch in range(max(first, self.state.epochs_done), first + phase.epochs):
                if self._is_late(deadline):
                    return False
                self._epoch(number, phase, epoch, epoch - first)
            first += phase.epochs
        return True

    def update_of(self, phase: Phase) -> Callable[[Batch], None]:
        """Make the update of ``phase``, as a CUDA graph if it can be recorded.

        It cannot if PGD switches the network to evaluation mode, if processes wait for each other, or if a user's
        network may read its values.
        """
        update = partial(self._update, phase, self.batch_size)
        adversary = phase.adversary
        plain = adversary is None or shares_the_clean_pass(adversary)
        alone = self.fabric.device.type == "cuda" and self.fabric.world_size == 1
        if CUDA_GRAPHS and alone and plain and not is_own(self.training.architecture):
            return Replayed(update)
        return update

    def _is_late(self, deadline: float) -> bool:
        """Whether another epoch as long as the last would end after ``deadline``; the first process decides."""
        history = self.state.history
        if deadline == inf or not history:
            return False
        return bool(self.fabric.broadcast(time.time() + history[-1]["seconds"] > deadline))

    def _epoch(self, number: int, phase: Phase, epoch: int, epoch_of_phase: int) -> None:
        started = time.perf_counter()
        trained = self._train_epoch(phase, epoch, epoch_of_phase)
        seconds = time.perf_counter() - started
        judged = self.validation.judge(self.network, phase.adversary)
        row = {
            "epoch": epoch + 1,
            "phase": number,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "reward": trained.reward if "policy-gradient" in phase.mix else None,
            **judged,
            "learning_rate": phase.learning_rate_at(epoch_of_phase + 1),
            "images_per_second": trained.images / seconds,
            "seconds": time.perf_counter() - started,
        }
        self.state.add(row)
        if self.fabric.is_global_zero:
            for warning in warnings_of(self.state.history, self.updates):
                caution(warning)

    def _train_epoch(self, phase: Phase, epoch: int, epoch_of_phase: int) -> Means:
        seed, size = self.training.seed, self.batch_size
        order = self.trained[torch.randperm(len(self.trained), generator=generator(seed, "order", epoch))]
        stream = generator(seed, "augmentation and actions", epoch)
        batches = self.batches.of(order[: self.updates * size], size, phase, stream)
        started = looked = time.perf_counter()
        shown = 0
        self.totals.begin()
        self.model.train()
        with seeded(seed, "dropout", epoch, self.fabric.global_rank):
            for done, batch in enumerate(batches, start=1):
                self._set_rate(phase.learning_rate_at(epoch_of_phase + done / self.updates), phase.weight_decay)
                self.update(batch)
                now = time.perf_counter()
                if now - looked > LOOK_EVERY or done == self.updates:
                    self._look(done - shown, epoch, now - started)
                    looked, shown = time.perf_counter(), done
        means = self.totals.means(self._summed)
        self._require_finite(means, epoch)
        return means

    def _set_rate(self, rate: float, weight_decay: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            group["weight_decay"] = weight_decay

    def _require_finite(self, means: Means, epoch: int) -> None:
        """Raise :class:`GradscopeError` if the loss is not finite, after writing the last good state."""
        if math.isfinite(means.loss):
            return
        self.state.write()
        kept = f"the last good checkpoint is {self.state.out}" if self.state.epochs_done else "it has no checkpoint yet"
        raise GradscopeError(
            f"loss must be finite, got {means.loss} in epoch {epoch + 1}; lower the learning rate or set clip_norm; "
            f"{kept}"
        )

    def _look(self, updates: int, epoch: int, seconds: float) -> None:
        """Read the loss and advance the progress bar by ``updates``; it shows this process's numbers of this epoch."""
        means = self.totals.means()
        self._require_finite(means, epoch)
        speed = means.images * self.fabric.world_size / seconds
        note = f"epoch {epoch + 1}/{self.training.epochs} accuracy {100 * means.accuracy:.1f} %"
        self.advance(updates, f"{note} {speed:,.0f} images/s")

    def _update(self, phase: Phase, count: int, batch: Batch) -> None:
        """Do one optimiser step on ``batch``, this process's share of a batch of ``count`` images.

        FGSM on the phase's own loss uses the gradient of the clean pass, so that an adversarial update costs two
        forward and two backward passes.
        """
        labels = batch.labels
        images = as_floats(batch.images).contiguous(memory_format=torch.channels_last)
        adversary = phase.adversary
        shared = adversary is not None and shares_the_clean_pass(adversary)
        # DDP averages over the processes, so each divides by the global count and multiplies by their number.
        scale = self.fabric.world_size / count
        self.optimizer.zero_grad()
        images.requires_grad_(shared)
        with self.fabric.no_backward_sync(self.model, enabled=adversary is not None and self.fabric.world_size > 1):
            logits = self.model(images)
            clean = phase_outcome(logits, labels, phase, batch.clean)
            self.fabric.backward(clean.losses.sum() * scale)
        losses = clean.losses.detach()
        if adversary is not None:
            clean_images = images.detach()
            if shared:
                assert images.grad is not None
                example = fast_gradient_example(clean_images, images.grad, adversary)
            else:
                with self.fabric.autocast():  # the bare network is not wrapped and would compute in float32
                    example = adversarial_example(
                        self.network, clean_images, labels, phase, adversary, batch.clean, batch.noise
                    )
            outcome = phase_outcome(self.model(example), labels, phase, batch.adversarial)
            self.fabric.backward(adversary.weight * outcome.losses.sum() * scale)
            losses = losses + adversary.weight * outcome.losses.detach()
        if phase.clip_norm is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=phase.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.totals.add(losses, logits.detach().argmax(dim=1) == labels, clean.rewards)

    def _summed(self, sums: Tensor) -> Tensor:
        """Add ``sums`` over all processes."""
        total: Tensor = self.fabric.all_reduce(sums, reduce_op="sum")  # type: ignore[assignment]  # tensor to tensor
        return total

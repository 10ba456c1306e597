from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradscope.config import Data, Training
from gradscope.data.augment import apply, draw
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.models.checkpoint import Checkpoint, load
from gradscope.training import loop
from gradscope.training.graphs import Replayed
from gradscope.training.loop import train
from gradscope.training.phases import MODES, resolve
from tests.training.test_loop import InterruptedRunError, interrupt_after

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
#: Epochs after which policies with different first actions have all learnt the images; before, they differ by a third.
EPOCHS = 10
#: Tolerance of the best accuracy on 48 validation images.
SAME_ACCURACY = 0.1


@pytest.fixture(scope="session")
def train_set(make_blobs) -> ImageSet:
    return make_blobs(480, 8, noise=0.05)


def configure(mode: str, *, epochs: int = EPOCHS, **options: object) -> Training:
    settings = ["horizontal_flip=true", "shift=0.1", "batch_size=32", "phases.0.learning_rate=3e-3"]
    return resolve(mode, Data(), 8, epochs=epochs, settings=settings, options=options)


def weights(checkpoint: Checkpoint) -> torch.Tensor:
    """Concatenate all trained weights, without batch norm's statistics, which are far larger."""
    names = [name for name, _ in checkpoint.build().named_parameters()]
    return torch.cat([checkpoint.state_dict[name].double().flatten() for name in names])


def best_accuracy(run: Checkpoint) -> float:
    return max(row["validation_accuracy"] for row in run.history)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains_as_on_the_cpu(mode, device, train_set, tmp_path):
    training = configure(mode)
    expected = train(training, train_set, tmp_path / "cpu.pt", Hardware("cpu"))
    found = train(training, train_set, tmp_path / "device.pt", Hardware(device.type))
    assert weights(found).isfinite().all()
    assert len(found.history) == EPOCHS
    first, theirs = found.history[0], expected.history[0]
    # Both take order, augmentation, drawn actions and fresh weights from the CPU. Training may use TF32 convolutions:
    # operands rounded like that on the CPU move the first loss of sl by 4e-4, and a few of 432 actions and rewards.
    assert first["loss"] == pytest.approx(theirs["loss"], rel=0.1 if theirs["reward"] else 0.01)
    assert (first["reward"] is None) == (theirs["reward"] is None)
    if theirs["reward"] is not None:
        assert first["reward"] == pytest.approx(theirs["reward"], abs=0.03)
    # The runs separate after that and end alike.
    assert best_accuracy(expected) > 0.9
    assert best_accuracy(found) == pytest.approx(best_accuracy(expected), abs=SAME_ACCURACY)


@pytest.mark.parametrize("mode", ["sl", "rl", "rl-adv"])
def test_bf16_trains_to_the_accuracy_of_float32(mode, device, train_set, tmp_path):
    found, expected = (
        train(configure(mode, precision=precision), train_set, tmp_path / f"{precision}.pt", Hardware(device.type))
        for precision in ("bf16", "32")
    )
    assert weights(found).isfinite().all()
    assert all(value.dtype in (torch.float32, torch.int64) for value in found.state_dict.values())
    # bf16 has 8 bits, float32 24: losses differ in the third digit; equal losses would mean that bf16 is not used.
    losses = [run.history[0]["loss"] for run in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    assert best_accuracy(found) == pytest.approx(best_accuracy(expected), abs=SAME_ACCURACY)


def trained_eagerly(training: Training, train_set: ImageSet, out: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CUDA_GRAPHS", False)
        return train(training, train_set, out, Hardware("cuda"))


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("architecture", ["cnn4", "cnn6"])
@pytest.mark.parametrize("mode", ["sl", "rl", "rl-adv", "sl-rl"])
def test_a_graph_trains_as_eager_updates_do(mode, architecture, precision, cuda, train_set, tmp_path, monkeypatch):
    """Through both phases, with dropout and batch norm (cnn6), clipping (sl) and a learning rate that changes.

    What differs is the order in which cuDNN's and the poolings' backward passes add up; see the test below.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recorded = []
    record = Replayed._record
    monkeypatch.setattr(Replayed, "_record", lambda run, batch: (record(run, batch), recorded.append(run.is_recorded)))
    few = train_set.subset(torch.arange(320))
    training = configure(mode, epochs=4, architecture=architecture, precision=precision, selection="last")
    graphed = train(training, few, tmp_path / "graphed.pt", Hardware("cuda"), keep_epochs=True)
    assert recorded == [True] * len(training.phases)
    eager = trained_eagerly(training, few, tmp_path / "eager.pt", monkeypatch)
    assert recorded == [True] * len(training.phases)
    begin = weights(load(min((tmp_path / "graphed.epochs").glob("*.pt"))))
    apart = (weights(graphed) - weights(eager)).norm() / (weights(eager) - begin).norm()
    print(f"{mode} {architecture} {precision}: the weights are apart by {apart:.1e} of their way")
    assert apart < 1e-2
    for ours, theirs in zip(graphed.history, eager.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-2)


def test_what_cannot_be_recorded_trains_eagerly(cuda, train_set, tmp_path, monkeypatch):
    update = loop.Run._update

    def looking(run, phase, count, batch):
        update(run, phase, count, batch)
        batch.labels.sum().item()

    eager = trained_eagerly(configure("sl", epochs=2), train_set, tmp_path / "eager.pt", monkeypatch)
    monkeypatch.setattr(loop.Run, "_update", looking)
    with pytest.warns(UserWarning, match="continues without a CUDA graph"):
        found = train(configure("sl", epochs=2), train_set, tmp_path / "c.pt", Hardware("cuda"))
    assert found.history[-1]["loss"] == pytest.approx(eager.history[-1]["loss"], rel=1e-2)


def test_an_epoch_waits_for_the_gpu_only_to_look(cuda, train_set, tmp_path, monkeypatch):
    """Make CUDA refuse to wait, except where the loss is read."""
    monkeypatch.setattr(loop, "LOOK_EVERY", float("inf"))
    run = loop.Run(Hardware("cuda").fabric("32"), configure("rl-adv"), train_set, tmp_path / "c.pt")
    phase = run.training.phases[-1]
    run.update = run.update_of(phase)
    run._train_epoch(phase, 0, 0)
    looks = []

    def means(summed=Tensor.clone):
        torch.cuda.set_sync_debug_mode("default")
        looks.append(totals(run.totals, summed))
        return looks[-1]

    totals = type(run.totals).means
    monkeypatch.setattr(run.totals, "means", means)
    begin = run.totals.begin
    monkeypatch.setattr(run.totals, "begin", lambda: (begin(), torch.cuda.set_sync_debug_mode("error")))
    try:
        run._train_epoch(phase, 1, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(looks) == 2


@pytest.mark.parametrize("architecture", ["cnn4", "cnn6"])
def test_resuming_equals_no_interruption(architecture, device, train_set, tmp_path, monkeypatch):
    """Dropout draws on the device, cnn6 has batch norm.

    cuDNN's usual backward convolutions add in an order that changes from run to run, and Adam makes of a rounding of a
    tiny gradient a whole step; so they are asked to be deterministic, and the weights are compared with how far they
    moved: 1e-2 of it is allowed for what still differs. A run that lost its optimiser's state is off by more than 0.1.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    few = train_set.subset(torch.arange(160))
    training = configure("rl-adv", epochs=5, architecture=architecture, selection="last")
    hardware = Hardware(device.type)
    whole = train(training, few, tmp_path / "whole.pt", hardware, keep_epochs=True)
    interrupt_after(monkeypatch, 3)
    with pytest.raises(InterruptedRunError):
        train(training, few, tmp_path / "parts.pt", hardware)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    parts = train(training, few, tmp_path / "parts.pt", hardware, resume=True)
    assert [row["epoch"] for row in parts.history] == [row["epoch"] for row in whole.history]
    begin = weights(load(min((tmp_path / "whole.epochs").glob("*.pt"))))
    assert (weights(parts) - weights(whole)).norm() < 1e-2 * (weights(whole) - begin).norm()


def test_two_gpus_of_one_are_refused(cuda):
    if torch.cuda.device_count() > 1:
        pytest.skip("there is more than one GPU")
    with pytest.raises(GradscopeError, match=r"^devices must be at most 1, .*, got 2$"):
        Hardware("cuda", 2).fabric("32")


def test_augmented_images_are_those_of_the_cpu(device, train_set):
    stream = torch.Generator().manual_seed(0)
    drawn = draw(64, 8, 8, horizontal_flip=True, vertical_flip=True, shift=0.2, generator=stream)
    images = train_set.images[:64]
    assert torch.equal(apply(images.to(device), drawn).cpu(), apply(images, drawn))


def test_resident_and_streamed_batches_agree_with_the_cpu(cuda, train_set, monkeypatch):
    indices = torch.tensor([5, 0, 9])
    resident = train_set.on(cuda)
    assert resident.images.device.type == resident.labels.device.type == "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * train_set.images.nbytes - 1, 1 << 40))
    assert train_set.on(cuda) is train_set
    for source in (resident, train_set):
        images, labels = source.batch(indices, cuda)
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), train_set.batch(indices, CPU)[0])
        assert torch.equal(labels.cpu(), train_set.labels[indices])


def test_bytes_are_divided_as_on_the_cpu(device):
    """CUDA divides by a Python number through its reciprocal, which rounds some of the 256 levels differently."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = ImageSet.from_tensors("all", levels, torch.tensor([0]), ["a"])
    assert torch.equal(images.batch(torch.tensor([0]), device)[0].cpu(), images.batch(torch.tensor([0]), CPU)[0])

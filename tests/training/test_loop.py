import csv
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, stratified_sample, stratified_split
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.architectures import build
from gradscope.seeding import seeded
from gradscope.training.loop import train
from gradscope.training.phases import MODES, resolve
from gradscope.training.request import state_path
from gradscope.training.state import RunState

CPU = Hardware("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return sources.load(Data()).train


def configure(mode="sl", epochs=3, settings=(), **options):
    return resolve(mode, Data(), 8, epochs=epochs, settings=settings, options=options)


def same_weights(first, second):
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


class InterruptedRunError(Exception):
    pass


def interrupt_after(monkeypatch, epochs):
    """Stop a run as a kill would, after it has stored ``epochs`` epochs."""
    store = RunState._store

    def stop(self):
        store(self)
        if self.epochs_done == epochs:
            raise InterruptedRunError

    monkeypatch.setattr(RunState, "_store", stop)


def test_a_run_begins_with_the_weights_of_another(tmp_path, digits, monkeypatch):
    few = digits.subset(torch.arange(200))
    first = train(configure("sl", 2), few, tmp_path / "first.pt", CPU)
    begun = configure("rl", 2, ["phases.0.learning_rate=1e-12", "phases.0.weight_decay=0"])
    continued = train(begun, few, tmp_path / "second.pt", CPU, initial=tmp_path / "first.pt")
    fresh = train(begun, few, tmp_path / "fresh.pt", CPU)
    for name, value in first.state_dict.items():
        torch.testing.assert_close(continued.state_dict[name], value)
    assert not torch.allclose(fresh.state_dict["network.0.weight"], first.state_dict["network.0.weight"], atol=1e-3)
    assert continued.config["initial"] == checkpoints.load(tmp_path / "first.pt").fingerprint
    interrupt_after(monkeypatch, 1)
    with pytest.raises(InterruptedRunError):
        train(begun, few, tmp_path / "third.pt", CPU, initial=tmp_path / "first.pt")
    monkeypatch.undo()
    with pytest.raises(GradscopeError, match="it differs in initial"):
        train(begun, few, tmp_path / "third.pt", CPU, resume=True, initial=tmp_path / "second.pt")
    resumed = train(begun, few, tmp_path / "third.pt", CPU, resume=True, initial=tmp_path / "first.pt")
    assert same_weights(resumed, continued)


def test_weights_of_another_shape_are_no_beginning(tmp_path, digits):
    few = digits.subset(torch.arange(200))
    train(configure("sl", 1), few, tmp_path / "first.pt", CPU)
    with pytest.raises(GradscopeError, match="from: the weights of 'sl' must fit this model"):
        train(configure("sl", 1, architecture="cnn4"), few, tmp_path / "b.pt", CPU, initial=tmp_path / "first.pt")


@pytest.mark.parametrize(
    ("mode", "arch"), [("sl", "cnn2"), pytest.param("rl-adv", "cnn2", marks=pytest.mark.slow), ("rl-adv", "cnn6")]
)
def test_resuming_equals_no_interruption_bit_for_bit(tmp_path, digits, monkeypatch, mode, arch):
    """cnn6 has dropout and batch norm, rl-adv draws actions and changes phase."""
    few = digits.subset(torch.arange(200))
    settings = ["horizontal_flip=true", "shift=0.1"]
    training = configure(mode, 4, settings, architecture=arch)
    whole = train(training, few, tmp_path / "whole.pt", CPU)
    interrupt_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        train(training, few, tmp_path / "parts.pt", CPU)
    monkeypatch.undo()
    assert checkpoints.load(tmp_path / "parts.pt").history[-1]["epoch"] == 2
    parts = train(training, few, tmp_path / "parts.pt", CPU, resume=True)
    assert same_weights(whole, parts)
    assert not state_path(tmp_path / "parts.pt").exists()
    timing = ("images_per_second", "seconds")
    for ours, theirs in zip(whole.history, parts.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


def test_resume_refuses_another_run(tmp_path, digits, monkeypatch):
    few = digits.subset(torch.arange(100))
    interrupt_after(monkeypatch, 1)
    with pytest.raises(InterruptedRunError):
        train(configure(), few, tmp_path / "a.pt", CPU)
    monkeypatch.undo()
    with pytest.raises(GradscopeError, match=r"belongs to another run; it differs in seed"):
        train(configure(seed=5), few, tmp_path / "a.pt", CPU, resume=True)
    with pytest.raises(GradscopeError, match="differs in the images"):
        train(configure(), digits.subset(torch.arange(101)), tmp_path / "a.pt", CPU, resume=True)
    with pytest.raises(GradscopeError, match="there is no unfinished run"):
        train(configure(), few, tmp_path / "other.pt", CPU, resume=True)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_the_digits(tmp_path, digits, mode):
    epochs = 14 if mode.startswith("sl") else 24
    trained = train(configure(mode, epochs), digits, tmp_path / "c.pt", CPU)
    assert trained.history[-1]["validation_accuracy"] > 0.8
    rewarded = [
        "rl" in mode and not (mode == "sl-rl" and row["phase"] == 0) and not (mode == "rl-sl" and row["phase"] == 1)
        for row in trained.history
    ]
    assert [row["reward"] is not None for row in trained.history] == rewarded


def test_the_seed_decides_and_the_global_state_does_not(tmp_path, digits):
    few = digits.subset(torch.arange(100))
    runs = []
    for index, seed in enumerate((0, 0, 1)):
        torch.manual_seed(index)
        state = torch.get_rng_state()
        runs.append(train(configure(seed=seed), few, tmp_path / f"{index}.pt", CPU))
        assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_one_update_is_adamw_on_the_mean_loss(tmp_path, digits):
    """One epoch of one batch, against the update written out."""
    few = digits.subset(torch.arange(60))
    settings = ["phases.0.warmup_epochs=0", "phases.0.clip_norm=0.05", "batch_size=1000", "selection='last'"]
    training = configure("sl", 1, settings)
    trained = train(training, few, tmp_path / "c.pt", CPU)
    kept, _ = stratified_split(few.labels, 0.1, 0)
    with seeded(0, "weights"):
        model = build(trained.spec)
    phase = training.phases[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate_at(1), weight_decay=phase.weight_decay)
    images, labels = few.batch(kept, "cpu")
    F.cross_entropy(model(images), labels).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict[name], value, rtol=1e-4, atol=1e-5)


def test_an_adversarial_update_sums_the_two_gradients(tmp_path, digits):
    """loss(x) + weight * loss(x + epsilon sign grad), in one update: SGD's view of it through AdamW's first step."""
    few = digits.subset(torch.arange(60))
    adversary = "phases.0.adversary={epsilon=0.1, weight=2.0}"
    settings = ["phases.0.warmup_epochs=0", "phases.0.clip_norm=1e-3", "batch_size=1000", adversary]
    trained = train(configure("sl", 1, settings), few, tmp_path / "c.pt", CPU)
    kept, _ = stratified_split(few.labels, 0.1, 0)
    with seeded(0, "weights"):
        model = build(trained.spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=configure("sl", 1, settings).phases[0].learning_rate_at(1))
    images, labels = few.batch(kept, "cpu")
    images.requires_grad_(True)
    loss = F.cross_entropy(model(images), labels)
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    example = (images + 0.1 * gradient.sign()).clamp(0, 1).detach()
    total = loss + 2 * F.cross_entropy(model(example), labels)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict[name], value, rtol=1e-4, atol=1e-5)
    assert trained.history[0]["loss"] == pytest.approx(total.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, digits):
    few = digits.subset(torch.arange(200))
    phases = [
        {"epochs": 2, "learning_rate": 1e-3},
        {"epochs": 2, "learning_rate": 1e30},
    ]
    training = resolve("mine", Data(), 8, table={"phases": phases})
    with pytest.raises(GradscopeError, match=r"got (nan|inf) in epoch [34]; lower the learning rate.*checkpoint is"):
        train(training, few, tmp_path / "c.pt", CPU)
    kept = checkpoints.load(tmp_path / "c.pt")
    assert all(value.isfinite().all() for value in kept.state_dict.values())
    kept.build()


@pytest.mark.filterwarnings("ignore:epoch 8. one class gets 100 % of the predictions")
def test_the_best_of_the_last_phase_is_kept(tmp_path, digits):
    """The first phase learns, the second forgets: its best is worse than the first's, and is kept all the same."""
    phases = [{"epochs": 6, "learning_rate": 2e-3}, {"epochs": 2, "learning_rate": 0.5}]
    trained = train(resolve("mine", Data(), 8, table={"phases": phases}), digits, tmp_path / "c.pt", CPU)
    accuracies = [row["validation_accuracy"] for row in trained.history]
    assert max(accuracies[:6]) > max(accuracies[6:])
    _, held_out = stratified_split(digits.labels, 0.1, 0)
    images, labels = digits.batch(held_out, "cpu")
    with torch.no_grad():
        kept = (trained.build()(images).argmax(1) == labels).double().mean()
    assert float(kept) == pytest.approx(max(accuracies[6:]))


def test_the_history_is_written_beside_the_checkpoint(tmp_path, digits):
    trained = train(configure("rl", 2), digits.subset(torch.arange(200)), tmp_path / "c.pt", CPU)
    with (tmp_path / "c.history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in trained.history]
    asked = configure("rl", 2).model_dump(mode="json")
    assert checkpoints.load(tmp_path / "c.pt").config == asked | {"precision": "32"}


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    """Spawned from a script, as the command does; cnn2 has neither dropout nor batch norm."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent("""
        from pathlib import Path
        from gradscope.config import Data
        from gradscope.data import sources
        from gradscope.distributed.processes import Hardware
        from gradscope.training.loop import train
        from gradscope.training.phases import resolve
        import torch

        if __name__ == "__main__":
            torch.set_num_threads(1)
            few = sources.load(Data()).train.subset(torch.arange(200))
            training = resolve("rl-adv", Data(), 8, epochs=2, settings=["shift=0.1", "batch_size=50"])
            for processes in (1, 2):
                checkpoint = train(training, few, Path(f"{processes}.pt"), Hardware("cpu", processes))
                print([(row["loss"], row["validation_loss"], row["pgd_accuracy"] or 0.0) for row in checkpoint.history])
        """)
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    curves = [
        [float(number) for number in re.findall(r"\d+\.\d+(?:e-?\d+)?", line)]
        for line in done.stdout.splitlines()
        if line.startswith("[(")
    ]
    assert [len(curve) for curve in curves] == [6] * 2
    one, two = curves
    assert two == pytest.approx(one, rel=1e-4)


def test_an_absent_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(GradscopeError, match="device cuda, devices 1: "):
        Hardware("cuda").fabric("32")


def test_a_class_with_two_images_is_needed_to_validate_on(tmp_path, digits):
    firsts = torch.stack([(digits.labels == label).nonzero()[0, 0] for label in range(10)])
    with pytest.raises(GradscopeError, match="must have a class with at least 2 training images"):
        train(configure(), digits.subset(firsts), tmp_path / "c.pt", CPU)


def test_a_part_of_the_training_images_is_used_and_recorded(tmp_path, digits):
    """A run on 60 of 200 images is a run on those 60 alone, but for what it says of its data."""
    few = digits.subset(torch.arange(200))
    part = train(configure("sl", 2, train_samples=60), few, tmp_path / "part.pt", CPU)
    assert part.config["train_samples"] == 60
    assert part.data_fingerprint == few.fingerprint
    alone = few.subset(stratified_sample(few.labels, 60, 0))
    assert same_weights(part, train(configure("sl", 2), alone, tmp_path / "alone.pt", CPU))
    with pytest.raises(GradscopeError, match="train_samples must be from 2 to 200, the training images, got 201"):
        train(configure("sl", 2, train_samples=201), few, tmp_path / "more.pt", CPU)


def test_a_run_on_all_images_is_described_as_ever():
    """Stages and checkpoints of older versions keep their names."""
    assert set(configure().model_dump(mode="json")) == {
        *("mode", "data", "architecture", "phases", "batch_size", "horizontal_flip", "vertical_flip", "shift"),
        *("validation_fraction", "selection", "seed", "precision", "initial"),
    }

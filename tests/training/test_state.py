"""When the state of a run is written: seldom while it goes on, and whenever it stops."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradscope.config import Data, Training
from gradscope.data import sources
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.errors import CannotResumeError
from gradscope.models.checkpoint import Checkpoint
from gradscope.training import batches, loop, state
from gradscope.training.loop import train
from gradscope.training.phases import resolve
from gradscope.training.request import state_path
from gradscope.training.state import RunState

CPU = Hardware("cpu")
EPOCHS = 4


@pytest.fixture(scope="module")
def few() -> ImageSet:
    return sources.load(Data()).train.subset(torch.arange(200))


def configure(mode: str = "sl", *settings: str, epochs: int = EPOCHS) -> Training:
    return resolve(mode, Data(), 8, epochs=epochs, settings=["shift=0.1", "horizontal_flip=true", *settings])


def same(first: Checkpoint, second: Checkpoint) -> bool:
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs after which the state is written."""
    epochs, write = [], RunState.write

    def noted(run: RunState) -> None:
        if run.unwritten is not None:
            epochs.append(run.unwritten["epochs_done"])
        write(run)

    monkeypatch.setattr(RunState, "write", noted)
    return epochs


@pytest.mark.parametrize(("seconds", "expected"), [(10.0, [1, EPOCHS]), (-1.0, [1, 2, 3, EPOCHS])])
def test_the_state_is_written_as_often_as_is_said(seconds, expected, few, tmp_path, monkeypatch) -> None:
    assert state.STORE_EVERY == 10
    monkeypatch.setattr(state, "STORE_EVERY", seconds)
    epochs = written(monkeypatch)
    train(configure(), few, tmp_path / "c.pt", CPU)
    assert epochs == expected
    assert not state_path(tmp_path / "c.pt").exists()


def test_a_state_that_waits_is_that_of_its_epoch(few, tmp_path, monkeypatch) -> None:
    """Interrupted within the third epoch, after the weights have moved on, a run goes on from the second."""
    whole = train(configure("rl-adv"), few, tmp_path / "whole.pt", CPU)
    update, updates = loop.Run._update, []

    def interrupted(run: loop.Run, *given: object) -> None:
        update(run, *given)
        updates.append(None)
        if len(updates) == 2 * run.updates + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(configure("rl-adv"), few, tmp_path / "c.pt", CPU)
    kept = torch.load(state_path(tmp_path / "c.pt"), weights_only=True)
    assert kept["epochs_done"] == len(kept["history"]) == 2
    assert same(train(configure("rl-adv"), few, tmp_path / "c.pt", CPU, resume=True), whole)


def test_a_run_that_is_told_to_end_keeps_its_state(few, tmp_path) -> None:
    """SIGTERM, as a queue sends it before it kills."""
    script = textwrap.dedent("""
        import sys
        import torch
        from pathlib import Path
        from gradscope.distributed.processes import Hardware
        from gradscope.training.loop import train
        from gradscope.training.state import RunState
        from tests.training.test_state import configure, few
        store = RunState._store

        def told(run):
            store(run)
            if run.epochs_done == 2:
                print("two", flush=True)
                sys.stdin.readline()

        RunState._store = told
        train(configure(), few.__wrapped__(), Path(sys.argv[1]), Hardware("cpu"))
    """)
    out = tmp_path / "c.pt"
    command, root = [sys.executable, "-c", script, out], Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"two\n"
        assert torch.load(state_path(out), weights_only=True)["epochs_done"] == 1
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
    whole = train(configure(), few, tmp_path / "whole.pt", CPU)
    assert same(train(configure(), few, out, CPU, resume=True), whole)


@pytest.fixture
def stopped(few: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that stopped after its first epoch."""
    store = RunState._store

    def stop(run: RunState) -> None:
        store(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "_store", stop)
        with pytest.raises(KeyboardInterrupt):
            train(configure(), few, tmp_path / "c.pt", CPU)
    return tmp_path / "c.pt"


def refusal(out: Path, few: ImageSet, *, training: Training | None = None) -> str:
    with pytest.raises(CannotResumeError) as raised:
        train(training or configure(), few, out, CPU, resume=True)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_flipped_bit_in_a_state_is_found(stopped, few) -> None:
    path = state_path(stopped)
    kept = torch.load(path, weights_only=True)
    weight = max(kept["best"].values(), key=Tensor.numel).numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 5] ^= 1
    path.write_bytes(content)
    assert "is damaged: the checksum of archive/data/" in refusal(stopped, few)


DAMAGES = {
    "history of another kind": lambda kept: kept.update(history=3),
    "rows of another kind": lambda kept: kept.update(history=[1]),
    "rows without columns": lambda kept: kept.update(history=[{"epoch": 1}]),
    "more epochs than rows": lambda kept: kept.update(epochs_done=2),
    "no epochs": lambda kept: kept.update(history=[], epochs_done=0),
    "no moments": lambda kept: kept["optimizer"].update(state={}),
    "no best": lambda kept: kept.pop("best"),
    "best of another shape": lambda kept: kept["best"].update({next(iter(kept["best"])): torch.ones(1)}),
    "network of numbers": lambda kept: kept.update(network=dict.fromkeys(kept["network"], 1)),
    "optimiser of another kind": lambda kept: kept.update(optimizer=[]),
    "optimiser without state": lambda kept: kept["optimizer"].pop("state"),
    "moments of another shape": lambda kept: kept["optimizer"]["state"][0].update(exp_avg=torch.ones(1)),
    "moments of more parameters": lambda kept: kept["optimizer"]["state"].update({99: {}}),
    "configuration of another kind": lambda kept: kept.update(config="sl"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_state_with_wrong_content_is_refused_in_one_line(damage, stopped, few) -> None:
    kept = torch.load(state_path(stopped), weights_only=True)
    damage(kept)
    torch.save(kept, state_path(stopped))
    assert refusal(stopped, few).startswith("resume: ")


def test_another_run_is_named_by_its_options_and_their_values(stopped, few) -> None:
    other = refusal(stopped, few, training=configure("sl", "batch_size=30", "phases.0.learning_rate=0.5"))
    assert "it differs in phases.0.learning_rate (there " in other
    assert ", here 0.5), " in other
    assert "batch_size (there " in other


def test_an_unfinished_checkpoint_without_its_state_is_not_complete(stopped, few) -> None:
    state_path(stopped).unlink()
    assert f"holds 1 of {EPOCHS} epochs, but c.pt.resume, which resuming needs, is missing" in refusal(stopped, few)


def test_an_overwriting_run_that_stopped_in_its_first_epoch_is_resumed(few, tmp_path, monkeypatch) -> None:
    """What it replaces, another run with more epochs that were kept, stays until then and is not taken for it."""
    whole = train(configure(), few, tmp_path / "whole.pt", CPU, keep_epochs=True)
    out = tmp_path / "c.pt"
    longer = configure("sl", "seed=1", epochs=EPOCHS + 1)
    train(longer, few, out, CPU, keep_epochs=True)
    before = out.read_bytes()

    def interrupted(run: loop.Run, *given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(configure(), few, out, CPU, keep_epochs=True)
    assert out.read_bytes() == before
    assert "c.pt.resume belongs to another run; it differs in phases.0" in refusal(out, few, training=longer)
    assert same(train(configure(), few, out, CPU, resume=True, keep_epochs=True), whole)
    assert sorted(path.name for path in (tmp_path / "c.epochs").iterdir()) == [f"{n:04}.pt" for n in range(EPOCHS + 1)]


def test_a_complete_run_is_resumed_by_no_other(few, tmp_path) -> None:
    out = tmp_path / "c.pt"
    train(configure(), few, out, CPU)
    assert "c.pt is complete; there is nothing to do" in refusal(out, few)
    other = refusal(out, few, training=configure(epochs=7))
    assert "is complete and belongs to another run; it differs in phases.0.epochs (there 4, here 7); `over" in other
    assert "it differs in the images; `overwrite` replaces it" in refusal(out, few.subset(torch.arange(100)))
    with pytest.raises(CannotResumeError, match=r"it differs in keep_epochs \(there False, here True\)"):
        train(configure(), few, out, CPU, resume=True, keep_epochs=True)


def test_epochs_are_kept_from_the_beginning_or_not_at_all(stopped, few) -> None:
    with pytest.raises(CannotResumeError, match=r"it differs in keep_epochs \(there False, here True\)"):
        train(configure(), few, stopped, CPU, resume=True, keep_epochs=True)


PGD_ADVERSARY = "phases.1.adversary={method='pgd', epsilon=0.1, steps=2, random_start=true}"


@pytest.mark.parametrize("settings", [(), (PGD_ADVERSARY,)], ids=["fgsm", "pgd"])
def test_drawing_for_many_updates_at_a_time_changes_nothing(settings, few, tmp_path, monkeypatch) -> None:
    one = train(configure("rl-adv", "batch_size=30", *settings), few, tmp_path / "one.pt", CPU)
    assert len(few) // 30 > 4
    monkeypatch.setattr(batches.Batches, "_updates_at_once", lambda self, size: 4)
    many = train(configure("rl-adv", "batch_size=30", *settings), few, tmp_path / "many.pt", CPU)
    assert same(one, many)

"""Accuracy on validation images, when clean and under attack: what it is, and that training is the same without."""

import pytest
import torch

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget, Data, Training
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, training_split
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.models.checkpoint import Checkpoint, load
from gradscope.training import held_out
from gradscope.training.held_out import HeldOut
from gradscope.training.loop import Run, train
from gradscope.training.phases import resolve
from gradscope.training.request import epochs_folder, state_path
from gradscope.training.state import RunState

CPU = Hardware("cpu")
FGSM = "phases.1.adversary={epsilon=0.1}"
PGD = "phases.1.adversary={method='pgd', norm='l2', epsilon=1.0, steps=2}"
TIMES = ("images_per_second", "seconds")


@pytest.fixture(scope="module")
def few() -> ImageSet:
    return sources.load(Data()).train.subset(torch.arange(400))


def configure(*settings: str, mode: str = "sl-adv", epochs: int = 5, **options: object) -> Training:
    return resolve(mode, Data(), 8, epochs=epochs, settings=settings, options=options)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def without_times(found: Checkpoint) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found.history]


@pytest.mark.parametrize("adversary", [FGSM, PGD], ids=["linf", "l2"])
def test_accuracy_under_attack_is_that_of_the_attacks_by_name(few, tmp_path, adversary) -> None:
    """The last row against the evaluation of fgsm and pgd on the same images, in the phase's ball."""
    training = configure(adversary, "selection=last", epochs=3)
    trained = train(training, few, tmp_path / "c.pt", CPU)
    assert [row["pgd_accuracy"] is None for row in trained.history] == [True, True, False]
    _, judged = training_split(few.labels, 0.1, 0)
    ball = training.phases[1].adversary
    assert ball is not None
    found = evaluate(
        trained.build(),
        few.subset(judged),
        ["fgsm", "pgd-log-odds"],
        ThreatModel(ball.norm, ball.epsilon),
        Budget(steps=10),
        numbers=judged,
        cascade=False,
    )
    last = trained.history[-1]
    under = {name: float(found.standing(name).double().mean()) for name in found.attacks}
    assert last["fgsm_accuracy"] == pytest.approx(under["fgsm"], abs=1.5 / len(judged))
    assert last["pgd_accuracy"] == pytest.approx(under["pgd-log-odds"], abs=1.5 / len(judged))
    assert 0 < last["pgd_accuracy"] < last["validation_accuracy"]


def test_training_is_the_same_bit_for_bit_without_attacks_on_validation_images(few, tmp_path, monkeypatch) -> None:
    """Cnn6 has dropout and batch norm, rl-adv draws actions."""
    training = configure("selection=last", "shift=0.1", mode="rl-adv", epochs=2, architecture="cnn6")
    attacked = train(training, few, tmp_path / "attacked.pt", CPU)
    monkeypatch.setattr(HeldOut, "_under_attack", lambda self, network, adversary: (None, None))
    alone = train(training, few, tmp_path / "alone.pt", CPU)
    assert attacked.history[-1]["pgd_accuracy"] is not None
    assert alone.history[-1]["pgd_accuracy"] is None
    assert same(attacked.state_dict, alone.state_dict)


@pytest.mark.parametrize("selection", ["best", "robust", "last"])
def test_a_resumed_run_keeps_the_epoch_of_an_uninterrupted_one(few, tmp_path, monkeypatch, selection) -> None:
    training = configure(FGSM, f"selection={selection}", "phases.0.epochs=1", "phases.1.epochs=5", epochs=None)
    whole = train(training, few, tmp_path / "whole.pt", CPU, keep_epochs=True)
    store = RunState._store

    def stop(run: RunState) -> None:
        store(run)
        if run.epochs_done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "_store", stop)
        with pytest.raises(KeyboardInterrupt):
            train(training, few, tmp_path / "parts.pt", CPU, keep_epochs=True)
    parts = train(training, few, tmp_path / "parts.pt", CPU, resume=True, keep_epochs=True)
    assert same(whole.state_dict, parts.state_dict)
    assert without_times(whole) == without_times(parts)
    assert parts.kept_epoch == whole.kept_epoch
    column = {"best": "validation_accuracy", "robust": "pgd_accuracy", "last": "epoch"}[selection]
    of_phase = whole.history[1:]
    assert whole.kept_epoch == max(of_phase, key=lambda row: (row[column], row["epoch"]))["epoch"]
    kept = load(epochs_folder(tmp_path / "whole.pt") / f"{whole.kept_epoch:04}.pt")
    assert same(whole.state_dict, kept.state_dict)
    assert kept.kept_epoch == whole.kept_epoch


def test_the_state_of_an_older_version_is_resumed(few, tmp_path, monkeypatch) -> None:
    """Its rows lack the columns that came later, and it says the accuracy of its best weights."""
    out = tmp_path / "c.pt"
    store = RunState._store

    def stop(run: RunState) -> None:
        store(run)
        if run.epochs_done == 3:
            raise KeyboardInterrupt

    whole = train(configure(FGSM), few, tmp_path / "whole.pt", CPU)
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "_store", stop)
        with pytest.raises(KeyboardInterrupt):
            train(configure(FGSM), few, out, CPU)
    kept = torch.load(state_path(out), weights_only=True)
    for row in kept["history"]:
        for later in ("fgsm_accuracy", "pgd_accuracy", "most_predicted"):
            del row[later]
    torch.save(kept | {"best_accuracy": 0.5}, state_path(out))
    resumed = train(configure(FGSM), few, out, CPU, resume=True)
    assert same(resumed.state_dict, whole.state_dict)
    assert resumed.history[0]["pgd_accuracy"] is None
    assert resumed.history[-1]["pgd_accuracy"] == whole.history[-1]["pgd_accuracy"]


def test_a_checkpoint_of_an_older_version_does_not_say_its_epoch(few, tmp_path) -> None:
    train(configure(epochs=2), few, tmp_path / "c.pt", CPU)
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert content["epochs"] == {"done": 2, "planned": 2, "kept": 2}
    del content["epochs"]["kept"]
    torch.save(content, tmp_path / "older.pt")
    assert load(tmp_path / "older.pt").kept_epoch is None
    assert load(tmp_path / "older.pt").fingerprint == load(tmp_path / "c.pt").fingerprint
    torch.save(content | {"epochs": 2}, tmp_path / "damaged.pt")
    with pytest.raises(GradscopeError, match="is damaged: TypeError epochs must be of type dict"):
        load(tmp_path / "damaged.pt")


def test_an_epoch_is_selected_under_attack_only_where_there_is_one() -> None:
    with pytest.raises(GradscopeError, match="selection must be best or last where the last phase has no adversary"):
        configure(mode="sl", selection="robust")
    assert configure(selection="robust").selection == "robust"


def test_a_few_hundred_images_are_attacked_every_class_in_its_share(tmp_path, monkeypatch) -> None:
    everything = sources.load(Data()).train
    monkeypatch.setattr(held_out, "ATTACKED", 50)
    runs: list[Run] = []

    def refuse(run: Run, deadline: float) -> bool:
        runs.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_all_epochs", refuse)
    with pytest.raises(KeyboardInterrupt):
        train(configure(), everything, tmp_path / "c.pt", CPU)
    [run] = runs
    attacked = run.validation.attacked
    assert len(attacked) == 50
    assert set(attacked.tolist()) < set(run.validation.judged.tolist())
    assert everything.labels[attacked].bincount().tolist() == [5] * 10

import pytest

from gradscope.config import Data
from gradscope.errors import GradscopeError
from gradscope.training.phases import MODES, PAPER, phases_for, resolve, scale_epochs

CIFAR = Data(dataset="cifar10")


def test_the_papers_numbers():
    sl, *rest = resolve("sl", CIFAR, 32, paper=True).phases
    assert rest == []
    assert (sl.objective, sl.epochs, sl.learning_rate, sl.clip_norm, sl.warmup_epochs) == (
        "cross-entropy",
        100,
        2e-4,
        1,
        5,
    )
    assert sl.learning_rate_at(2.5) == pytest.approx(1e-4)
    assert sl.learning_rate_at(5) == pytest.approx(2e-4)
    assert sl.learning_rate_at(100) == pytest.approx(2e-5)
    training = resolve("rl-adv", CIFAR, 32, paper=True)
    assert (training.architecture, training.batch_size, training.shift) == ("cnn6", 256, 0.1)
    assert training.horizontal_flip
    assert training.vertical_flip
    clean, adversarial = training.phases
    assert (clean.epochs, adversarial.epochs) == (400, 200)
    assert {phase.learning_rate_at(3) for phase in (clean, adversarial)} == {1e-4}
    assert (clean.exploration, clean.exploration_scope, clean.baseline, clean.clip_norm) == (0.1, "batch", "none", None)
    attack = adversarial.adversary
    assert (attack.method, attack.norm, attack.epsilon, attack.objective, attack.weight) == (
        "fgsm",
        "linf",
        0.01,
        "own",
        1,
    )
    assert clean.adversary is None


def test_the_adversarial_phase_continues_the_papers_learning_rate_line():
    [whole] = phases_for("sl", PAPER)
    first, second = phases_for("sl-adv", PAPER)
    assert (first.epochs, second.epochs) == (80, 20)
    for epoch in (0, 3, 5, 40, 79.5):
        assert first.learning_rate_at(epoch) == pytest.approx(whole.learning_rate_at(epoch))
    for epoch in (0, 7, 20):
        assert second.learning_rate_at(epoch) == pytest.approx(whole.learning_rate_at(80 + epoch))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epochs", [2, 3, 7, 50])
def test_epochs_are_shared_by_the_phases(mode, epochs):
    phases = scale_epochs(phases_for(mode, PAPER), epochs)
    assert sum(phase.epochs for phase in phases) == epochs
    assert [phase.adversary is None for phase in phases] == [True, False][: len(phases)] if "-adv" in mode else True


def test_too_few_epochs_are_refused():
    with pytest.raises(GradscopeError, match="epochs must be at least 2"):
        resolve("sl-adv", CIFAR, 32, epochs=1)


def test_sizes_follow_the_data():
    assert resolve("sl", Data(), 8).architecture == "cnn2"
    assert resolve("sl", Data(dataset="folder"), 8).architecture == "cnn2"
    assert resolve("sl", Data(dataset="folder"), 32).architecture == "cnn4"
    assert resolve("sl", Data(dataset="folder"), 224).architecture == "resnet18"
    assert resolve("sl", Data(dataset="tiny-imagenet"), 64).architecture == "resnet18"


def test_precedence_is_preset_then_file_then_settings_then_options():
    table = {"batch_size": 10, "shift": 0.2, "seed": 1}
    training = resolve("rl", Data(), 8, table=table, settings=["shift=0.3", "seed=2"], options={"seed": 3})
    assert (training.batch_size, training.shift, training.seed) == (10, 0.3, 3)
    assert resolve("rl", Data(), 8, settings=["phases.0.exploration=0.3"]).phases[0].exploration == 0.3


def test_a_mode_of_ones_own_needs_phases():
    phases = [{"objective": {"policy-gradient": 1.0, "cross-entropy": 0.1}, "epochs": 2, "learning_rate": 0.001}]
    training = resolve("mine", Data(), 8, table={"phases": phases})
    assert training.phases[0].mix == {"policy-gradient": 1.0, "cross-entropy": 0.1}
    with pytest.raises(GradscopeError, match="mode: 'mine' is unknown"):
        resolve("mine", Data(), 8)
    with pytest.raises(GradscopeError, match="did you mean 'rl-adv'"):
        resolve("rl-adb", Data(), 8)


def test_an_unknown_key_is_named():
    with pytest.raises(GradscopeError, match="set: 'batch_siez' is unknown; did you mean 'batch_size'"):
        resolve("sl", Data(), 8, settings=["batch_siez=3"])

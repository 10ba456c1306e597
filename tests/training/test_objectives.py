import pytest
import torch
from torch.nn import functional as F

from gradscope.config import Adversary, Phase
from gradscope.seeding import generator
from gradscope.training.objectives import (
    Draws,
    adversarial_example,
    fast_gradient_example,
    phase_outcome,
    sample_actions,
)

MANY = 200_000


def phase(**values):
    return Phase(**{"objective": "policy-gradient", "epochs": 1, "learning_rate": 1e-3} | values)


def gradient_of_mean(logits, labels, a_phase, draws):
    point = logits.clone().requires_grad_(True)
    phase_outcome(point.expand(len(labels), -1), labels, a_phase, draws).losses.mean().backward()
    return point.grad


def test_actions_follow_the_policy():
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    actions = sample_actions(logits.expand(MANY, -1), phase(), Draws.make(MANY, generator(0, "a")))
    frequencies = torch.bincount(actions, minlength=4) / MANY
    torch.testing.assert_close(frequencies, torch.softmax(logits[0], 0), rtol=0, atol=0.004)


def test_exploration_per_sample_mixes_in_the_uniform_policy():
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
    exploring = phase(exploration=0.4, exploration_scope="sample")
    actions = sample_actions(logits.expand(MANY, -1), exploring, Draws.make(MANY, generator(0, "a")))
    expected = 0.6 * torch.softmax(logits[0], 0) + 0.4 / 4
    torch.testing.assert_close(torch.bincount(actions, minlength=4) / MANY, expected, rtol=0, atol=0.004)


def test_exploration_per_batch_is_all_or_nothing():
    logits = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(400, -1)
    exploring = phase(exploration=0.3, exploration_scope="batch")
    uniform = 0
    for trial in range(300):
        actions = sample_actions(logits, exploring, Draws.make(400, generator(0, trial)))
        share = float((actions == 0).float().mean())
        assert share == 1 or share < 0.4
        uniform += share < 1
    assert 60 < uniform < 120


@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_policy_gradient_in_expectation(exploration):
    """E[gradient] = -grad[(1 - e) pi_y + (e / K) log pi_y], the identity that `expected-reward` isolates."""
    logits = torch.tensor([[1.0, 0.2, -0.5]])
    labels = torch.zeros(MANY, dtype=torch.int64)
    a_phase = phase(exploration=exploration, exploration_scope="sample")
    measured = gradient_of_mean(logits, labels, a_phase, Draws.make(MANY, generator(0, "a")))
    point = logits.clone().requires_grad_(True)
    log_policy = F.log_softmax(point, 1)[0, 0]
    (-((1 - exploration) * log_policy.exp() + exploration / 3 * log_policy)).backward()
    torch.testing.assert_close(measured, point.grad, rtol=0, atol=0.003)


def test_the_baseline_keeps_the_expectation_and_lowers_the_variance_of_a_new_policy():
    logits = torch.zeros(1, 3)
    labels = torch.zeros(64, dtype=torch.int64)

    def gradients(baseline):
        a_phase = phase(baseline=baseline)
        return torch.cat(
            [gradient_of_mean(logits, labels, a_phase, Draws.make(64, generator(1, i))) for i in range(600)]
        )

    plain, reduced = gradients("none"), gradients("batch-mean")
    # The batch's own mean shrinks the expectation by (n - 1) / n.
    torch.testing.assert_close(reduced.mean(0), plain.mean(0) * 63 / 64, rtol=0, atol=0.01)
    assert reduced.var(0).sum() < plain.var(0).sum()


def test_expected_reward_and_mixes():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    draws = Draws.make(6, generator(0, "a"))
    p = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(phase_outcome(logits, labels, phase(objective="expected-reward"), draws).losses, 1 - p)
    mix = phase(objective={"cross-entropy": 0.25, "expected-reward": 2.0})
    outcome = phase_outcome(logits, labels, mix, draws)
    torch.testing.assert_close(outcome.losses, -0.25 * p.log() + 2 * (1 - p))
    assert outcome.rewards is None


def test_losses_and_rewards_belong_to_the_same_actions():
    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(1))
    draws = Draws.make(500, generator(0, "a"))
    outcome = phase_outcome(logits, labels, phase(), draws)
    actions = sample_actions(logits, phase(), draws)
    assert torch.equal(outcome.rewards, (actions == labels).float())
    expected = -F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0] * (actions == labels)
    torch.testing.assert_close(outcome.losses, expected)


def test_a_share_of_the_draws_is_that_share():
    whole = Draws.make(10, generator(0, "a"))
    part = whole[3:7]
    assert torch.equal(part.action, whole.action[3:7])
    assert torch.equal(part.explore_batch, whole.explore_batch)


def test_fgsm_moves_each_pixel_by_epsilon_and_leaves_images_without_gradient():
    images = torch.full((2, 1, 2, 2), 0.5)
    gradient = torch.tensor([[[[1.0, -2.0], [0.0, 1e-30]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    example = fast_gradient_example(images, gradient, Adversary(epsilon=0.1))
    torch.testing.assert_close(example[0, 0], torch.tensor([[0.6, 0.4], [0.5, 0.6]]))
    assert torch.equal(example[1], images[1])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_examples_stay_in_the_ball_and_raise_the_objective(convolutional, image_set, norm):
    convolutional.train()
    images, labels = image_set.batch(torch.arange(40), "cpu")
    adversary = Adversary(method="pgd", norm=norm, epsilon=0.5 if norm == "l2" else 0.05, steps=5)
    a_phase = phase(objective="cross-entropy", adversary=adversary)
    draws, noise = Draws.make(40, generator(0, "a")), torch.rand(images.shape) * 2 - 1
    before = {name: value.clone() for name, value in convolutional.state_dict().items()}
    example = adversarial_example(convolutional, images, labels, a_phase, adversary, draws, noise)
    assert all(torch.equal(value, before[name]) for name, value in convolutional.state_dict().items())
    assert convolutional.training
    delta = (example - images).flatten(1)
    assert (delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)).max() <= adversary.epsilon + 1e-6
    assert example.min() >= 0
    assert example.max() <= 1
    model = convolutional.eval()
    loss = [F.cross_entropy(model(batch), labels) for batch in (images, example)]
    assert loss[1] > loss[0] + 0.1

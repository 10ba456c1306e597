"""The objectives of training: per-sample losses, and the adversarial images of a phase."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import pgd, threat_model
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Adversary, Phase
from gradscope.losses import cross_entropy, expected_accuracy
from gradscope.models.inspection import evaluating


@dataclass(frozen=True)
class Draws:
    """The random numbers of one pass over a batch, uniform in [0, 1): ``(N,)`` each, and one for the whole batch.

    They are drawn for the global batch on the CPU, so that they do not depend on the number of processes.
    """

    action: Tensor
    explore: Tensor
    choice: Tensor
    explore_batch: Tensor

    @classmethod
    def make(cls, count: int, generator: torch.Generator) -> "Draws":
        """Draw for ``count`` samples."""
        action, explore, choice = torch.rand(3, count, generator=generator)
        return cls(action, explore, choice, torch.rand((), generator=generator))

    def __getitem__(self, share: slice) -> "Draws":
        """Select the draws of a share of the batch, such as one rank's."""
        return Draws(self.action[share], self.explore[share], self.choice[share], self.explore_batch)


@dataclass(frozen=True)
class Outcome:
    """Per-sample losses ``(N,)``, and the rewards ``(N,)`` if actions were sampled."""

    losses: Tensor
    rewards: Tensor | None


def sample_actions(logits: Tensor, phase: Phase, draws: Draws) -> Tensor:
    """Sample actions ``(N,)`` from ``softmax(logits)`` by inversion, or uniformly when exploring."""
    probabilities = torch.softmax(logits.detach().float(), dim=1)
    classes = logits.shape[1]
    # Scaled by the total, so that rounding of the cumulative sum cannot select a class past the last.
    cumulative = probabilities.cumsum(dim=1)
    greedy = (cumulative <= (draws.action * cumulative[:, -1]).unsqueeze(1)).sum(dim=1).clamp(max=classes - 1)
    uniform = (draws.choice * classes).long().clamp(max=classes - 1)
    chance = draws.explore if phase.exploration_scope == "sample" else draws.explore_batch
    return torch.where(chance < phase.exploration, uniform, greedy)


def policy_gradient(logits: Tensor, labels: Tensor, phase: Phase, draws: Draws) -> Outcome:
    """REINFORCE on one step (Williams 1992): ``-log pi(a | x) * (r - b)``, r = 1 if the action a is the label, else 0.

    b is 0, or the mean reward of this process's share of the batch. No importance weight corrects for exploration.
    """
    actions = sample_actions(logits, phase, draws)
    rewards = (actions == labels).to(logits.dtype)
    advantage = rewards - rewards.mean() if phase.baseline == "batch-mean" else rewards
    return Outcome(cross_entropy(logits, actions) * advantage, rewards)


def phase_outcome(logits: Tensor, labels: Tensor, phase: Phase, draws: Draws) -> Outcome:
    """Compute the losses of the phase's objective, or of its weighted mix of objectives.

    ``cross-entropy``: ``-log p_y``; ``policy-gradient``: see :func:`policy_gradient`; ``expected-reward``:
    ``1 - p_y``, whose gradient is the policy gradient's expectation without exploration.
    """
    logits = logits.float()
    losses = torch.zeros(len(labels), device=logits.device)
    rewards = None
    for objective, weight in phase.mix.items():
        if objective == "policy-gradient":
            outcome = policy_gradient(logits, labels, phase, draws)
            rewards = outcome.rewards
            losses = losses + weight * outcome.losses
        elif objective == "cross-entropy":
            losses = losses + weight * cross_entropy(logits, labels)
        else:
            losses = losses + weight * (1 - expected_accuracy(logits, labels))
    return Outcome(losses, rewards)


def shares_the_clean_pass(adversary: Adversary) -> bool:
    """Whether the gradient of the clean pass gives the adversarial example, so that no other pass is needed."""
    return adversary.method == "fgsm" and adversary.objective == "own"


def fast_gradient_example(images: Tensor, gradient: Tensor, adversary: Adversary) -> Tensor:
    """Make FGSM examples (Goodfellow et al. 2015) in the adversary's norm; an image with zero gradient is unchanged."""
    threat = ThreatModel(adversary.norm, adversary.epsilon)
    return threat.project(threat.steepest_step(gradient, adversary.epsilon).add_(images), images)


def adversarial_example(
    model: nn.Module, images: Tensor, labels: Tensor, phase: Phase, adversary: Adversary, draws: Draws, noise: Tensor
) -> Tensor:
    """Make FGSM or PGD examples ``(N, C, H, W)`` in evaluation mode, with frozen parameters.

    ``noise`` ``(N, C, H, W)``, uniform in [-1, 1], gives PGD its random start.
    """
    single = adversary.method == "fgsm"
    settings = PGD(
        norm=adversary.norm,
        epsilon=adversary.epsilon,
        step_size=adversary.epsilon if single else adversary.resolved_step_size,
        steps=1 if single else adversary.steps,
    )
    start = images
    if adversary.random_start and not single:
        start = threat_model(settings).project(images + noise * adversary.epsilon, images)

    def own(logits: Tensor, targets: Tensor) -> Tensor:
        return phase_outcome(logits, targets, phase, draws).losses

    loss = own if adversary.objective == "own" else None
    with evaluating(model):
        return pgd(model, images, labels, settings, start=start, loss=loss).points

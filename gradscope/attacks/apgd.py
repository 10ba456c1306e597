"""Auto-PGD (Croce and Hein 2020): PGD with momentum that halves its step size when the loss stops rising.

gradscope does not use the version of torchattacks, for these reasons. Its targeted form applies the L2 step of the
first image to the whole batch, and fails with fewer than four classes. Its L2 step shrinks where a gradient's norm is
near 1e-12 and is zero where the squared norm underflows, so a model with saturated cross-entropy looks robust. It draws
random starts per batch, so results depend on the batch size. The tests check that both versions agree from the same
start on gradients of ordinary size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gradscope.attacks.compaction import replaced, who_stays
from gradscope.attacks.pgd import look
from gradscope.attacks.problem import Problem, chosen_copy, wrong_classes
from gradscope.attacks.threat import ThreatModel
from gradscope.config import AttackLoss
from gradscope.functional import fooled, per_sample
from gradscope.losses import LOSSES

#: Maps logits ``(N, K)``, labels ``(N,)`` and target classes ``(N,)`` to a loss ``(N,)``.
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

#: The step size is halved if the loss rose in at most this share of the steps since the last checkpoint.
RISING_SHARE = 0.75
#: Weight of the gradient in a step; the previous step has the remaining weight.
GRADIENT_SHARE = 0.75


def apgd(problem: Problem, loss: AttackLoss) -> Tensor:
    """Run Auto-PGD on ``loss`` once, from a random point on the ball's surface; returns ``(N, C, H, W)``."""

    def untargeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[loss](logits, labels)

    start = problem.start("surface", "apgd", loss)
    return ascend(problem, untargeted, problem.labels, start)


def apgd_targeted(problem: Problem, ranks: Sequence[int]) -> Tensor:
    """Run Auto-PGD on :func:`targeted_dlr` towards several wrong classes at once; returns ``(N, C, H, W)``.

    ``ranks`` are the ranks of the classes by the clean image's logits, 0 the likeliest wrong class.
    """
    with torch.no_grad():
        targets = wrong_classes(problem.model(problem.images), problem.labels, ranks)
    starts = torch.stack([problem.start("surface", "apgd-t", rank) for rank in ranks], dim=1)
    return ascend(problem, targeted_dlr, targets.flatten(), starts.flatten(0, 1))


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Compute ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``; only the numerator below four classes."""
    rise = (logits.gather(1, targets.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)
    if logits.shape[1] < 4:
        return rise
    top = logits.topk(4, dim=1).values
    return rise / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def checkpoints(steps: int) -> dict[int, int]:
    """List the steps after which the step size is checked, each with the length of the interval that ends there.

    The first interval is 22 % of the steps; each following one is 3 % of the steps shorter, but at least 6 % long.
    """
    interval, shortest, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    intervals = {}
    at = interval
    while at <= steps:
        intervals[at] = interval
        interval = max(interval - less, shortest)
        at += interval
    return intervals


@dataclass
class _Walk:
    """State of all running ascents, ``(N, ...)``; ``rows`` are their indices among all ascents.

    ``standing`` marks ascents on images without a fooling iterate so far. The others may stay in the batch for a while,
    because the batch is not compacted at every step.
    """

    rows: Tensor
    standing: Tensor
    labels: Tensor
    targets: Tensor
    origin: Tensor
    previous: Tensor
    current: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_loss_then: Tensor
    halved_then: Tensor
    rises: Tensor
    step_size: Tensor

    def keep(self, stay: Tensor) -> None:
        """Keep only the ascents at the indices ``stay`` ``(M,)``."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])

    def move(self, threat: ThreatModel, gradient_share: float) -> None:
        """Move one step: ``z = P(x + step(g))``, ``x <- P(x + a (z - x) + (1 - a) (x - x_previous))``."""
        step = threat.steepest_step(self.gradient, 1.0).mul_(per_sample(self.step_size, self.current))
        towards = threat.project(self.current + step, self.origin) - self.current
        momentum = self.current - self.previous
        self.previous = self.current
        moved = self.current + gradient_share * towards + (1 - gradient_share) * momentum
        self.current = threat.project(moved, self.origin)

    def compare(self, loss: Tensor, gradient: Tensor) -> None:
        """Update loss, gradient and best points with the values at the current points."""
        self.rises += loss > self.loss
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        self.best, self.best_gradient = _where(better, (self.current, gradient), (self.best, self.best_gradient))
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, interval: int) -> None:
        """Halve the step size and return to the best point where the loss rose in few of the last ``interval`` steps.

        Also do so where the last checkpoint did not halve the step size and the best loss has not improved since.
        """
        halve = (self.rises <= RISING_SHARE * interval) | (~self.halved_then & (self.best_loss_then >= self.best_loss))
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        best = self.best, self.best_gradient
        self.current, self.gradient = _where(halve, best, (self.current, self.gradient))
        self.halved_then, self.best_loss_then = halve, self.best_loss
        self.rises.zero_()


def ascend(problem: Problem, loss: TargetedLoss, targets: Tensor, start: Tensor) -> Tensor:
    """Maximise ``loss`` from ``start``; return each image's first iterate that fools the model, ``(N, C, H, W)``.

    If no iterate fools the model, or if the model is random (``problem.fixed`` is False), return the iterate of largest
    loss. ``targets`` ``(N * copies,)`` and ``start`` ``(N * copies, C, H, W)`` may hold several ascents per image, one
    after another. All ascents of an image end as soon as one of them fools the model.
    """
    steps, settings = problem.budget.steps, problem.settings()
    intervals = checkpoints(steps)
    copies = len(start) // len(problem)
    points, reached = start.clone(), torch.full((len(start),), -math.inf, device=start.device)
    walk = _beginning(problem.repeated(copies), targets, start)

    def aimed(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels, walk.targets)

    for step in range(steps + 1):
        if step > 0:
            walk.move(problem.threat, GRADIENT_SHARE if step > 1 else 1.0)
        here = look(problem.model, walk.current, walk.labels, settings, loss=aimed, gradient=step < steps)
        wrong = problem.fixed & fooled(here.logits, walk.labels)
        replaced(points, walk.rows, walk.standing & wrong, walk.current)
        replaced(reached, walk.rows, walk.standing & wrong, torch.full_like(here.loss, math.inf))
        walk.standing &= ~_anywhere(wrong, copies)
        gradient = torch.zeros_like(walk.current)
        if here.gradient is not None:
            gradient = here.gradient.nan_to_num(0.0)
            problem.note(here.gradient, walk.rows // copies, walk.standing)
        walk.compare(here.loss, gradient)
        stay = who_stays(walk.standing, step)
        if stay is not None:
            walk.keep(stay)
            if not len(stay):
                break
        if step == 0:
            walk.rises.zero_()
            walk.best_loss_then = walk.best_loss
        elif step in intervals:
            walk.check(intervals[step])
    replaced(points, walk.rows, walk.standing, walk.best)
    replaced(reached, walk.rows, walk.standing, walk.best_loss)
    return chosen_copy(points, reached.reshape(-1, copies))


def _anywhere(holds: Tensor, copies: int) -> Tensor:
    """Spread over the copies of each image, ``(N * copies,)``, whether any of them ``holds``."""
    return holds.reshape(-1, copies).any(dim=1, keepdim=True).expand(-1, copies).reshape(-1)


def _where(chosen: Tensor, these: tuple[Tensor, Tensor], those: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Select two tensors ``(N, ...)`` row by row: ``these`` where ``chosen`` ``(N,)``, else ``those``."""
    mask = per_sample(chosen, these[0])
    return torch.where(mask, these[0], those[0]), torch.where(mask, these[1], those[1])


def _beginning(problem: Problem, targets: Tensor, start: Tensor) -> _Walk:
    count = len(problem)
    lowest = torch.full((count,), -math.inf, device=start.device)
    return _Walk(
        rows=torch.arange(count, device=start.device),
        standing=torch.ones_like(targets, dtype=torch.bool),
        labels=problem.labels,
        targets=targets,
        origin=problem.images,
        previous=start,
        current=start,
        gradient=torch.zeros_like(start),
        loss=lowest,
        best=start,
        best_gradient=torch.zeros_like(start),
        best_loss=lowest,
        best_loss_then=lowest,
        halved_then=torch.ones_like(targets, dtype=torch.bool),
        rises=torch.zeros_like(targets),
        step_size=torch.full_like(lowest, 2 * problem.threat.epsilon),
    )

"""Auto-PGD (Croce and Hein 2020): PGD with momentum that halves its own step where the loss has stopped rising.

torchattacks has it too, but is not used: its targeted form takes the L2 step of the first image of a batch for all of
them and fails with fewer than four classes; its L2 step shrinks where a gradient's norm is near 1e-12 and is zero
where the norm's square underflows, so that a saturated cross-entropy looks robust; its starts are drawn for a batch, so
that results depend on the batch size. From the same start, on gradients of ordinary size, the tests find the two
equal.
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

#: Logits ``(N, K)``, labels ``(N,)`` and the classes aimed at ``(N,)`` to a loss ``(N,)``.
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Share of the steps between two checkpoints below which rises of the loss halve the step.
RISING_SHARE = 0.75
#: How much of a step is the gradient's; the rest is the last step's.
GRADIENT_SHARE = 0.75


def apgd(problem: Problem, loss: AttackLoss) -> Tensor:
    """Auto-PGD on ``loss`` from a random point of the ball's surface, one start."""

    def untargeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[loss](logits, labels)

    start = problem.start("surface", "apgd", loss)
    return ascend(problem, untargeted, problem.labels, start)


def apgd_targeted(problem: Problem, ranks: Sequence[int]) -> Tensor:
    """Auto-PGD on :func:`targeted_dlr`, side by side towards the wrong classes of ``ranks`` for the clean image."""
    with torch.no_grad():
        targets = wrong_classes(problem.model(problem.images), problem.labels, ranks)
    starts = torch.stack([problem.start("surface", "apgd-t", rank) for rank in ranks], dim=1)
    return ascend(problem, targeted_dlr, targets.flatten(), starts.flatten(0, 1))


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``; with fewer than four classes its numerator alone."""
    rise = (logits.gather(1, targets.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)
    if logits.shape[1] < 4:
        return rise
    top = logits.topk(4, dim=1).values
    return rise / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def checkpoints(steps: int) -> dict[int, int]:
    """After how many steps the step size is looked at, and over how many steps back.

    The intervals take 22 % of the steps, then 3 % less each time, but at least 6 %.
    """
    interval, shortest, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = {}
    at = interval
    while at <= steps:
        found[at] = interval
        interval = max(interval - less, shortest)
        at += interval
    return found


@dataclass
class _Walk:
    """Where each ascent is, ``(N, ...)``; ``rows`` are their places among all.

    ``standing`` are those of images that no iterate has fooled the model with. The others may be in the batch for a
    while yet.
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
        """Go on with the images at ``stay`` ``(M,)`` alone."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])

    def move(self, threat: ThreatModel, gradient_share: float) -> None:
        """``z = P(x + step(g))``, ``x <- P(x + a (z - x) + (1 - a) (x - x_previous))``."""
        step = threat.steepest_step(self.gradient, 1.0).mul_(per_sample(self.step_size, self.current))
        towards = threat.project(self.current + step, self.origin) - self.current
        momentum = self.current - self.previous
        self.previous = self.current
        moved = self.current + gradient_share * towards + (1 - gradient_share) * momentum
        self.current = threat.project(moved, self.origin)

    def compare(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in what was found at the current points."""
        self.rises += loss > self.loss
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        self.best, self.best_gradient = _where(better, (self.current, gradient), (self.best, self.best_gradient))
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, interval: int) -> None:
        """Halve the step and go back to the best point where the loss rose in few of the last ``interval`` steps.

        Also where the step was not halved at the last checkpoint and the best loss is still what it was there.
        """
        halve = (self.rises <= RISING_SHARE * interval) | (~self.halved_then & (self.best_loss_then >= self.best_loss))
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        best = self.best, self.best_gradient
        self.current, self.gradient = _where(halve, best, (self.current, self.gradient))
        self.halved_then, self.best_loss_then = halve, self.best_loss
        self.rises.zero_()


def ascend(problem: Problem, loss: TargetedLoss, targets: Tensor, start: Tensor) -> Tensor:
    """The first iterate from ``start`` that fools the model, of each image; else the one of largest loss, as where
    fooling settles nothing.

    ``targets`` ``(N * copies,)`` and ``start`` ``(N * copies, C, H, W)`` may hold several ascents for each image, one
    after another. They end together, as soon as one of them has fooled the model.
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
    """For each of ``(N * copies,)`` whether it holds for any copy of that image."""
    return holds.reshape(-1, copies).any(dim=1, keepdim=True).expand(-1, copies).reshape(-1)


def _where(chosen: Tensor, these: tuple[Tensor, Tensor], those: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two tensors ``(N, ...)`` each, ``these`` where ``chosen`` ``(N,)``, else ``those``."""
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

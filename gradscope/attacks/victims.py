"""What an attack of the battery is given, what counts as fooled, and what the attack costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Streams
from gradscope.attacks.threat import Start, ThreatModel
from gradscope.config import PGD, Budget


@dataclass
class Tally:
    """Passes through a model, each image of a batch counted."""

    forward: int = 0
    backward: int = 0

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: a copy of a model in another precision counts on the same tally."""
        return self


class Counted(nn.Module):
    """``model``, its passes counted on ``tally``: forward at each call, backward as a gradient reaches the logits."""

    def __init__(self, model: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.model = model
        self.tally = tally
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the model."""
        logits: Tensor = self.model(images)
        self.tally.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.tally.backward += len(gradient)


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images ``(N,)`` the model gets wrong. Logits that are not all finite are wrong: no argmax is the label."""
    return (logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1)


@dataclass(frozen=True)
class Victims:
    """Images ``(N, C, H, W)`` that ``model`` gets right, and what an attack may do to them.

    ``model`` is in evaluation mode with frozen parameters and returns ``classes`` logits. ``numbers`` ``(N,)``, on the
    CPU, name the images' random streams under ``seed``. ``examples`` are adversarial images ``(N, C, H, W)`` made on
    other models, one tensor for each of them.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    numbers: Tensor
    classes: int
    threat: ThreatModel
    budget: Budget
    examples: Sequence[Tensor] = ()
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def only(self, rows: Tensor) -> "Victims":
        """Those at ``rows`` ``(M,)``."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            numbers=self.numbers[rows.cpu()],
            examples=[example[rows] for example in self.examples],
        )

    def settings(self, **changes: object) -> PGD:
        """PGD inside this threat model and budget, with ``changes``."""
        epsilon, steps = self.threat.epsilon, self.budget.steps
        step_size = 2.5 * epsilon / steps if self.budget.step_size is None else self.budget.step_size
        usual = {"norm": self.threat.norm, "epsilon": epsilon, "box": self.threat.box, "steps": steps}
        return PGD.parse({**usual, "step_size": step_size, **changes})

    def start(self, shape: Start, *names: object) -> Tensor:
        """A random point of the ball around each image; see :meth:`ThreatModel.random_start`."""
        return self.threat.random_start(self.images, shape, self.seed, names, self.numbers)

    def streams(self, *names: object) -> Streams:
        """The streams called ``names`` of these images."""
        return Streams(self.seed, names, self.numbers)

    def fooled_at(self, points: Tensor) -> Tensor:
        """Which images ``(N,)`` the model gets wrong at ``points``; costs a forward pass."""
        with torch.no_grad():
            return fooled(self.model(points), self.labels)


#: An attack: for each image the point ``(N, C, H, W)`` it holds to fool the model, else any. What it claims is judged
#: anew by whoever called it.
Run = Callable[[Victims], Tensor]


def in_turn(victims: Victims, runs: Sequence[Run]) -> Tensor:
    """Each image's point of the first of ``runs`` that fools the model, else of the last; each gets what is left."""
    points = victims.images.clone()
    standing = torch.arange(len(victims), device=points.device)
    for run in runs:
        left = victims.only(standing)
        points[standing] = run(left)
        standing = standing[~left.fooled_at(points[standing])]
        if not len(standing):
            break
    return points

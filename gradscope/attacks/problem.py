"""The input of an attack, and the counter of its cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Blindness, Reached, Streams, pgd, prepared, settings_inside
from gradscope.attacks.threat import Start, ThreatModel
from gradscope.config import PGD, Budget
from gradscope.functional import fooled
from gradscope.losses import Loss
from gradscope.models.adaptive import draws_of
from gradscope.models.inspection import laid_out


@dataclass
class Tally:
    """Counts forward and backward passes, one for each image of a batch."""

    forward: int = 0
    backward: int = 0

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself, so that a copy of a model in another precision adds to the same counter."""
        return self


class Counted(nn.Module):
    """Wraps ``model`` and counts passes on ``tally``: forward at each call, backward when the logits get a gradient.

    A mean of several draws counts one pass per draw.
    """

    def __init__(self, model: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.model = model
        self.tally = tally
        self.draws = draws_of(model) or 1
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Compute the model's logits ``(N, K)``, and count the pass."""
        logits: Tensor = self.model(laid_out(images))
        self.tally.forward += self.draws * len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.tally.backward += self.draws * len(gradient)


@dataclass(frozen=True)
class Problem:
    """A batch under attack: images ``(N, C, H, W)`` that ``model`` classifies correctly, and the limits of the attack.

    ``model`` is in evaluation mode with frozen parameters and returns ``classes`` logits. ``numbers`` ``(N,)``, on the
    CPU, name the images' random streams under ``seed``. ``examples`` are adversarial images ``(N, C, H, W)`` made on
    other models, one tensor per model. ``seen`` records the gradients. ``loss`` is the user's own loss.
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
    seen: Blindness | None = None
    loss: Loss | None = None

    def __len__(self) -> int:
        return len(self.images)

    def only(self, rows: Tensor) -> "Problem":
        """Select the images at ``rows`` ``(M,)``."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            numbers=self.numbers[rows.cpu()],
            examples=[example[rows] for example in self.examples],
        )

    def repeated(self, copies: int) -> "Problem":
        """Repeat each image ``copies`` times, one after another."""
        if copies == 1:
            return self
        return self.only(torch.arange(len(self)).repeat_interleave(copies).to(self.labels.device))

    def settings(self, attack: str = "pgd", **given: object) -> PGD:
        """Resolve the PGD settings of ``attack`` for this threat model and budget; ``given`` settings override them."""
        return settings_inside(self.threat, self.budget, attack, **given)

    def start(self, shape: Start, *names: object) -> Tensor:
        """Draw a random point of the ball around each image; see :meth:`ThreatModel.random_start`."""
        return self.threat.random_start(self.images, shape, self.seed, names, self.numbers)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each pixel in the L-infinity ball."""
        threat, images = self.threat, self.images
        return threat.project(images - threat.epsilon, images), threat.project(images + threat.epsilon, images)

    @cached_property
    def fixed(self) -> bool:
        """Whether the model is deterministic; a mean of random draws may judge the same point differently next time."""
        return draws_of(self.model) is None

    @property
    def streams(self) -> Streams:
        """The random streams of these images."""
        return Streams(self.seed, self.numbers)

    def climb(self, settings: PGD, restart: int = 0, start: Tensor | None = None, loss: Loss | None = None) -> Reached:
        """Run PGD from the random start number ``restart``, or from ``start``; see :func:`pgd`.

        Returns each image's first iterate that fools the model, judged inside the threat model's box. On a random model
        it returns the last iterate, because the first success may be luck of the draw.
        """
        streams = replace(self.streams, restart=restart)
        given = (self.images, self.labels, settings)
        with prepared(self.model, settings) as model:
            how: dict[str, Any] = {"keep_first": self.fixed, "boxed": self.threat.box}
            reached = pgd(model, *given, start=start, streams=streams, loss=loss, seen=self.seen, **how)
        return replace(reached, points=reached.points.to(self.images))

    def note(self, gradient: Tensor, rows: Tensor, counts: Tensor | bool = True) -> None:
        """Record gradients ``(M, ...)`` of the images at ``rows`` ``(M,)``; only where ``counts`` ``(M,)``."""
        if self.seen is not None:
            self.seen.note(rows, gradient, counts)

    def fooled_at(self, points: Tensor) -> Tensor:
        """Mark the images ``(N,)`` that the model gets wrong at ``points``; costs one forward pass."""
        with torch.no_grad():
            return fooled(self.model(points), self.labels)


def wrong_classes(logits: Tensor, labels: Tensor, ranks: Sequence[int]) -> Tensor:
    """Select the wrong classes of the given ranks by ``logits`` ``(N, K)``, ``(N, ranks)``; rank 0 is the likeliest.

    >>> wrong_classes(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), [0, 1])
    tensor([[2, 1]])
    """
    ranking = logits.argsort(dim=1, descending=True)
    wrong = ranking[ranking != labels.unsqueeze(1)].reshape(len(labels), -1)
    return torch.stack([wrong[:, rank] for rank in ranks], dim=1)


def chosen_copy(values: Tensor, score: Tensor) -> Tensor:
    """Choose for each image the first of its copies with the largest score; returns ``(N, ...)``.

    ``values`` ``(N * copies, ...)`` holds the copies of each image one after another; ``score`` is ``(N, copies)``.
    """
    first = torch.arange(len(score), device=score.device) * score.shape[1]
    return values[first + score.argmax(dim=1)]


#: An attack on a batch. It returns points ``(N, C, H, W)``: for each image one that fools the model if it found one.
Run = Callable[[Problem], Tensor]

"""What an attack is given, and what it costs."""

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
    """Passes through a model, each image of a batch counted."""

    forward: int = 0
    backward: int = 0

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: a copy of a model in another precision counts on the same tally."""
        return self


class Counted(nn.Module):
    """``model``, its passes counted on ``tally``: forward at each call, backward as a gradient reaches the logits.

    The mean of several draws is as many passes.
    """

    def __init__(self, model: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.model = model
        self.tally = tally
        self.draws = draws_of(model) or 1
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the model."""
        logits: Tensor = self.model(laid_out(images))
        self.tally.forward += self.draws * len(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.tally.backward += self.draws * len(gradient)


@dataclass(frozen=True)
class Problem:
    """Images ``(N, C, H, W)`` that ``model`` gets right, and what an attack may do to them.

    ``model`` is in evaluation mode with frozen parameters and returns ``classes`` logits. ``numbers`` ``(N,)``, on the
    CPU, name the images' random streams under ``seed``. ``examples`` are adversarial images ``(N, C, H, W)`` made on
    other models, one tensor for each of them. ``seen`` notes the gradients. ``loss`` is the user's own.
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
        """Those at ``rows`` ``(M,)``."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            numbers=self.numbers[rows.cpu()],
            examples=[example[rows] for example in self.examples],
        )

    def repeated(self, copies: int) -> "Problem":
        """Each image ``copies`` times, one after another."""
        if copies == 1:
            return self
        return self.only(torch.arange(len(self)).repeat_interleave(copies).to(self.labels.device))

    def settings(self, attack: str = "pgd", **given: object) -> PGD:
        """Resolve the PGD called ``attack`` inside this threat model and budget, with what is ``given``."""
        return settings_inside(self.threat, self.budget, attack, **given)

    def start(self, shape: Start, *names: object) -> Tensor:
        """A random point of the ball around each image; see :meth:`ThreatModel.random_start`."""
        return self.threat.random_start(self.images, shape, self.seed, names, self.numbers)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest values of each pixel within epsilon, in L-infinity."""
        threat, images = self.threat, self.images
        return threat.project(images - threat.epsilon, images), threat.project(images + threat.epsilon, images)

    @cached_property
    def fixed(self) -> bool:
        """Whether a point that fools the model settles it: no mean of draws, which another pass may judge otherwise."""
        return draws_of(self.model) is None

    @property
    def streams(self) -> Streams:
        """The random numbers of these images."""
        return Streams(self.seed, self.numbers)

    def climb(self, settings: PGD, restart: int = 0, start: Tensor | None = None, loss: Loss | None = None) -> Reached:
        """Run PGD from its start number ``restart``, or from ``start``; see :func:`pgd`.

        What it reaches is each image's first iterate that fools the model, judged inside the threat model's box. Where
        two passes of it differ it is the last: the first was lucky in its draws.
        """
        streams = replace(self.streams, restart=restart)
        given = (self.images, self.labels, settings)
        with prepared(self.model, settings) as model:
            how: dict[str, Any] = {"keep_first": self.fixed, "boxed": self.threat.box}
            reached = pgd(model, *given, start=start, streams=streams, loss=loss, seen=self.seen, **how)
        return replace(reached, points=reached.points.to(self.images))

    def note(self, gradient: Tensor, rows: Tensor, counts: Tensor | bool = True) -> None:
        """Note the gradients ``(M, ...)`` of the images at ``rows`` ``(M,)``, of those that ``counts`` ``(M,)``."""
        if self.seen is not None:
            self.seen.note(rows, gradient, counts)

    def fooled_at(self, points: Tensor) -> Tensor:
        """Which images ``(N,)`` the model gets wrong at ``points``; costs a forward pass."""
        with torch.no_grad():
            return fooled(self.model(points), self.labels)


def wrong_classes(logits: Tensor, labels: Tensor, ranks: Sequence[int]) -> Tensor:
    """The wrong classes ``(N, ranks)`` by ``logits`` ``(N, K)``, of which rank 0 is the likeliest."""
    ranking = logits.argsort(dim=1, descending=True)
    wrong = ranking[ranking != labels.unsqueeze(1)].reshape(len(labels), -1)
    return torch.stack([wrong[:, rank] for rank in ranks], dim=1)


def chosen_copy(values: Tensor, score: Tensor) -> Tensor:
    """Of the copies of each image, one after another in ``values`` ``(N * copies, ...)``, the first of largest score.

    ``score`` ``(N, copies)``; returns ``(N, ...)``.
    """
    first = torch.arange(len(score), device=score.device) * score.shape[1]
    return values[first + score.argmax(dim=1)]


#: What an attack does to a batch: for each image the point ``(N, C, H, W)`` it holds to fool the model, else any.
Run = Callable[[Problem], Tensor]

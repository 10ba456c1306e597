"""What the checks of an audit are made from."""

from dataclasses import dataclass

from torch import Tensor

from gradscope.attacks.distances import Distances
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BY_LABEL, AuditBudget
from gradscope.auditing.outputs import are_probabilities, are_random
from gradscope.auditing.scale import ScaleCurve
from gradscope.distributed.units import Values

#: Attacks that have each only what those that follow the gradient from the image leave standing: what fools the model
#: there, the gradient had hidden. The last starts where the first leads.
LAST = ("transfer", "square", "noise", *BY_LABEL.values(), "pgd-from")


@dataclass(frozen=True)
class Expected:
    """A random model over many draws, at ``places`` ``(M,)``: right when clean, and under each attack.

    ``plain`` is PGD on one draw a step, ``averaged`` PGD on the mean over the draws; all are judged by that mean.
    """

    places: Tensor
    clean: Tensor
    plain: Tensor
    averaged: Tensor


@dataclass(frozen=True)
class Evidence:
    """Everything the checks are made from; None where it was not gathered: no gradient, or a random output.

    ``main`` has all attacks on all images that are right, but those of :data:`LAST`; ``doubled`` twice the steps,
    ``smaller`` and ``larger`` half and twice the radius, ``unbounded`` a ball that covers the box, ``repaired``
    logarithms of the output, ``scale`` other temperatures of the logits. ``distances`` are those of all images, and
    ``main`` has who falls within the radius. ``places`` ``(M,)`` are the images whose gradients were looked at, and on
    which attacks were tested with ``known_points``; of every fourth the curvature. ``stands_in``: the gradient
    is that of a stand-in, whose slopes need not be the model's. ``draws``: a pass is the mean of so many draws of
    the model; None where it is taken as it is.
    """

    threat: ThreatModel
    budget: AuditBudget
    numbers: Tensor
    classes: int
    outputs: Values
    main: Outcome
    places: Tensor
    doubled: Outcome | None = None
    smaller: Outcome | None = None
    larger: Outcome | None = None
    unbounded: Outcome | None = None
    repaired: Outcome | None = None
    expected: Expected | None = None
    distances: Distances | None = None
    start: Values | None = None
    precision: Values | None = None
    slopes: Values | None = None
    path: Values | None = None
    curvature: Values | None = None
    scale: ScaleCurve | None = None
    known_points: Values | None = None
    stands_in: bool = False
    draws: int | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def wanders(self) -> bool:
        """Whether two passes over the same images differ."""
        return are_random(self.outputs)

    @property
    def random(self) -> bool:
        """Whether they differ, and no mean over draws is taken: one pass judges nothing."""
        return self.wanders and self.draws is None

    @property
    def probabilities(self) -> bool:
        """Whether the outputs lie in [0, 1] and add up to 1."""
        return are_probabilities(self.outputs)

    @property
    def differentiable(self) -> bool:
        """Whether attacks that need a gradient could be run."""
        return "pgd" in self.main.attacks

    @property
    def constant(self) -> bool:
        """Whether one class is predicted for every image that was looked at, and no attack changes that of any."""
        if bool(self.main.undefined.any()):
            return False
        tried = (self.main, self.doubled, self.smaller, self.larger, self.unbounded, self.repaired)
        changed = any(bool((outcome.standing() != outcome.right).any()) for outcome in tried if outcome is not None)
        return not changed and len(self.outputs["predicted"].unique()) == 1

    @property
    def white_box(self) -> list[str]:
        """The attacks of ``main`` that follow the model's gradient from the image."""
        return [name for name in self.main.attacks if name not in LAST]

    def standing(self) -> Tensor:
        """Which images ``(N,)`` are right when clean and under everything tried within the radius.

        For a random model on the mean of its draws, where it was taken: one draw judges nothing. Where draws are given
        it is the lowest that one attack leaves: what falls under any of many falls by luck, too.
        """
        if self.expected is not None:
            stands = self.main.right.clone()
            stands[self.expected.places] = self.expected.clean & self.expected.plain & self.expected.averaged
            return stands
        if self.wanders and self.draws:
            tried = [outcome for outcome in (self.main, self.doubled, self.smaller) if outcome is not None]
            left = [self.main.right.clone(), *(outcome.standing(name) for outcome in tried for name in outcome.attacks)]
            return min(left, key=lambda stands: int(stands.sum()))
        stands = self.main.standing()
        for outcome in (self.doubled, self.smaller, self.repaired):
            stands = stands & outcome.standing() if outcome is not None else stands
        if self.scale is not None:
            stands[: len(self.scale.right)] &= self.scale.stands
        return stands

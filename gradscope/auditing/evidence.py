"""The evidence that the checks of an audit use."""

from dataclasses import dataclass

from torch import Tensor

from gradscope.attacks.distances import Distances
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BY_LABEL, AuditBudget
from gradscope.auditing.outputs import are_probabilities, are_random
from gradscope.auditing.scale import ScaleCurve
from gradscope.distributed.units import Values

#: Attacks that run only on images that no gradient attack from the image fooled. If one of them fools the model there,
#: the gradient had hidden it. The last one starts from the points of the first.
LAST = ("transfer", "square", "noise", *BY_LABEL.values(), "pgd-from")


@dataclass(frozen=True)
class Expected:
    """Correctness of a random model's mean over many draws, for the images at ``places`` ``(M,)``.

    ``clean``: on the clean image. ``plain``: under PGD on one draw per step. ``averaged``: under PGD on the mean over
    the draws. The mean judges all three.
    """

    places: Tensor
    clean: Tensor
    plain: Tensor
    averaged: Tensor


@dataclass(frozen=True)
class Evidence:
    """All results that the checks use. An entry is None if it could not be gathered: no gradient, or a random output.

    ``main``: all attacks, on all correctly classified images; those of :data:`LAST` only on images not yet fooled.
    ``doubled``: twice the steps. ``smaller`` and ``larger``: half and twice the radius. ``unbounded``: a ball that
    covers the box. ``repaired``: attacks on the logarithm of the output. ``scale``: attacks at other temperatures of
    the logits. ``distances``: distances of all images; ``main`` counts those within the radius as fooled. ``places``
    ``(M,)``: the images whose gradients were studied and on which ``known_points`` tested the attacks; every fourth has
    its ``curvature``. ``stands_in``: the gradient comes from a stand-in, so its slopes may differ from the model's.
    ``draws``: each pass is the mean of this many draws of the model; None without averaging.
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
        """Whether two passes over the same images give different outputs."""
        return are_random(self.outputs)

    @property
    def random(self) -> bool:
        """Whether outputs are random and not averaged over draws, so that one pass cannot judge an image."""
        return self.wanders and self.draws is None

    @property
    def probabilities(self) -> bool:
        """Whether all outputs lie in [0, 1] and add up to 1."""
        return are_probabilities(self.outputs)

    @property
    def differentiable(self) -> bool:
        """Whether gradient attacks could run."""
        return "pgd" in self.main.attacks

    @property
    def constant(self) -> bool:
        """Whether the model predicts one class for all probed images and no attack changes a prediction."""
        if bool(self.main.undefined.any()):
            return False
        tried = (self.main, self.doubled, self.smaller, self.larger, self.unbounded, self.repaired)
        changed = any(bool((outcome.standing() != outcome.right).any()) for outcome in tried if outcome is not None)
        return not changed and len(self.outputs["predicted"].unique()) == 1

    @property
    def white_box(self) -> list[str]:
        """The attacks of ``main`` that are not among :data:`LAST`: those that start at the image."""
        return [name for name in self.main.attacks if name not in LAST]

    def standing(self) -> Tensor:
        """Mark the images ``(N,)`` that are right when clean and under every attack within the radius.

        On a random model the mean of its draws judges, if it was taken, because one draw cannot. With ``draws`` the
        result is that of the one strongest attack: under several attacks together some images are fooled by luck.
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

"""How much an audit may cost, and what each budget leaves out."""

from dataclasses import dataclass, replace

from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.config import Budget, Norm
from gradscope.errors import lookup

#: Attacks that take a gradient, in every budget; they run on all images that are right, as the paired tests need.
_WHITE_BOX = (
    "fgsm",
    "pgd",
    "pgd-paper",
    "pgd-log-odds",
    "pgd-float64",
    "pgd-margin",
    "pgd-dlr",
    "pgd-rescaled",
    "pgd-smooth",
)
_STRONGER = ("pgd-restarts", "apgd-ce", "apgd-t", "fmn")
_STRONGEST = ("pgd-large-steps", "apgd-dlr", "fab", "fab-t")
_BLACK_BOX = ("square", "noise")
#: The attack that sees labels alone: by norm the one whose steps are made for it.
BY_LABEL: dict[Norm, str] = {"linf": "rays", "l2": "hop-skip-jump"}
_EXAMPLES = ("transfer", "pgd-from")
#: No attack of an audit: a cascade of others.
_NEVER = ("autoattack",)


@dataclass(frozen=True)
class ScaleBudget:
    """How the scale of the logits is varied: over how many temperatures, on how many images, by which attacks."""

    images: int
    temperatures: int
    steps: int
    attacks: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Attacks on each image: every one at every temperature, and the reference at three of them."""
        return self.temperatures * len(self.attacks) + 3


@dataclass(frozen=True)
class AuditBudget:
    """What an audit gathers: attacks, and how closely the gradients and the output are looked at.

    ``images`` are attacked where the user does not say how many; ``probed`` of them have their gradients taken apart,
    along ``directions`` random directions, and every fourth of those its curvature; a random output is averaged over
    ``draws`` passes. ``scale`` says what is tried at other temperatures of the logits. ``by_label``: an attack that
    sees labels alone is among ``names`` once the norm is known. ``unit_test``: the attacks are tested themselves.
    ``distance_targets``: how many classes the search for distances aims at, a walk each.
    """

    meaning: str
    attacks: Budget
    names: tuple[str, ...]
    images: int
    probed: int
    directions: int
    draws: int
    scale: ScaleBudget
    by_label: bool = False
    unit_test: bool = False
    distance_targets: int = 9

    @property
    def for_distances(self) -> Budget:
        """What the search for distances may spend."""
        return self.attacks.model_copy(update={"targets": self.distance_targets})

    @property
    def left_out(self) -> dict[str, str]:
        """Attacks of the registry that this budget does not run, and why."""
        missing = [name for name in ATTACKS if name not in (*self.names, OWN, *_EXAMPLES, *_NEVER)]
        return dict.fromkeys(missing, "costs more than this budget allows")


BUDGETS: dict[str, AuditBudget] = {
    "quick": AuditBudget(
        "about a minute on two cores for a small model and 200 images",
        Budget(steps=20, restarts=3, smoothing=3, targets=3, queries=500, noise_points=50),
        (*_WHITE_BOX, *_BLACK_BOX),
        images=200,
        probed=48,
        directions=4,
        draws=8,
        scale=ScaleBudget(32, 9, 5, ("pgd",)),
    ),
    "standard": AuditBudget(
        "the default: restarts, auto-PGD, and four times the queries",
        Budget(steps=50, restarts=5, smoothing=8, targets=5, queries=2000, noise_points=200),
        (*_WHITE_BOX, *_STRONGER, *_BLACK_BOX),
        images=500,
        probed=128,
        directions=16,
        draws=16,
        scale=ScaleBudget(64, 13, 20, ("pgd", "pgd-paper")),
        by_label=True,
        unit_test=True,
        distance_targets=2,
    ),
    "full": AuditBudget(
        "every attack at the usual size of the published ones",
        Budget(),
        (*_WHITE_BOX, *_STRONGER, *_STRONGEST, *_BLACK_BOX),
        images=1000,
        probed=512,
        directions=32,
        draws=32,
        scale=ScaleBudget(256, 17, 20, ("pgd", "pgd-paper")),
        by_label=True,
        unit_test=True,
    ),
}


def budget_of(name: str, norm: Norm, *, with_examples: bool, with_loss: bool = False) -> AuditBudget:
    """The budget called ``name`` in ``norm``; attacks that need other models' examples, or a loss, only with these."""
    found = lookup(BUDGETS, name, "budget")
    by_label = (BY_LABEL[norm],) if found.by_label else ()
    names = (*found.names, *((OWN,) if with_loss else ()), *by_label, *(_EXAMPLES if with_examples else ()))
    return replace(found, names=names)

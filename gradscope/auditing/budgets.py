"""The budgets of an audit: which attacks each one runs, how long, and what it leaves out."""

from dataclasses import dataclass, replace

from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.config import Budget, Norm
from gradscope.errors import lookup

#: Gradient attacks of every budget. They run on all correctly classified images, as the paired tests need.
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
#: The attack that uses labels only, by the norm that it is made for.
BY_LABEL: dict[Norm, str] = {"linf": "rays", "l2": "hop-skip-jump"}
_EXAMPLES = ("transfer", "pgd-from")
#: Not an attack of its own in an audit: it consists of other attacks.
_NEVER = ("autoattack",)


@dataclass(frozen=True)
class ScaleBudget:
    """How the scale of the logits is varied: number of images and temperatures, attack steps, and attacks."""

    images: int
    temperatures: int
    steps: int
    attacks: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Number of attack runs per image: each attack at each temperature, and the reference at three of them."""
        return self.temperatures * len(self.attacks) + 3


@dataclass(frozen=True)
class AuditBudget:
    """The work of an audit: its attacks ``names``, their budget ``attacks``, and the study of gradients and outputs.

    ``images`` is the default number of images. The gradients of the first ``probed`` correctly classified images are
    studied, along ``directions`` random directions; every fourth of these has its curvature measured. A random output
    is averaged over ``draws`` passes. ``scale`` configures the attacks at other temperatures of the logits.
    ``by_label``: once the norm is known, an attack that uses labels only joins ``names``. ``unit_test``: the attacks
    themselves are tested. ``distance_targets``: number of classes that the search for distances aims at, one walk each.
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
        """The budget of the search for distances."""
        return self.attacks.model_copy(update={"targets": self.distance_targets})

    @property
    def left_out(self) -> dict[str, str]:
        """Attacks of the registry that this budget does not run, with the reason."""
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
        "every attack, with the steps and restarts of the published ones",
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
    """Look up the budget ``name`` for ``norm``; attacks that need other models' examples or a loss join on request.

    Raises :class:`GradscopeError` for an unknown name.
    """
    budget = lookup(BUDGETS, name, "budget")
    by_label = (BY_LABEL[norm],) if budget.by_label else ()
    names = (*budget.names, *((OWN,) if with_loss else ()), *by_label, *(_EXAMPLES if with_examples else ()))
    return replace(budget, names=names)

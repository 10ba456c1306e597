"""The options of ``gradscope audit``."""

from typing import Any, Self

from pydantic import model_validator

from gradscope.attacks.registry import ATTACKS
from gradscope.auditing.budgets import BUDGETS, AuditBudget, budget_of
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options.adaptive import AdaptiveLoss
from gradscope.measure.options.common import (
    InBall,
    Sampled,
)
from gradscope.options import ATTACK, IMAGES, MEASURING, Names, option

#: Number of images of each budget, as text.
_BUDGET_IMAGES = ", ".join(str(budget.images) for budget in BUDGETS.values())


class AuditOptions(AdaptiveLoss, InBall, Sampled):
    """``gradscope audit``, :func:`gradscope.audit`."""

    command, kind, suffix = "audit", "audit", "-audit"
    summary = "Test whether a model's robustness is real or its gradients are masked, with evidence and cause."
    measurement = "gradscope.measure.audit:AuditMeasurement"
    roles = ("surrogate",)
    settled = frozenset({"claim", "allow_inconclusive", *AdaptiveLoss.adaptive})

    budget: str = option(
        "standard",
        "amount of work, which sets attacks, steps and images: quick (about a minute for a small model), standard, or "
        "full (steps and restarts as published)",
        ATTACK,
        names="gradscope.auditing.budgets:BUDGETS",
    )
    surrogate: Names = option(
        (),
        "another model; the audit also tries its adversarial examples; repeatable",
        ATTACK,
        metavar="CKPT",
        repeatable=True,
    )
    claim: float | None = option(
        None,
        "claimed robust accuracy, such as 0.55; refuted if the confidence interval of the lowest robust accuracy found "
        "lies below it",
        ATTACK,
    )
    allow_inconclusive: bool = option(
        False,
        "audit even with too few correctly classified images, and let --fail-on-masking and --claim pass when "
        "undecided",
        MEASURING,
    )
    samples: int | None = option(
        None, "number of test images", IMAGES, usual=f"{_BUDGET_IMAGES} by budget, or all if there are fewer", ge=1
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # depends on the budget
        """The budget's number of images."""
        return BUDGETS[self.budget].images

    def content(self) -> dict[str, Any]:
        """Return what decides the results; newer options enter only when used: older stages keep their names."""
        newer = {"claim": self.claim, "allow_inconclusive": self.allow_inconclusive}
        return super().content() | {name: value for name, value in newer.items() if value}

    def spending_of(self, *, with_examples: bool) -> AuditBudget:
        """Return the budget; it holds attacks that need other models' examples or a loss only if these exist."""
        return budget_of(self.budget, self.norm, with_examples=with_examples, with_loss=self.loss is not None)

    @model_validator(mode="after")
    def _resolves(self) -> Self:
        lookup(BUDGETS, self.budget, "budget")
        if self.claim is not None and not 0 < self.claim <= 1:
            raise GradscopeError(
                f"claim must be a share of images above 0 and at most 1, e.g. 0.55; got {self.claim:g}"
            )
        self.resolved()
        return self

    def resolved(self) -> dict[str, Any]:
        """Resolve the ball, the budget and the attacks."""
        budget = self.spending_of(with_examples=False)
        return {
            "norm": self.norm,
            "epsilon": self.radius,
            "audit_budget": self.budget,
            "budget": budget.attacks.model_dump(),
            "probed": {"images": budget.probed, "directions": budget.directions, "draws": budget.draws},
            "distance_targets": budget.distance_targets,
            "attacks": {name: {"meaning": ATTACKS[name].meaning} for name in budget.names},
            **self.adapted(),
        }

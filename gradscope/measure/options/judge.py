"""The options of ``gradscope judge``."""

from typing import Any, Self

from pydantic import model_validator

from gradscope.attacks.registry import ATTACKS
from gradscope.auditing.budgets import BUDGETS
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options.adaptive import Adaptive, name_of
from gradscope.measure.options.common import InBall, Sampled
from gradscope.options import ATTACK, IMAGES, RUNNING, option

#: Steps of gradscope's attacks by budget, as text.
_BUDGETS = ", ".join(f"{name} with {budget.attacks.steps} steps" for name, budget in BUDGETS.items())


class JudgeOptions(Adaptive, InBall, Sampled):
    """``gradscope judge``, :func:`gradscope.judge`."""

    command, kind, suffix = "judge", "judge", "-judge"
    summary = (
        "Test whether an attack is blind and which part of it causes that, against our attacks on the same images."
    )
    measurement = "gradscope.measure.judge:JudgeMeasurement"
    settled = Adaptive.adaptive

    attack: Any = option(
        "pgd",
        "attack to judge: package.module:function, called with model, x and y, or the name of one of our attacks",
        ATTACK,
        typed=False,
    )
    budget: str = option(
        "standard",
        f"work of our attacks, as in `gradscope audit`: {_BUDGETS}; your attack also runs once for each repaired part",
        ATTACK,
        names="gradscope.auditing.budgets:BUDGETS",
    )
    samples: int | None = option(
        None,
        "number of test images",
        IMAGES,
        usual=f"{', '.join(str(budget.images) for budget in BUDGETS.values())} by budget, or all if there are fewer",
        ge=1,
    )
    batch_size: int | None = option(
        None, "number of images passed to the attack at once", RUNNING, usual="128", ge=1, le=1_000_000
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # depends on the budget
        """The budget's number of images."""
        return BUDGETS[self.budget].images

    @property
    def code(self) -> str | None:
        """The reference ``package.module:function``; None for one of our attacks and for an attack in memory."""
        return self.attack if isinstance(self.attack, str) and ":" in self.attack else None

    @model_validator(mode="after")
    def _resolves(self) -> Self:
        if isinstance(self.attack, str):
            if self.code is None:
                lookup(ATTACKS, self.attack, "attack")
        elif not callable(self.attack):
            raise GradscopeError(
                f"attack must be a function, an attack object or a name, got {type(self.attack).__name__}"
            )
        lookup(BUDGETS, self.budget, "budget")
        self.resolved()
        return self

    def resolved(self) -> dict[str, Any]:
        """Resolve the attack, the ball and the budget."""
        budget = BUDGETS[self.budget]
        return {
            "attack": name_of(self.attack),
            "norm": self.norm,
            "epsilon": self.radius,
            "audit_budget": self.budget,
            "budget": budget.attacks.model_dump(),
            **self.adapted(),
        }

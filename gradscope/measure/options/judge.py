"""The options of ``gradscope judge``."""

from typing import Any, Self

from pydantic import model_validator

from gradscope.attacks.registry import ATTACKS
from gradscope.auditing.budgets import BUDGETS
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options.adaptive import Adaptive, name_of
from gradscope.measure.options.common import InBall, Sampled
from gradscope.options import ATTACK, IMAGES, RUNNING, option

#: How many steps ours take, by budget, in words.
_BUDGETS = ", ".join(f"{name} with {one.attacks.steps} steps" for name, one in BUDGETS.items())


class JudgeOptions(Adaptive, InBall, Sampled):
    """``gradscope judge``, :func:`gradscope.judge`."""

    command, kind, suffix = "judge", "judge", "-judge"
    summary = "Say whether an attack is blind and which part of it makes it so, beside ours on the same images."
    measurement = "gradscope.measure.judge:JudgeMeasurement"
    settled = Adaptive.adaptive

    attack: Any = option(
        "pgd",
        "the attack on trial: package.module:function, called with model, x and y, or the name of one of ours",
        ATTACK,
        typed=False,
    )
    budget: str = option(
        "standard",
        f"our attacks, as of `gradscope audit`: {_BUDGETS}; beside the attack itself, again for each part repaired",
        ATTACK,
        names="gradscope.auditing.budgets:BUDGETS",
    )
    samples: int | None = option(
        None,
        "test images to draw",
        IMAGES,
        usual=f"{', '.join(str(one.images) for one in BUDGETS.values())} by budget, or all if there are fewer",
        ge=1,
    )
    batch_size: int | None = option(
        None, "images that the attack gets at once", RUNNING, usual="128", ge=1, le=1_000_000
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # of the budget
        """Images of the budget."""
        return BUDGETS[self.budget].images

    @property
    def code(self) -> str | None:
        """The reference to the attack's code; None of one of ours, and of one in memory."""
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
        """Attack, ball and budget."""
        budget = BUDGETS[self.budget]
        return {
            "attack": name_of(self.attack),
            "norm": self.norm,
            "epsilon": self.radius,
            "audit_budget": self.budget,
            "budget": budget.attacks.model_dump(),
            **self.adapted(),
        }

"""The options of ``gradscope attack``."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.config import Balls, Budget
from gradscope.errors import GradscopeError, known_names
from gradscope.measure.options.adaptive import AdaptiveLoss
from gradscope.measure.options.common import (
    Number,
    Sampled,
    Stepping,
)
from gradscope.options import ATTACK, Names, default_of, option, split


class AttackOptions(AdaptiveLoss, Stepping, Sampled):
    """``gradscope attack``, :func:`gradscope.attack`."""

    command, kind, suffix = "attack", "attack", "-attack"
    summary = (
        "Measure robust accuracy under a set of attacks, each run on the images that the earlier ones did not fool."
    )
    measurement = "gradscope.measure.attack:AttackMeasurement"
    roles = ("surrogate",)
    settled = frozenset({"epsilon", "curve", *Budget.model_fields, *AdaptiveLoss.adaptive})

    attacks: Names = option(
        ("pgd", "apgd-ce", "apgd-t", "square"),
        "attacks, separated by commas and run in this order, or all; `gradscope list attacks` shows the names",
        ATTACK,
        names="gradscope.attacks.registry:ATTACKS",
    )
    epsilons: Annotated[tuple[Number, ...], BeforeValidator(split)] = option(
        (), "further radii in pixel units, such as 0.25,0.5,1.0, beside --epsilon", ATTACK, metavar="NUMBER,..."
    )
    restarts: int | None = option(
        None, "number of random starts of pgd-restarts", ATTACK, usual=default_of(Budget, "restarts")
    )
    smoothing: int | None = option(
        None,
        "number of noisy copies averaged in each step of pgd-smooth",
        ATTACK,
        usual=default_of(Budget, "smoothing"),
    )
    targets: int | None = option(
        None, "number of wrong classes that apgd-t, fab-t and fmn aim at", ATTACK, usual=default_of(Budget, "targets")
    )
    queries: int | None = option(
        None,
        "number of forward passes per image of square, rays and hop-skip-jump",
        ATTACK,
        usual=default_of(Budget, "queries"),
    )
    noise_points: int | None = option(
        None, "number of random points that noise tries per image", ATTACK, usual=default_of(Budget, "noise_points")
    )
    surrogate: Names = option(
        (),
        "another model; the attacks transfer and pgd-from use its adversarial examples; repeatable",
        ATTACK,
        metavar="CKPT",
        repeatable=True,
    )
    cascade: bool = option(
        True,
        "run each attack only on images that no earlier attack fooled, or on all correctly classified images",
        both_ways=True,
    )
    curve: bool = option(
        False, "also measure each image's distance with fmn, and write accuracy at every radius to curve.csv"
    )
    save_images: bool = option(
        False, "write the adversarial images to adversarial.npz and check them with another forward pass"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks without duplicates, followed by ``pgd-own`` if the user gave a loss."""
        everything = [name for name in ATTACKS if name != OWN]
        named = everything if self.attacks == ("all",) else known_names(self.attacks, ATTACKS, "attacks")
        return tuple(dict.fromkeys([*named, *([] if self.loss is None else [OWN])]))

    @property
    def balls(self) -> Balls:
        """The threat models: the norm and its radii."""
        radii = {"norm": self.norm, "epsilon": self.epsilon, "epsilons": self.epsilons}
        return Balls.parse({key: value for key, value in radii.items() if value is not None})

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii, ascending; pixel units."""
        return self.balls.radii

    @property
    def budget(self) -> Budget:
        """The limits on the work of each attack."""
        return Budget.parse({key: value for key in Budget.model_fields if (value := getattr(self, key)) is not None})

    @model_validator(mode="after")
    def _surrogates_are_used(self) -> Self:
        self.resolved()
        if OWN in self.names and self.loss is None:
            raise GradscopeError(f"loss must be given for {OWN}, got none")
        takers = [name for name, attack in ATTACKS.items() if "examples" in attack.needs]
        if not self.surrogate and all(name in takers for name in self.names):
            named = ", ".join(self.names)
            raise GradscopeError(
                f"attacks must not be {named} alone: it needs another model's examples; give `surrogate`"
            )
        if self.surrogate and not any(name in takers for name in self.names):
            named = f"one of {', '.join(takers)}"
            raise GradscopeError(
                f"surrogate must be left out unless {named} is among the attacks, got {', '.join(self.names)}"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Resolve the radii, the budget and the attacks in order."""
        return {
            "norm": self.norm,
            "epsilons": list(self.balls.radii),
            "budget": self.budget.model_dump(),
            "cascade": self.cascade,
            "attacks": {
                name: {"meaning": ATTACKS[name].meaning, "needs": sorted(ATTACKS[name].needs)} for name in self.names
            },
            **(
                {"curve": True} if self.curve else {}
            ),  # left out otherwise, so that stages of older recipes keep their names
            **self.adapted(),
        }

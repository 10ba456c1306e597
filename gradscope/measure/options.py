"""The options of every measuring command."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.auditing.budgets import BUDGETS, AuditBudget, budget_of
from gradscope.config import PGD, PGD_ATTACKS, Balls, Budget, Grid, attack_settings, short_attack_settings
from gradscope.errors import GradscopeError, known_names, lookup
from gradscope.measure.adaptive_options import AdaptiveLoss
from gradscope.measure.common_options import (
    Circumstances,
    ForeignOptions,
    GradientAttack,
    InBall,
    Number,
    OneName,
    Options,
    Sampled,
    Stepping,
    pgd_option,
)
from gradscope.measure.judge_options import JudgeOptions
from gradscope.options import ATTACK, IMAGES, MEASURING, DataOptions, Names, default_of, option, split
from gradscope.results.metrics import METRICS, USUAL_METRICS
from gradscope.validation import Config


class AnalyzeOptions(GradientAttack, Sampled):
    """``gradscope analyze``, :func:`gradscope.trace`."""

    command, kind, suffix = "analyze", "analysis", ""
    summary = "Measure gradients, loss, entropy and accuracy along PGD, for one checkpoint or many side by side."
    measurement = "gradscope.measure.analyze:TrajectoryMeasurement"

    metrics: Names = option(
        ("all",),
        "metrics with commas between, or all but those that take passes of their own, which are named beside: "
        "all,distance; see `gradscope list metrics`",
        metavar="NAME,...",
        names="gradscope.results.metrics:METRICS",
    )
    attack: Names = option(
        ("pgd",),
        f"attacks with commas between, of {', '.join(PGD_ATTACKS)}; pgd is exact, pgd-paper is the paper's attack",
        ATTACK,
        metavar="NAME,...",
        names="gradscope.config:PGD_ATTACKS",
    )
    restarts: int | None = option(
        None, "random starts; the first is traced, all count for 'worst'", ATTACK, usual=default_of(PGD, "restarts")
    )

    @property
    def attacks(self) -> dict[str, PGD]:
        """Every attack with its settings."""
        return {name: attack_settings(name, self.changes()) for name in known_names(self.attack, PGD_ATTACKS, "attack")}

    @property
    def measured(self) -> frozenset[str]:
        """The metrics asked for."""
        named = [name for name in self.metrics if name != "all"]
        found = frozenset(known_names(named, METRICS, "metrics") if named or not self.metrics else ())
        return found | set(USUAL_METRICS) if "all" in self.metrics else found

    @model_validator(mode="after")
    def _resolves(self) -> Self:
        self.resolved()
        if "all" not in self.metrics and "cosine" in self.metrics:
            most = max(attack.steps for attack in self.attacks.values())
            if most < 2:
                raise GradscopeError(f"steps must be at least 2 for the cosine of consecutive gradients, got {most}")
        return self

    def resolved(self) -> dict[str, Any]:
        """Attacks and metrics."""
        attacks = {name: settings.model_dump() for name, settings in self.attacks.items()}
        return {"attacks": attacks, "metrics": sorted(self.measured)}


#: Images where none are asked for: a plane for each, or the mean of the loss over all.
_PLANES, _AVERAGED = 16, 256


class LandscapeOptions(GradientAttack):
    """``gradscope landscape``, :func:`gradscope.landscape`: around images or weights."""

    command, kind = "landscape", "landscape"
    summary = "Draw the loss on planes around images or around the weights, and what compares checkpoints there."
    roles = ("towards", "epochs")
    settled = GradientAttack.settled | {"points", "span"}

    space: Literal["input", "weights"] = option("input", "draw planes around images, or around the network's weights")
    points: int = option(51, "points on each side; an odd number includes the centre")
    span: float | None = option(
        None,
        "how far it reaches. input: multiples of epsilon each way. weights: multiples of the filters' norms each way; "
        "with --towards, share of the distance beyond either end; with --epochs, share of their extent around them",
        usual="input 3, weights 1, --towards 0.5, --epochs 0.2",
    )
    images: int | None = option(
        None,
        "test images to draw. input: a plane for each; weights: the loss is their mean",
        IMAGES,
        usual=f"{_PLANES} in input space, {_AVERAGED} in weight space",
        ge=1,
    )
    index: Annotated[tuple[int, ...], BeforeValidator(split)] = option(
        (), "input: planes of these test images instead, such as 3,17", IMAGES, metavar="N,..."
    )
    right: bool = option(False, "input: draw only images that every CKPT is right about", IMAGES)
    plane: Literal["own", "shared"] = option(
        "own", "input: each CKPT's own adversarial direction and a random one, or the first two CKPT's shared by all"
    )
    line: bool = option(False, "weights: draw a line, along the first direction alone")
    towards: OneName = option(None, "weights: let the first direction lead to this checkpoint", metavar="CKPT")
    epochs: OneName = option(
        None, "weights: use the principal directions of what `train --keep-epochs` kept in DIR", metavar="DIR"
    )
    batch_norm: Literal["as-is", "re-estimated"] = option(
        "as-is", "weights: keep the statistics of batch normalisation, or take them anew at every point"
    )
    adversarial: bool = option(
        False, "weights: also draw the loss under attack, made anew at every point in 5 steps", ATTACK
    )
    metric: str | None = option(
        None,
        "weights: also draw a metric of loss_landscapes, made by factory(images, labels); needs --trust-code",
        metavar="MODULE:FACTORY",
    )
    attack: str = pgd_option()

    #: Options that say nothing in the other space, where they are refused.
    _OF_WEIGHTS: ClassVar = ("line", "towards", "epochs", "batch_norm", "adversarial", "metric")
    _OF_IMAGES: ClassVar = ("index", "right", "plane")
    #: Multiples of a random direction; share of what lies between two checkpoints; share of the extent of the epochs.
    _SPANS: ClassVar = {"random": 1.0, "towards": 0.5, "epochs": 0.2}

    @property
    def measurement(self) -> str:  # type: ignore[override]  # of the space
        """The measurement of the space."""
        if self.space == "input":
            return "gradscope.measure.input_landscape:InputLandscapeMeasurement"
        return "gradscope.measure.weight_landscape:WeightLandscapeMeasurement"

    @property
    def default_images(self) -> int:  # type: ignore[override]  # of the space
        """Planes, or images of the mean."""
        return _PLANES if self.space == "input" else _AVERAGED

    @property
    def suffix(self) -> str:  # type: ignore[override]  # of the space
        """The space is part of the directory's name."""
        return f"-{self.space}-landscape"

    @property
    def directions(self) -> Literal["random", "towards", "epochs"]:
        """What gives the directions in weight space."""
        return "towards" if self.towards is not None else "epochs" if self.epochs is not None else "random"

    @property
    def grid(self) -> Grid:
        """The points of each plane."""
        usual = 3.0 if self.space == "input" else self._SPANS[self.directions]
        return Grid.parse({"points": self.points, "span": usual if self.span is None else self.span})

    @property
    def attacked_with(self) -> str:
        """The attack's name; "none" in weight space where there is none."""
        return self.attack if self.space == "input" or self.adversarial else "none"

    @property
    def settings(self) -> PGD | None:
        """The attack's settings; None in weight space where there is none."""
        lookup(PGD_ATTACKS, self.attack, "attack")
        if self.space == "input":
            return attack_settings(self.attack, self.changes())
        return short_attack_settings(self.attack, self.changes()) if self.adversarial else None

    @model_validator(mode="after")
    def _fits_the_space(self) -> Self:
        other, refused = ("weights", self._OF_WEIGHTS) if self.space == "input" else ("input", self._OF_IMAGES)
        for name in refused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise GradscopeError(
                    f"{name} must be left out unless `space` is {other}, got {getattr(self, name)!r}", argument=name
                )
        if self.space == "weights" and not self.adversarial:
            for name in [name for name in self.changes() if name != "norm"]:
                raise GradscopeError(f"{name} must be left out in weight space without `adversarial`", argument=name)
        self.resolved()
        return self

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        settings = self.settings
        if self.space == "input" and settings is not None and settings.epsilon == 0:
            raise GradscopeError(
                "epsilon must be above 0, for the axes are in multiples of it, got 0", argument="epsilon"
            )
        if self.index and (self.images is not None or self.right):
            raise GradscopeError(
                "index must be left out beside `images` and `right`, which choose images too", argument="index"
            )
        if self.towards is not None and self.epochs is not None:
            raise GradscopeError("towards must be left out beside `epochs`: each gives the first direction")
        if self.epochs is not None and self.line:
            raise GradscopeError("epochs must be left out beside `line`: it gives a plane", argument="epochs")
        return self

    def check(self, models: int) -> None:
        """Validate what depends on how many models there are."""
        if self.plane == "shared" and models < 2:
            raise GradscopeError(
                f"plane must be 'own', for 'shared' takes the directions of two checkpoints, got {models}",
                argument="plane",
            )
        if self.epochs is not None and models > 1:
            raise GradscopeError(f"epochs must be given with one checkpoint, got {models}", argument="epochs")

    def resolved(self) -> dict[str, Any]:
        """The attack, the points and the span."""
        settings = self.settings
        attacks = {} if settings is None else {self.attack: settings.model_dump()}
        return {"attacks": attacks, "grid": self.grid.model_dump()}


class AttackOptions(AdaptiveLoss, Stepping, Sampled):
    """``gradscope attack``, :func:`gradscope.attack`."""

    command, kind, suffix = "attack", "attack", "-attack"
    summary = "Attack checkpoints with a battery, one attack after the other on what still stands."
    measurement = "gradscope.measure.attack:AttackMeasurement"
    roles = ("surrogate",)
    settled = frozenset({"epsilon", "curve", *Budget.model_fields, *AdaptiveLoss.adaptive})

    attacks: Names = option(
        ("pgd", "apgd-ce", "apgd-t", "square"),
        "attacks with commas between, run in this order, or all; see `gradscope list attacks`",
        ATTACK,
        names="gradscope.attacks.registry:ATTACKS",
    )
    epsilons: Annotated[tuple[Number, ...], BeforeValidator(split)] = option(
        (), "several radii, such as 0.25,0.5,1.0, and --epsilon where it is given", ATTACK, metavar="NUMBER,..."
    )
    restarts: int | None = option(None, "random starts of pgd-restarts", ATTACK, usual=default_of(Budget, "restarts"))
    smoothing: int | None = option(
        None, "noisy copies in each step of pgd-smooth", ATTACK, usual=default_of(Budget, "smoothing")
    )
    targets: int | None = option(
        None, "wrong classes that apgd-t, fab-t and fmn aim at", ATTACK, usual=default_of(Budget, "targets")
    )
    queries: int | None = option(
        None,
        "forward passes of square, rays and hop-skip-jump for each image",
        ATTACK,
        usual=default_of(Budget, "queries"),
    )
    noise_points: int | None = option(
        None, "random points of noise for each image", ATTACK, usual=default_of(Budget, "noise_points")
    )
    surrogate: Names = option(
        (),
        "another model, whose adversarial examples transfer and pgd-from use; repeatable",
        ATTACK,
        metavar="CKPT",
        repeatable=True,
    )
    cascade: bool = option(
        True, "run each attack on what those before left standing, or on all that is right", both_ways=True
    )
    curve: bool = option(
        False, "also find each image's distance, with fmn: robust accuracy at every radius, in curve.csv"
    )
    save_images: bool = option(False, "write the adversarial images to adversarial.npz, and judge them again")

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks, each once; that on the user's own loss where there is one."""
        everything = [name for name in ATTACKS if name != OWN]
        named = everything if self.attacks == ("all",) else known_names(self.attacks, ATTACKS, "attacks")
        return tuple(dict.fromkeys([*named, *([] if self.loss is None else [OWN])]))

    @property
    def balls(self) -> Balls:
        """The threat models."""
        radii = {"norm": self.norm, "epsilon": self.epsilon, "epsilons": self.epsilons}
        return Balls.parse({key: value for key, value in radii.items() if value is not None})

    @property
    def radii(self) -> tuple[float, ...]:
        """Every radius, ascending."""
        return self.balls.radii

    @property
    def budget(self) -> Budget:
        """How much work each attack may take."""
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
                f"attacks must not be {named} alone, which needs another model's examples; give `surrogate`"
            )
        if self.surrogate and not any(name in takers for name in self.names):
            named = f"one of {', '.join(takers)}"
            raise GradscopeError(
                f"surrogate must be left out unless {named} is among the attacks, got {', '.join(self.names)}"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Radii, budget and the attacks in order."""
        return {
            "norm": self.norm,
            "epsilons": list(self.balls.radii),
            "budget": self.budget.model_dump(),
            "cascade": self.cascade,
            "attacks": {
                name: {"meaning": ATTACKS[name].meaning, "needs": sorted(ATTACKS[name].needs)} for name in self.names
            },
            **({"curve": True} if self.curve else {}),  # only then: stages of older recipes keep their names
            **self.adapted(),
        }


class TransferOptions(GradientAttack, Sampled):
    """``gradscope transfer``, :func:`gradscope.transfer`."""

    command, kind, suffix = "transfer", "transfer", "-transfer"
    summary = "Judge the adversarial examples made on each checkpoint on every other, and on itself."
    measurement = "gradscope.measure.transfer:TransferMeasurement"

    attack: str = pgd_option()

    @property
    def settings(self) -> PGD:
        """The attack that makes the examples."""
        return attack_settings(self.attack, self.changes())

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.settings.epsilon == 0:
            raise GradscopeError("epsilon must be above 0 in an attack, got 0", argument="epsilon")
        return self

    def check(self, models: int) -> None:
        """Refuse one model alone."""
        if models < 2:
            raise GradscopeError(f"model must be two models or more in a transfer, got {models}")

    def resolved(self) -> dict[str, Any]:
        """The attack."""
        return {"attacks": {self.attack: self.settings.model_dump()}}


#: Images that each budget pays for, in words.
_BUDGET_IMAGES = ", ".join(str(budget.images) for budget in BUDGETS.values())


class AuditOptions(AdaptiveLoss, InBall, Sampled):
    """``gradscope audit``, :func:`gradscope.audit`."""

    command, kind, suffix = "audit", "audit", "-audit"
    summary = "Say whether a model's robustness is real or its gradients are masked, with the evidence and the cause."
    measurement = "gradscope.measure.audit:AuditMeasurement"
    roles = ("surrogate",)
    settled = frozenset({"claim", "allow_inconclusive", *AdaptiveLoss.adaptive})

    budget: str = option(
        "standard",
        "sets the attacks and their steps: quick (a minute for a small model and 200 images), standard, or full "
        "(steps and restarts as published)",
        ATTACK,
        names="gradscope.auditing.budgets:BUDGETS",
    )
    surrogate: Names = option(
        (),
        "another model whose adversarial examples are tried too; repeatable",
        ATTACK,
        metavar="CKPT",
        repeatable=True,
    )
    claim: float | None = option(
        None,
        "robust accuracy that is claimed of the model, such as 0.55: refuted where the interval of the lowest that was "
        "reached lies below it",
        ATTACK,
    )
    allow_inconclusive: bool = option(
        False,
        "audit images of which too few are right to decide, and let --fail-on-masking and --claim pass undecided",
        MEASURING,
    )
    samples: int | None = option(
        None, "test images to draw", IMAGES, usual=f"{_BUDGET_IMAGES} by budget, or all if there are fewer", ge=1
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # of the budget
        """Images of the budget."""
        return BUDGETS[self.budget].images

    def content(self) -> dict[str, Any]:
        """As of all options; what older versions did not know only where it is used: stages keep their names."""
        newer = {"claim": self.claim, "allow_inconclusive": self.allow_inconclusive}
        return super().content() | {name: value for name, value in newer.items() if value}

    def spending_of(self, *, with_examples: bool) -> AuditBudget:
        """The budget; attacks that need other models' examples, or a loss, only where there are some."""
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
        """Ball, budget, attacks."""
        budget = self.spending_of(with_examples=False)
        return {
            "norm": self.norm,
            "epsilon": self.radius,
            "audit_budget": self.budget,
            "budget": budget.attacks.model_dump(),
            "probed": {"images": budget.probed, "directions": budget.directions, "draws": budget.draws},
            "attacks": {name: {"meaning": ATTACKS[name].meaning} for name in budget.names},
            **self.adapted(),
        }


#: The measuring commands by name, in the order in which the help lists them.
COMMANDS: dict[str, type[Options]] = {
    kind.command: kind
    for kind in (AnalyzeOptions, LandscapeOptions, AttackOptions, TransferOptions, AuditOptions, JudgeOptions)
}


class Request(Config):
    """A measurement that is asked for: of which models, with which options, on which images, where, into what."""

    options: Options
    models: tuple[str, ...]
    data: DataOptions = DataOptions()
    foreign: ForeignOptions = ForeignOptions()
    where: Circumstances = Circumstances()

    def check(self) -> Self:
        """Refuse what can be refused before torch is loaded."""
        self.options.check(len(self.models))
        return self

"""The options of ``gradscope landscape``."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from gradscope.config import PGD, PGD_ATTACKS, Grid, attack_settings, short_attack_settings
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options.common import (
    GradientAttack,
    OneName,
    pgd_option,
)
from gradscope.options import ATTACK, IMAGES, option, split

#: Images where none are asked for: a plane for each, or the mean of the loss over all.
_PLANES, _AVERAGED = 16, 256
#: Multiples of epsilon that a plane around an image reaches where none are asked for, and one of two attacks.
_AROUND, _AROUND_TWO = 3.0, 1.5


class LandscapeOptions(GradientAttack):
    """``gradscope landscape``, :func:`gradscope.landscape`: around images or weights."""

    command, kind = "landscape", "landscape"
    summary = "Draw the loss on planes around images or around the weights, and what compares checkpoints there."
    roles = ("towards", "epochs")
    settled = GradientAttack.settled | {"points", "span", "versus", "align", "curve", "curve_updates"}

    space: Literal["input", "weights"] = option("input", "draw planes around images, or around the network's weights")
    points: int = option(51, "points on each side; an odd number includes the centre")
    span: float | None = option(
        None,
        "how far it reaches. input: multiples of epsilon each way. weights: multiples of the filters' norms each way; "
        "with --towards, share of the distance beyond either end; with --epochs, share of their extent around them",
        usual="input 3, --versus 1.5, weights 1, --towards 0.5, --epochs 0.2",
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
    versus: str | None = option(
        None,
        "input: draw the plane that holds the image and the end points of --attack and of this attack, with both paths",
        ATTACK,
        names="gradscope.config:PGD_ATTACKS",
    )
    line: bool = option(False, "weights: draw a line, along the first direction alone")
    towards: OneName = option(None, "weights: let the first direction lead to this checkpoint", metavar="CKPT")
    align: bool = option(
        False,
        "weights: permute the units of --towards to match the CKPT's first; with --line, beside the line as it is",
    )
    curve: Literal["bezier"] | None = option(
        None, "weights: with --towards and --line, also follow a curve that is trained between the two"
    )
    curve_updates: int = option(200, "weights: updates of the curve's training, each on 128 training images", ge=1)
    epochs: OneName = option(
        None,
        "weights: use the principal directions of what `train --keep-epochs` kept in DIR; also measure sharpness and "
        "accuracy, clean and under --attack, at each of these epochs",
        metavar="DIR",
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
    _OF_WEIGHTS: ClassVar = (
        *("line", "towards", "align", "curve", "curve_updates", "epochs", "batch_norm", "adversarial", "metric"),
    )
    _OF_IMAGES: ClassVar = ("index", "right", "plane", "versus")
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
    def ways(self) -> tuple[str, ...]:
        """The ways to another checkpoint, as the column ``way`` names them; one that has no name where there is none.

        An aligned plane leads to the other's units in their order alone, a line takes both ways.
        """
        if self.towards is None or not self.line:
            return ("aligned" if self.align else "",)
        return ("line", *(["aligned"] if self.align else []), *([] if self.curve is None else [self.curve]))

    @property
    def grid(self) -> Grid:
        """The points of each plane."""
        around = _AROUND if self.versus is None else _AROUND_TWO
        usual = around if self.space == "input" else self._SPANS[self.directions]
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

    @property
    def rival(self) -> PGD | None:
        """The settings of the attack that `attack` is drawn beside: with the same changes; None where there is none."""
        if self.versus is None:
            return None
        lookup(PGD_ATTACKS, self.versus, "versus")
        return attack_settings(self.versus, self.changes())

    @property
    def at_epochs(self) -> PGD | None:
        """The settings of the attack under which the accuracy of each saved epoch is measured; None without these."""
        return None if self.epochs is None else attack_settings(self.attack, self.changes())

    @model_validator(mode="after")
    def _fits_the_space(self) -> Self:
        other, refused = ("weights", self._OF_WEIGHTS) if self.space == "input" else ("input", self._OF_IMAGES)
        for name in refused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise GradscopeError(
                    f"{name} must be left out unless `space` is {other}, got {getattr(self, name)!r}", argument=name
                )
        if self.space == "weights" and not self.adversarial and self.epochs is None:
            for name in [name for name in self.changes() if name != "norm"]:
                raise GradscopeError(
                    f"{name} must be left out in weight space without `adversarial` or `epochs`", argument=name
                )
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
        if self.versus is not None and self.plane == "shared":
            raise GradscopeError(
                f"versus must be left out where `plane` is shared: each gives the plane, got {self.versus}",
                argument="versus",
            )
        if self.versus == self.attack:
            raise GradscopeError(
                f"versus must be another attack than `attack`, got {self.versus} twice", argument="versus"
            )
        if self.towards is not None and self.epochs is not None:
            raise GradscopeError("towards must be left out beside `epochs`: each gives the first direction")
        if self.align and self.towards is None:
            raise GradscopeError("align must be left out without `towards`, whose units it permutes", argument="align")
        if self.curve is not None and (self.towards is None or not self.line):
            raise GradscopeError(
                f"curve must be given with `towards` and `line`, beside which it is drawn, got {self.curve!r} alone",
                argument="curve",
            )
        if self.curve is None and self.curve_updates != type(self).model_fields["curve_updates"].default:
            raise GradscopeError(
                f"curve_updates must be left out without `curve`, got {self.curve_updates}", argument="curve_updates"
            )
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
        """The attack, the one it is drawn beside, the points, the span, and the ways to another checkpoint."""
        found = {self.attack: self.at_epochs or self.settings, self.versus: self.rival}
        attacks = {name: settings.model_dump() for name, settings in found.items() if settings is not None}
        # What came later only where it is asked for: stages of older recipes keep their names.
        more: dict[str, Any] = {} if self.versus is None else {"versus": self.versus}
        more |= {"align": True} if self.align else {}
        more |= {} if self.curve is None else {"curve": {"kind": self.curve, "updates": self.curve_updates}}
        return {"attacks": attacks, "grid": self.grid.model_dump(), **more}

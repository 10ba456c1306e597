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

#: Default number of images: one plane each in input space; in weight space the loss is their mean.
_PLANES, _AVERAGED = 16, 256
#: Default span around an image in multiples of epsilon, for one attack and for the plane of two attacks.
_AROUND, _AROUND_TWO = 3.0, 1.5


class LandscapeOptions(GradientAttack):
    """``gradscope landscape``, :func:`gradscope.landscape`: planes around images or weights."""

    command, kind = "landscape", "landscape"
    summary = "Measure the loss on planes around images or around the weights, and compare checkpoints there."
    roles = ("towards", "epochs")
    settled = GradientAttack.settled | {"points", "span", "versus", "align", "curve", "curve_updates"}

    space: Literal["input", "weights"] = option(
        "input",
        "where the planes lie: around images (input) or around the network's weights (weights); options marked input: "
        "or weights: apply there only",
    )
    points: int = option(51, "number of points on each side; an odd number includes the centre")
    span: float | None = option(
        None,
        "extent of the plane on each side of its centre. input: multiples of epsilon. weights: multiples of the "
        "filters' norms; with --towards, share of the distance beyond each end; with --epochs, share of the epochs' "
        "extent around them",
        usual="input 3, --versus 1.5, weights 1, --towards 0.5, --epochs 0.2",
    )
    images: int | None = option(
        None,
        "number of test images. input: one plane for each; weights: the loss is their mean",
        IMAGES,
        usual=f"{_PLANES} in input space, {_AVERAGED} in weight space",
        ge=1,
    )
    index: Annotated[tuple[int, ...], BeforeValidator(split)] = option(
        (), "input: test images to draw planes of, by number, such as 3,17", IMAGES, metavar="N,..."
    )
    right: bool = option(False, "input: take only images that every CKPT classifies correctly", IMAGES)
    plane: Literal["own", "shared"] = option(
        "own",
        "input: directions of the plane: each CKPT's own adversarial direction and a random one (own), or the "
        "adversarial directions of the first two models for all (shared)",
    )
    versus: str | None = option(
        None,
        "input: second attack; the plane passes through the image and the end points of --attack and of this attack, "
        "and shows both paths",
        ATTACK,
        names="gradscope.config:PGD_ATTACKS",
    )
    line: bool = option(False, "weights: measure a line along the first direction instead of a plane")
    towards: OneName = option(None, "weights: checkpoint that the first direction leads to", metavar="CKPT")
    align: bool = option(
        False,
        "weights: first permute the units of --towards to match the CKPT's; --line then measures both lines, with and "
        "without permutation",
    )
    curve: Literal["bezier"] | None = option(
        None, "weights: with --towards and --line, also train a curve between the two and measure along it"
    )
    curve_updates: int = option(
        200, "weights: number of updates that train the curve, each on 128 training images", ge=1
    )
    epochs: OneName = option(
        None,
        "weights: directory of `train --keep-epochs`; the plane spans the principal directions of the saved epochs, "
        "and sharpness and accuracy, clean and under --attack, are measured at each epoch",
        metavar="DIR",
    )
    batch_norm: Literal["as-is", "re-estimated"] = option(
        "as-is", "weights: keep the statistics of batch normalisation, or re-estimate them at every point"
    )
    adversarial: bool = option(
        False,
        "weights: also measure the loss under attack; each point is attacked anew, with 5 steps by default",
        ATTACK,
    )
    metric: str | None = option(
        None,
        "weights: also measure a metric of loss_landscapes that factory(images, labels) returns; needs --trust-code",
        metavar="MODULE:FACTORY",
    )
    attack: str = pgd_option()

    #: Options of one space, which the other space does not accept.
    _OF_WEIGHTS: ClassVar = (
        *("line", "towards", "align", "curve", "curve_updates", "epochs", "batch_norm", "adversarial", "metric"),
    )
    _OF_IMAGES: ClassVar = ("index", "right", "plane", "versus")
    #: Default span in weight space: multiples of a random direction, share of the distance between two checkpoints,
    #: share of the extent of the epochs.
    _SPANS: ClassVar = {"random": 1.0, "towards": 0.5, "epochs": 0.2}

    @property
    def measurement(self) -> str:  # type: ignore[override]  # depends on the space
        """The measurement for the space."""
        if self.space == "input":
            return "gradscope.measure.input_landscape:InputLandscapeMeasurement"
        return "gradscope.measure.weight_landscape:WeightLandscapeMeasurement"

    @property
    def default_images(self) -> int:  # type: ignore[override]  # depends on the space
        """The number of planes, or of images in the mean."""
        return _PLANES if self.space == "input" else _AVERAGED

    @property
    def suffix(self) -> str:  # type: ignore[override]  # depends on the space
        """The ending of the directory's name, with the space in it."""
        return f"-{self.space}-landscape"

    @property
    def directions(self) -> Literal["random", "towards", "epochs"]:
        """The source of the directions in weight space."""
        return "towards" if self.towards is not None else "epochs" if self.epochs is not None else "random"

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways to another checkpoint, as in the column ``way``; one empty name if there is no other checkpoint.

        A plane takes one way: to the other checkpoint as it is, or aligned. A line with ``align`` takes both ways.
        """
        if self.towards is None or not self.line:
            return ("aligned" if self.align else "",)
        return ("line", *(["aligned"] if self.align else []), *([] if self.curve is None else [self.curve]))

    @property
    def grid(self) -> Grid:
        """The grid of points of each plane."""
        around = _AROUND if self.versus is None else _AROUND_TWO
        usual = around if self.space == "input" else self._SPANS[self.directions]
        return Grid.parse({"points": self.points, "span": usual if self.span is None else self.span})

    @property
    def attacked_with(self) -> str:
        """The attack's name; "none" in weight space without ``adversarial``."""
        return self.attack if self.space == "input" or self.adversarial else "none"

    @property
    def settings(self) -> PGD | None:
        """The attack's settings; None in weight space without ``adversarial``."""
        lookup(PGD_ATTACKS, self.attack, "attack")
        if self.space == "input":
            return attack_settings(self.attack, self.changes())
        return short_attack_settings(self.attack, self.changes()) if self.adversarial else None

    @property
    def rival(self) -> PGD | None:
        """The settings of the second attack, ``versus``, with the same changes as ``attack``; None without it."""
        if self.versus is None:
            return None
        lookup(PGD_ATTACKS, self.versus, "versus")
        return attack_settings(self.versus, self.changes())

    @property
    def at_epochs(self) -> PGD | None:
        """The settings of the attack on each saved epoch; None without ``epochs``."""
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
                "epsilon must be above 0, because the axes are in multiples of it; got 0", argument="epsilon"
            )
        if self.index and (self.images is not None or self.right):
            raise GradscopeError(
                "index must be left out together with `images` or `right`, which choose images too", argument="index"
            )
        if self.versus is not None and self.plane == "shared":
            raise GradscopeError(
                f"versus must be left out where `plane` is shared, because each defines the plane; got {self.versus}",
                argument="versus",
            )
        if self.versus == self.attack:
            raise GradscopeError(
                f"versus must be another attack than `attack`, got {self.versus} twice", argument="versus"
            )
        if self.towards is not None and self.epochs is not None:
            raise GradscopeError(
                "towards must be left out together with `epochs`, because each defines the first direction"
            )
        if self.align and self.towards is None:
            raise GradscopeError("align must be left out without `towards`, whose units it permutes", argument="align")
        if self.curve is not None and (self.towards is None or not self.line):
            raise GradscopeError(
                f"curve must be given with `towards` and `line`, got {self.curve!r} alone",
                argument="curve",
            )
        if self.curve is None and self.curve_updates != type(self).model_fields["curve_updates"].default:
            raise GradscopeError(
                f"curve_updates must be left out without `curve`, got {self.curve_updates}", argument="curve_updates"
            )
        if self.epochs is not None and self.line:
            raise GradscopeError(
                "epochs must be left out together with `line`, because it defines a plane", argument="epochs"
            )
        return self

    def check(self, models: int) -> None:
        """Validate options that depend on the number of models."""
        if self.plane == "shared" and models < 2:
            raise GradscopeError(
                f"plane must be 'own' with fewer than two checkpoints, because 'shared' takes directions of two; got "
                f"{models}",
                argument="plane",
            )
        if self.epochs is not None and models > 1:
            raise GradscopeError(f"epochs must be given with one checkpoint, got {models}", argument="epochs")

    def resolved(self) -> dict[str, Any]:
        """Resolve the attack, the second attack, the grid and the ways to another checkpoint."""
        settings_of = {self.attack: self.at_epochs or self.settings, self.versus: self.rival}
        attacks = {name: settings.model_dump() for name, settings in settings_of.items() if settings is not None}
        # Newer options enter only when used, so that stages of older recipes keep their names.
        more: dict[str, Any] = {} if self.versus is None else {"versus": self.versus}
        more |= {"align": True} if self.align else {}
        more |= {} if self.curve is None else {"curve": {"kind": self.curve, "updates": self.curve_updates}}
        return {"attacks": attacks, "grid": self.grid.model_dump(), **more}

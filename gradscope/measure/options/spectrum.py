"""The options of ``gradscope spectrum``."""

from typing import Any, Literal, Self

from pydantic import model_validator

from gradscope.config import PGD, PGD_ATTACKS, attack_settings
from gradscope.errors import GradscopeError, known_names, lookup
from gradscope.measure.options.common import GradientAttack, pgd_option
from gradscope.options import ATTACK, IMAGES, RUNNING, Names, option
from gradscope.results.metrics import CURVATURE_MATRICES

#: Default number of images: in weight space the loss is their mean; in input space each has its own matrix.
_AVERAGED, _SINGLE = 256, 64


class SpectrumOptions(GradientAttack):
    """``gradscope spectrum``, :func:`gradscope.spectrum`: curvature of the loss in the weights or in the image."""

    command, kind, suffix = "spectrum", "spectrum", "-spectrum"
    summary = "Measure the loss's curvature: eigenvalues, trace and spectral density, in the weights or in the image."
    measurement = "gradscope.measure.spectrum:SpectrumMeasurement"

    space: Literal["weights", "input"] = option(
        "weights",
        "variable of the derivatives: the weights (of the mean loss), or the image (of each image's own loss)",
    )
    matrix: Names = option(
        ("hessian",),
        f"matrices, separated by commas, from {', '.join(CURVATURE_MATRICES)}",
        metavar="NAME,...",
        names="gradscope.results.metrics:CURVATURE_MATRICES",
    )
    layers: bool = option(
        False, "weights: also measure the spectrum of each layer's block; the trace by layer is always measured"
    )
    eigenvalues: int = option(10, "number of eigenvalues, the largest in absolute value", ge=1, le=1000)
    probes: int = option(5, "number of random vectors over which trace and density are averaged", ge=2, le=10_000)
    iterations: int = option(
        30, "matrix products per random vector, and the most that the eigenvalues may take", ge=1, le=10_000
    )
    images: int | None = option(
        None,
        "number of test images. weights: the loss is their mean; input: each has its own matrix",
        IMAGES,
        usual=f"{_AVERAGED} in weight space, {_SINGLE} in input space, or all if there are fewer",
        ge=1,
    )
    adversarial: bool = option(
        False, "take the loss of adversarial examples that --attack makes from the images", ATTACK
    )
    attack: str = pgd_option()
    batch_size: int | None = option(
        None, "number of images whose second derivatives are in memory at once", RUNNING, usual="64", ge=1, le=1_000_000
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # depends on the space
        """The number of images in the mean, or of matrices."""
        return _AVERAGED if self.space == "weights" else _SINGLE

    @property
    def matrices(self) -> list[str]:
        """The requested matrices."""
        return known_names(self.matrix, CURVATURE_MATRICES, "matrix")

    @property
    def settings(self) -> PGD | None:
        """The attack's settings; None for clean images."""
        lookup(PGD_ATTACKS, self.attack, "attack")
        return attack_settings(self.attack, self.changes()) if self.adversarial else None

    @property
    def attacked_with(self) -> str:
        """The attack's name; "none" for clean images."""
        return self.attack if self.adversarial else "none"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.space == "input" and self.layers:
            raise GradscopeError("layers must be left out in input space, got True", argument="layers")
        if not self.adversarial:
            usual = {name: type(self).model_fields[name].default for name in ("norm", "attack")}
            given = [name for name, value in usual.items() if getattr(self, name) != value]
            for name in [*given, *(name for name in self.changes() if name != "norm")]:
                raise GradscopeError(f"{name} must be left out without `adversarial`", argument=name)
        self.resolved()
        return self

    def resolved(self) -> dict[str, Any]:
        """Resolve the matrices and the attack."""
        settings = self.settings
        attacks = {} if settings is None else {self.attack: settings.model_dump()}
        return {"attacks": attacks, "matrix": self.matrices}

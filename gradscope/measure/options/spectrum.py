"""The options of ``gradscope spectrum``."""

from typing import Any, Literal, Self

from pydantic import model_validator

from gradscope.config import PGD, PGD_ATTACKS, attack_settings
from gradscope.errors import GradscopeError, known_names, lookup
from gradscope.measure.options.common import GradientAttack, pgd_option
from gradscope.options import ATTACK, IMAGES, RUNNING, Names, option
from gradscope.results.metrics import CURVATURE_MATRICES

#: Images where none are asked for: the mean of the loss over all, or a matrix for each.
_AVERAGED, _SINGLE = 256, 64


class SpectrumOptions(GradientAttack):
    """``gradscope spectrum``, :func:`gradscope.spectrum`: of the loss's curvature in the weights or in the image."""

    command, kind, suffix = "spectrum", "spectrum", "-spectrum"
    summary = "Measure the loss's curvature: eigenvalues, trace and spectral density, in the weights or in the image."
    measurement = "gradscope.measure.spectrum:SpectrumMeasurement"

    space: Literal["weights", "input"] = option(
        "weights", "derivatives of the mean loss in the weights, or of each image's own loss in the image"
    )
    matrix: Names = option(
        ("hessian",),
        f"matrices with commas between, of {', '.join(CURVATURE_MATRICES)}",
        metavar="NAME,...",
        names="gradscope.results.metrics:CURVATURE_MATRICES",
    )
    layers: bool = option(
        False, "weights: also the spectrum of each layer's own block; the trace by layer is measured in any case"
    )
    eigenvalues: int = option(10, "eigenvalues of largest size, of either sign", ge=1, le=1000)
    probes: int = option(5, "random vectors, over which trace and density are averaged", ge=2, le=10_000)
    iterations: int = option(
        30, "products with the matrix for each random vector, and at most for the eigenvalues", ge=1, le=10_000
    )
    images: int | None = option(
        None,
        "test images. weights: the loss is their mean; input: a matrix for each",
        IMAGES,
        usual=f"{_AVERAGED} in weight space, {_SINGLE} in input space, or all if there are fewer",
        ge=1,
    )
    adversarial: bool = option(False, "take the loss of adversarial examples of the images, made by --attack", ATTACK)
    attack: str = pgd_option()
    batch_size: int | None = option(
        None, "images whose graph of second derivatives is in memory at once", RUNNING, usual="64", ge=1, le=1_000_000
    )

    @property
    def default_images(self) -> int:  # type: ignore[override]  # of the space
        """Images of the mean, or matrices."""
        return _AVERAGED if self.space == "weights" else _SINGLE

    @property
    def matrices(self) -> list[str]:
        """The matrices asked for."""
        return known_names(self.matrix, CURVATURE_MATRICES, "matrix")

    @property
    def settings(self) -> PGD | None:
        """The attack's settings; None where the images are clean."""
        lookup(PGD_ATTACKS, self.attack, "attack")
        return attack_settings(self.attack, self.changes()) if self.adversarial else None

    @property
    def attacked_with(self) -> str:
        """The attack's name; "none" where the images are clean."""
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
        """The matrices and the attack."""
        settings = self.settings
        attacks = {} if settings is None else {self.attack: settings.model_dump()}
        return {"attacks": attacks, "matrix": self.matrices}

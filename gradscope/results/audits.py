"""The files an audit writes beside its tables: ``audit.json`` as typed entries, and the images of ``evidence.npz``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradscope.errors import GradscopeError
from gradscope.results.arrays import read_arrays
from gradscope.results.manifest import first_mistake
from gradscope.results.schemas import AUDIT_JSON, EXAMPLE_IMAGES, FIRES_BELOW

Share = Annotated[float, Field(ge=0, le=1)]
ExampleImages = Mapping[str, NDArray[Any]]

#: The arrays of EXAMPLE_IMAGES, K rows each.
EXAMPLE_ARRAYS: dict[str, str] = {
    "clean": "the image, (K, C, H, W) in [0, 1], C is 1 or 3",
    "adversarial": "the adversarial image that an attack made from it, same shape and range",
    "index": "index of the image in the test set",
    "label": "its class",
    "clean_predicted": "class predicted for the image",
    "adversarial_predicted": "class predicted for the adversarial image; equals the label if the attack failed",
    "label_name": "name of the class label",
    "clean_predicted_name": "name of the class clean_predicted",
    "adversarial_predicted_name": "name of the class adversarial_predicted",
    "attack": "which attack made the adversarial image",
    "check": "the check that this image is evidence for, such as N3; empty if it is only an example",
    "checkpoint": "short name of the checkpoint",
}


#: The verdict when no check accuses, and the warning that every page and caption prints with it.
NONE_FOUND = "none found within this budget"
NO_PROOF = "this is no proof of robustness: another attack, or more of the same, may still get through"


class _Entry(BaseModel):
    """A part of the document. Unknown keys are ignored, so that later versions may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Accuracy(_Entry):
    """A share of all images, with its 95 % Wilson interval."""

    value: Share
    ci_low: Share
    ci_high: Share


class Bound(_Entry):
    """The lowest robust accuracy that any attack reached, over ``n`` images."""

    upper_bound: Share
    ci_low: Share
    ci_high: Share
    n: Annotated[int, Field(gt=0)]


class JudgedClaim(_Entry):
    """A claimed robust accuracy, and the verdict on it from the lowest robust accuracy that was reached."""

    value: Share
    verdict: Literal["refuted", "not refuted within this budget", "inconclusive"]


class AuditedBall(_Entry):
    """The threat model: the norm ball around an image that an attack may search; pixel units."""

    norm: str
    epsilon: float


class MadeCheck(_Entry):
    """One check, as in the table AUDIT; an undefined number is None."""

    id: str
    name: str
    state: Literal["fired", "passed", "abstained"]
    accuses: bool
    value: float | None
    threshold: float | None
    p_value: float | None = None
    cause: str
    next_step: str

    @property
    def sign(self) -> str:
        """The side of its threshold on which the check fires: ``<`` or ``>``."""
        return "<" if self.id in FIRES_BELOW else ">"


class AuditOf(_Entry):
    """The audit of one checkpoint.

    ``under`` maps each attack to the share of all images that are right under it alone; ``left_out`` maps each attack
    that did not run to the reason. ``claim`` is None if no claim was given. ``median_distance`` is the radius at which
    half of all images are wrong, pixel units; None if not measured.
    """

    checkpoint: str
    verdict: Literal["masking found", "none found within this budget", "inconclusive", "set-up invalid"]
    causes: tuple[str, ...]
    reason: str
    robust_accuracy: Bound
    median_distance: Annotated[float, Field(ge=0)] | None = None
    clean_accuracy: Accuracy
    under: dict[str, Share]
    threat: AuditedBall
    budget: str
    left_out: dict[str, str]
    checks: tuple[MadeCheck, ...]
    claim: JudgedClaim | None = None

    @property
    def blocks(self) -> bool:
        """Whether a CI gate must fail: masking was found, or the set-up is invalid, so that no other result counts."""
        return self.verdict in ("masking found", "set-up invalid")

    @property
    def undecided(self) -> bool:
        """Whether the audit or the verdict on its claim is inconclusive."""
        return self.verdict == "inconclusive" or (self.claim is not None and self.claim.verdict == "inconclusive")

    @property
    def refuted(self) -> bool:
        """Whether a robust accuracy was claimed and the audit refutes it."""
        return self.claim is not None and self.claim.verdict == "refuted"

    @property
    def of_claim(self) -> str:
        """The claim and the audit's verdict on it, in a sentence; empty if no claim was given."""
        if self.claim is None:
            return ""
        bound = self.robust_accuracy
        interval = f"[{100 * bound.ci_low:.1f}, {100 * bound.ci_high:.1f}]"
        at_most = f"at most {100 * bound.upper_bound:.1f} % {interval} of {bound.n} images stay right"
        why = f"the set-up is invalid: {self.reason}" if self.claim.verdict == "inconclusive" else at_most
        return f"claim of {100 * self.claim.value:.4g} % {self.claim.verdict}: {why}"

    @property
    def verdict_and_cause(self) -> str:
        """The verdict and, after a colon, the likeliest cause if there is one."""
        return f"{self.verdict}: {self.causes[0]}" if self.causes else self.verdict

    @property
    def ball(self) -> str:
        """The threat model in words."""
        return f"{self.threat.norm}, epsilon {self.threat.epsilon:.4g}"


class Audits(_Entry):
    """``audit.json``: one entry per checkpoint."""

    version: Annotated[Literal[1], Field(alias="schema")]
    audits: tuple[AuditOf, ...]

    @classmethod
    def parse(cls, document: object) -> Self:
        """Validate the parsed JSON of ``audit.json``; raises :class:`GradscopeError` that names the first mistake."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise GradscopeError(
                f"directory: {AUDIT_JSON} is damaged or of another version: {first_mistake(error)}"
            ) from None


def balls(audits: Sequence[AuditOf]) -> str:
    """Name the threat models of ``audits`` in words."""
    return " and ".join(dict.fromkeys(audit.ball for audit in audits))


def images(audits: Sequence[AuditOf]) -> str:
    """Say how many images each of ``audits`` measured."""
    counts = sorted({audit.robust_accuracy.n for audit in audits})
    return f"n = {counts[0]} images" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} images"


def warnings(audits: Sequence[AuditOf]) -> list[str]:
    """Return the warnings that a caption must print with the verdicts of ``audits``, each a part of a sentence."""
    return [f"{NONE_FOUND}: {NO_PROOF}"] if any(audit.verdict == NONE_FOUND for audit in audits) else []


def read_example_images(path: Path) -> ExampleImages:
    """Read all arrays of EXAMPLE_ARRAYS from ``path``; raises :class:`GradscopeError` if the file is damaged."""
    try:
        arrays = {name: array for name, array in read_arrays(path).items() if name in EXAMPLE_ARRAYS}
    except OSError as error:
        raise GradscopeError(f"directory: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise GradscopeError(f"directory: {path} is not an {EXAMPLE_IMAGES}: {error}") from None
    missing = [name for name in EXAMPLE_ARRAYS if name not in arrays]
    if missing:
        raise GradscopeError(f"directory: {path} lacks {', '.join(missing)} of an {EXAMPLE_IMAGES}")
    _require_consistent(path, arrays)
    return arrays


def _require_consistent(path: Path, arrays: ExampleImages) -> None:
    """Check that all arrays have the same number of rows and the right kinds, and images 1 or 3 channels."""
    rows = {len(values) if values.ndim else -1 for values in arrays.values()}
    if len(rows) > 1 or -1 in rows:
        raise GradscopeError(f"directory: the arrays of {path} must have the same number of rows")
    if rows == {0}:
        return
    clean, adversarial = arrays["clean"], arrays["adversarial"]
    if clean.shape != adversarial.shape or clean.ndim != 4 or clean.shape[1] not in (1, 3):
        shapes = f"{clean.shape} and {adversarial.shape}"
        raise GradscopeError(f"directory: the images of {path} must be (K, C, H, W) with C 1 or 3, got {shapes}")
    kinds = {"index": "iu", "label": "iu", "clean_predicted": "iu", "adversarial_predicted": "iu"}
    for name, allowed in {**kinds, "clean": "f", "adversarial": "f"}.items():
        if arrays[name].dtype.kind not in allowed:
            needed = "floating-point numbers" if allowed == "f" else "integers"
            raise GradscopeError(f"directory: {name} of {path} must hold {needed}, got {arrays[name].dtype}")

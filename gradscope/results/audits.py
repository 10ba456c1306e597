"""What an audit leaves beside its tables: ``audit.json`` as typed entries, and the pictures of ``evidence.npz``."""

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
    "adversarial": "what an attack made of it, alike",
    "index": "index of the image in the test set",
    "label": "its class",
    "clean_predicted": "class predicted for the image",
    "adversarial_predicted": "class predicted for the adversarial image: the label where the model stands",
    "label_name": "name of the class label",
    "clean_predicted_name": "name of the class clean_predicted",
    "adversarial_predicted_name": "name of the class adversarial_predicted",
    "attack": "which attack made the adversarial image",
    "check": "the check whose evidence it is, such as N3; empty for a mere example",
    "checkpoint": "short name of the checkpoint",
}


#: What this verdict is not, wherever it stands.
NONE_FOUND = "none found within this budget"
NO_PROOF = "this is no proof of robustness: another attack, or more of the same, may still get through"


class _Entry(BaseModel):
    """A part of the document; keys that it does not know are left for later versions."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Accuracy(_Entry):
    """A share of all images, with its 95 % Wilson interval."""

    value: Share
    ci_low: Share
    ci_high: Share


class Bound(_Entry):
    """The lowest robust accuracy that was reached, of ``n`` images."""

    upper_bound: Share
    ci_low: Share
    ci_high: Share
    n: Annotated[int, Field(gt=0)]


class JudgedClaim(_Entry):
    """A robust accuracy that was claimed, and what the lowest that was reached says of it."""

    value: Share
    verdict: Literal["refuted", "not refuted within this budget", "inconclusive"]


class AuditedBall(_Entry):
    """What an attack may do to an image; pixel units."""

    norm: str
    epsilon: float


class MadeCheck(_Entry):
    """One check, as the table AUDIT has it; None where a number is undefined."""

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
        """On which side of its threshold the check fires."""
        return "<" if self.id in FIRES_BELOW else ">"


class AuditOf(_Entry):
    """The audit of one checkpoint. ``under`` each attack alone: share of all images; ``left_out``: attack to reason.

    ``claim`` is None where none was given.
    ``median_distance``: the radius that half of all images do not survive, pixel units; None where not measured.
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
        """Whether a gate must stay shut: masking was found, or the set-up is such that nothing else counts."""
        return self.verdict in ("masking found", "set-up invalid")

    @property
    def undecided(self) -> bool:
        """Whether the audit, or its claim, could not be decided."""
        return self.verdict == "inconclusive" or (self.claim is not None and self.claim.verdict == "inconclusive")

    @property
    def refuted(self) -> bool:
        """Whether a robust accuracy was claimed that is refuted."""
        return self.claim is not None and self.claim.verdict == "refuted"

    @property
    def of_claim(self) -> str:
        """The claim and what the audit says of it, in a sentence; empty where none was given."""
        if self.claim is None:
            return ""
        bound = self.robust_accuracy
        interval = f"[{100 * bound.ci_low:.1f}, {100 * bound.ci_high:.1f}]"
        stand = f"at most {100 * bound.upper_bound:.1f} % {interval} of {bound.n} images stand"
        why = f"the set-up is invalid: {self.reason}" if self.claim.verdict == "inconclusive" else stand
        return f"claim of {100 * self.claim.value:.4g} % {self.claim.verdict}: {why}"

    @property
    def verdict_and_cause(self) -> str:
        """The verdict and, after a colon, the likeliest cause where there is one."""
        return f"{self.verdict}: {self.causes[0]}" if self.causes else self.verdict

    @property
    def ball(self) -> str:
        """The threat model in words."""
        return f"{self.threat.norm}, epsilon {self.threat.epsilon:.4g}"


class Audits(_Entry):
    """``audit.json``: one entry a checkpoint."""

    version: Annotated[Literal[1], Field(alias="schema")]
    audits: tuple[AuditOf, ...]

    @classmethod
    def parse(cls, document: object) -> Self:
        """The parsed JSON, checked; its first mistake is raised as a :class:`GradscopeError`."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise GradscopeError(
                f"directory: {AUDIT_JSON} is damaged or of another version: {first_mistake(error)}"
            ) from None


def balls(audits: Sequence[AuditOf]) -> str:
    """The threat models of ``audits`` in words."""
    return " and ".join(dict.fromkeys(one.ball for one in audits))


def images(audits: Sequence[AuditOf]) -> str:
    """On how many images each of them rests."""
    counts = sorted({one.robust_accuracy.n for one in audits})
    return f"n = {counts[0]} images" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} images"


def warnings(audits: Sequence[AuditOf]) -> list[str]:
    """What a caption has to say of the verdicts of ``audits``, a sentence part each."""
    return [f"{NONE_FOUND}: {NO_PROOF}"] if any(one.verdict == NONE_FOUND for one in audits) else []


def read_example_images(path: Path) -> ExampleImages:
    """The arrays of ``path``, all of EXAMPLE_ARRAYS; :class:`GradscopeError` where it is damaged."""
    try:
        found = {name: array for name, array in read_arrays(path).items() if name in EXAMPLE_ARRAYS}
    except OSError as error:
        raise GradscopeError(f"directory: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise GradscopeError(f"directory: {path} is not an {EXAMPLE_IMAGES}: {error}") from None
    missing = [name for name in EXAMPLE_ARRAYS if name not in found]
    if missing:
        raise GradscopeError(f"directory: {path} lacks {', '.join(missing)} of an {EXAMPLE_IMAGES}")
    _require_alike(path, found)
    return found


def _require_alike(path: Path, found: ExampleImages) -> None:
    """As many rows in every array, numbers where they belong; images of one or three channels, alike in shape."""
    rows = {len(values) if values.ndim else -1 for values in found.values()}
    if len(rows) > 1 or -1 in rows:
        raise GradscopeError(f"directory: {path} is not an {EXAMPLE_IMAGES}: its arrays differ in their number of rows")
    if rows == {0}:
        return
    clean, adversarial = found["clean"], found["adversarial"]
    if clean.shape != adversarial.shape or clean.ndim != 4 or clean.shape[1] not in (1, 3):
        shapes = f"{clean.shape} and {adversarial.shape}"
        raise GradscopeError(f"directory: {path}: images (K, C, H, W) of 1 or 3 channels are allowed, got {shapes}")
    kinds = {"index": "iu", "label": "iu", "clean_predicted": "iu", "adversarial_predicted": "iu"}
    for name, allowed in {**kinds, "clean": "f", "adversarial": "f"}.items():
        if found[name].dtype.kind not in allowed:
            raise GradscopeError(f"directory: {path}: {name} holds {found[name].dtype}, another kind is needed")

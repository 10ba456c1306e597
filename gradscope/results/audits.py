"""The files an audit writes beside its tables: ``audit.json`` as typed entries, and the images of ``evidence.npz``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

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


def _field(text: str, default: Any = ...) -> Any:
    """Declare a key of ``audit.json`` with its meaning, and its value if an older file lacks it."""
    return Field(default, description=text)


class Accuracy(_Entry):
    """A share of all images, with its 95 % Wilson interval."""

    value: Share = _field("share of all images")
    ci_low: Share = _field("lower end of its 95 % Wilson interval")
    ci_high: Share = _field("upper end of its 95 % Wilson interval")


class Bound(_Entry):
    """The lowest robust accuracy that any attack reached, over ``n`` images."""

    upper_bound: Share = _field("share of all images right when clean and under every attack: the truth is not higher")
    ci_low: Share = _field("lower end of its 95 % Wilson interval")
    ci_high: Share = _field("upper end of its 95 % Wilson interval")
    n: Annotated[int, Field(gt=0)] = _field("number of images")


class JudgedClaim(_Entry):
    """A claimed robust accuracy, and the verdict on it from the lowest robust accuracy that was reached."""

    value: Share = _field("robust accuracy that was claimed")
    verdict: Literal["refuted", "not refuted within this budget", "inconclusive"] = _field(
        "verdict on the claim from the bound"
    )


class AuditedBall(_Entry):
    """The threat model: the norm ball around an image that an attack may search; pixel units."""

    norm: str = _field("norm of the ball: linf or l2")
    epsilon: float = _field("its radius, pixel units of images in [0, 1]")
    box: bool = _field("whether adversarial images stay in [0, 1]", True)


class MadeCheck(_Entry):
    """One check, as in the table AUDIT; an undefined number is None."""

    id: str = _field("short name of the check: D1 to G1")
    name: str = _field("its name in words")
    state: Literal["fired", "passed", "abstained"] = _field("fired, passed or abstained")
    accuses: bool = _field("whether it fired on an attack's outcome, which alone decides the verdict")
    value: float | None = _field("the value it measured; null if it abstained")
    threshold: float | None = _field("it fires above this value (G1: below)")
    ci_low: float | None = _field("lower end of its 95 % interval: Wilson for a share, Tango for a difference", None)
    ci_high: float | None = _field("upper end of that interval; both null if there is none", None)
    n: int | None = _field("images it used; null if their number has no meaning", None)
    p_value: float | None = _field("exact one-sided McNemar test, adjusted over all tests (Holm); null if none", None)
    images: tuple[int, ...] = _field("indices in the test set of the images that are its evidence", ())
    cause: str = _field("its finding or, if it abstained, the reason")
    next_step: str = _field("what to do next")

    @property
    def sign(self) -> str:
        """The side of its threshold on which the check fires: ``<`` or ``>``."""
        return "<" if self.id in FIRES_BELOW else ">"


class AuditOf(_Entry):
    """The audit of one checkpoint."""

    claim: JudgedClaim | None = _field("the claim that was judged; left out if none was given", None)
    checkpoint: str = _field("short name of the checkpoint or foreign model")
    mode: str = _field("training mode, or 'foreign' for a model trained elsewhere", "")
    dataset: str = _field("data set that was attacked", "")
    arch: str = _field("architecture", "")
    seed: int | None = _field("training seed; null for a foreign model", None)
    verdict: Literal["masking found", "none found within this budget", "inconclusive", "set-up invalid"] = _field(
        "the verdict from all checks"
    )
    causes: tuple[str, ...] = _field("the likeliest causes, the likeliest first")
    reason: str = _field("the reason for the verdict, in a sentence")
    robust_accuracy: Bound = _field("the lowest robust accuracy that any attack reached")
    median_distance: Annotated[float, Field(ge=0)] | None = _field(
        "the radius at which half of all images are wrong, pixel units; null if the budget does not include it",
        None,
    )
    clean_accuracy: Accuracy = _field("accuracy without an attack")
    under: dict[str, Share] = _field("attack to the share of all images right when clean and under it alone")
    threat: AuditedBall = _field("the threat model of the attacks")
    budget: str = _field("quick, standard or full")
    left_out: dict[str, str] = _field("attack to the reason why it did not run")
    checks: tuple[MadeCheck, ...] = _field("every check, in order")
    backward: dict[str, str] = _field("part of the model to the stand-in that gave its gradient", {})
    draws: int | None = _field("number of passes whose mean was attacked and judged; null for single passes", None)
    loss: str | None = _field("the user's own loss that pgd-own maximised; null if there is none", None)

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
    """The findings of `gradscope audit`: audit.json, with one entry for each model.

    The version increases if a key changes its meaning or is removed; new keys do not change it.
    """

    version: Literal[1] = Field(alias="schema", description="version of this schema")
    audits: tuple[AuditOf, ...] = _field("one entry for each model")

    @classmethod
    def parse(cls, document: object) -> Self:
        """Validate the parsed JSON of ``audit.json``; raises :class:`GradscopeError` that names the first mistake."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise GradscopeError(
                f"directory: {AUDIT_JSON} is damaged or of another version: {first_mistake(error)}"
            ) from None


class _Untitled(GenerateJsonSchema):
    """A generator of the schema without titles, which would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of ``audit.json`` from the types that read it."""
    head = {"$schema": _Untitled.schema_dialect, "$id": f"urn:gradscope:{AUDIT_JSON}:schema:1", "title": AUDIT_JSON}
    return head | Audits.model_json_schema(schema_generator=_Untitled) | {"title": AUDIT_JSON}


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

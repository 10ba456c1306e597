"""The verdict of an audit: is the model robust, or is the attack blind?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import budget_of
from gradscope.auditing.checks import check
from gradscope.auditing.checks.base import Cause, Check
from gradscope.auditing.checks.gradients import (
    NEXT_STEPS,
    UNSEEN_SHARE,
    blind_with_floors,
    slopes_of,
    standin_is_zero,
    unseen,
)
from gradscope.auditing.checks.set_up import near_chance, predicts_one_class
from gradscope.auditing.checks.strength import ACROSS, step_length
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.gathering import gather
from gradscope.auditing.outputs import are_labels, depend_on_the_batch
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Work
from gradscope.errors import GradscopeError
from gradscope.losses import Loss
from gradscope.results.stats import Interval, wilson_interval

Row = dict[str, Any]
Verdict = Literal["masking found", "none found within this budget", "inconclusive", "set-up invalid"]
ClaimVerdict = Literal["refuted", "not refuted within this budget", "inconclusive"]

#: Version of ``audit.json``, whose entries are :meth:`Audit.to_json`. It rises when a key is removed or changes its
#: meaning; new keys do not raise it.
SCHEMA = 1
#: An audit ends in "none found" only if these checks ran: another loss, an attack by query, an unbounded ball.
ESSENTIAL = ("N3", "X1", "M2")


@dataclass(frozen=True)
class Audit:
    """Result of an audit: the verdict, its reasons, and the lowest robust accuracy found.

    ``causes``: what blinds the attack, the likeliest first; possible causes if no masking was found. ``left_out``:
    attacks that did not run, with the reason. ``standing`` ``(N,)``: images right when clean and under every attack.
    ``claim``: a claimed robust accuracy to test.
    """

    verdict: Verdict
    causes: tuple[Cause, ...]
    reason: str
    checks: tuple[Check, ...]
    left_out: Mapping[str, str]
    standing: Tensor
    evidence: Evidence
    budget: str
    claim: float | None = None

    @property
    def cause(self) -> Cause | None:
        """The likeliest cause; None if there is none."""
        return self.causes[0] if self.causes else None

    @property
    def upper_bound(self) -> float:
        """The lowest robust accuracy found, over all images; the true one is not higher, apart from sampling."""
        return float(self.standing.double().mean())

    @property
    def interval(self) -> Interval:
        """Wilson interval (95 %) of the upper bound."""
        return wilson_interval(int(self.standing.sum()), len(self.standing))

    @property
    def verdict_on_claim(self) -> ClaimVerdict:
        """Verdict on the claim: refuted if the upper bound's interval lies below it; inconclusive without a bound."""
        if self.verdict == "set-up invalid" and "probabilities" not in self.causes:
            return "inconclusive"
        refuted = self.claim is not None and self.interval.high < self.claim
        return "refuted" if refuted else "not refuted within this budget"

    @property
    def median_distance(self) -> float | None:
        """Radius within which half of all images are fooled, pixel units; None if the budget does not measure it."""
        distances = self.evidence.distances
        return distances.median if distances is not None and distances.found else None

    def rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``audit.csv``, one per check, labelled by ``identity``."""
        threat = self.evidence.threat
        whole = {"attack": "audit", "norm": threat.norm, "epsilon": threat.epsilon, "budget": self.budget}
        for result in self.checks:
            yield {**identity, **whole, "verdict": self.verdict, **result.row()}

    def to_json(self) -> dict[str, Any]:
        """Return an entry of ``audit.json``, in version :data:`SCHEMA`; NaN becomes null.

        Keys: ``claim`` with ``value`` and ``verdict``, if there is a claim; ``verdict``, ``causes`` and ``reason``;
        ``robust_accuracy`` with ``upper_bound``, ``ci_low``, ``ci_high`` and ``n``; ``median_distance``, null if the
        budget does not measure it; ``clean_accuracy``; ``under``, robust accuracy under each attack that ran on all
        images; ``threat`` with ``norm``, ``epsilon`` and ``box``; ``budget``; ``left_out``, attack to reason;
        ``checks`` in order, with ``id`` and the columns of ``audit.csv``, ``images`` as a list.
        """
        main, threat = self.evidence.main, self.evidence.threat
        clean = wilson_interval(int(main.right.sum()), len(main))
        claim = {"value": self.claim, "verdict": self.verdict_on_claim}
        return {
            **({} if self.claim is None else {"claim": claim}),
            "verdict": self.verdict,
            "causes": list(self.causes),
            "reason": self.reason,
            "robust_accuracy": {
                "upper_bound": self.upper_bound,
                "ci_low": self.interval.low,
                "ci_high": self.interval.high,
                "n": len(self.standing),
            },
            "median_distance": self.median_distance,
            "clean_accuracy": {"value": float(main.right.double().mean()), "ci_low": clean.low, "ci_high": clean.high},
            "under": {
                name: float(main.standing(name).double().mean()) for name in main.attacks if name not in main.cascade
            },
            "threat": {"norm": threat.norm, "epsilon": threat.epsilon, "box": threat.box},
            "budget": self.budget,
            "left_out": dict(self.left_out),
            "checks": [_plain(result) for result in self.checks],
        }


def _plain(result: Check) -> dict[str, Any]:
    row = {
        key: None if isinstance(value, float) and not isfinite(value) else value for key, value in result.row().items()
    }
    return {"id": row.pop("check"), **row, "accuses": bool(row["accuses"]), "images": list(result.images)}


def examine(
    model: nn.Module,
    image_set: ImageSet,
    numbers: Tensor | None,
    threat: ThreatModel,
    budget_name: str,
    *,
    surrogate_examples: Sequence[Tensor] = (),
    loss: Loss | None = None,
    work: Work = PLAIN,
) -> Audit:
    """Audit ``model`` on ``image_set``: attack it within the budget and tell gradient masking from robustness.

    ``numbers`` are the images' indices in the set they were taken from (0 .. N-1 if None). ``surrogate_examples`` are
    adversarial images ``(N, C, H, W)`` of the same images, made on other models in this threat model. ``loss`` is the
    user's own, for one more attack. The names of the units of ``work`` depend on stage, attack, seed and images, so an
    interrupted audit continues where it stopped. Raises :class:`GradscopeError` for an unknown budget, a radius of 0,
    and examples of another size.
    """
    if threat.epsilon <= 0:
        raise GradscopeError(f"epsilon must be above 0 in an audit, got {threat.epsilon:g}")
    budget = budget_of(budget_name, threat.norm, with_examples=bool(surrogate_examples), with_loss=loss is not None)
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    evidence = gather(
        model,
        image_set,
        numbers,
        threat,
        budget,
        examples=surrogate_examples,
        loss=loss,
        work=work,
    )
    left_out = {**budget.left_out, **evidence.main.skipped}
    if not surrogate_examples:
        left_out["transfer"] = left_out["pgd-from"] = "no examples of another model were given"
    checks = check(evidence)
    verdict, causes, reason = judge(evidence, checks)
    return Audit(verdict, causes, reason, tuple(checks), left_out, evidence.standing(), evidence, budget_name)


def judge(evidence: Evidence, checks: Sequence[Check]) -> tuple[Verdict, tuple[Cause, ...], str]:
    """Decide the verdict, its causes and its reason from the checks.

    Outcomes accuse; causes explain. A cause alone does not accuse: saturated cross-entropy, for example, occurs on
    honest models too and does not blind exact attacks. One exception: if no loss has a gradient, attacks along it have
    no outcome, so dead gradients accuse. An outcome without a known cause counts only if more steps do not explain it.
    """
    fired = {result.id: result for result in checks if result.fired}
    accusing = [identifier for identifier, result in fired.items() if result.accuses]
    seen = _causes(evidence, fired)
    undefined = float(evidence.main.undefined.double().mean())
    if undefined > 0.5:
        return "set-up invalid", (), f"the output is not finite on {100 * undefined:.0f} % of the images"
    if near_chance(evidence):
        return "set-up invalid", (), "clean accuracy is not above chance, so there is nothing to attack"
    if predicts_one_class(evidence):
        return "set-up invalid", (), "the model predicts one class for every image, attacked or not"
    if depend_on_the_batch(evidence.outputs):
        return "set-up invalid", (), "an image's output depends on the other images of its batch"
    if not len(evidence.places):
        return "inconclusive", (), "no image is classified correctly, so there is nothing to attack"
    explained = [identifier for identifier in accusing if set(fired[identifier].points_to) & set(seen)]
    if explained:
        return "masking found", seen, f"{', '.join(explained)} fired; cause: {seen[0]}"
    beyond = _beyond_effort(evidence, checks)
    if beyond:
        return "masking found", ("unexplained", *seen), f"{', '.join(beyond)} fired, and no check explains it"
    if evidence.probabilities:
        return "set-up invalid", seen, "outputs are probabilities, not logits; these attacks worked all the same"
    return _without_outcome(evidence, checks, fired, seen)


def _beyond_effort(evidence: Evidence, checks: Sequence[Check]) -> list[str]:
    """List accusing checks whose value is over twice the gain of doubled steps; none if steps cannot cross the ball."""
    by_id = {check.id: check for check in checks}
    if step_length(evidence) < ACROSS:
        return []
    gained = by_id["C1"].value if by_id["C1"].state != "abstained" else 0.0
    return [check.id for check in checks if check.fired and check.accuses and check.value > 2 * gained]


def _without_outcome(
    evidence: Evidence, checks: Sequence[Check], fired: Mapping[str, Check], seen: tuple[Cause, ...]
) -> tuple[Verdict, tuple[Cause, ...], str]:
    if not evidence.differentiable:
        stands = 100 * float(evidence.standing().double().mean())
        reason = (
            f"the model has no gradient, so only attacks by query ran; they leave a robust accuracy of {stands:.1f} %"
        )
        return "inconclusive", ("missing gradient",), reason
    if evidence.random:
        return (
            "inconclusive",
            ("randomness",),
            "the output is random, and attacking its mean fools no more images than attacking single draws; give draws",
        )
    if "N1" in fired and unseen(evidence) >= UNSEEN_SHARE and _more_than_a_guess(evidence):
        next_step = NEXT_STEPS[fired["N1"].points_to[0]]
        reason = f"N1 fired: no loss has a gradient on most images that no attack fooled; {next_step}"
        return "inconclusive", seen, reason
    weak = [result.id for result in fired.values() if "weak attack" in result.points_to]
    if weak and _more_than_a_guess(evidence):
        return "inconclusive", ("weak attack",), f"{', '.join(weak)} fired: the attack is too weak for a verdict"
    if bool(evidence.main.undefined.any()):
        return "inconclusive", seen, "the output is not finite on some images"
    missing = {result.id: result.cause for result in checks if result.id in ESSENTIAL and result.state == "abstained"}
    if missing:
        why = "; ".join(dict.fromkeys(missing.values()))
        return "inconclusive", (), f"{', '.join(missing)} could not run: {why}"
    return (
        "none found within this budget",
        (),
        f"no check found these attacks blind{_through(evidence)}{_aside(evidence, fired)}",
    )


def _more_than_a_guess(evidence: Evidence) -> bool:
    return float(evidence.standing().double().mean()) > 1 / evidence.classes


def _through(evidence: Evidence) -> str:
    """Describe how the attacks were adapted; empty if they were not."""
    taken = ["took the gradient from a stand-in"] if evidence.stands_in else []
    judged = [f"went through the mean of {evidence.draws} draws"] if evidence.draws else []
    return f"; they {' and '.join([*taken, *judged])}" if taken or judged else ""


def _aside(evidence: Evidence, fired: Mapping[str, Check]) -> str:
    """Add remarks if nothing accuses: a small overstatement, and causes that may blind other attacks."""
    remarks = []
    if "N3" in fired:
        over = 100 * (fired["N3"].left - fired["N3"].lowest)
        remarks.append(
            f"N3 fired: cross-entropy in float32 overstates robust accuracy by {over:.1f} points, too few to accuse"
        )
    dead = [identifier for identifier in ("N1", "N2") if identifier in fired]
    if dead:
        blind = blind_with_floors(evidence) or "other attacks, with norm floors or in float32, may be blind"
        remarks.append(f"{', '.join(dead)} fired: {blind}")
    return "".join(f"; {remark}" for remark in remarks)


def _causes(evidence: Evidence, fired: Mapping[str, Check]) -> tuple[Cause, ...]:
    """List possible causes of a blind attack, the surest first.

    The kind of output comes before the slopes, because it changes them (a saturated softmax moves in steps). The slopes
    come before saturation, because they can look like it. Gradients that turn at every step point to a shattered
    surface. A stand-in's slopes differ from the output's on purpose, so they count as a cause only if no other is
    known.
    """
    causes: list[Cause] = []
    kind = slopes_of(evidence)[1] if evidence.slopes is not None else None
    if evidence.probabilities:
        if are_labels(evidence.outputs):
            causes.append("missing gradient")
        causes.append("probabilities")
    if evidence.random:
        # Without a gradient, averaging does not help.
        causes += [kind] if kind and "N1" in fired and fired["N1"].accuses else []
        causes.append("randomness")
    if standin_is_zero(evidence):
        causes.append("stand-in")
    elif kind and not evidence.stands_in:
        bent_by_softmax = evidence.probabilities and kind in ("shattering", "bounded output", "clipped output")
        causes += [kind] if not bent_by_softmax and kind not in causes else []
    if not causes and fired.keys() & {"N1", "N2"}:
        causes += fired["N1"].points_to if "N1" in fired else ["saturation"]
    if not causes and "K1" in fired:
        causes += fired["K1"].points_to
    if not causes and fired.keys() & {"S1", "G1"}:
        causes.append("shattering")
    if evidence.stands_in and kind and not causes:
        causes.append("stand-in")
    return tuple(causes)

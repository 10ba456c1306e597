"""What the checks add up to: is it robust, or is the attack blind?"""

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

#: Version of ``audit.json``, whose entries are :meth:`Audit.to_json`. It rises when a key changes its meaning or goes;
#: new keys may come without.
SCHEMA = 1
#: Without these no audit ends in "none found": another loss, an attack by query, an unbounded ball.
ESSENTIAL = ("N3", "X1", "M2")


@dataclass(frozen=True)
class Audit:
    """A verdict, its reasons and the lowest robust accuracy that was reached.

    ``causes``: what blinds the attack, the likeliest first; of what was seen where nothing was found. ``left_out``:
    attacks that were not run, and why. ``standing`` ``(N,)``: right when clean and under everything. ``claim`` is a
    robust accuracy to be judged.
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
        """The likeliest."""
        return self.causes[0] if self.causes else None

    @property
    def upper_bound(self) -> float:
        """The lowest robust accuracy reached, over all images; the true one is not higher, to sampling."""
        return float(self.standing.double().mean())

    @property
    def interval(self) -> Interval:
        """Wilson interval of the upper bound."""
        return wilson_interval(int(self.standing.sum()), len(self.standing))

    @property
    def verdict_on_claim(self) -> ClaimVerdict:
        """Refuted where the interval of the upper bound lies below the claim; inconclusive where it bounds nothing."""
        if self.verdict == "set-up invalid" and "probabilities" not in self.causes:
            return "inconclusive"
        refuted = self.claim is not None and self.interval.high < self.claim
        return "refuted" if refuted else "not refuted within this budget"

    @property
    def median_distance(self) -> float | None:
        """The radius that half of all images do not survive, pixel units; None where the budget does not pay for it."""
        distances = self.evidence.distances
        return distances.median if distances is not None and distances.found else None

    def rows(self, identity: Row) -> Iterator[Row]:
        """Rows of ``audit.csv``, one a check; ``identity`` says whose."""
        threat = self.evidence.threat
        whole = {"attack": "audit", "norm": threat.norm, "epsilon": threat.epsilon, "budget": self.budget}
        for made in self.checks:
            yield {**identity, **whole, "verdict": self.verdict, **made.row()}

    def to_json(self) -> dict[str, Any]:
        """An entry of ``audit.json``, by version :data:`SCHEMA`, without NaN.

        ``claim`` with ``value`` and ``verdict``, where there is one; ``verdict``, ``causes`` and ``reason``;
        ``robust_accuracy`` with ``upper_bound``, ``ci_low``, ``ci_high`` and ``n``; ``median_distance``, null where the
        budget does not pay for it; ``clean_accuracy``; ``under`` each attack that was run on all images, alone;
        ``threat`` with ``norm``, ``epsilon`` and ``box``; ``budget``; ``left_out`` attack to reason; ``checks`` in
        order, with ``id`` and the columns of ``audit.csv``, ``images`` as a list.
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
            "checks": [_plain(made) for made in self.checks],
        }


def _plain(made: Check) -> dict[str, Any]:
    row = {
        key: None if isinstance(value, float) and not isfinite(value) else value for key, value in made.row().items()
    }
    return {"id": row.pop("check"), **row, "accuses": bool(row["accuses"]), "images": list(made.images)}


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
    """Attack ``model`` on ``image_set`` with what ``budget_name`` pays for, and tell masking from robustness.

    ``numbers`` are the images' indices in the set they were taken from, 0 .. N-1 where None. ``surrogate_examples``
    are adversarial images ``(N, C, H, W)`` of these made on other models, in this threat model;
    ``loss`` is the user's own, for one more attack. The names of the
    units of ``work`` change with stage, attack, seed and images: an audit that was interrupted goes on where it was.
    Raises :class:`GradscopeError` for a budget it does not know, a radius of 0, and examples of another size.
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
    """The verdict, the causes and why.

    Outcomes accuse, causes explain: saturated cross-entropy, say, is found on honest models too, where exact attacks
    are not blinded by it; where no loss has a gradient there is none, and dead gradients accuse. An outcome that no
    cause explains counts where more steps do not explain it either.
    """
    fired = {made.id: made for made in checks if made.fired}
    accusing = [identifier for identifier, made in fired.items() if made.accuses]
    seen = _causes(evidence, fired)
    undefined = float(evidence.main.undefined.double().mean())
    if undefined > 0.5:
        return "set-up invalid", (), f"the output is not finite on {100 * undefined:.0f} % of the images"
    if near_chance(evidence):
        return "set-up invalid", (), "clean accuracy is not above chance: there is nothing to attack"
    if predicts_one_class(evidence):
        return "set-up invalid", (), "one class is predicted for every image, attacked or not"
    if depend_on_the_batch(evidence.outputs):
        return "set-up invalid", (), "an image's output depends on the other images of its batch"
    if not len(evidence.places):
        return "inconclusive", (), "no image is right: there is nothing to attack"
    explained = [identifier for identifier in accusing if set(fired[identifier].points_to) & set(seen)]
    if explained:
        return "masking found", seen, f"{', '.join(explained)} fired; cause: {seen[0]}"
    beyond = _beyond_effort(evidence, checks)
    if beyond:
        return "masking found", ("unexplained", *seen), f"{', '.join(beyond)} fired, and no check says why"
    if evidence.probabilities:
        return "set-up invalid", seen, "outputs are probabilities in place of logits; the attacks here got through"
    return _without_outcome(evidence, checks, fired, seen)


def _beyond_effort(evidence: Evidence, checks: Sequence[Check]) -> list[str]:
    """The checks that accuse of over twice what twice the steps took away; none where steps cannot cross a ball."""
    made = {one.id: one for one in checks}
    if step_length(evidence) < ACROSS:
        return []
    gained = made["C1"].value if made["C1"].state != "abstained" else 0.0
    return [one.id for one in checks if one.fired and one.accuses and one.value > 2 * gained]


def _without_outcome(
    evidence: Evidence, checks: Sequence[Check], fired: Mapping[str, Check], seen: tuple[Cause, ...]
) -> tuple[Verdict, tuple[Cause, ...], str]:
    if not evidence.differentiable:
        stands = 100 * float(evidence.standing().double().mean())
        reason = f"the model has no gradient: only attacks by query were run, and {stands:.1f} % stand"
        return "inconclusive", ("missing gradient",), reason
    if evidence.random:
        return (
            "inconclusive",
            ("randomness",),
            "the output is random, and its mean falls no sooner than single draws; give draws to judge it",
        )
    if "N1" in fired and unseen(evidence) >= UNSEEN_SHARE and _more_than_a_guess(evidence):
        reason = f"N1 fired: no loss has a gradient on most of what stands; {NEXT_STEPS[fired['N1'].points_to[0]]}"
        return "inconclusive", seen, reason
    weak = [made.id for made in fired.values() if "weak attack" in made.points_to]
    if weak and _more_than_a_guess(evidence):
        return "inconclusive", ("weak attack",), f"{', '.join(weak)} fired: the attack is too weak to tell"
    if bool(evidence.main.undefined.any()):
        return "inconclusive", seen, "the output is not finite on some images"
    missing = {made.id: made.cause for made in checks if made.id in ESSENTIAL and made.state == "abstained"}
    if missing:
        why = "; ".join(dict.fromkeys(missing.values()))
        return "inconclusive", (), f"{', '.join(missing)} could not be made: {why}"
    return (
        "none found within this budget",
        (),
        f"no outcome speaks against these attacks{_through(evidence)}{_aside(evidence, fired)}",
    )


def _more_than_a_guess(evidence: Evidence) -> bool:
    return float(evidence.standing().double().mean()) > 1 / evidence.classes


def _through(evidence: Evidence) -> str:
    """How the attacks were adapted, where they were."""
    taken = ["took the gradient from a stand-in"] if evidence.stands_in else []
    judged = [f"went through the mean of {evidence.draws} draws"] if evidence.draws else []
    return f", which {' and '.join([*taken, *judged])}" if taken or judged else ""


def _aside(evidence: Evidence, fired: Mapping[str, Check]) -> str:
    """What else is worth a line where nothing accuses: what overstates a little, and what may blind others."""
    said = []
    if "N3" in fired:
        over = 100 * (fired["N3"].left - fired["N3"].lowest)
        said.append(f"N3 fired: cross-entropy in float32 overstates by {over:.1f} points, which nobody would claim")
    dead = [identifier for identifier in ("N1", "N2") if identifier in fired]
    if dead:
        blind = blind_with_floors(evidence) or "others, with floors or in float32, may be blind"
        said.append(f"{', '.join(dead)} fired: {blind}")
    return "".join(f"; {sentence}" for sentence in said)


def _causes(evidence: Evidence, fired: Mapping[str, Check]) -> tuple[Cause, ...]:
    """What could blind the attack, the surest first.

    The kind of output comes before its slopes, which it bends (a saturated softmax moves in steps); slopes before
    saturation, which they imitate. Gradients that turn at every step are those of a surface in ripples. The slopes of a
    stand-in differ from the output's, as they are meant to: they are its fault only where nothing else is known.
    """
    found: list[Cause] = []
    kind = slopes_of(evidence)[1] if evidence.slopes is not None else None
    if evidence.probabilities:
        if are_labels(evidence.outputs):
            found.append("missing gradient")
        found.append("probabilities")
    if evidence.random:
        # Without a gradient there is nothing to average.
        found += [kind] if kind and "N1" in fired and fired["N1"].accuses else []
        found.append("randomness")
    if standin_is_zero(evidence):
        found.append("stand-in")
    elif kind and not evidence.stands_in:
        bent_by_softmax = evidence.probabilities and kind in ("shattering", "bounded output", "clipped output")
        found += [kind] if not bent_by_softmax and kind not in found else []
    if not found and fired.keys() & {"N1", "N2"}:
        found += fired["N1"].points_to if "N1" in fired else ["saturation"]
    if not found and "K1" in fired:
        found += fired["K1"].points_to
    if not found and fired.keys() & {"S1", "G1"}:
        found.append("shattering")
    if evidence.stands_in and kind and not found:
        found.append("stand-in")
    return tuple(found)

"""The checks by name, in the order of a report."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gradscope.auditing.checks import gradients, outcomes, scale, set_up, strength
from gradscope.auditing.checks.base import Check, adjusted, would_be_claimed
from gradscope.auditing.evidence import Evidence

#: A check may ask several questions, a test each; the one that speaks loudest is reported.
CHECKS: dict[str, Callable[[Evidence], Check | list[Check]]] = {
    "D1": set_up.set_up,
    "N1": gradients.dead_gradients,
    "N2": gradients.rounding,
    "N3": outcomes.loss,
    "X1": outcomes.query,
    "X2": outcomes.transferred,
    "X3": outcomes.random_points,
    "X4": outcomes.decision,
    "M1": outcomes.radius,
    "M2": outcomes.unbounded,
    "M3": outcomes.one_step,
    "S1": outcomes.shattering,
    "C1": strength.budget,
    "C2": strength.convergence,
    "T1": strength.unit_test,
    "K1": scale.temperature,
    "G1": gradients.geometry,
}


#: What a check says that has passed; D1 says it itself.
PASSED = {
    "N1": "the cross-entropy and its gradients are alive",
    "N2": "gradients in float32 and in float64 point the same way",
    "N3": "no other loss or precision fools more than cross-entropy in float32 does",
    "X1": "Square fools nothing that the attacks along the gradient missed",
    "X2": "other models' examples fool nothing that the attacks along the gradient missed",
    "X3": "random points fool nothing that the attacks along the gradient missed",
    "X4": "attacks by label fool nothing that the attacks along the gradient missed",
    "M1": "more images fall in wider balls",
    "M2": "images fall in a ball that holds every image",
    "M3": "many steps fool more than one",
    "S1": "averaged gradients fool no more, and autograd's slopes are those of the output",
    "C1": "twice the steps change little",
    "C2": "the attack had settled",
    "T1": "PGD finds the adversarial points that are known to be there",
    "K1": "at no higher temperature of the logits does cross-entropy fool 10 points more",
    "G1": "consecutive gradients agree",
}
#: What they say instead where a stand-in gives the gradient, whose slopes need not be the output's.
PASSED_STANDING_IN = PASSED | {"S1": "averaged gradients fool no more; slopes are the stand-in's, and not looked at"}


def check(evidence: Evidence) -> list[Check]:
    """Every check of ``evidence``; p-values are adjusted for the number of tests in all of them (Holm).

    An outcome accuses where the attack that it blinds leaves what somebody would claim.
    """
    found = [made(evidence) for made in CHECKS.values()]
    asked = [one if isinstance(one, list) else [one] for one in found]
    tested = iter(adjusted([question for questions in asked for question in questions]))
    clean = float(evidence.main.right.double().mean())
    passed = PASSED_STANDING_IN if evidence.stands_in else PASSED
    return [_loudest([_said(next(tested), clean, passed) for _ in questions]) for questions in asked]


def _loudest(questions: list[Check]) -> Check:
    return max(questions, key=lambda check: (check.fired, check.fired and check.accuses, check.value - check.threshold))


def _said(made: Check, clean: float, passed: Mapping[str, str]) -> Check:
    """The check with what it says where it has passed, and where it fired on a difference too small to accuse."""
    if made.state == "passed" and made.id in passed:
        shown = "" if made.p_value is None else f" (p = {made.p_value:.2g})"
        small = f"{100 * made.value:.1f} points are not significant{shown}"
        return replace(made, cause=small if made.beyond else passed[made.id], next_step="nothing to do")
    if made.accuses and made.fired and not would_be_claimed(made.left, made.lowest, clean):
        left = f"the blinded attack leaves {100 * made.left:.1f} %, the lowest is {100 * made.lowest:.1f} %"
        return replace(made, accuses=False, cause=f"{made.cause}; {left}: nobody would claim the difference")
    return made

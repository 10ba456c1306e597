"""The checks of an audit by id, in the order of a report."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gradscope.auditing.checks import gradients, outcomes, scale, set_up, strength
from gradscope.auditing.checks.base import Check, adjusted, would_be_claimed
from gradscope.auditing.evidence import Evidence

#: Id to function. A check may run several tests; the one with the strongest result is reported.
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


#: Text of a check that passed; D1 makes its own.
PASSED = {
    "N1": "cross-entropy and its gradients do not vanish",
    "N2": "gradients in float32 and in float64 point the same way",
    "N3": "no other loss or precision fools more images than cross-entropy in float32",
    "X1": "Square fools no image that the gradient attacks missed",
    "X2": "other models' examples fool no image that the gradient attacks missed",
    "X3": "random points fool no image that the gradient attacks missed",
    "X4": "the attack by label fools no image that the gradient attacks missed",
    "M1": "a larger radius fools more images",
    "M2": "with an unbounded radius the attack fools the images",
    "M3": "many steps fool more images than one step",
    "S1": "averaged gradients fool no more images, and autograd's slopes are those of the output",
    "C1": "twice the steps change little",
    "C2": "the attack has converged",
    "T1": "PGD finds the adversarial points that are known to exist",
    "K1": "no higher temperature of the logits lets cross-entropy fool 10 points more",
    "G1": "consecutive gradients agree",
}
#: The same if a stand-in gives the gradient; its slopes may differ from the output's.
PASSED_STANDING_IN = PASSED | {
    "S1": "averaged gradients fool no more images; slopes are the stand-in's, so they are not tested"
}


def check(evidence: Evidence) -> list[Check]:
    """Run every check on ``evidence``; p-values are adjusted together for the number of tests (Holm).

    An outcome accuses only if the blinded attack leaves a robust accuracy that somebody would claim.
    """
    results = [run(evidence) for run in CHECKS.values()]
    tests_of = [result if isinstance(result, list) else [result] for result in results]
    tested = iter(adjusted([test for tests in tests_of for test in tests]))
    clean = float(evidence.main.right.double().mean())
    passed = PASSED_STANDING_IN if evidence.stands_in else PASSED
    return [_strongest([_with_final_text(next(tested), clean, passed) for _ in tests]) for tests in tests_of]


def _strongest(tests: list[Check]) -> Check:
    return max(tests, key=lambda check: (check.fired, check.fired and check.accuses, check.value - check.threshold))


def _with_final_text(check: Check, clean: float, passed: Mapping[str, str]) -> Check:
    """Set the text of a check that passed, and of one that fired on a difference too small to accuse."""
    if check.state == "passed" and check.id in passed:
        p_value = "" if check.p_value is None else f" (p = {check.p_value:.2g})"
        small = f"a difference of {100 * check.value:.1f} points is not significant{p_value}"
        return replace(check, cause=small if check.beyond else passed[check.id], next_step="nothing to do")
    if check.accuses and check.fired and not would_be_claimed(check.left, check.lowest, clean):
        left = f"the blinded attack leaves {100 * check.left:.1f} %, the lowest is {100 * check.lowest:.1f} %"
        return replace(check, accuses=False, cause=f"{check.cause}; {left}: too small a difference to accuse")
    return check

"""The checks by name, in the order of a report."""

from collections.abc import Callable

from gradscope.auditing.checks import causes, outcomes, scale
from gradscope.auditing.checks.base import Check, adjusted
from gradscope.auditing.evidence import Evidence

#: A check may ask several questions, a test each; the one that speaks loudest is reported.
CHECKS: dict[str, Callable[[Evidence], Check | list[Check]]] = {
    "D1": causes.set_up,
    "N1": causes.dead_gradients,
    "N2": causes.rounding,
    "N3": outcomes.loss,
    "X1": outcomes.query,
    "X2": outcomes.transferred,
    "X3": outcomes.random_points,
    "M1": outcomes.radius,
    "M2": outcomes.unbounded,
    "M3": outcomes.one_step,
    "S1": outcomes.shattering,
    "C1": causes.budget,
    "C2": causes.convergence,
    "K1": scale.temperature,
    "G1": causes.geometry,
}


def check(evidence: Evidence) -> list[Check]:
    """Every check of ``evidence``; p-values are adjusted for the number of tests in all of them (Holm)."""
    found = [made(evidence) for made in CHECKS.values()]
    asked = [one if isinstance(one, list) else [one] for one in found]
    tested = iter(adjusted([question for questions in asked for question in questions]))
    return [_loudest([next(tested) for _ in questions]) for questions in asked]


def _loudest(questions: list[Check]) -> Check:
    return max(questions, key=lambda check: (check.fired, check.value - check.threshold))

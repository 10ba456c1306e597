"""The checks by name, in the order of a report."""

from collections.abc import Callable

from gradscope.audit import causes, outcomes
from gradscope.audit.check import Check, adjusted
from gradscope.audit.evidence import Evidence

CHECKS: dict[str, Callable[[Evidence], Check]] = {
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
    "G1": causes.geometry,
}


def check(evidence: Evidence) -> list[Check]:
    """Every check of ``evidence``; p-values are adjusted for their number (Holm)."""
    return adjusted([made(evidence) for made in CHECKS.values()])

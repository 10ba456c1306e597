"""Results with a verdict: on a model, and on an attack."""

from collections.abc import Iterator

import pandas as pd

from gradscope.errors import GradscopeError
from gradscope.measure.result.base import Result
from gradscope.reading import parse_json
from gradscope.results.audits import AuditOf, Audits
from gradscope.results.schemas import ATTACK_SAMPLES, AUDIT_JSON, Table
from gradscope.results.stats import Interval


class AuditReport(Result):
    """Verdicts on gradient masking: ``audit`` (by check), ``attacks``, ``samples``, ``scale`` (by temperature)."""

    kind, main = "audit", "audit"

    @property
    def _samples(self) -> Table:
        return ATTACK_SAMPLES

    @property
    def audits(self) -> tuple[AuditOf, ...]:
        """The audits of all models."""
        if AUDIT_JSON not in self.files:
            raise GradscopeError(f"directory must hold {AUDIT_JSON}, got none")
        return Audits.parse(parse_json(self.files[AUDIT_JSON])).audits

    def _audit(self, name: str) -> AuditOf:
        self._require_one(name, ".audits")
        return self.audits[0]

    @property
    def verdict(self) -> str:
        """``masking found``, ``none found within this budget``, ``inconclusive`` or ``set-up invalid``."""
        return self._audit("verdict").verdict

    @property
    def reason(self) -> str:
        """The reason for the verdict, in a sentence."""
        return self._audit("reason").reason

    @property
    def causes(self) -> tuple[str, ...]:
        """The likeliest causes, the likeliest first."""
        return self._audit("causes").causes

    @property
    def upper_bound(self) -> float:
        """The lowest robust accuracy that any attack reached."""
        return self._audit("upper_bound").robust_accuracy.upper_bound

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of :attr:`upper_bound`."""
        bound = self._audit("interval").robust_accuracy
        return Interval(bound.ci_low, bound.ci_high)

    @property
    def verdict_on_claim(self) -> str | None:
        """``refuted``, ``not refuted within this budget`` or ``inconclusive``; None if no claim was given."""
        claim = self._audit("verdict_on_claim").claim
        return None if claim is None else claim.verdict

    def _findings(self) -> Iterator[str]:
        for audit in self.audits:
            if audit.claim is not None:
                yield f"{audit.checkpoint}: {audit.of_claim}"
            bound = audit.robust_accuracy.upper_bound
            yield f"{audit.checkpoint}: {audit.verdict_and_cause}, robust accuracy at most {bound:.1%}"


class JudgeReport(Result):
    """Verdicts on an attack: ``judge`` (the attack, gradscope's attacks, and the repairs)."""

    kind, main = "judge", "judge"

    def _of(self, name: str, role: str) -> pd.Series:
        self._require_one(name)
        rows = self.frame()
        return rows[rows["role"] == role].iloc[0]

    @property
    def verdict(self) -> str:
        """``the attack is blind``, ``weaker`` or ``sound``, ``invalid examples``, or ``inconclusive``."""
        return str(self._of("verdict", "attack")["verdict"])

    @property
    def finding(self) -> str:
        """The reason for the verdict, in one or more sentences."""
        return str(self._of("finding", "attack")["finding"])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that make the attack blind, the largest gain first."""
        self._require_one("parts")
        return tuple(self.manifest["checkpoints"][0]["judgement"]["parts"])

    @property
    def left(self) -> float | None:
        """Share of all images right when clean and on the attack's examples, evaluated again; None if not run."""
        return _known(self._of("left", "attack")["left"])

    @property
    def bound(self) -> float | None:
        """The lowest robust accuracy of the attack, gradscope's attacks and the repairs together; None if not run."""
        return _known(self._of("bound", "all")["left"])

    def _findings(self) -> Iterator[str]:
        rows = self.frame()
        for row in rows[rows["role"] == "attack"].to_dict("records"):
            left = _known(row["left"])
            leaves = "was not run" if left is None else f"leaves {left:.1%}"
            yield f"{row['checkpoint']}: {row['verdict']}, {row['attack']} {leaves}"


def _known(value: float) -> float | None:
    """Return ``value``; None if it is missing."""
    return None if value != value else float(value)

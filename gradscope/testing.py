"""Assertions on robustness for test suites: with pytest, unittest or neither."""

from typing import Any

from gradscope.api.in_memory import Models
from gradscope.api.keywords import declared
from gradscope.api.measurements import MEASURED, audit
from gradscope.measure.options import AuditOptions
from gradscope.measure.options.common import ForeignOptions
from gradscope.measure.result import AuditReport
from gradscope.options import DataOptions, DeviceOptions
from gradscope.results.audits import AuditOf


class RobustnessError(AssertionError):
    """An assertion that failed; ``report`` is the audit that says why."""

    def __init__(self, message: str, report: AuditReport) -> None:
        super().__init__(message)
        self.report = report


_ASSERTED = f"""\
{MEASURED}norm, epsilon
    What an attack may do: the norm of the ball, "linf" or "l2", and its radius in pixel units, such as 0.03 or "8/255".
at_least
    The robust accuracy that the model must be able to have, such as 0.4: the assertion fails where the 95 % interval of
    the lowest that was reached lies below it.
budget
    "quick" (a minute for a small model and 200 images), "standard" or "full".
allow_inconclusive
    Pass where the audit could not decide, too; also audit images of which too few are right to decide.
"""


@declared(_ASSERTED, AuditOptions, DataOptions, ForeignOptions, DeviceOptions, without="claim")
def assert_not_masked(
    model: Models,
    x: Any = None,
    y: Any = None,
    *,
    norm: str,
    epsilon: float | str,
    at_least: float | None = None,
    budget: str = "quick",
    allow_inconclusive: bool = False,
    **options: Any,
) -> AuditReport:
    """Audit a model and fail where its robustness is not to be trusted.

    It fails where masking is found, the set-up is invalid, ``at_least`` is refuted, or the audit cannot decide. Passing
    is no proof of robustness: the bound of the report is an upper bound.

    Returns
    -------
    AuditReport
        As :func:`gradscope.audit` returns it; ``.save(directory)`` keeps it.

    Raises
    ------
    RobustnessError
        An ``AssertionError`` whose message has the verdict, the causes, the bound with its interval, the checks that
        fired, and what to do next; its ``.report`` is the audit.
    GradscopeError
        Where a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> from gradscope.testing import assert_not_masked
    >>> x = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> model = torch.nn.Flatten().eval()
    >>> assert_not_masked(model, x, y, norm="linf", epsilon="64/255", at_least=0.9)
    Traceback (most recent call last):
    gradscope.testing.RobustnessError: Flatten: at_least is refuted, the claim of 90 % refuted: at most 50.0 % ...

    """
    __tracebackhide__ = True
    given = {"norm": norm, "epsilon": epsilon, "budget": budget, "allow_inconclusive": allow_inconclusive, **options}
    report = audit(model, x, y, claim=at_least, **given)
    failed = [why for one in report.audits if (why := _failure(one, allow_inconclusive))]
    if failed:
        raise RobustnessError("\n".join([*failed, "", report.summary()]), report)
    return report


def _failure(one: AuditOf, allowing: bool) -> str:
    """Why the assertion fails on one model, in a line; empty where it does not."""
    if one.refuted:
        return f"{one.checkpoint}: at_least is refuted, the {one.of_claim}"
    if one.blocks:
        return f"{one.checkpoint}: {one.verdict_and_cause}; its robust accuracy is not to be trusted"
    if one.undecided and not allowing:
        return (
            f"{one.checkpoint}: the audit is inconclusive ({one.reason}); give it more images or a larger budget, or "
            "pass allow_inconclusive=True"
        )
    return ""

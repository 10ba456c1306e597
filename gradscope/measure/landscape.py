"""Rows that landscapes of input and weight space share."""

from typing import Any

from gradscope.results.metrics import BARRIER_METRICS, LANDSCAPE_METRICS, METRICS
from gradscope.results.stats import UNDEFINED, Interval

Row = dict[str, Any]


def summary_row(identity: Row, metric: str, subset: str, value: float, interval: Interval | None, count: int) -> Row:
    """Make a row of SUMMARY; ``identity`` includes the ball if there is one.

    ``interval`` None is undefined; an interval is clipped to the metric's range.
    """
    known = (LANDSCAPE_METRICS | BARRIER_METRICS).get(metric) or METRICS[metric]
    low, high = UNDEFINED if interval is None else interval.within(known.low, known.high)
    columns = {"metric": metric, "subset": subset, "unit": known.unit, "value": value}
    return identity | columns | {"ci_low": low, "ci_high": high, "n": count}

"""In which order stages that can run side by side are best begun, and how long all of them take then."""

from collections.abc import Mapping, Sequence
from heapq import heapreplace

from gradscope.study.tasks import Stage


def seconds_ahead(stages: Sequence[Stage], seconds: Mapping[str, float]) -> dict[str, float]:
    """Of each stage the seconds from its begin to the end of the last that depends on it, were there no others."""
    ahead = {stage.label: seconds.get(stage.label, 0.0) for stage in stages}
    for stage in reversed(stages):
        for need in stage.needs:
            ahead[need] = max(ahead[need], seconds.get(need, 0.0) + ahead[stage.label])
    return ahead


def span(stages: Sequence[Stage], seconds: Mapping[str, float], slots: int) -> float:
    """Seconds in which ``stages`` end, ``slots`` at a time; one that has no ``seconds`` is done."""
    ahead = seconds_ahead(stages, seconds)
    ends: dict[str, float] = {}
    free = [0.0] * slots
    waiting = list(stages)
    while waiting:
        begins = {
            stage.label: max([free[0], *(ends[need] for need in stage.needs)])
            for stage in waiting
            if ends.keys() >= set(stage.needs)
        }
        label = min(begins, key=lambda one: (begins[one], -ahead[one]))
        waiting = [stage for stage in waiting if stage.label != label]
        if label in seconds:
            ends[label] = begins[label] + seconds[label]
            heapreplace(free, ends[label])
        else:
            ends[label] = 0.0
    return max(ends.values(), default=0.0)

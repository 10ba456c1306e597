"""Order stages that can run at the same time, and estimate how long all of them take."""

from collections.abc import Mapping, Sequence
from heapq import heapreplace

from gradscope.study.tasks import Stage


def seconds_ahead(stages: Sequence[Stage], seconds: Mapping[str, float]) -> dict[str, float]:
    """Compute each stage's critical path: seconds from its start to the end of the last stage that depends on it."""
    ahead = {stage.label: seconds.get(stage.label, 0.0) for stage in stages}
    for stage in reversed(stages):
        for need in stage.needs:
            ahead[need] = max(ahead[need], seconds.get(need, 0.0) + ahead[stage.label])
    return ahead


def span(stages: Sequence[Stage], seconds: Mapping[str, float], slots: int) -> float:
    """Estimate the seconds in which ``stages`` finish, ``slots`` at a time; a stage without ``seconds`` is done."""
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
        label = min(begins, key=lambda label: (begins[label], -ahead[label]))
        waiting = [stage for stage in waiting if stage.label != label]
        if label in seconds:
            ends[label] = begins[label] + seconds[label]
            heapreplace(free, ends[label])
        else:
            ends[label] = 0.0
    return max(ends.values(), default=0.0)

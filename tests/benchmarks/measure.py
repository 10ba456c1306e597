"""Time two implementations side by side in one run, or one implementation in its own unit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Ratio:
    """The time of ours divided by theirs: median and extremes over rounds in which both ran."""

    name: str
    against: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]
    target: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def row(self) -> str:
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        numbers = f"{self.ours:8.2f} {self.theirs:8.2f} {self.unit:4} {self.ratio:6.2f} {spread:>11} {self.target:7.2f}"
        return f"{self.name:38} {self.against:42} {numbers}"

    def record(self) -> dict[str, Any]:
        ratios = {"ratio": self.ratio, "lowest": min(self.ratios), "highest": max(self.ratios)}
        value = {"value": self.ours, "unit": self.unit, "against": self.against, "theirs": self.theirs}
        return {"name": self.name, **value, **ratios, "target": self.target}


@dataclass(frozen=True)
class Absolute:
    """A quantity in ``unit``: median and extremes over rounds, and its upper limit."""

    name: str
    values: tuple[float, ...]
    unit: str
    target: float | None = None

    def row(self) -> str:
        low, middle, high = (
            f"{value:,.3f}" if self.unit == "s" else f"{value:,.0f}"
            for value in (min(self.values), median(self.values), max(self.values))
        )
        target = "" if self.target is None else f" {self.target:>18.2f}"
        return f"{self.name:60} {middle:>12} {self.unit:9} {low}-{high}{target}"

    def record(self) -> dict[str, Any]:
        extremes = {"lowest": min(self.values), "highest": max(self.values)}
        value = {"value": median(self.values), "unit": self.unit, "against": None, "theirs": None}
        return {"name": self.name, **value, "ratio": None, **extremes, "target": self.target}


HEADER = f"{'what':38} {'against':42} {'ours':>8} {'theirs':>8}      {'ratio':>6} {'spread':>11} {'target':>7}"


def side_by_side(
    name: str, against: str, ours: Callable[[], object], theirs: Callable[[], object], *, target: float, rounds: int
) -> Ratio:
    """Run both once to warm up, then ``rounds`` times in turn; the order changes every round."""
    ours(), theirs()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        pair = [("ours", ours), ("theirs", theirs)]
        for who, work in pair if number % 2 == 0 else reversed(pair):
            times[who].append(seconds(work))
    ratios = tuple(first / second for first, second in zip(times["ours"], times["theirs"], strict=True))
    return Ratio(name, against, median(times["ours"]), median(times["theirs"]), ratios, target)


def took(name: str, work: Callable[[], object], *, rounds: int) -> Absolute:
    """Time ``work`` in seconds; the caller has warmed it up."""
    return Absolute(name, tuple(seconds(work) for _ in range(rounds)), "s")


def rate(name: str, images: int, work: Callable[[], object], *, rounds: int) -> Absolute:
    """Measure images per second of ``work`` on ``images`` images; the caller has warmed it up."""
    return Absolute(name, tuple(images / seconds(work) for _ in range(rounds)), "images/s")


def waiting(work: Callable[[], object]) -> float:
    """Measure the share of the time of ``work`` in which no kernel or copy runs on the GPU, in %.

    The caller has warmed ``work`` up. The profiler times the kernels; the total time comes from another call without
    the profiler, because it slows launches down.
    """
    whole = seconds(work)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        work()
        synchronise()
    kernels = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    busy = sum(event.device_time_total for event in kernels if not event.is_user_annotation) / 1e6
    return 100 * (1 - busy / whole)


def seconds(work: Callable[[], object]) -> float:
    """Measure the wall-clock time of ``work``, including the device's queue."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

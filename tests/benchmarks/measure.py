"""Two ways of doing one thing, timed side by side in one run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ratio:
    """How long ours takes over theirs: the median over rounds in which both ran, and the extremes."""

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


HEADER = f"{'what':38} {'against':42} {'ours':>8} {'theirs':>8}      {'ratio':>6} {'spread':>11} {'target':>7}"


def side_by_side(
    name: str, against: str, ours: Callable[[], object], theirs: Callable[[], object], *, target: float, rounds: int
) -> Ratio:
    """Run both once to warm up, then in turn for ``rounds`` rounds, each round in the other order."""
    ours(), theirs()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        pair = [("ours", ours), ("theirs", theirs)]
        for who, work in pair if number % 2 == 0 else reversed(pair):
            times[who].append(seconds(work))
    ratios = tuple(mine / other for mine, other in zip(times["ours"], times["theirs"], strict=True))
    return Ratio(name, against, median(times["ours"]), median(times["theirs"]), ratios, target)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of ``work``, the device's queue included."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

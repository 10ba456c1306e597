"""Work in named units, made by one process or divided over many: all have every unit, in the same order.

What follows a unit (sums, the choice of what is attacked next) is then the same on every process, and the same as one
process alone would have had.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from gradscope.errors import GradscopeError
from gradscope.progress import Advance

T = TypeVar("T")

#: What a unit of work gives, by name; on the CPU once it has been made.
Values = dict[str, Tensor]
#: A unit of work: its name and what makes it. Nothing else may decide its values.
Unit = tuple[str, Callable[[], Values]]
#: The values of units in their order; from where they are kept, from another process, or made.
Each = Callable[[Sequence[Unit]], Iterator[Values]]

#: A rank may wait for another one's unit, or for the figures to be drawn, as long as that takes; one that is gone
#: is noticed at once.
_PATIENCE = timedelta(days=7)


def alone(units: Sequence[Unit]) -> Iterator[Values]:
    """Every unit made here, one after the other."""
    for _, make in units:
        yield {key: value.cpu() for key, value in make().items()}


def prefixed(each: Each, prefix: str) -> Each:
    """``each`` with ``prefix`` and a hyphen before the name of every unit."""
    return lambda units: each([(f"{prefix}-{name}", make) for name, make in units])


@dataclass(frozen=True)
class Work:
    """How images are worked through: where, how many at once, under which seed, by whom, and who is told.

    ``batch_size`` None: what is usual for the work. ``each`` may keep the units of work or let others make them, under
    names that change with whatever decides their values. ``advance`` is told how many images are done.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int | None = None
    each: Each = alone
    advance: Advance = lambda images, note: None

    def prefixed(self, prefix: str) -> "Work":
        """The same with ``prefix`` and a hyphen before the name of every unit."""
        return replace(self, each=prefixed(self.each, prefix))


#: Work on the CPU by this process alone, of seed 0.
PLAIN = Work()

#: What PyTorch's errors say where a device's memory is full: its allocators, cuBLAS, cuDNN, and the driver.
_NO_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory, so that a smaller batch may fit."""
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in _NO_MEMORY)


def free_memory() -> None:
    """Give the GPU's cached memory back. Call it after the ``except``: the traceback holds the activations."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def halving(work: Callable[[int], T], size: int) -> T:
    """``work(size)``, with half the size wherever the device runs out of memory; at size 1 its error is raised."""
    while True:
        try:
            return work(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        free_memory()
        size //= 2


@contextmanager
def explained_memory(device: torch.device) -> Iterator[None]:
    """Turn a full memory of ``device`` into a one-line :class:`GradscopeError`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise GradscopeError(
            f"batch_size must be smaller (of a landscape, `images`), {device} ran out of memory: "
            f"{str(error).strip().splitlines()[0]}; where a single image is too much, use `device` cpu"
        ) from None


@dataclass(frozen=True)
class _Failure:
    """Why a rank cannot go on: a user's mistake, or the traceback of our own."""

    mistake: GradscopeError | None
    traceback: str = ""

    def raised_by_all(self, rank: int) -> Exception:
        if self.mistake is None:
            return RuntimeError(f"process {rank} failed\n{self.traceback}")
        self.mistake.shared = True
        return self.mistake


class Team:
    """The processes that share a measurement: this one is number ``rank`` of ``size`` and works on ``device``.

    They meet again and again, at the same places of the same program, to exchange what each has made. A rank that
    fails says so at its next meeting, wherever the others are by then, and all of them fail.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        """Of more than one, torch's process group is there; all of its processes make their team at once."""
        self.device, self.rank, self.size = device, rank, size
        # Not the group of the devices: values are on the CPU, and a GPU that waits would be busy.
        self._group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None
        self._failed = False

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and speaks for all."""
        return self.rank == 0

    def run(self, work: Callable[["Team"], None]) -> None:
        """``work`` on this rank; an error of any rank is raised by all."""
        try:
            with explained_memory(self.device):
                work(self)
            self.meet()
        except Exception as error:
            # What another rank has told of is known to all; what went wrong here is not, yet.
            if self.size > 1 and not self._failed:
                self._tell(error)
            raise

    def _tell(self, error: Exception) -> None:
        """Bring ``error`` to the next meeting; one of our own is raised here as it is, with its traceback."""
        if isinstance(error, GradscopeError):
            self._exchange(None, _Failure(error))
        try:
            self._exchange(None, _Failure(None, "".join(traceback.format_exception(error))))
        except RuntimeError:
            raise error from None

    def _exchange(self, mine: T, failure: _Failure | None = None) -> list[T]:
        """What each rank brings, by rank; the failure of the first rank that has one is raised."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, (mine, failure), group=self._group)
        for rank, (_, failed) in enumerate(found):
            if failed is not None:
                self._failed = True
                raise failed.raised_by_all(rank) from None
        return [value for value, _ in found]

    def meet(self) -> None:
        """Wait for all ranks."""
        self._exchange(None)

    def of_first(self, mine: T) -> T:
        """What the first rank has here, for all to go on alike."""
        return self._exchange(mine if self.is_first else None)[0]  # type: ignore[return-value]  # the first has one

    def each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """The values of ``units``, a round at a time in which each rank makes one.

        Every rank must go through them to the end. Memory holds the values of one round.
        """
        for start in range(0, len(units), self.size):
            place = start + self.rank
            for values in self._exchange(list(alone(units[place : place + 1]))):
                yield from values

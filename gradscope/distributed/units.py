"""Divide work into named units, computed by one process or shared by many: all receive every unit, in the same order.

So everything that depends on the units (sums, the choice of images to attack next) is the same on every process, and
the same as on a single process.
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

#: The values of a unit of work, by name; on the CPU after the unit is computed.
Values = dict[str, Tensor]
#: A unit of work: its name and the function that computes it. Nothing else may influence its values.
Unit = tuple[str, Callable[[], Values]]
#: A function that yields the values of units in order: loaded, received from another process, or computed.
Each = Callable[[Sequence[Unit]], Iterator[Values]]

#: How long a rank waits for another rank's unit, or for its figures. A rank that died is noticed at once.
_PATIENCE = timedelta(days=7)


def alone(units: Sequence[Unit]) -> Iterator[Values]:
    """Compute every unit in this process, one after the other."""
    for _, make in units:
        yield {key: value.cpu() for key, value in make().items()}


def prefixed(each: Each, prefix: str) -> Each:
    """Return ``each`` with ``prefix`` and a hyphen before the name of every unit."""
    return lambda units: each([(f"{prefix}-{name}", make) for name, make in units])


@dataclass(frozen=True)
class Work:
    """How to process images: seed, device, batch size, distribution over processes, and progress.

    ``batch_size`` None uses the default of the work. ``each`` may store units or let other processes compute them,
    under names that change with everything that influences the values. ``advance`` is called with the number of
    images done.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int | None = None
    each: Each = alone
    advance: Advance = lambda images, note: None

    def prefixed(self, prefix: str) -> "Work":
        """Return a copy with ``prefix`` and a hyphen before the name of every unit."""
        return replace(self, each=prefixed(self.each, prefix))


#: Work on the CPU, in this process alone, with seed 0.
PLAIN = Work()

#: Phrases of PyTorch's out-of-memory errors: of its allocators, cuBLAS, cuDNN, and the driver.
_NO_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that a device ran out of memory, so that a smaller batch may fit."""
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in _NO_MEMORY)


def free_memory() -> None:
    """Release the GPU's cached memory. Call it after the ``except`` block, whose traceback holds the activations."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def halving(work: Callable[[int], T], size: int) -> T:
    """Return ``work(size)``; halve the size whenever the device runs out of memory, and raise its error at size 1."""
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
    """Turn an out-of-memory error of ``device`` into a one-line :class:`GradscopeError`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise GradscopeError(
            f"batch_size must be smaller (for a landscape, `images`), as {device} ran out of memory: "
            f"{str(error).strip().splitlines()[0]}; if a single image does not fit, use `device` cpu"
        ) from None


@dataclass(frozen=True)
class _Failure:
    """Why a rank stopped: a user's mistake, or the traceback of an internal error."""

    mistake: GradscopeError | None
    traceback: str = ""

    def raised_by_all(self, rank: int) -> Exception:
        if self.mistake is None:
            return RuntimeError(f"process {rank} failed\n{self.traceback}")
        self.mistake.shared = True
        return self.mistake


class Team:
    """The processes that share a measurement: this one is number ``rank`` of ``size`` and works on ``device``.

    They meet at the same points of the same program to exchange their values. A rank that fails says so at its next
    meeting, wherever the others are, and all of them fail.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        """Join the team. With more than one rank, torch's process group must exist and all ranks must call this."""
        self.device, self.rank, self.size = device, rank, size
        # Not the group of the devices: values are on the CPU, and waiting in NCCL keeps a GPU busy.
        self._group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None
        self._failed = False

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and prints for all."""
        return self.rank == 0

    def run(self, work: Callable[["Team"], None]) -> None:
        """Run ``work`` on this rank; all ranks raise an error of any rank."""
        try:
            with explained_memory(self.device):
                work(self)
            self.meet()
        except Exception as error:
            # All ranks know an error that another rank reported; they do not yet know an error of this rank.
            if self.size > 1 and not self._failed:
                self._report(error)
            raise

    def _report(self, error: Exception) -> None:
        """Report ``error`` at the next meeting; raise an internal error here unchanged, with its traceback."""
        if isinstance(error, GradscopeError):
            self._exchange(None, _Failure(error))
        try:
            self._exchange(None, _Failure(None, "".join(traceback.format_exception(error))))
        except RuntimeError:
            raise error from None

    def _exchange(self, value: T, failure: _Failure | None = None) -> list[T]:
        """Gather the values of all ranks, in order; raise the failure of the first rank that has one."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        distributed.all_gather_object(gathered, (value, failure), group=self._group)
        for rank, (_, failed) in enumerate(gathered):
            if failed is not None:
                self._failed = True
                raise failed.raised_by_all(rank) from None
        return [value for value, _ in gathered]

    def meet(self) -> None:
        """Wait for all ranks."""
        self._exchange(None)

    def of_first(self, value: T) -> T:
        """Broadcast the first rank's ``value``, so that all ranks continue with the same."""
        return self._exchange(value if self.is_first else None)[0]  # type: ignore[return-value]  # the first has one

    def each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """Yield the values of ``units``, in rounds in which each rank computes one unit.

        Every rank must iterate to the end. Memory holds the values of one round.
        """
        for start in range(0, len(units), self.size):
            place = start + self.rank
            for values in self._exchange(list(alone(units[place : place + 1]))):
                yield from values

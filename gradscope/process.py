"""How gradscope's own processes wait, keep memory and end."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Rounds that threads of OpenMP wait in before they sleep. With fewer, small batches take longer; with more, two
#: commands at once take more than half as long again as one (the benchmark ``two-at-once``).
_SPINS = "3000"
#: glibc's parameters of ``mallopt``, and values that keep what is freed. One arena for all threads, and no block
#: above 64 MiB, which are rare: else what is kept is cut into ever more pieces, and a long command grows.
_KEEP = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_THRESHOLD": (-3, 2**26), "M_ARENA_MAX": (-8, 1)}


def set_up() -> None:
    """Set up a process that computes for gradscope alone, before torch is loaded.

    A library leaves the process as it is: it is its user's.
    """
    wait_without_spinning()
    keep_memory()


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep soon while they wait, unless the user has decided it.

    By default they spin, and two commands on the same cores stop each other. GNU's OpenMP reads the variable when torch
    loads it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def keep_memory() -> None:
    """Keep the memory that is freed, for the next pass; does nothing where there is no glibc.

    By default glibc gives large blocks back at once, and the kernel clears their pages when they are asked for again.
    The benchmark ``kept-memory`` shows what that costs.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in _KEEP.values():
            library.mallopt(parameter, value)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """End by SystemExit on SIGTERM inside, where nobody else handles it, so that what is unwritten is written."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""Settings of gradscope's own processes: how threads wait, how memory is kept, how SIGTERM ends them."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Rounds that an OpenMP thread spins before it sleeps. Fewer rounds slow down small batches. With more, two commands
#: that run at once each take over half as long again as one alone (the benchmark ``two-at-once``).
_SPINS = "3000"
#: Parameters of glibc's ``mallopt``, with values that keep freed memory. All threads share one arena, and blocks above
#: 64 MiB, which are rare, are not kept: otherwise the kept memory fragments and a long command keeps growing.
_KEEP = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_THRESHOLD": (-3, 2**26), "M_ARENA_MAX": (-8, 1)}


def set_up() -> None:
    """Set up a process that runs gradscope alone; call it before torch is loaded.

    Only the command line calls this. Imported as a library, gradscope leaves the user's process as it is.
    """
    wait_without_spinning()
    keep_memory()


def wait_without_spinning() -> None:
    """Make waiting OpenMP threads sleep soon, unless the user's environment sets how they wait.

    By default they spin, and two commands on the same cores slow each other down. GNU OpenMP reads the variable when
    torch loads it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def keep_memory() -> None:
    """Keep freed memory for the next pass instead of returning it to the system; does nothing without glibc.

    By default glibc returns large blocks at once, and the kernel clears their pages when they are allocated again.
    The benchmark ``kept-memory`` measures the cost.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in _KEEP.values():
            library.mallopt(parameter, value)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside, so that pending results are written before the process ends.

    Does nothing outside the main thread, or where SIGTERM already has a handler.
    """
    handle = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if handle:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        if handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

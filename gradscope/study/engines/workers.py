"""Processes of this machine that run stages for the process that starts them.

They are forked from a server that has loaded torch and what stages need, once, and has computed nothing, for OpenMP's
threads do not survive a fork. No torch here, so that the server can load while its owner does.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

import gradscope
from gradscope.process import keep_memory
from gradscope.progress import Bar, printed_cautions, reported

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from gradscope.study.state import Record
    from gradscope.study.tasks import Job

#: What stages load when they run.
LOADED = (
    "gradscope.study.runner",
    "gradscope.study.model_tasks",
    "gradscope.measure.analyze",
    "gradscope.measure.attack",
    "gradscope.measure.audit",
    "gradscope.measure.input_landscape",
    "gradscope.measure.transfer",
    "gradscope.distributed.fabric",
)
_context = multiprocessing.get_context("forkserver")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_server(jobs: int) -> None:
    """Start the server, if there is none, and return while it loads; its numeric libraries get a share of the cores.

    OMP_NUM_THREADS is read when they are loaded, and is what is shared where the user has set it.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, (int(given) if given.isdecimal() else cores()) // jobs)
    _context.set_forkserver_preload(list(LOADED))
    path = os.pathsep.join([str(Path(gradscope.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # To ask CUDA itself whether there is a GPU would keep it from those who are forked; NVML does not.
    variables = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONSAFEPATH": "1"}
    with _environment(OMP_NUM_THREADS=str(threads), PYTHONPATH=path, **variables):
        forkserver.ensure_running()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables for a process that is started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Worker:
    """A process, one of ``jobs``, that runs one stage after the other. It ends when its owner does."""

    def __init__(self, jobs: int) -> None:
        start_server(jobs)
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def begin(self, job: "Job") -> None:
        """Send a job."""
        with suppress(BrokenPipeError):  # it has died, and `receive` will see it
            self.pipe.send(job)

    def receive(self) -> "Bar | Record | None":
        """Wait for the record of the job, or for how far it is; None where the process died."""
        try:
            received: Bar | Record = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return None
        return received

    @property
    def ending(self) -> str:
        """How the process ended."""
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def interrupt(self) -> None:
        """Tell the process to end as Ctrl-C would: its stage keeps its state.

        Where the interruption is lost, in a callback perhaps, it ends after its stage.
        """
        self.pipe.close()
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)

    def end(self, patience: float = 0.0) -> None:
        """Kill the process, after ``patience`` seconds in which it may end itself."""
        try:
            self.process.join(patience)
        finally:
            self.process.kill()
            self.process.join()
            self.pipe.close()


def _serve(jobs: "Connection[Bar | Record, Job]") -> None:
    """Run jobs until there are no more, or the owner ends.

    In a process group of its own, so that Ctrl-C reaches it only through its owner, once. The owner interrupts it even
    where it ignores Ctrl-C itself, as a command of a script does that runs in the background.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_memory()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    ended = suppress(EOFError, ConnectionError, KeyboardInterrupt)
    with ended, reported(partial(_report, jobs)), printed_cautions():
        from gradscope.study.runner import perform

        while True:
            jobs.send(perform(jobs.recv()))


def _report(owner: "Connection[Bar | Record, Job]", bar: Bar) -> None:
    with suppress(ConnectionError):  # it has ended, which is no fault of the stage's
        owner.send(bar)


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os.kill(os.getpid(), signal.SIGINT)

"""Worker processes on this machine that run stages for the process that starts them.

They are forked from a server that imports torch and the modules of stages once. The server computes nothing, because
OpenMP's threads do not survive a fork. Without torch here, so that the server can load while its owner does.
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

#: The modules that stages import when they run.
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
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_server(jobs: int) -> None:
    """Start the server, if there is none, and return while it loads; its numeric libraries get a share of the cores.

    They read OMP_NUM_THREADS at import. If the user set it, that number is shared in place of the cores.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, (int(given) if given.isdecimal() else cores()) // jobs)
    _context.set_forkserver_preload(list(LOADED))
    path = os.pathsep.join([str(Path(gradscope.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Asking CUDA whether there is a GPU would make it unusable in forked processes; NVML does not.
    variables = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONSAFEPATH": "1"}
    with _environment(OMP_NUM_THREADS=str(threads), PYTHONPATH=path, **variables):
        forkserver.ensure_running()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a process that is started in the block."""
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
    """One of ``jobs`` processes; it runs one stage after the other and ends when its owner does."""

    def __init__(self, jobs: int) -> None:
        start_server(jobs)
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def begin(self, job: "Job") -> None:
        """Send a job."""
        with suppress(BrokenPipeError):  # the process died; `receive` reports it
            self.pipe.send(job)

    def receive(self) -> "Bar | Record | None":
        """Wait for the record of the job or its progress; None if the process died."""
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
        """Interrupt the process as Ctrl-C would; its stage writes its state.

        If the interruption is lost, for example in a callback, the process ends after its stage.
        """
        self.pipe.close()
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)

    def end(self, patience: float = 0.0) -> None:
        """Wait ``patience`` seconds for the process to end, then kill it."""
        try:
            self.process.join(patience)
        finally:
            self.process.kill()
            self.process.join()
            self.pipe.close()


def _serve(jobs: "Connection[Bar | Record, Job]") -> None:
    """Run jobs until there are no more, or the owner ends.

    The process has its own process group, so that Ctrl-C reaches it once, through its owner. The owner interrupts it
    even if the process itself ignores Ctrl-C, as a background command of a script does.
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
    with suppress(ConnectionError):  # the owner ended; that is no error of the stage
        owner.send(bar)


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os.kill(os.getpid(), signal.SIGINT)

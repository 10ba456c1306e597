"""The engines that run stages on this machine: one after the other in this process, or several at a time."""

from collections import deque
from dataclasses import replace
from multiprocessing import connection
from typing import Any

import torch

from gradscope.errors import GradscopeError
from gradscope.figures import background
from gradscope.progress import Bar, BarsOfOthers
from gradscope.study.engines.workers import Worker
from gradscope.study.runner import failed, perform
from gradscope.study.state import Record
from gradscope.study.tasks import Job

#: Seconds that an interrupted stage has to write its state.
_PATIENCE = 30.0


class LocalEngine:
    """Runs one stage after the other, in this process."""

    name = "local"
    slots = 1

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job whose needs are done."""
        self._waiting.append(job)

    def wait(self) -> Record:
        """Run the job that has waited longest."""
        return perform(self._waiting.popleft())

    def close(self) -> None:
        """Do nothing: this engine holds no resources."""


class SideBySideEngine:
    """Runs ``slots`` stages at a time, each in its own process with its share of this process's threads.

    Processes are started when stages need them. Figures, claims and report are made in this process, so that only it
    imports the packages that they need.
    """

    name = "local"

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.threads = max(1, torch.get_num_threads() // slots)
        self._here = LocalEngine()
        self._idle: list[Worker] = []
        self._busy: dict[Any, tuple[Worker, Job]] = {}
        self._bars = BarsOfOthers()

    def submit(self, job: Job) -> None:
        """Send a job to an idle process, or to a new one."""
        if job.stage.gathers:
            self._here.submit(job)
            return
        job = replace(job, threads=job.threads or self.threads, jobs=self.slots)
        worker = self._idle.pop() if self._idle else Worker(self.slots)
        self._busy[worker.pipe] = worker, job
        worker.begin(replace(job, figures=False))

    def wait(self) -> Record:
        """Wait for the first job to end and return its record."""
        if not self._busy:
            return self._here.wait()
        while True:
            worker, job = self._busy[connection.wait(list(self._busy))[0]]
            record = worker.receive()
            if not isinstance(record, Bar):
                break
            self._bars.show(job.stage.label, record)
        del self._busy[worker.pipe]
        self._bars.remove(job.stage.label)
        if record is None:
            return failed(job, GradscopeError(f"its process died ({worker.ending})"))
        self._idle.append(worker)
        if record.state == "done" and job.figures and job.stage.kind == "measure":
            background.draw(job.out)
        return record

    def close(self) -> None:
        """End the processes; running stages write their state first."""
        busy = [worker for worker, _ in self._busy.values()]
        for worker in busy:
            worker.interrupt()
        for worker in self._idle:
            worker.end()
        for worker in busy:
            worker.end(_PATIENCE)

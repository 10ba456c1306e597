"""The engine that runs one stage after the other, in this process."""

from collections import deque

from gradscope.study.runner import perform
from gradscope.study.state import Record
from gradscope.study.tasks import Job


class LocalEngine:
    """One stage after the other, in this process."""

    name = "local"
    alone = True

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Take a job whose needs are done."""
        self._waiting.append(job)

    def wait(self) -> Record:
        """Run the job that has waited longest."""
        return perform(self._waiting.popleft())

    def close(self) -> None:
        """Nothing is held."""

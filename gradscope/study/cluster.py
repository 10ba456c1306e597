"""The engine that spreads a study over a Ray cluster, or over this machine's cores: each stage is a task.

Every machine of the cluster has to see the directories of checkpoints, results and images under the same paths. A
stage whose worker is lost is begun again by Ray, elsewhere if need be, and goes on where its files say.
"""

import logging
import os
import socket
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import gradscope
from gradscope.errors import GradscopeError
from gradscope.study.execution import failed, perform
from gradscope.study.kinds import Job
from gradscope.study.records import Record

#: How often a stage whose worker is lost is begun again.
RETRIES = 3
#: Seconds in which an address has to answer.
_PATIENCE = 5.0
#: Variables of this process that workers need to read the same code and images.
_PASSED_ON = ("GRADSCOPE_CACHE", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class RayEngine:
    """Stages as tasks of a Ray cluster: the one at ``address``, or one of this machine's own.

    Threads that the recipe does not give are as many as this process has, so that numbers are the engine local's.
    """

    name = "ray"

    def __init__(self, address: str | None, device: str) -> None:
        self.ray = _import_ray()
        self.device = device
        self._running: dict[Any, Job] = {}
        self._connect(address)

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        passed_on["PYTHONPATH"] = os.pathsep.join(
            [str(Path(gradscope.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        _require_an_answer(address)
        try:
            self.ray.init(
                address="local" if address is None else address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": passed_on},
                **options,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            where = "of this machine's own" if address is None else f"at {address!r}"
            raise GradscopeError(f"--address: no Ray cluster {where} answers: {reason}") from None

    def submit(self, job: Job) -> None:
        """Make a task of a job, with what it asks for."""
        threads = job.threads or torch.get_num_threads()
        gpus = self._gpus(job)
        self._require_a_node(job, threads, gpus)
        task = self.ray.remote(perform).options(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, name=job.stage.label
        )
        self._running[task.remote(replace(job, threads=threads))] = job

    def _gpus(self, job: Job) -> float:
        """A GPU where the recipe asks for one, or where the device may be one and the cluster has some."""
        if job.stage.resources.gpus is not None:
            return job.stage.resources.gpus
        if job.device == "auto":
            return 1.0 if self.ray.cluster_resources().get("GPU") else 0.0
        return 1.0 if job.device == "cuda" else 0.0

    def _require_a_node(self, job: Job, threads: int, gpus: float) -> None:
        """Ray would wait for a machine that never comes."""
        have = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(one.get("CPU", 0) >= threads and one.get("GPU", 0) >= gpus for one in have):
            largest = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in have)
            raise GradscopeError(
                f"resources: {job.stage.label} asks for {threads} CPUs and {gpus:g} GPUs on one machine, "
                f"the cluster's have {largest}"
            )

    def wait(self) -> Record:
        """The record of whichever task ends first."""
        (first,), _ = self.ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(first)
        try:
            record: Record = self.ray.get(first)
        except self.ray.exceptions.RayError as error:
            return failed(job, GradscopeError(f"its worker was lost {RETRIES + 1} times: {type(error).__name__}"))
        return record

    def close(self) -> None:
        """Leave the cluster, or end this machine's own."""
        self.ray.shutdown()


def _require_an_answer(address: str | None) -> None:
    """Ray itself tries for minutes where nothing listens at ``HOST:PORT``."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GradscopeError(f"--address: no Ray cluster at {address!r} answers: {reason}") from None


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ImportError:
        raise GradscopeError("--engine: ray is not installed; pip install 'gradscope[cluster]'") from None
    return ray

"""The engine that runs a study on a Ray cluster, or on this machine's cores: each stage is a task.

Every machine of the cluster must see the directories of checkpoints, results and images under the same paths. If a
worker is lost, Ray starts its stage again, possibly on another machine, and the stage resumes from its files.
"""

import logging
import os
import secrets
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch

import gradscope
from gradscope.errors import GradscopeError
from gradscope.study.runner import failed, perform
from gradscope.study.state import Record
from gradscope.study.tasks import Job

#: How often Ray restarts a stage whose worker is lost.
RETRIES = 3
#: Seconds that an address has to accept a connection, and to answer as Ray.
_PATIENCE, _LONG_PATIENCE = 5.0, 30.0
#: The prefix of an address of Ray's client, which is not the address of a cluster.
_CLIENT = "ray://"
#: A script that joins a cluster and prints what is wrong: Ray's version, Python's, or that there is no cluster.
_PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
except Exception as error:
    print(" ".join(str(error).split()) or type(error).__name__)
"""
#: Ray's log message if a cluster requires a token that this process lacks, and the advice for the user.
_NO_TOKEN = b"InvalidAuthToken"
_TOKEN_NEEDED = "it requires a token; set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
#: Environment variables that workers need to read the same code and images.
_PASSED_ON = ("GRADSCOPE_CACHE", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class RayEngine:
    """Runs stages as tasks of a Ray cluster: the one at ``address``, or a new one on this machine.

    If the recipe does not give the number of threads, it is this process's, so that results equal those of "local".
    """

    name = "ray"
    slots = inf

    def __init__(self, address: str | None, device: str) -> None:
        if address is None:
            _guard_the_own_cluster()
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
        if address is not None:
            _require_an_answer(address)
            _require_ray(address)
        try:
            self.ray.init(
                address="local" if address is None else address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": passed_on},
                **options,
            )
        except Exception as error:  # Ray raises a plain Exception if a busy machine does not start it in time
            reason = " ".join(str(error).split()) or type(error).__name__
            if address is not None:
                raise _no_cluster(address, reason) from None
            raise GradscopeError(f"engine: starting Ray on this machine failed: {reason}") from None

    def submit(self, job: Job) -> None:
        """Submit a job as a task with its resources."""
        threads = job.threads or torch.get_num_threads()
        cpus, gpus = threads * job.stage.resources.devices, self._gpus(job)
        self._require_a_node(job, cpus, gpus)
        task = self.ray.remote(perform).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, name=job.stage.label)
        self._running[task.remote(replace(job, threads=threads))] = job

    def _gpus(self, job: Job) -> float:
        """Return the recipe's number of GPUs; without one, one per process if the device is or may be a GPU."""
        if job.stage.resources.gpus is not None:
            return job.stage.resources.gpus
        takes_gpus = self.ray.cluster_resources().get("GPU") if job.device == "auto" else job.device == "cuda"
        return float(job.stage.resources.devices) if takes_gpus else 0.0

    def _require_a_node(self, job: Job, cpus: int, gpus: float) -> None:
        """Raise :class:`GradscopeError` if no machine has enough resources; Ray would wait forever."""
        have = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in have):
            largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in have)
            raise GradscopeError(
                f"resources: {job.stage.label} needs {cpus} CPUs and {gpus:g} GPUs on one machine, "
                f"the cluster's machines have {largest}"
            )

    def wait(self) -> Record:
        """Wait for the first task to end and return its record."""
        (first,), _ = self.ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(first)
        try:
            record: Record = self.ray.get(first)
        except self.ray.exceptions.RayError as error:
            return failed(job, GradscopeError(f"its worker was lost {RETRIES + 1} times: {type(error).__name__}"))
        return record

    def close(self) -> None:
        """Leave the cluster, or shut down this machine's own."""
        self.ray.shutdown()


def _require_an_answer(address: str) -> None:
    """Raise :class:`GradscopeError` at once if nothing listens at ``HOST:PORT``."""
    if address.startswith(_CLIENT):
        raise GradscopeError(
            f"address must be HOST:PORT of a cluster that this machine belongs to, or auto, got {address!r}"
        )
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(getattr(error, "strerror", None) or error)) from None


def _require_ray(address: str) -> None:
    """Raise :class:`GradscopeError` if no Ray answers at ``address``.

    A separate process asks, because Ray would try for minutes and then end the process.
    """
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONG_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        if _NO_TOKEN in (error.stderr or b""):
            raise _no_cluster(address, _TOKEN_NEEDED) from None
        raise _no_cluster(address, f"no answer from Ray within {_LONG_PATIENCE:g} s") from None
    if probe.returncode or probe.stdout:
        reason = _TOKEN_NEEDED if _NO_TOKEN.decode() in probe.stderr else probe.stdout.strip()
        raise _no_cluster(address, reason or f"exit code {probe.returncode}")


def _no_cluster(address: str, reason: str) -> GradscopeError:
    return GradscopeError(f"address: no Ray cluster at {address!r} answers: {reason}")


def _guard_the_own_cluster() -> None:
    """Set a token for this machine's own cluster, before Ray's import, which reads these variables.

    Otherwise Ray writes a token to the home directory, and other clusters then require it.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ImportError:
        raise GradscopeError("engine: ray is not installed; pip install 'gradscope[cluster]'") from None
    return ray

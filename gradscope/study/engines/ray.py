"""The engine that spreads a study over a Ray cluster, or over this machine's cores: each stage is a task.

Every machine of the cluster has to see the directories of checkpoints, results and images under the same paths. A
stage whose worker is lost is begun again by Ray, elsewhere if need be, and goes on where its files say.
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

#: How often a stage whose worker is lost is begun again.
RETRIES = 3
#: Seconds in which an address has to answer, and those in which it has to show that Ray is there.
_PATIENCE, _LONG_PATIENCE = 5.0, 30.0
#: What Ray's client has in place of an address of the cluster.
_CLIENT = "ray://"
#: A process that joins a cluster and says what is wrong with it: its version, Python's, or that it is none.
_QUESTION = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
except Exception as error:
    print(" ".join(str(error).split()) or type(error).__name__)
"""
#: What Ray logs where a cluster wants a token that this process does not show, and what is to be done.
_NO_TOKEN = b"InvalidAuthToken"
_TOKEN_NEEDED = "it asks for a token; set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
#: Variables of this process that workers need to read the same code and images.
_PASSED_ON = ("GRADSCOPE_CACHE", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class RayEngine:
    """Stages as tasks of a Ray cluster: the one at ``address``, or one of this machine's own.

    Threads that the recipe does not give are as many as this process has, so that numbers are the engine local's.
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
        except Exception as error:  # a machine that is too busy to start it in time is no more than that to Ray
            reason = " ".join(str(error).split()) or type(error).__name__
            if address is not None:
                raise _no_cluster(address, reason) from None
            raise GradscopeError(f"engine: Ray does not start on this machine: {reason}") from None

    def submit(self, job: Job) -> None:
        """Make a task of a job, with what it asks for."""
        threads = job.threads or torch.get_num_threads()
        cpus, gpus = threads * job.stage.resources.devices, self._gpus(job)
        self._require_a_node(job, cpus, gpus)
        task = self.ray.remote(perform).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, name=job.stage.label)
        self._running[task.remote(replace(job, threads=threads))] = job

    def _gpus(self, job: Job) -> float:
        """What the recipe asks for; else one a process where the device is a GPU, or may be and there are some."""
        if job.stage.resources.gpus is not None:
            return job.stage.resources.gpus
        takes_gpus = self.ray.cluster_resources().get("GPU") if job.device == "auto" else job.device == "cuda"
        return float(job.stage.resources.devices) if takes_gpus else 0.0

    def _require_a_node(self, job: Job, cpus: int, gpus: float) -> None:
        """Ray would wait for a machine that never comes."""
        have = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in have):
            largest = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in have)
            raise GradscopeError(
                f"resources: {job.stage.label} asks for {cpus} CPUs and {gpus:g} GPUs on one machine, "
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


def _require_an_answer(address: str) -> None:
    """Nothing listens at ``HOST:PORT``: that is known at once."""
    if address.startswith(_CLIENT):
        raise GradscopeError(
            f"address: HOST:PORT of a cluster that this machine belongs to, or auto, is allowed, got {address!r}"
        )
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(getattr(error, "strerror", None) or error)) from None


def _require_ray(address: str) -> None:
    """Where something else listens Ray would try for minutes, and end this process: another one asks."""
    try:
        told = subprocess.run(
            [sys.executable, "-c", _QUESTION, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONG_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        if _NO_TOKEN in (error.stderr or b""):
            raise _no_cluster(address, _TOKEN_NEEDED) from None
        raise _no_cluster(address, f"nothing that Ray knows within {_LONG_PATIENCE:g} s") from None
    if told.returncode or told.stdout:
        reason = _TOKEN_NEEDED if _NO_TOKEN.decode() in told.stderr else told.stdout.strip()
        raise _no_cluster(address, reason or f"exit code {told.returncode}")


def _no_cluster(address: str, reason: str) -> GradscopeError:
    return GradscopeError(f"address: no Ray cluster at {address!r} answers: {reason}")


def _guard_the_own_cluster() -> None:
    """Give it a token of its own: Ray would leave one in the home directory, which other clusters then ask for.

    Ray reads these variables as it is imported.
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

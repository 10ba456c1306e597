"""Processes that share work through Fabric, which is loaded here alone: it takes as long as torch."""

import atexit
import logging
import os
from collections.abc import Callable
from functools import partial

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException

from gradscope.distributed.processes import is_started
from gradscope.distributed.units import explained_memory
from gradscope.errors import CannotResumeError, GradscopeError

# They announce devices, precision and processes, and that a process is ended because another failed. This is here, and
# not where a command begins, for it holds in the processes that are started too, and once Fabric is loaded, which
# announces them anew.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


def new_fabric(device: str, devices: int, precision: str) -> Fabric:
    """The fabric: one device, or ``devices`` processes started here, or those ``torchrun`` has started."""
    nodes, strategy, asked = 1, "auto" if devices == 1 else "ddp_spawn", devices
    if is_started():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes, strategy = int(os.environ["WORLD_SIZE"]) // devices, "ddp"
    elif device != "cpu" and devices > (gpus := torch.cuda.device_count()) > 0:
        raise GradscopeError(f"devices must be at most {gpus}, the GPUs that torch sees here, got {devices}")
    names = {"32": "32-true", "bf16": "bf16-mixed"}
    try:
        return Fabric(
            accelerator=device,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=names[precision],  # type: ignore[arg-type]  # a literal, looked up
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        why = " ".join(str(error).split())
        raise GradscopeError(f"device {device}, devices {asked}: {why}", "device") from None


def launch(fabric: Fabric, work: Callable[[Fabric], None]) -> None:
    """``work`` in every process. Those that are started here load what they need, so it must be picklable."""
    begin = partial(_begin, work=work, threads=torch.get_num_threads())
    if "LT_CLI_USED" in os.environ:  # `fabric run`: making the fabric has joined the processes
        begin(fabric)
        return
    try:
        fabric.launch(begin)
    except ProcessRaisedException as error:
        # A process started for the work failed; of its report only our own one-line errors are for the user.
        last_line = str(error).strip().splitlines()[-1]
        name, separator, message = last_line.partition(": ")
        for kind in (CannotResumeError, GradscopeError):
            if separator and name.endswith(kind.__name__):
                raise kind(message) from None
        raise


def _begin(fabric: Fabric, work: Callable[[Fabric], None], threads: int) -> None:
    """``work`` in no more ``threads`` than the process has that started this one: sums over more round otherwise."""
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    # Fabric leaves a process group of CPUs as it is, whose threads may then abort a process that ends.
    atexit.register(_leave)
    with explained_memory(fabric.device):
        work(fabric)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()

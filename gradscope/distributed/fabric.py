"""Share work among processes with Fabric. Only this module imports it, because the import takes as long as torch."""

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

# Silence Lightning's banners of devices, precision and processes, and torch's message that a process was terminated
# because another failed. Set here and not at the start of a command, so that it applies in started processes, too, and
# after Fabric's import, which would reset it.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


def new_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Make the fabric: one device, or ``devices`` processes started here, or those that ``torchrun`` started."""
    nodes, strategy, asked = 1, "auto" if devices == 1 else "ddp_spawn", devices
    if is_started():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes, strategy = int(os.environ["WORLD_SIZE"]) // devices, "ddp"
    elif device != "cpu" and devices > (gpus := torch.cuda.device_count()) > 0:
        raise GradscopeError(f"devices must be at most {gpus}, the number of GPUs here, got {devices}")
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
    """Run ``work`` in every process. It must be picklable, because started processes import it again."""
    begin = partial(_begin, work=work, threads=torch.get_num_threads())
    if "LT_CLI_USED" in os.environ:  # `fabric run`: the processes have already joined
        begin(fabric)
        return
    try:
        fabric.launch(begin)
    except ProcessRaisedException as error:
        # A started process failed; only gradscope's one-line errors in its report are for the user.
        last_line = str(error).strip().splitlines()[-1]
        name, separator, message = last_line.partition(": ")
        for kind in (CannotResumeError, GradscopeError):
            if separator and name.endswith(kind.__name__):
                raise kind(message) from None
        raise


def _begin(fabric: Fabric, work: Callable[[Fabric], None], threads: int) -> None:
    """Run ``work`` with at most ``threads``, those of the parent process: sums over more threads round differently."""
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    # Fabric does not destroy a process group of CPUs; its threads may then abort a process at its end.
    atexit.register(_leave)
    with explained_memory(fabric.device):
        work(fabric)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()

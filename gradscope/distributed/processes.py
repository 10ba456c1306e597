"""Where training and measuring run: one device, or several processes, one a device, that share the work."""

import atexit
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException

from gradscope.distributed.units import explained_memory
from gradscope.errors import CannotResumeError, GradscopeError

# They announce devices and processes, and that a process is ended because another failed. This is here, and not where
# a command begins, for it holds in the processes that are started too.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise GradscopeError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise GradscopeError("device must be auto or cpu, got 'cuda': torch sees no CUDA device here")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The device's product name where it has one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass(frozen=True)
class Hardware:
    """Where work runs. Precision is none of it: in training it decides the weights, and measuring is in float32."""

    device: str = "auto"
    devices: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes for all that ``torchrun`` has started."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def is_shared(self) -> bool:
        """Whether more than one process may be at the work."""
        return self.devices > 1 or _is_started()

    def fabric(self, precision: str) -> Fabric:
        """The fabric: one device, or ``devices`` processes started here, or those ``torchrun`` has started."""
        devices, nodes, strategy = self.devices, 1, "auto" if self.devices == 1 else "ddp_spawn"
        if _is_started():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes, strategy = int(os.environ["WORLD_SIZE"]) // devices, "ddp"
        elif self.device != "cpu" and devices > (gpus := torch.cuda.device_count()) > 0:
            raise GradscopeError(f"devices must be at most {gpus}, the GPUs that torch sees here, got {devices}")
        names = {"32": "32-true", "bf16": "bf16-mixed"}
        try:
            return Fabric(
                accelerator=self.device,
                devices=devices,
                num_nodes=nodes,
                strategy=strategy,
                precision=names[precision],  # type: ignore[arg-type]  # a literal, looked up
            )
        except (RuntimeError, ValueError, MisconfigurationException) as error:
            why = " ".join(str(error).split())
            raise GradscopeError(f"device {self.device}, devices {self.devices}: {why}", "device") from None

    def launch(self, precision: str, work: Callable[[Fabric], None]) -> None:
        """``work`` in every process. Those that are started here load what they need, so it must be picklable."""
        fabric = self.fabric(precision)
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


def _is_started() -> bool:
    """Whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


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

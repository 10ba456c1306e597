"""Where training and measuring run: one device, or several processes, one a device, that share the work.

Fabric, of :mod:`gradscope.distributed.fabric`, is loaded when work begins: it loads torch's compiler, which takes as
long as torch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradscope.errors import GradscopeError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        return self.devices > 1 or is_started()

    def fabric(self, precision: str) -> "Fabric":
        """The fabric: one device, or ``devices`` processes started here, or those ``torchrun`` has started."""
        from gradscope.distributed.fabric import new_fabric

        return new_fabric(self.device, self.devices, precision)

    def launch(self, precision: str, work: "Callable[[Fabric], None]") -> None:
        """``work`` in every process. Those that are started here load what they need, so it must be picklable."""
        from gradscope.distributed.fabric import launch

        launch(self.fabric(precision), work)


def is_started() -> bool:
    """Whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ

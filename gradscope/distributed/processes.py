"""Choose where training and measuring run: one device, or several processes, one per device, that share the work.

:mod:`gradscope.distributed.fabric` is imported only when work begins, because it loads torch's compiler, which takes
as long as importing torch.
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
    """Resolve ``auto`` (CUDA if available), ``cpu`` or ``cuda`` to a device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise GradscopeError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise GradscopeError("device must be auto or cpu, got 'cuda': torch finds no CUDA device here")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, else the type of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass(frozen=True)
class Hardware:
    """Where work runs. It excludes the precision, which changes the weights of training; measuring is in float32."""

    device: str = "auto"
    devices: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all processes that ``torchrun`` started."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def is_shared(self) -> bool:
        """Whether more than one process may share the work."""
        return self.devices > 1 or is_started()

    def fabric(self, precision: str) -> "Fabric":
        """Make the fabric: one device, or ``devices`` processes started here, or those that ``torchrun`` started."""
        from gradscope.distributed.fabric import new_fabric

        return new_fabric(self.device, self.devices, precision)

    def launch(self, precision: str, work: "Callable[[Fabric], None]") -> None:
        """Run ``work`` in every process. It must be picklable, because started processes import it again."""
        from gradscope.distributed.fabric import launch

        launch(self.fabric(precision), work)


def is_started() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ

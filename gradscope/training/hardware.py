"""Where training runs: one device, or several processes that share each batch."""

import os
from dataclasses import dataclass

from lightning_fabric import Fabric

from gradscope.errors import GradscopeError


@dataclass(frozen=True)
class Hardware:
    """Where training runs. Precision is part of :class:`Training`, for it decides the weights."""

    device: str = "auto"
    devices: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks for all that ``torchrun`` has started."""
        return os.environ.get("RANK", "0") == "0"

    def fabric(self, precision: str) -> Fabric:
        """The fabric: one device, or ``devices`` processes started here, or those ``torchrun`` has started."""
        devices, nodes, strategy = self.devices, 1, "auto" if self.devices == 1 else "ddp_spawn"
        if "TORCHELASTIC_RUN_ID" in os.environ:
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes, strategy = int(os.environ["WORLD_SIZE"]) // devices, "ddp"
        names = {"32": "32-true", "bf16": "bf16-mixed"}
        try:
            return Fabric(
                accelerator=self.device,
                devices=devices,
                num_nodes=nodes,
                strategy=strategy,
                precision=names[precision],  # type: ignore[arg-type]  # a literal, looked up
            )
        except (RuntimeError, ValueError) as error:
            raise GradscopeError(f"--device {self.device} --devices {self.devices}: {error}".splitlines()[0]) from None

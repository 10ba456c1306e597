"""Run a measurement on every process that shares it: processes started here, or by ``torchrun``."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.distributed.units import Team

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def on_every_rank(hardware: Hardware, work: Callable[[Team], None]) -> None:
    """Run ``work``, which must be picklable, on every rank of the team that ``hardware`` specifies."""
    device = resolve_device(hardware.device)
    hardware = replace(hardware, device=device.type)
    if hardware.is_shared:
        hardware.launch("32", partial(_run, work=work))
    else:
        Team(device).run(work)


def _run(fabric: "Fabric", work: Callable[[Team], None]) -> None:
    Team(fabric.device, fabric.global_rank, fabric.world_size).run(work)

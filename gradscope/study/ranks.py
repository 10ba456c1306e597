"""A measurement on every process that shares it: those it starts itself, or those that ``torchrun`` has started."""

from collections.abc import Callable
from functools import partial

from lightning_fabric import Fabric

from gradscope.sharing import Team
from gradscope.study.inputs import Request, resolve_device
from gradscope.training.hardware import Hardware


def on_every_rank(request: Request, work: Callable[[Team], None]) -> None:
    """``work`` on every rank of the team that ``request`` asks for; picklable, for it may run in another process."""
    device = resolve_device(request.device)
    hardware = Hardware(device.type, request.devices)
    if hardware.is_shared:
        hardware.launch("32", partial(_run, work=work))
    else:
        Team(device).run(work)


def _run(fabric: Fabric, work: Callable[[Team], None]) -> None:
    Team(fabric.device, fabric.global_rank, fabric.world_size).run(work)

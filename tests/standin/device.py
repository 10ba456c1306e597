"""A stand-in device for machines without a GPU: tensors that hold CPU data and claim to be on another device.

CPU-only torch cannot put fake CUDA tensors through a backward pass. These claim to be on ``meta``, compute on the CPU
to the same bits, and follow CUDA's rules of what may meet in one operation. Code that mixes devices, draws numbers for
the device from a CPU generator, or takes an array from a tensor on the device fails here as it fails on CUDA.

Not covered: Fabric's CUDA path (:func:`stand_in` makes a Fabric by hand), spawned processes, out of memory, pinned
memory, branches on ``device.type == "cuda"``, the larger batches of a GPU, what only CUDA computes with (cuDNN, TF32,
autocast, foreach and fused optimisers, its own random numbers), and anything asynchronous.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gradscope.attacks.compaction import SHRINKING
from gradscope.data.image_set import ImageSet
from gradscope.distributed import processes
from gradscope.distributed.processes import Hardware
from gradscope.probes.input_landscape import POINTS_AT_ONCE
from gradscope.probes.weight_landscape import IMAGES_AT_ONCE

DEVICE = torch.device("meta")
aten = torch.ops.aten

#: Operations that take CPU indices into a tensor of the device, as CUDA's do.
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
#: Those that take a number from a 0-dimensional CPU tensor; so do all that torch marks as pointwise.
_TAKES_A_NUMBER = {*_INDEXES, "fill_", "index_fill", "index_fill_", "masked_fill", "masked_fill_"}
#: Those that the CPU waits for, since it has to know a value or how large the result is.
_SYNCHRONISES = {"_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero"}


class DeviceError(RuntimeError):
    """CUDA would refuse this operation, also with a RuntimeError."""


class DeviceTensor(Tensor):
    """A tensor on :data:`DEVICE`; ``held`` is its data, with the same strides."""

    held: Tensor
    refused: ClassVar[list[str]] = []  # what was refused since the device was entered
    is_meta = False  # else torch warns that a state cannot be loaded into it
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=DEVICE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        raise DeviceError(f"{function}: used outside of the stand-in device")

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # makes Module.to keep its parameters, as for CUDA
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> "DeviceTensor":
        return DeviceTensor(inner["held"])

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as CPU tensors are
        return self.cpu().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise _refused(TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first"))

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Device(TorchDispatchMode):
    """The device: while it is entered, every operation of torch passes through it.

    ``synchronisations`` counts, by operation, how often the CPU waits for a value or a size; ``copies`` counts the
    copies from the CPU to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.synchronisations: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        DeviceTensor.refused.clear()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        leaves = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor | torch.Generator)]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
        target = options.get("device")
        target_on_device = on_device if target is None else torch.device(target) == DEVICE
        if not on_device and not target_on_device:
            return function(*arguments, **options)
        if torch.Tag.inplace_view in function.tags:
            raise NotImplementedError(f"{function}: the stand-in device cannot change a shape in place")
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):  # all generators are the CPU's
            raise _refused(
                DeviceError(f"Expected a {DEVICE.type!r} device type for generator but found 'cpu' ({function})")
            )
        if function is aten.copy_.default:
            target_on_device = isinstance(arguments[0], DeviceTensor)
            self._count_copy(from_device=isinstance(arguments[1], DeviceTensor), to_device=target_on_device)
        elif function is aten._to_copy.default:
            self._count_copy(from_device=on_device, to_device=target_on_device)
        else:
            self._check(function, arguments, tensors)
            self._count(function, arguments)
        if target is not None:
            options["device"] = torch.device("cpu")
        held_arguments, held_options = tree_map(_held, (arguments, options))
        result = function(*held_arguments, **held_options)
        returns = function._schema.returns
        if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
            return options["out"] if "out" in options else arguments[0]
        return tree_map(_wrapped, result) if target_on_device else result

    def _check(self, function: Any, arguments: Any, tensors: list[Tensor]) -> None:
        """Raise :class:`DeviceError` where a CPU tensor meets one of the device that CUDA would not let it meet."""
        here = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if not here or len(here) == len(tensors):
            return
        name = _name(function)
        if name in _INDEXES and isinstance(arguments[0], DeviceTensor):
            here = [tensor for tensor in here if not any(tensor is index for index in arguments[1])]
        takes_a_number = name in _TAKES_A_NUMBER or torch.Tag.pointwise in function.tags
        written = function._schema.is_mutable and arguments and any(arguments[0] is tensor for tensor in here)
        if written or not takes_a_number or any(tensor.dim() > 0 for tensor in here):
            found = f"found at least two, {DEVICE} and cpu ({function})"
            raise _refused(DeviceError(f"Expected all tensors to be on the same device, but {found}"))

    def _count_copy(self, *, from_device: bool, to_device: bool) -> None:
        if from_device and not to_device:
            self.synchronisations["copy to the CPU"] += 1
        elif to_device and not from_device:
            self.copies["copy to the device"] += 1

    def _count(self, function: Any, arguments: Any) -> None:
        name = _name(function)
        if name in _SYNCHRONISES:
            self.synchronisations[name] += 1
        elif name in _INDEXES:
            indices = [index for index in arguments[1] if index is not None]
            fills = len(arguments) > 2 and arguments[2].numel() == 1  # a mask and a number: CUDA does not wait
            if any(index.dtype == torch.bool for index in indices) and not fills:
                self.synchronisations["boolean index"] += 1
            self.copies["CPU index"] += sum(not isinstance(index, DeviceTensor) for index in indices)


def _refused(error: Exception) -> Exception:
    """Record ``error``, so that it is noticed even where it is caught."""
    DeviceTensor.refused.append(str(error))
    return error


def _name(function: Any) -> str:
    return str(function._schema.name).removeprefix("aten::")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _wrapped(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) else value


@contextmanager
def stand_in() -> Iterator[Device]:
    """Make gradscope resolve every device to the stand-in, with the batch sizes of the CPU.

    Fabric has no accelerator for it, so training gets a Fabric with a single-device strategy; everything else in it
    is Fabric's own. Training images are moved to the device whole, as on a GPU that has room for them; measurements
    move them batch by batch. Raises :class:`DeviceError` at the end where gradscope caught a refusal and went on.
    """
    resolve = processes.resolve_device
    with pytest.MonkeyPatch.context() as patch, Device() as device:
        for name, module in list(sys.modules.items()):
            if name.startswith("gradscope.") and getattr(module, "resolve_device", None) is resolve:
                patch.setattr(module, "resolve_device", lambda name: DEVICE)
        patch.setattr(Hardware, "fabric", _fabric)
        patch.setattr(ImageSet, "on", _on)
        for rule in (POINTS_AT_ONCE, IMAGES_AT_ONCE, SHRINKING):
            patch.setitem(rule, DEVICE.type, rule["cpu"])
        yield device
        if DeviceTensor.refused:
            raise DeviceError(f"caught by gradscope: {DeviceTensor.refused[0]}")


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


def _fabric(hardware: Hardware, precision: str) -> Fabric:
    assert (hardware.devices, precision) == (1, "32")
    return Fabric(strategy=SingleDeviceStrategy(DEVICE, accelerator=_Accelerator()))


def _on(images: ImageSet, device: torch.device | str) -> ImageSet:
    return replace(images, images=images.images.to(device), labels=images.labels.to(device))

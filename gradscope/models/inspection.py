"""Looking at a model without leaving a trace, and telling whether it fits the data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope.errors import GradscopeError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters inside; every module's and parameter's own flag comes back after.

    Frozen parameters spare the backward pass their gradients: ``autograd.grad`` in the images is all that is left.
    """
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def check_fits(
    model: nn.Module,
    *,
    channels: int,
    image_size: int,
    classes: int,
    name: str,
    device: torch.device,
    finite: bool = True,
) -> None:
    """Raise :class:`GradscopeError` unless ``model`` gives logits ``(2, classes)`` for two grey images.

    They must be finite too, unless ``finite`` is False: some can judge a model that is defined on some images only.
    ``name`` is the checkpoint's, for the message. Random states and buffers stay as they were, even where the model
    draws noise or counts its calls.
    """
    grey = torch.full((2, channels, image_size, image_size), 0.5, device=device)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with evaluating(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            output = functional_call(model, buffers, (grey,))
        except Exception as error:
            size = f"{channels} x {image_size} x {image_size}"
            raise GradscopeError(f"CKPT: {name} does not take the data's {size} images: {one_line(error)}") from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        kind = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise GradscopeError(f"CKPT: {name} must return logits (N, classes), got {kind} for 2 images")
    if output.shape[1] != classes:
        raise GradscopeError(f"CKPT: {name} has {output.shape[1]} classes, the data has {classes}")
    if not output.is_floating_point():
        raise GradscopeError(f"CKPT: {name} must return floating-point logits, got {output.dtype}")
    if finite and not output.isfinite().all():
        raise GradscopeError(f"CKPT: {name} must return finite logits, got NaN or infinity for a grey image")


def check_differentiable(model: nn.Module, *, channels: int, image_size: int, name: str, device: torch.device) -> None:
    """Raise :class:`GradscopeError` unless the logits of ``model`` depend on the image in a way autograd can follow.

    A gradient that is zero passes: that is a finding, not a mistake.
    """
    grey = torch.full((2, channels, image_size, image_size), 0.5, device=device, requires_grad=True)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with evaluating(model), torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = functional_call(model, buffers, (grey,))
    if not output.requires_grad:
        raise GradscopeError(f"CKPT: {name} has no gradient in the image: its logits are cut off from it (detached?)")


def one_line(error: BaseException) -> str:
    """The kind of ``error`` and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory: a smaller batch may fit. CUDA's cache is emptied for it."""
    if isinstance(error, torch.OutOfMemoryError):
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return True
    return "DefaultCPUAllocator" in str(error)

"""Looking at a model without leaving a trace, and telling whether it fits the data."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope.errors import GradscopeError

T = TypeVar("T")


#: How every measurement computes in float32, as manifests say it.
FLOAT32 = "ieee"


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Examine ``model``: :func:`evaluating`, in IEEE float32 on every device (:func:`strict_float32`).

    Every forward and backward pass of an examined model belongs inside. Contexts may be nested.
    """
    with evaluating(model), strict_float32():
        yield


@contextmanager
def strict_float32() -> Iterator[None]:
    """Compute float32 as IEEE float32 inside: no TF32, no bfloat16, no autocast; restore the caller's choice after.

    By default cuDNN convolves in TF32, whose mantissa has 10 bits. Inside, cuDNN uses deterministic algorithms and
    chooses them without timing any, so that a measurement repeats on the same GPU.
    """
    backends: Any = torch.backends  # torch's stubs lack most of these
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    operations = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    # Torch has an old and a new set of flags. The old getters raise where the two disagree, so both are set.
    chosen = [operation.fp32_precision for operation in operations]
    convolutions = _or_default(lambda: cudnn.allow_tf32, True)
    products = _or_default(torch.get_float32_matmul_precision, "highest")
    rule = cudnn.benchmark, cudnn.deterministic
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
            for operation in operations:
                operation.fp32_precision = "ieee"
            cudnn.benchmark, cudnn.deterministic = False, True
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = rule
            cudnn.allow_tf32 = convolutions
            torch.set_float32_matmul_precision(products)
            for operation, precision in zip(operations, chosen, strict=True):
                operation.fp32_precision = precision


def _or_default(read: Callable[[], T], default: T) -> T:
    """What an old flag says; ``default`` where torch refuses to say, for the new flags differ from it."""
    try:
        return read()
    except RuntimeError:
        return default


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
    with measuring(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
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
    with measuring(model), torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = functional_call(model, buffers, (grey,))
    if not output.requires_grad:
        raise GradscopeError(f"CKPT: {name} has no gradient in the image: its logits are cut off from it (detached?)")


def one_line(error: BaseException) -> str:
    """The kind of ``error`` and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""Run a model without changing it, and check that it fits the data."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError

T = TypeVar("T")


#: The float32 precision of every measurement, as written in manifests.
FLOAT32 = "ieee"
#: The accepted types of logits.
LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Measure ``model`` inside: :func:`evaluating`, in IEEE float32 on every device (:func:`strict_float32`).

    Every forward and backward pass of a measured model belongs inside. Contexts may be nested.
    """
    with evaluating(model), strict_float32():
        yield


@contextmanager
def strict_float32() -> Iterator[None]:
    """Compute float32 as IEEE float32 inside: no TF32, no bfloat16, no autocast; restore the caller's settings after.

    By default cuDNN convolves in TF32, whose mantissa has 10 bits. Inside, cuDNN uses deterministic algorithms and does
    not choose them by timing, so that a measurement repeats on the same GPU.
    """
    backends: Any = torch.backends  # torch's stubs lack most of these
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    operations = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    # Torch has an old and a new set of flags. The old getters raise if the two disagree, so both are set.
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
    """Read an old flag; ``default`` if torch raises because the new flags disagree."""
    try:
        return read()
    except RuntimeError:
        return default


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode and freeze the parameters inside; restore every module's and parameter's own flag after.

    With frozen parameters the backward pass computes only the gradients of ``autograd.grad`` in the images.
    """
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        into_evaluation(model)
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def takes_channels_last(device: torch.device) -> bool:
    """Whether IEEE float32 is faster on ``device`` with channels last, for any layout of the parameters.

    On a CPU it is, above all for max-pooling. On CUDA it is not, because IEEE float32 uses no tensor cores. The
    benchmark ``layout`` measures it.
    """
    return device.type != "cuda"


def laid_out(images: Tensor) -> Tensor:
    """Convert ``images`` ``(N, C, H, W)`` to the memory layout that is fastest on their device."""
    return channels_last(images) if takes_channels_last(images.device) else images.contiguous()


def channels_last(images: Tensor) -> Tensor:
    """Convert ``images`` ``(N, C, H, W)`` to channels last: the channels of a pixel are adjacent in memory."""
    if images.shape[1] == 1:  # torch takes one channel for the contiguous layout unless its stride is 1
        return images.squeeze(1).contiguous().unsqueeze(-1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter, else of the first buffer; the CPU if there is neither."""
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def copied(model: nn.Module) -> nn.Module:
    """Copy ``model`` in ``no_grad``, because TorchScript's copied parameters would otherwise not be leaves."""
    with torch.no_grad():
        return copy.deepcopy(model)


def into_evaluation(model: nn.Module) -> nn.Module:
    """Call ``model.eval()`` and return the model; of a model of ``torch.export``, which refuses it, set the flags."""
    try:
        model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False
    return model


class LogitsOnly(nn.Module):
    """A wrapper that returns the ``.logits`` of a model's output, as for Hugging Face's models."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = self.network(images).logits
        return logits


def returning_logits(model: nn.Module, batch: Tensor, name: str) -> nn.Module:
    """Return ``model``, in eval mode and behind :class:`LogitsOnly` if its output for ``batch`` has ``.logits``.

    A model whose class has its own ``__call__``, which runs no hooks, is put into a module that runs them.
    """
    output = _returned(model, batch, name)
    if not isinstance(output, Tensor) and isinstance(getattr(output, "logits", None), Tensor):
        return into_evaluation(LogitsOnly(model))
    hooked = str(getattr(type(model).__call__, "__module__", "")).startswith("torch.")
    return model if hooked else into_evaluation(nn.Sequential(model))


def grey(images: ImageSet, device: torch.device) -> Tensor:
    """Make two grey images of the shape of ``images``, ``(2, C, H, W)``."""
    return torch.full((2, *images.images.shape[1:]), 0.5, device=device)


def check_fits(model: nn.Module, images: ImageSet, *, name: str, device: torch.device, finite: bool = True) -> None:
    """Check that ``model`` returns logits ``(2, classes)`` for two grey images of the shape of ``images``.

    Raises :class:`GradscopeError` otherwise; the message begins with ``name``. With ``finite`` the logits must be
    finite, too; some commands also accept a model that is undefined on some images. Random states and buffers do not
    change, even if the model draws noise or counts its calls.
    """
    batch = grey(images, device)
    output = logits_for(model, batch, name)
    if output.shape[1] != len(images.classes):
        raise GradscopeError(f"{name} must have the data's {len(images.classes)} classes, got {output.shape[1]}")
    if finite and not output.isfinite().all():
        raise GradscopeError(f"{name} must return finite logits, got NaN or infinity for a grey image")
    try:
        single = _returned(model, batch[:1], name)
    except GradscopeError:
        pass  # reported only if a batch of one image occurs
    else:
        _require_logits(single, batch[:1], name)


@dataclass(frozen=True)
class LogitsCheck:
    """A forward hook: refuse any output of the model ``name`` but logits ``(N, classes)`` of one type.

    ``types`` holds the type of the logits for each type of images, with and without autocast.
    """

    name: str
    classes: int
    types: dict[tuple[torch.dtype, bool], torch.dtype] = field(default_factory=dict, repr=False)

    def __call__(self, model: nn.Module, given: tuple[Tensor], output: object) -> None:
        """Raise :class:`GradscopeError` for any other output."""
        logits = _require_logits(output, given[0], self.name)
        if logits.shape[1] != self.classes:
            raise GradscopeError(f"{self.name} must return logits of {self.classes} classes, got {logits.shape[1]}")
        inputs = given[0].dtype, any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        usual = self.types.setdefault(inputs, logits.dtype)
        if logits.dtype is not usual:
            raise GradscopeError(f"{self.name} must return logits of one type, got {logits.dtype} after {usual}")


def logits_for(model: nn.Module, batch: Tensor, name: str) -> Tensor:
    """Compute the logits ``(N, K)`` of ``batch`` without changing ``model``; raises GradscopeError for other output."""
    return _require_logits(_returned(model, batch, name), batch, name)


def _require_logits(output: object, batch: Tensor, name: str) -> Tensor:
    count = len(batch)
    dense = isinstance(output, Tensor) and output.layout is torch.strided and not output.is_nested
    if not isinstance(output, Tensor) or not dense or output.dim() != 2 or len(output) != count:
        kind = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            kind = f"a tensor {tuple(output.shape)}" if dense else "a sparse or nested tensor"
        first = isinstance(output, tuple | list) and len(output) > 0 and isinstance(output[0], Tensor)
        hint = "; wrap it in a module whose forward returns the first element" if first else ""
        raise GradscopeError(
            f"{name} must return logits (N, classes), got {kind} for {count} image{'s' * (count > 1)}{hint}"
        )
    if output.dtype not in LOGITS:
        raise GradscopeError(f"{name} must return floating-point logits, got {output.dtype}")
    if output.device != batch.device:
        raise GradscopeError(f"{name} must return logits on the images' device, {batch.device}, got {output.device}")
    return output


def _returned(model: nn.Module, batch: Tensor, name: str) -> object:
    """Run ``model`` on ``batch`` without gradients; buffers and random states do not change."""
    _require_weights(model, name)
    shown = batch.clone()
    with torch.no_grad():
        output = _outcome(model, shown, name)
    if not torch.equal(shown, batch):
        raise GradscopeError(f"{name} must not change its input in place")
    return output


def _require_weights(model: nn.Module, name: str) -> None:
    """Raise :class:`GradscopeError` if a model has no weights yet: lazy layers, or the meta device."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise GradscopeError(f"{name} must have weights, got lazy layers; run a batch of images through it first")
    if any(tensor.is_meta for tensor in tensors):
        raise GradscopeError(f"{name} must have weights, got some on the meta device, which holds no numbers")


def _outcome(model: nn.Module, batch: Tensor, name: str) -> Any:
    """Run ``model`` on ``batch``; any error it raises becomes a one-line :class:`GradscopeError`."""
    try:
        return _run(model, batch)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {batch.dtype}
        if other:
            kind = str(other.pop()).removeprefix("torch.")
            raise GradscopeError(
                f"{name} must take float32 images, got {kind} parameters; call model.float()"
            ) from error
        size = " x ".join(str(length) for length in batch.shape[1:])
        raise GradscopeError(f"{name} must take the data's {size} images: {one_line(error)}") from error


def call_with(model: nn.Module, tensors: dict[str, Tensor], batch: Tensor) -> Any:
    """Call ``model(batch)`` with ``tensors`` in place of the parameters and buffers of the same names."""
    if isinstance(model, torch.jit.ScriptModule):  # functional_call accepts it only inside another module
        model, tensors = nn.Sequential(model), {f"0.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(model, tensors, (batch,))


def _run(model: nn.Module, batch: Tensor) -> Any:
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    devices = [batch.device] if batch.device.type == "cuda" else []
    with measuring(model), torch.random.fork_rng(devices):
        return call_with(model, buffers, batch)


def check_differentiable(model: nn.Module, images: ImageSet, *, name: str, device: torch.device) -> None:
    """Raise :class:`GradscopeError` unless autograd can differentiate the logits of ``model`` in the image.

    A zero gradient passes: it is a finding, not a mistake.
    """
    with torch.enable_grad():
        batch = grey(images, device).requires_grad_()
        output = _require_logits(_outcome(model, batch, name), batch, name)
    if not output.requires_grad:
        raise GradscopeError(f"{name} must have a gradient in the image, got logits that are detached from it")


def is_scripted(model: nn.Module) -> bool:
    """Whether ``model`` or one of its parts is TorchScript."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def one_line(error: BaseException) -> str:
    """Format ``error`` as its type and the first line of its message, at most 200 characters."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # raised by the __str__ of a user's own class
        lines = []
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

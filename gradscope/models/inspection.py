"""Looking at a model without leaving a trace, and telling whether it fits the data."""

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


#: How every measurement computes in float32, as manifests say it.
FLOAT32 = "ieee"
#: Types of logits that torch computes with.
LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    """Whether measuring, in IEEE float32, is faster on ``device`` with channels last, whatever the parameters' layout.

    On a CPU it is, max-pooling above all. On CUDA it is not, since IEEE float32 takes no tensor cores. The benchmark
    ``layout`` shows it.
    """
    return device.type != "cuda"


def laid_out(images: Tensor) -> Tensor:
    """``images`` ``(N, C, H, W)`` in the memory layout that is fastest on their device."""
    return channels_last(images) if takes_channels_last(images.device) else images.contiguous()


def channels_last(images: Tensor) -> Tensor:
    """``images`` ``(N, C, H, W)`` with the channels of a pixel side by side in memory."""
    if images.shape[1] == 1:  # which torch takes for the plain layout unless the channel's stride is 1
        return images.squeeze(1).contiguous().unsqueeze(-1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter, or else of the first buffer; the CPU where there is neither."""
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def copied(model: nn.Module) -> nn.Module:
    """A copy of ``model``; without gradients, which would make TorchScript's parameters results of the copying."""
    with torch.no_grad():
        return copy.deepcopy(model)


def into_evaluation(model: nn.Module) -> nn.Module:
    """Call ``model.eval()``, and set the flags alone of what ``torch.export`` made, which refuses it; return it."""
    try:
        model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False
    return model


class LogitsOnly(nn.Module):
    """A model whose output is an object with ``.logits``, as in Hugging Face's: returns these alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in, logits ``(N, K)`` out."""
        logits: Tensor = self.network(images).logits
        return logits


def returning_logits(model: nn.Module, batch: Tensor, name: str) -> nn.Module:
    """``model``, in eval mode behind :class:`LogitsOnly` where what it returns for ``batch`` has ``.logits``.

    One whose class has a ``__call__`` of its own, which runs no hooks, is put into a module that does.
    """
    output = _returned(model, batch, name)
    if not isinstance(output, Tensor) and isinstance(getattr(output, "logits", None), Tensor):
        return into_evaluation(LogitsOnly(model))
    hooked = str(getattr(type(model).__call__, "__module__", "")).startswith("torch.")
    return model if hooked else into_evaluation(nn.Sequential(model))


def grey(images: ImageSet, device: torch.device) -> Tensor:
    """Two grey images of the shape of ``images``, ``(2, C, H, W)``."""
    return torch.full((2, *images.images.shape[1:]), 0.5, device=device)


def check_fits(model: nn.Module, images: ImageSet, *, name: str, device: torch.device, finite: bool = True) -> None:
    """Raise :class:`GradscopeError` unless ``model`` gives logits ``(2, classes)`` for two grey images like ``images``.

    They must be finite too, unless ``finite`` is False: some can judge a model that is defined on some images only.
    ``name`` begins the message. Random states and buffers stay as they were, even where the model draws noise or
    counts its calls.
    """
    batch = grey(images, device)
    output = logits_for(model, batch, name)
    if output.shape[1] != len(images.classes):
        raise GradscopeError(f"{name} has {output.shape[1]} classes, the data has {len(images.classes)}")
    if finite and not output.isfinite().all():
        raise GradscopeError(f"{name} must return finite logits, got NaN or infinity for a grey image")
    try:
        single = _returned(model, batch[:1], name)
    except GradscopeError:
        pass  # it is told where a batch of one image comes
    else:
        _require_logits(single, batch[:1], name)


@dataclass(frozen=True)
class LogitsCheck:
    """A forward hook: refuse whatever the model called ``name`` returns but logits ``(N, classes)`` of one type.

    ``types``: of the logits, for each type of images with and without autocast.
    """

    name: str
    classes: int
    types: dict[tuple[torch.dtype, bool], torch.dtype] = field(default_factory=dict, repr=False)

    def __call__(self, model: nn.Module, given: tuple[Tensor], output: object) -> None:
        """Raise :class:`GradscopeError` for anything else."""
        logits = _require_logits(output, given[0], self.name)
        if logits.shape[1] != self.classes:
            raise GradscopeError(f"{self.name} must return logits of {self.classes} classes, got {logits.shape[1]}")
        of_images = given[0].dtype, any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
        usual = self.types.setdefault(of_images, logits.dtype)
        if logits.dtype is not usual:
            raise GradscopeError(f"{self.name} must return logits of one type, got {logits.dtype} after {usual}")


def logits_for(model: nn.Module, batch: Tensor, name: str) -> Tensor:
    """The logits ``(N, K)`` of ``batch``, without a trace; :class:`GradscopeError` where ``model`` gives none."""
    return _require_logits(_returned(model, batch, name), batch, name)


def _require_logits(output: object, batch: Tensor, name: str) -> Tensor:
    count = len(batch)
    dense = isinstance(output, Tensor) and output.layout is torch.strided and not output.is_nested
    if not isinstance(output, Tensor) or not dense or output.dim() != 2 or len(output) != count:
        kind = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            kind = f"a tensor {tuple(output.shape)}" if dense else "a sparse or nested tensor"
        first = isinstance(output, tuple | list) and len(output) > 0 and isinstance(output[0], Tensor)
        hint = "; wrap it in a module whose forward returns the first of them" if first else ""
        raise GradscopeError(
            f"{name} must return logits (N, classes), got {kind} for {count} image{'s' * (count > 1)}{hint}"
        )
    if output.dtype not in LOGITS:
        raise GradscopeError(f"{name} must return floating-point logits, got {output.dtype}")
    if output.device != batch.device:
        raise GradscopeError(f"{name} must return logits on {batch.device}, where its images are, got {output.device}")
    return output


def _returned(model: nn.Module, batch: Tensor, name: str) -> object:
    """What ``model`` returns for ``batch`` without gradients; buffers and random states stay as they were."""
    _require_weights(model, name)
    shown = batch.clone()
    with torch.no_grad():
        output = _outcome(model, shown, name)
    if not torch.equal(shown, batch):
        raise GradscopeError(f"{name} must leave its input as it is, got a model that changes it in place")
    return output


def _require_weights(model: nn.Module, name: str) -> None:
    """Raise :class:`GradscopeError` where weights are still to come: those of lazy layers, and on the meta device."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise GradscopeError(f"{name} has lazy layers that have no weights yet; run a batch of images through it first")
    if any(tensor.is_meta for tensor in tensors):
        raise GradscopeError(f"{name} must have weights, got some on the device meta, which holds no numbers")


def _outcome(model: nn.Module, batch: Tensor, name: str) -> Any:
    """What ``model`` returns for ``batch``; whatever it raises is told as a misfit."""
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
        raise GradscopeError(f"{name} does not take the data's {size} images: {one_line(error)}") from error


def call_with(model: nn.Module, tensors: dict[str, Tensor], batch: Tensor) -> Any:
    """``model(batch)`` with ``tensors`` in the places of its parameters and buffers of these names."""
    if isinstance(model, torch.jit.ScriptModule):  # which torch takes as a part of a module alone
        model, tensors = nn.Sequential(model), {f"0.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(model, tensors, (batch,))


def _run(model: nn.Module, batch: Tensor) -> Any:
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    devices = [batch.device] if batch.device.type == "cuda" else []
    with measuring(model), torch.random.fork_rng(devices):
        return call_with(model, buffers, batch)


def check_differentiable(model: nn.Module, images: ImageSet, *, name: str, device: torch.device) -> None:
    """Raise :class:`GradscopeError` unless the logits of ``model`` depend on the image in a way autograd can follow.

    A gradient that is zero passes: that is a finding, not a mistake.
    """
    with torch.enable_grad():
        batch = grey(images, device).requires_grad_()
        output = _require_logits(_outcome(model, batch, name), batch, name)
    if not output.requires_grad:
        raise GradscopeError(f"{name} has no gradient in the image: its logits are cut off from it (detached?)")


def is_scripted(model: nn.Module) -> bool:
    """Whether ``model`` or a part of it is TorchScript."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def one_line(error: BaseException) -> str:
    """The kind of ``error`` and the first line of its message, 200 characters at most."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # of a user's own class
        lines = []
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

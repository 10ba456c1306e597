"""Adapt a model to an attack: replace its backward pass, or average its random draws."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.distributed.units import is_out_of_memory
from gradscope.errors import GradscopeError, unknown_name
from gradscope.models.factories import find_function
from gradscope.models.failures import in_one_line
from gradscope.models.inspection import copied, device_of, into_evaluation, measuring, one_line

#: The stand-in that passes gradients on unchanged (the straight-through estimator).
IDENTITY = "identity"
#: The name of the whole model among its parts.
WHOLE = ""


class Through(nn.Module):
    """A part of a model with its own values and the gradient of ``standin`` (Athalye et al. 2018, BPDA).

    ``real`` runs without gradients on detached inputs; its values are returned bit for bit. ``standin`` takes the same
    inputs and returns a tensor of the same shape; it runs only if an input requires a gradient.
    """

    def __init__(self, real: nn.Module, standin: Callable[..., Tensor], name: str) -> None:
        super().__init__()
        self.real, self.standin, self.name = real, standin, name or "the model"

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the values of ``real``, with the gradient of ``standin``."""
        with torch.no_grad():
            keywords = {key: _detached(value) for key, value in named.items()}
            values: Tensor = self.real(*map(_detached, inputs), **keywords)
        if not torch.is_grad_enabled() or not any(_requires_grad(value) for value in (*inputs, *named.values())):
            return values
        message = f"backward must be functions that take the inputs of their part, that of {self.name} raised"
        with in_one_line(message, halved=True):
            replaced = self.standin(*inputs, **named)
        wanted, got = _shape(values), _shape(replaced)
        if wanted != got or not isinstance(values, Tensor):
            raise GradscopeError(f"backward must return what {self.name} returns, {wanted}, got {got}")
        output: Tensor = _WithGradientOf.apply(values, replaced.to(values.dtype))  # type: ignore[no-untyped-call]
        return output


class _WithGradientOf(torch.autograd.Function):
    """The first tensor, with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, replaced: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def _detached(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


def _requires_grad(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _shape(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def stands_in(model: nn.Module) -> bool:
    """Whether a stand-in replaces the gradient of ``model`` or of a part of it."""
    return any(isinstance(module, Through) for module in model.modules())


class Averaged(nn.Module):
    """The expectation of a random model: ``log mean over draws of softmax(z)`` (Athalye et al. 2018, EoT).

    Each pass takes new draws from torch's global random state; one draw covers the whole batch.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Return logits whose softmax is the mean of the model's softmax over the draws."""
        drawn = torch.stack([self.model(images).log_softmax(dim=1) for _ in range(self.draws)])
        return drawn.logsumexp(dim=0) - math.log(self.draws)


def draws_of(model: nn.Module) -> int | None:
    """Return the number of draws that each pass of ``model`` averages; None if it averages none."""
    return next((module.draws for module in model.modules() if isinstance(module, Averaged)), None)


def with_backward(model: nn.Module, given: Mapping[str, Any], batch: Tensor, *, trust_code: bool = False) -> nn.Module:
    """Replace the gradient of parts of ``model``: ``given`` maps the name of each part to its stand-in (BPDA).

    The values stay the model's own. A stand-in is a callable, :data:`IDENTITY` or ``package.module:function``;
    :data:`WHOLE` names the whole model. The parts are replaced in a copy of ``model``. A name may omit the prefixes of
    outer modules. One pass over ``batch`` ``(N, C, H, W)`` tests the result. Raises :class:`GradscopeError` for an
    unknown name, code that is not trusted, a model that cannot be copied, a stand-in that fails, returns another shape
    or is never called, and logits that remain detached from the image.
    """
    standins = {name: _standin(standin, name, trust_code, device_of(model)) for name, standin in given.items()}
    if WHOLE in standins:
        adapted: nn.Module = Through(model, standins[WHOLE], WHOLE)
    else:
        adapted = _copied(model)
        parts = [(_module_called(adapted, name), name) for name in standins]
        for part, name in parts:
            _replace(adapted, part, standins[name], name)
    into_evaluation(adapted)
    _try(adapted, batch)
    return adapted


def _standin(given: Any, name: str, trust_code: bool, device: torch.device) -> Callable[..., Tensor]:
    if given == IDENTITY:
        return nn.Identity()
    function: Callable[..., Any] = find_function(given, "backward", trust_code) if isinstance(given, str) else given
    standin: Callable[..., Tensor] = _copied(function).to(device) if isinstance(function, nn.Module) else function
    return standin


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise GradscopeError(
            f"backward must be for the whole model if the model cannot be copied: {one_line(error)}"
        ) from error


def _module_called(model: nn.Module, name: str) -> nn.Module:
    """Find the part of ``model`` whose name is ``name`` or ends with it; of several the outermost."""
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    del known[""]
    matches = [key for key in known if key == name or key.endswith(f".{name}")]
    if not matches:
        raise unknown_name("backward", name, known)
    depth = min(key.count(".") for key in matches)
    outermost = {id(known[key]): key for key in matches if key.count(".") == depth}
    if len(outermost) > 1:
        raise GradscopeError(f"backward must name one part, got {name!r}, which may be {', '.join(outermost.values())}")
    return known[next(iter(outermost.values()))]


def _replace(model: nn.Module, part: nn.Module, standin: Callable[..., Tensor], name: str) -> None:
    """Put ``part`` behind its stand-in wherever ``model`` holds it."""
    through = Through(part, standin, name)
    known = dict(model.named_modules(remove_duplicate=False))
    for place, module in known.items():
        outer, _, key = place.rpartition(".")
        if module is part and not isinstance(parent := known[outer], torch.jit.ScriptModule):
            setattr(parent, key, through)
    if not any(module is through for module in model.modules()):
        raise GradscopeError(
            f"backward must be for the whole model if {name} is part of a TorchScript model, which cannot be changed"
        )


def _try(model: nn.Module, batch: Tensor) -> None:
    """Run ``model`` once; raises :class:`GradscopeError` unless a gradient reaches the image through every part."""
    parts = [module for module in model.modules() if isinstance(module, Through)]
    called: set[int] = set()
    hooks = [part.register_forward_hook(lambda module, inputs, output: called.add(id(module))) for part in parts]
    devices = [batch.device] if batch.device.type == "cuda" else []
    point = batch.clone().requires_grad_()
    gradient = None
    ran = in_one_line("backward must leave a model that runs, it raised", halved=True)
    try:
        with ran, measuring(model), torch.enable_grad(), torch.random.fork_rng(devices):
            logits = model(point)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [part.name for part in parts if id(part) not in called]
    if idle:
        raise GradscopeError(f"backward must name parts that the model calls as modules, got {idle[0]}, never called")
    if gradient is None:
        raise GradscopeError("backward must let a gradient reach the image, another part still detaches it")

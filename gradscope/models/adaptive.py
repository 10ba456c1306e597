"""A model as an adaptive attack sees it: with another backward pass, or as the mean of its random draws."""

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

#: The stand-in that passes gradients on as they are (the straight-through estimator).
IDENTITY = "identity"
#: The name of the whole model among its parts.
WHOLE = ""


class Through(nn.Module):
    """A part of a model whose values are its own and whose gradient is that of ``standin`` (Athalye et al. 2018, BPDA).

    ``real`` runs without gradients on inputs that need none; its values are returned bit for bit. ``standin`` takes the
    same inputs and returns as many values; it runs only where a gradient is asked for.
    """

    def __init__(self, real: nn.Module, standin: Callable[..., Tensor], name: str) -> None:
        super().__init__()
        self.real, self.standin, self.name = real, standin, name or "the model"

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The values of ``real``, with the gradient of ``standin``."""
        with torch.no_grad():
            values: Tensor = self.real(*map(_cut, inputs), **{key: _cut(value) for key, value in named.items()})
        if not torch.is_grad_enabled() or not any(_asks(value) for value in (*inputs, *named.values())):
            return values
        said = f"backward must be functions that run on what they stand in for, that of {self.name} raised"
        with in_one_line(said, halved=True):
            stood_in = self.standin(*inputs, **named)
        wanted, got = _shape(values), _shape(stood_in)
        if wanted != got or not isinstance(values, Tensor):
            raise GradscopeError(f"backward must return what {self.name} returns, {wanted}, got {got}")
        found: Tensor = _WithGradientOf.apply(values, stood_in.to(values.dtype))  # type: ignore[no-untyped-call]
        return found


class _WithGradientOf(torch.autograd.Function):
    """The first tensor, with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, stood_in: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def _cut(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


def _asks(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _shape(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def stands_in(model: nn.Module) -> bool:
    """Whether a stand-in gives the gradient of ``model`` or of a part of it."""
    return any(isinstance(module, Through) for module in model.modules())


class Averaged(nn.Module):
    """A random model's expectation: ``log mean over draws of softmax(z)`` (Athalye et al. 2018, EoT).

    Each pass draws anew, from torch's global state, whose draws are those of the whole batch.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits whose softmax is the mean of the model's."""
        drawn = torch.stack([self.model(images).log_softmax(dim=1) for _ in range(self.draws)])
        return drawn.logsumexp(dim=0) - math.log(self.draws)


def draws_of(model: nn.Module) -> int | None:
    """How many draws of itself each pass of ``model`` averages; None where it is taken as it is."""
    return next((module.draws for module in model.modules() if isinstance(module, Averaged)), None)


def with_backward(model: nn.Module, given: Mapping[str, Any], batch: Tensor, *, trust_code: bool = False) -> nn.Module:
    """``model`` with its own values and, in its parts named by ``given``, the gradient of another function each.

    A stand-in is a callable, :data:`IDENTITY` or ``package.module:function``; :data:`WHOLE` names the whole model.
    Parts are replaced in a copy: ``model`` stays as it is. A name may leave out what outer modules add to it. One pass
    over ``batch`` ``(N, C, H, W)`` is tried. Raises :class:`GradscopeError` for a name that no part has, code that is
    not trusted, a model that cannot be copied, a stand-in that fails, returns another shape or is never asked, and
    logits that stay cut off from the image.
    """
    found = {name: _standin(one, name, trust_code, device_of(model)) for name, one in given.items()}
    if WHOLE in found:
        adapted: nn.Module = Through(model, found[WHOLE], WHOLE)
    else:
        adapted = _copied(model)
        parts = [(_module_called(adapted, name), name) for name in found]
        for part, name in parts:
            _replace(adapted, part, found[name], name)
    into_evaluation(adapted)
    _try(adapted, batch)
    return adapted


def _standin(given: Any, name: str, trust_code: bool, device: torch.device) -> Callable[..., Tensor]:
    if given == IDENTITY:
        return nn.Identity()
    found: Callable[..., Any] = find_function(given, "backward", trust_code) if isinstance(given, str) else given
    standin: Callable[..., Tensor] = _copied(found).to(device) if isinstance(found, nn.Module) else found
    return standin


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise GradscopeError(
            f"backward must be for the whole model where that cannot be copied: {one_line(error)}"
        ) from error


def _module_called(model: nn.Module, name: str) -> nn.Module:
    """The part of ``model`` called ``name``, or whose name ends so; of several the outermost."""
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    del known[""]
    alike = [key for key in known if key == name or key.endswith(f".{name}")]
    if not alike:
        raise unknown_name("backward", name, known)
    depth = min(key.count(".") for key in alike)
    outermost = {id(known[key]): key for key in alike if key.count(".") == depth}
    if len(outermost) > 1:
        raise GradscopeError(f"backward must name one part, {name!r} is each of {', '.join(outermost.values())}")
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
            f"backward must be for the whole model where {name} is a part of TorchScript, which is fixed"
        )


def _try(model: nn.Module, batch: Tensor) -> None:
    """Raise :class:`GradscopeError` unless the gradient reaches the image through every stand-in."""
    parts = [module for module in model.modules() if isinstance(module, Through)]
    asked: set[int] = set()
    hooks = [part.register_forward_hook(lambda one, given, made: asked.add(id(one))) for part in parts]
    devices = [batch.device] if batch.device.type == "cuda" else []
    point = batch.clone().requires_grad_()
    slope = None
    ran = in_one_line("backward must leave the model running, it raised", halved=True)
    try:
        with ran, measuring(model), torch.enable_grad(), torch.random.fork_rng(devices):
            logits = model(point)
            if logits.requires_grad:
                (slope,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [part.name for part in parts if id(part) not in asked]
    if idle:
        raise GradscopeError(f"backward must name parts that the model calls as modules, {idle[0]} is never called so")
    if slope is None:
        raise GradscopeError("backward must bring the gradient to the image, which another part still cuts off")

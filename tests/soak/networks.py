"""Small networks that do what no model should: each oddity is ``"WHAT"`` or ``"WHAT @ WHEN"``."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

#: The weights of a sound network for ``digits``; the tests train them once.
TRAINED: dict[str, Tensor] = {}


class OwnError(Exception):
    """An exception of a model's own."""


class UnspeakableError(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Base(BaseException):
    """What no ``except Exception`` catches."""


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits: Tensor, slope: Callable[[Tensor], Any]) -> Tensor:
        context.slope = slope
        return logits * 1

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return context.slope(slope), None


class _Called(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def __call__(self, images: Tensor) -> Any:
        return self.network.forward(images)


class _Wrapped:
    """An object with logits, and with what else Hugging Face's have."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.loss = logits, None


def _raise(error: BaseException) -> Any:
    raise error


def _says(text: str) -> Any:
    sys.stdout.write(text)
    sys.stderr.write(text)


#: Raised by a forward pass, or by a backward one.
ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: RuntimeError("it does not work"),
    "lines": lambda: ValueError("one\ntwo\r\nthree\x1b[31m\u2028"),
    "without text": lambda: RuntimeError(),
    "number": lambda: KeyError(3),
    "own": lambda: OwnError({"a": [1]}),
    "unspeakable": UnspeakableError,
    "base": lambda: Base("base"),
    "exit": lambda: SystemExit(0),
    "exit 1": lambda: SystemExit(1),
    "exit in words": lambda: SystemExit("done"),
    "generator": GeneratorExit,
    "stop": StopIteration,
    "assertion": AssertionError,
    "recursion": RecursionError,
    "not implemented": NotImplementedError,
    "import": lambda: ModuleNotFoundError("No module named 'flash'"),
    "type": lambda: TypeError("forward() missing 1 required positional argument: 'mask'"),
    "file": lambda: FileNotFoundError(2, "No such file", "x"),
    "group": lambda: ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
    "warning": lambda: UserWarning("careful"),
    "long": lambda: RuntimeError("x" * 100_000),
    "surrogate": lambda: RuntimeError("\ud800"),
}

#: What is done to the images, or beside them, before the pass.
BEFORE: dict[str, Callable[["Network", Tensor], Any]] = {
    "changes its input": lambda net, x: x.detach().mul_(0.5),
    "changes its weights": lambda net, x: net.last.weight.data.mul_(1.5),
    "changes its buffers": lambda net, x: net.shown.add_(1),
    "replaces its buffers": lambda net, x: setattr(net, "shown", torch.zeros(3)),
    "adds a parameter": lambda net, x: setattr(net, f"p{net.calls}", nn.Parameter(torch.zeros(1))),
    "drops a layer": lambda net, x: net._modules.pop("spare", None),
    "turns gradients off": lambda net, x: torch.set_grad_enabled(False),
    "turns gradients on": lambda net, x: torch.set_grad_enabled(True),
    "default float64": lambda net, x: torch.set_default_dtype(torch.float64),
    "default float16": lambda net, x: torch.set_default_dtype(torch.float16),
    "default device": lambda net, x: torch.set_default_device("meta"),
    "seeds": lambda net, x: torch.manual_seed(7),
    "deterministic": lambda net, x: torch.use_deterministic_algorithms(True),
    "anomaly": lambda net, x: torch.autograd.set_detect_anomaly(True),
    "trains": lambda net, x: net.train(),
    "requires gradients": lambda net, x: net.requires_grad_(True),
    "leaves hooks": lambda net, x: net.register_forward_hook(lambda module, given, out: out * 1),
    "prints": lambda net, x: _says("x" * 200_000 + "\n"),
    "prints gradscope": lambda net, x: _says("I am the model\n"),
    "warns": lambda net, x: __import__("warnings").warn("odd", stacklevel=1),
    "moves": lambda net, x: net.double(),
    "has a gradient": lambda net, x: [setattr(p, "grad", torch.ones_like(p)) for p in net.parameters()],
    "half weights": lambda net, x: net.half(),
}

#: What becomes of the logits.
AFTER: dict[str, Callable[["Network", Tensor, Tensor], Any]] = {
    "bfloat16": lambda net, z, x: z.bfloat16(),
    "float16": lambda net, z, x: z.half(),
    "float64": lambda net, z, x: z.double(),
    "complex": lambda net, z, x: z.to(torch.complex64),
    "int": lambda net, z, x: z.int(),
    "bool": lambda net, z, x: z > 0,
    "uint8": lambda net, z, x: z.to(torch.uint8),
    "float8": lambda net, z, x: z.to(torch.float8_e4m3fn),
    "tuple": lambda net, z, x: (z, z),
    "list": lambda net, z, x: [z],
    "dictionary": lambda net, z, x: {"logits": z},
    "none": lambda net, z, x: None,
    "text": lambda net, z, x: "logits",
    "number": lambda net, z, x: 3.0,
    "model output": lambda net, z, x: _Wrapped(z),
    "names": lambda net, z, x: SimpleNamespace(logits=(z,)),
    "array": lambda net, z, x: z.detach().numpy(),
    "self": lambda net, z, x: net,
    "fewer classes": lambda net, z, x: z[:, :3],
    "one class": lambda net, z, x: z[:, :1],
    "no class": lambda net, z, x: z[:, :0],
    "more classes": lambda net, z, x: torch.cat([z, z], dim=1),
    "fewer images": lambda net, z, x: z[1:],
    "one image": lambda net, z, x: z[:1],
    "more images": lambda net, z, x: torch.cat([z, z]),
    "sum": lambda net, z, x: z.sum(),
    "mean over images": lambda net, z, x: z.mean(dim=0),
    "transposed": lambda net, z, x: z.t(),
    "three axes": lambda net, z, x: z[None],
    "maps": lambda net, z, x: z[:, :, None, None],
    "nan": lambda net, z, x: z * torch.nan,
    "some nan": lambda net, z, x: torch.where((x.flatten(1).sum(1) * 7 % 1 > 0.5)[:, None], z * torch.nan, z),
    "infinite": lambda net, z, x: z + torch.inf,
    "minus infinity": lambda net, z, x: z.index_fill(1, torch.tensor([3]), -torch.inf),
    "huge": lambda net, z, x: z * 1e38,
    "tiny": lambda net, z, x: z * 1e-40,
    "constant": lambda net, z, x: z * 0,
    "probabilities": lambda net, z, x: z.softmax(dim=1),
    "rounded": lambda net, z, x: z.round(),
    "detached": lambda net, z, x: z.detach(),
    "no way back": lambda net, z, x: z.detach().requires_grad_(),
    "another leaf": lambda net, z, x: z.detach() + net.last.bias,
    "new tensor": lambda net, z, x: torch.tensor(z.tolist()),
    "its input": lambda net, z, x: x,
    "flat input": lambda net, z, x: x.flatten(1),
    "part of its input": lambda net, z, x: x.flatten(1)[:, :10],
    "a view": lambda net, z, x: z.repeat_interleave(2, dim=1)[:, ::2],
    "a wide view": lambda net, z, x: torch.as_strided(z, z.shape, (z.stride(0), 1)),
    "expanded": lambda net, z, x: z[:, :1].expand(-1, 10),
    "meta": lambda net, z, x: z.to("meta"),
    "sparse": lambda net, z, x: z.to_sparse(),
    "sparse rows": lambda net, z, x: z.detach().to_sparse_csr(),
    "nested": lambda net, z, x: torch.nested.nested_tensor(list(z)),
    "quantised": lambda net, z, x: torch.quantize_per_tensor(z.detach(), 0.1, 0, torch.qint8),
    "a parameter": lambda net, z, x: nn.Parameter(z.detach()),
    "a subclass": lambda net, z, x: z.as_subclass(_Subclass),
    "kept": lambda net, z, x: net.keep(z),
    "noise": lambda net, z, x: z + torch.randn_like(z),
    "another's": lambda net, z, x: z.flip(0),
    "mean of the batch": lambda net, z, x: z - z.mean(dim=0),
    "nan gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope * torch.nan),
    "some nan gradients": lambda net, z, x: z + 0 * (x.flatten(1).sum(1, keepdim=True) - 20).clamp(min=0).sqrt(),
    "infinite gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope * torch.inf),
    "no gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope * 0),
    "lost gradient": lambda net, z, x: _Backward.apply(z, lambda slope: None),
    "odd gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope[:1]),
    "wrong gradient": lambda net, z, x: _Backward.apply(z, lambda slope: "slope"),
    "double gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope.double()),
    "in-place gradient": lambda net, z, x: _Backward.apply(z, lambda slope: slope.mul_(0.5)),
    "in place": lambda net, z, x: z.add_(1).relu_(),
    **{
        f"backward: {name}": lambda net, z, x, make=make: _Backward.apply(z, lambda slope: _raise(make()))
        for name, make in ERRORS.items()
    },
}


class _Subclass(Tensor):
    pass


#: What a network is like as a module.
MODULE: dict[str, Callable[["Network"], nn.Module]] = {
    "no parameters": lambda net: net.without_parameters(),
    "lazy": lambda net: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    "lazy inside": lambda net: net.with_hidden(nn.LazyLinear(32)),
    "scripted": lambda net: torch.jit.script(_Plain(net)),
    "traced": lambda net: torch.jit.trace(_Plain(net).eval(), torch.zeros(2, 1, 8, 8)),
    "exported": lambda net: torch.export.export(_Plain(net).eval(), (torch.zeros(2, 1, 8, 8),)).module(),
    "float64 weights": lambda net: net.double(),
    "float16 weights": lambda net: net.half(),
    "bfloat16 weights": lambda net: net.bfloat16(),
    "mixed weights": lambda net: net.with_hidden(net.hidden.double()),
    "meta weights": lambda net: net.to("meta"),
    "shared weights": lambda net: net.with_last(net.last, again=net.last),
    "itself inside": lambda net: net.containing(),
    "expanded weights": lambda net: net.with_weight(net.last.weight[:1].detach().expand(10, -1)),
    "inference weights": lambda net: net.with_weight(_in_inference(net.last.weight)),
    "nan weights": lambda net: net.with_weight(net.last.weight.detach() * torch.nan),
    "weights with a history": lambda net: net.with_weight((net.last.weight * 1), parameter=False),
    "sparse weights": lambda net: net.with_weight(net.last.weight.detach().to_sparse(), parameter=False),
    "parametrised": lambda net: nn.utils.parametrizations.weight_norm(net.last) and net,
    "called": _Called,
    "data parallel": nn.DataParallel,
    "sequential": lambda net: nn.Sequential(net, nn.Identity()),
    "empty": lambda net: nn.Sequential(),
    "identity": lambda net: nn.Identity(),
    "no forward": lambda net: nn.Module(),
    "a list": lambda net: nn.ModuleList([net]),
    "batch norm": lambda net: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), net),
    "lstm": lambda net: nn.Sequential(nn.Flatten(), nn.LSTM(64, 10)),
    "dropout in training": lambda net: nn.Sequential(net, nn.Dropout()),
    "in training": lambda net: net.train(),
    "half in training": lambda net: net.hidden.train() and net,
    "frozen": lambda net: net.requires_grad_(False),
    "uncopyable": lambda net: net.with_attribute("kept", (number for number in range(3))),
    "a lock": lambda net: net.with_attribute("kept", sys.stdin),
    "bad hook": lambda net: net.with_hook(lambda module, given, out: (out, out)),
    "raising hook": lambda net: net.with_hook(lambda module, given, out: _raise(OwnError("hook"))),
    "bad pre-hook": lambda net: net.with_pre_hook(lambda module, given: (given[0] * 2,)),
    "backward hook": lambda net: net.with_backward_hook(lambda module, into, out: (into[0] * 0,)),
    "raising backward hook": lambda net: net.with_backward_hook(lambda module, into, out: _raise(OwnError())),
    **{
        f"{method} raises": lambda net, method=method: net.with_method(
            method, lambda self, *_, **__: _raise(OwnError(method))
        )
        for method in (
            "train",
            "eval",
            "to",
            "_apply",
            "state_dict",
            "parameters",
            "named_parameters",
            "buffers",
            "named_buffers",
            "modules",
            "named_modules",
            "__repr__",
            "__deepcopy__",
            "__getattr__",
            "__setattr__",
            "__call__",
            "__len__",
            "__bool__",
            "__eq__",
            "__hash__",
            "requires_grad_",
            "double",
        )
    },
    "eval returns nothing": lambda net: net.with_method("eval", lambda self: None),
    "train does nothing": lambda net: net.with_method("train", lambda self, mode=True: self),
}

#: How the pass is run.
AROUND: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu"),
}


class _Plain(nn.Module):
    """The network without oddities, for TorchScript."""

    def __init__(self, net: "Network") -> None:
        super().__init__()
        self.hidden, self.last = net.hidden, net.last

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.hidden(images.flatten(1)).relu())


def _in_inference(weight: Tensor) -> Tensor:
    with torch.inference_mode():
        return weight.clone()


class Network(nn.Module):
    """One hidden layer on ``digits``, with its oddities."""

    def __init__(self, oddities: tuple[str, ...]) -> None:
        super().__init__()
        self.calls = 0
        self.hidden, self.last, self.spare = nn.Linear(64, 32), nn.Linear(32, 10), nn.Dropout(0.5)
        self.register_buffer("shown", torch.zeros(()))
        self.load_state_dict(TRAINED, strict=False)
        self.oddities = [(what, when) for what, _, when in (oddity.partition(" @ ") for oddity in oddities)]
        self.kept: Any = None

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        now = [what for what, when in self.oddities if self._comes(when, images)]
        for what in now:
            if what in ERRORS:
                raise ERRORS[what]()
            if what in BEFORE:
                BEFORE[what](self, images)
        around = next((AROUND[what] for what in now if what in AROUND), nullcontext)
        with around():
            logits: Any = self.last(self.hidden(images.flatten(1)).relu())
        for what in now:
            if what in AFTER:
                logits = AFTER[what](self, logits, images)
        return logits

    def _comes(self, when: str, images: Tensor) -> bool:
        kind, _, number = when.partition(" ")
        return {
            "": True,
            "call": self.calls == int(number or 0),
            "from": self.calls >= int(number or 0),
            "every": self.calls % int(number or 1) == 0,
            "batch": len(images) == int(number or 0),
            "above": len(images) > int(number or 0),
            "gradient": images.requires_grad,
            "judging": not images.requires_grad,
            "double": images.dtype == torch.float64,
        }[kind]

    def keep(self, logits: Tensor) -> Tensor:
        """The same tensor at every call of the same size, overwritten."""
        if self.kept is None or len(self.kept) != len(logits):
            self.kept = logits
        with torch.no_grad():
            self.kept.copy_(logits)
        return self.kept

    def without_parameters(self) -> nn.Module:
        for layer in (self.hidden, self.last):
            for name, parameter in list(layer.named_parameters()):
                delattr(layer, name)
                setattr(layer, name, parameter.detach().clone())
        return self

    def with_hidden(self, layer: nn.Module) -> nn.Module:
        self.hidden = layer
        return self

    def with_last(self, layer: nn.Module, **more: nn.Module) -> nn.Module:
        self.last = layer
        for name, module in more.items():
            setattr(self, name, module)
        return self

    def containing(self) -> nn.Module:
        self._modules["itself"] = self
        return self

    def with_weight(self, weight: Tensor, *, parameter: bool = True) -> nn.Module:
        del self.last.weight
        self.last.weight = nn.Parameter(weight, requires_grad=False) if parameter else weight
        return self

    def with_attribute(self, name: str, value: object) -> nn.Module:
        setattr(self, name, value)
        return self

    def with_hook(self, hook: Any) -> nn.Module:
        self.register_forward_hook(hook)
        return self

    def with_backward_hook(self, hook: Any) -> nn.Module:
        self.register_full_backward_hook(hook)
        return self

    def with_pre_hook(self, hook: Any) -> nn.Module:
        self.register_forward_pre_hook(hook)
        return self

    def with_method(self, name: str, method: Any) -> nn.Module:
        self.__class__ = type("Network", (Network,), {name: method})
        return self


def make(*oddities: str) -> Any:
    """A network with these oddities, in evaluation mode where it can be; those of the module are applied in turn."""
    model: Any = Network(tuple(oddities)).eval()
    for oddity in oddities:
        if oddity in MODULE and isinstance(model, Network):
            model = MODULE[oddity](model)
    if not any(oddity.endswith(("training", "raises", "nothing")) for oddity in oddities):
        for module in model.modules():
            module.training = False
    return model


#: Everything that makes an oddity of a pass.
PASSES = [*ERRORS, *BEFORE, *AFTER, *AROUND]
#: When it comes; "" is always.
WHENS = ["", "", "call 1", "call 2", "call 3", "call 5", "call 9", "from 3", "from 4", "from 6", "from 12", "every 2"]
WHENS += ["every 5", "batch 1", "batch 2", "batch 5", "above 1", "above 2", "above 4", "gradient", "judging", "double"]

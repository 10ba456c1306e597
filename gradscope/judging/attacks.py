"""Adapter for the attack on trial, from any library: how to call it, check what it returns, and read its settings."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.attacks.dispatch import turns
from gradscope.attacks.problem import Problem
from gradscope.attacks.registry import ATTACKS
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD_ATTACKS, Budget, StepSize
from gradscope.errors import GradscopeError, lookup
from gradscope.functional import fooled
from gradscope.models.factories import find_function
from gradscope.models.failures import in_one_line
from gradscope.models.references import parse_reference

#: Names of each setting in other attacks: attributes of an object, or keyword parameters of a function.
NAMES: dict[str, tuple[str, ...]] = {
    "step size": ("alpha", "step_size", "stepsize", "abs_stepsize", "eps_iter", "eps_step"),
    "steps": ("steps", "num_steps", "n_steps", "nb_iter", "num_iter", "n_iter", "max_iter", "iterations", "iters"),
    "random start": ("random_start", "rand_init", "random_init", "rand_start"),
    "epsilon": ("eps", "epsilon"),
    "norm": ("norm",),
}
#: Names of the norms in other attacks.
_NORMS = {"linf": "linf", "inf": "linf", "l2": "l2", "2": "l2", "2.0": "l2", "l1": "l1", "1": "l1"}


@dataclass(frozen=True)
class Batch:
    """Images ``(N, C, H, W)`` with labels ``(N,)`` and the threat model; ``numbers`` ``(N,)`` name random streams."""

    images: Tensor
    labels: Tensor
    numbers: Tensor
    classes: int
    threat: ThreatModel
    seed: int


#: Calls an attack on a model and a batch, with some of its settings changed; returns examples and perhaps its report.
Call = Callable[[nn.Module, Batch, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Attack:
    """An attack on trial: its name, how to call it, and the readable settings: part to own name and value.

    ``norm`` is the norm of its ball if its class has a fixed one, else empty.
    """

    name: str
    call: Call
    shown: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    norm: str = ""

    def other_ball(self, threat: ThreatModel) -> str:
        """Describe the attack's own ball if it is readable and differs from ``threat``; else return an empty text."""
        _, epsilon = self.shown.get("epsilon", ("", None))
        norm = _NORMS.get(str(self.shown.get("norm", ("", None))[1]).lower(), self.norm)
        known = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        same = not known or math.isclose(epsilon, threat.epsilon, rel_tol=1e-3)
        if same and norm in ("", threat.norm):
            return ""
        return f"{norm or 'epsilon'} {epsilon:.3g}" if known else norm

    def __call__(self, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Run the attack with some settings changed; ``changes`` maps parts to values.

        Returns its examples ``(N, C, H, W)``, and the labels or success mask ``(N,)`` that it reports, else None.
        Raises :class:`GradscopeError` if the attack raises or does not return floating-point images of the same shape.
        """
        named = {self.shown[part][0]: value for part, value in changes.items()}
        private = Batch(**(vars(batch) | {"images": batch.images.clone(), "labels": batch.labels.clone()}))
        with in_one_line(f"attack must run on the model, {self.name} raised", halved=True), torch.enable_grad():
            returned = self.call(model, private, named)
        reported = None
        if isinstance(returned, tuple | list) and returned:
            reported = returned[1] if len(returned) > 1 and isinstance(returned[1], Tensor) else None
            returned = returned[0]
        shape = tuple(batch.images.shape)
        if not isinstance(returned, Tensor) or tuple(returned.shape) != shape or not returned.is_floating_point():
            got = "the model" if returned is model else type(returned).__name__
            got = f"{returned.dtype} {tuple(returned.shape)}" if isinstance(returned, Tensor) else got
            raise GradscopeError(f"attack must return floating-point images {shape}, {self.name} returned {got}")
        if reported is not None and (tuple(reported.shape) != shape[:1] or reported.is_floating_point()):
            reported = None
        return returned.detach(), None if reported is None else reported.detach().to(batch.labels.device)


def attack_on_trial(given: Any, budget: Budget, trust_code: bool = False) -> Attack:
    """Wrap the attack to judge: a callable, an object of torchattacks or foolbox, a name of ours, or a reference.

    An attack of ours takes the steps of ``budget``. Raises :class:`GradscopeError` for anything else, and for a
    reference whose code is not trusted.
    """
    if isinstance(given, str):
        if ":" not in given:
            needs = lookup(ATTACKS, given, "attack").needs
            if "loss" in needs:
                raise GradscopeError(
                    f"attack must be one that needs no further input, got {given}, which needs a loss of your own"
                )
            counts = "gradient" in needs and "steps" not in PGD_ATTACKS.get(ATTACKS[given].pgd, {})
            shown = {"steps": ("steps", budget.steps)} if counts else {}
            return Attack(given, partial(_call_ours, given, budget), shown)
        return _referred(given, trust_code)
    if not callable(given):
        raise GradscopeError(f"attack must be a function, an attack object or a name, got {type(given).__name__}")
    for library, call in (("torchattacks", _call_torchattacks), ("foolbox", _call_foolbox)):
        if _is_of(type(given), library):
            shown = {
                part: (name, getattr(given, name))
                for part, names in NAMES.items()
                for name in names
                if hasattr(given, name)
            }
            return Attack(type(given).__name__, partial(call, given), shown, _norm_of(type(given), library, shown))
    name = getattr(given, "__name__", None) or getattr(getattr(given, "func", None), "__name__", type(given).__name__)
    return Attack(str(name), partial(_call_function, given), _parameters(given))


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[str, Any]]:
    """Read the settings of a function: its known keyword parameters with their defaults."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {
        part: (name, known[name].default)
        for part, names in NAMES.items()
        for name in names
        if name in known and known[name].default is not inspect.Parameter.empty
    }


def _referred(text: str, trust_code: bool) -> Attack:
    """Load ``package.module:function(...)``, called as ``function(model, x, y, ...)``; a class is instantiated."""
    loaded = find_function(
        text, "attack", trust_code, lambda kind: (_Placeholder(),) if _is_of(kind, "torchattacks") else ()
    )
    return replace(attack_on_trial(loaded, Budget()), name=parse_reference(text, "attack").name)


class _Placeholder(nn.Module):
    """Stands in for the model when a torchattacks object is made; the judged model replaces it at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)


def _norm_of(kind: type, library: str, shown: Mapping[str, Any]) -> str:
    """Read the norm from the class name; a torchattacks class with a radius and no norm in its name is Linf."""
    for name in ("L2", "L1", "Linf"):
        if name in kind.__name__:
            return name.lower()
    return "linf" if library == "torchattacks" and "epsilon" in shown else ""


def _is_of(kind: type, library: str) -> bool:
    """Tell whether a class, or one of its base classes, comes from ``library``."""
    return any(base.__module__.partition(".")[0] == library for base in kind.__mro__)


def _call_function(function: Callable[..., Any], model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    return function(model, batch.images, batch.labels, **changes)


@contextmanager
def _with(target: Any, changes: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of ``target`` inside, and restore them afterwards."""
    before = {name: getattr(target, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def _call_torchattacks(attack: Any, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    """Call ``attack(x, y)`` with ``model`` in place of the model that the attack was made with."""
    with _with(attack, {"model": model, "device": batch.images.device, **changes}):
        return attack(batch.images, batch.labels)


def _call_foolbox(attack: Any, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    """Call ``attack(fmodel, x, y, epsilons=epsilon)``; return the clipped examples and the reported success."""
    foolbox = import_module("foolbox")  # an optional package, which mypy may not find

    with _with(attack, changes):
        fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.images.device)
        _, clipped, success = attack(fmodel, batch.images, batch.labels, epsilons=batch.threat.epsilon)
    return clipped, success


def _call_ours(name: str, budget: Budget, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Tensor:
    """Run an attack of the registry turn by turn, each turn on the images not yet fooled; keep the points that fool.

    If ``steps`` is changed, PGD keeps its step size.
    """
    if changes:
        kept = {"step_size": budget.at(batch.threat.epsilon, budget.steps), "relative_step_size": None}
        own_size = StepSize.model_fields.keys() & PGD_ATTACKS.get(ATTACKS[name].pgd, {}).keys()
        budget = budget.model_copy(update={**changes, **({} if own_size else kept)})
    problem = Problem(
        model, batch.images, batch.labels, batch.numbers, batch.classes, batch.threat, budget, (), batch.seed
    )
    points = batch.images.clone()
    standing = torch.arange(len(points), device=points.device)
    for turn in turns(ATTACKS[name], budget, batch.classes, 0, len(points)):
        if not len(standing):
            break
        points[standing] = turn.run(problem.only(standing)).to(points)
        with torch.no_grad():
            standing = standing[~fooled(model(points[standing]), batch.labels[standing])]
    return points

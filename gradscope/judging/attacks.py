"""The attack on trial, whoever wrote it: how it is called, what it may return, and which of its settings it shows."""

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

#: What a setting is called in attacks that show it: attributes of an object, keyword parameters of a function.
NAMES: dict[str, tuple[str, ...]] = {
    "step size": ("alpha", "step_size", "stepsize", "abs_stepsize", "eps_iter", "eps_step"),
    "steps": ("steps", "num_steps", "n_steps", "nb_iter", "num_iter", "n_iter", "max_iter", "iterations", "iters"),
    "random start": ("random_start", "rand_init", "random_init", "rand_start"),
    "epsilon": ("eps", "epsilon"),
    "norm": ("norm",),
}
#: What norms are called there.
_NORMS = {"linf": "linf", "inf": "linf", "l2": "l2", "2": "l2", "2.0": "l2", "l1": "l1", "1": "l1"}


@dataclass(frozen=True)
class Batch:
    """Images ``(N, C, H, W)`` with labels and the numbers ``(N,)`` that name their random streams, and the ball."""

    images: Tensor
    labels: Tensor
    numbers: Tensor
    classes: int
    threat: ThreatModel
    seed: int


#: Calls an attack on a model: the examples and what it says of them, with settings laid over its own.
Call = Callable[[nn.Module, Batch, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Attack:
    """An attack on trial: its name, how it is called, and the settings that it shows by part, with their names.

    ``norm``: that of its ball, where its class is of one; else empty.
    """

    name: str
    call: Call
    shown: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    norm: str = ""

    def other_ball(self, threat: ThreatModel) -> str:
        """The ball that it works in, as far as it shows that and it is not the one of ``threat``; else empty."""
        _, epsilon = self.shown.get("epsilon", ("", None))
        norm = _NORMS.get(str(self.shown.get("norm", ("", None))[1]).lower(), self.norm)
        known = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        same = not known or math.isclose(epsilon, threat.epsilon, rel_tol=1e-3)
        if same and norm in ("", threat.norm):
            return ""
        return f"{norm or 'epsilon'} {epsilon:.3g}" if known else norm

    def __call__(self, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Run it with ``changes`` by part: its examples ``(N, C, H, W)``, and labels or a mask ``(N,)`` it reports.

        Raises :class:`GradscopeError` where it raises, or returns what are no examples.
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
            what = "the model" if returned is model else type(returned).__name__
            what = f"{returned.dtype} {tuple(returned.shape)}" if isinstance(returned, Tensor) else what
            raise GradscopeError(f"attack must return floating-point images {shape}, {self.name} returned {what}")
        if reported is not None and (tuple(reported.shape) != shape[:1] or reported.is_floating_point()):
            reported = None
        return returned.detach(), None if reported is None else reported.detach().to(batch.labels.device)


def attack_on_trial(given: Any, budget: Budget, trust_code: bool = False) -> Attack:
    """The attack that ``given`` is: a callable, an object of torchattacks or foolbox, ours by name, a reference.

    Ours has the steps of ``budget``. Raises :class:`GradscopeError` where it is none of them, or its code is not
    trusted.
    """
    if isinstance(given, str):
        if ":" not in given:
            needs = lookup(ATTACKS, given, "attack").needs
            if "loss" in needs:
                raise GradscopeError(f"attack must be one that runs by itself, {given} needs a loss of your own")
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
    """The settings among the parameters of a function that have a default."""
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
    """``package.module:function(...)``, called as ``function(model, x, y, ...)``; of a class, the object it makes."""
    found = find_function(
        text, "attack", trust_code, lambda kind: (_Placeholder(),) if _is_of(kind, "torchattacks") else ()
    )
    return replace(attack_on_trial(found, Budget()), name=parse_reference(text, "attack").name)


class _Placeholder(nn.Module):
    """What an object of torchattacks is made with; the model on which it is judged takes its place."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)


def _norm_of(kind: type, library: str, shown: Mapping[str, Any]) -> str:
    """The norm of the ball of a class of attacks, from its name; in torchattacks those with a radius and none: Linf."""
    for name in ("L2", "L1", "Linf"):
        if name in kind.__name__:
            return name.lower()
    return "linf" if library == "torchattacks" and "epsilon" in shown else ""


def _is_of(kind: type, library: str) -> bool:
    """Whether a class, or one that it is derived from, is of ``library``."""
    return any(one.__module__.partition(".")[0] == library for one in kind.__mro__)


def _call_function(function: Callable[..., Any], model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    return function(model, batch.images, batch.labels, **changes)


@contextmanager
def _with(target: Any, changes: Mapping[str, Any]) -> Iterator[None]:
    """``target`` with other attributes, which come back."""
    before = {name: getattr(target, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def _call_torchattacks(attack: Any, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    """``attack(x, y)`` with ``model`` in the place of the one that it was made with."""
    with _with(attack, {"model": model, "device": batch.images.device, **changes}):
        return attack(batch.images, batch.labels)


def _call_foolbox(attack: Any, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Any:
    """``attack(fmodel, x, y, epsilons=epsilon)``; the clipped examples and the success that it reports."""
    foolbox = import_module("foolbox")  # which mypy finds only where it is installed

    with _with(attack, changes):
        fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.images.device)
        _, clipped, success = attack(fmodel, batch.images, batch.labels, epsilons=batch.threat.epsilon)
    return clipped, success


def _call_ours(name: str, budget: Budget, model: nn.Module, batch: Batch, changes: Mapping[str, Any]) -> Tensor:
    """An attack of the registry, turn by turn, each on what stands; of several the point that fooled is kept.

    With other ``steps`` PGD keeps the length of each.
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

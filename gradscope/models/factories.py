"""Calling ``package.module:factory(...)``: code of the user's, which runs only where it is trusted."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from gradscope.errors import GradscopeError
from gradscope.models.failures import in_one_line
from gradscope.models.references import ModelRef, parse_reference, require_trust, working_directory_importable


def call_factory(text: str, argument: str, *values: object, **offered: object) -> object:
    """``factory(*values, ...)`` of ``package.module:factory(...)``; the module may be in the working directory.

    ``offered`` are keyword arguments that the factory gets where it has a parameter of that name and ``text`` gives it
    no value. What is no such text, cannot be imported or cannot be called raises :class:`GradscopeError` with
    ``argument`` in front; the factory's own errors pass.
    """
    reference = parse_reference(text, argument)
    if reference.kind != "factory":
        raise GradscopeError(f"{argument} must be package.module:factory, got {text!r}")
    factory = find_code(reference, argument)
    arguments = (*values, *reference.arguments)
    with working_directory_importable():
        return factory(*arguments, **_taken(factory, arguments, reference.options, offered), **reference.options)


def find_code(reference: ModelRef, argument: str) -> Callable[..., object]:
    """Import what ``package.module:name`` names, which runs the module; it is not called.

    Raises :class:`GradscopeError` with ``argument`` in front where it cannot be imported or called.
    """
    said = f"{argument}: {reference.text}: {reference.module} cannot be imported:"
    with working_directory_importable(), in_one_line(said):
        found: Any = importlib.import_module(reference.module)
    for part in reference.name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        problem = "has no" if found is None else "cannot be called as it is no function:"
        raise GradscopeError(f"{argument}: {reference.text}: {reference.module} {problem} {reference.name}")
    code: Callable[..., object] = found
    return code


def find_function(
    text: str, argument: str, trust_code: bool, in_front: Callable[[type], tuple[object, ...]] = lambda kind: ()
) -> Callable[..., Any]:
    """What ``package.module:name`` names; of a class the object it makes, ``name(key=value)`` sets options by name.

    ``in_front`` of a class gives the arguments it gets before those of ``text``.
    Raises :class:`GradscopeError` with ``argument`` in front where it is no such text, not trusted or not to be made.
    """
    reference = parse_reference(text, argument)
    if reference.kind != "factory":
        raise GradscopeError(f"{argument} must be package.module:function, got {text!r}")
    require_trust(reference, trust_code, argument)
    found: Any = find_code(reference, argument)
    made: Any = partial(found, **reference.options) if reference.options else found
    if isinstance(found, type):
        with in_one_line(f"{argument}: {text} cannot be made:"):
            made = found(*in_front(found), *reference.arguments, **reference.options)
    elif reference.arguments:
        raise GradscopeError(f"{argument} must give arguments by name, as in f(strength=2), got {text}")
    if not callable(made):
        raise GradscopeError(f"{argument}: {text} must make what can be called, got {type(made).__name__}")
    function: Callable[..., Any] = made
    return function


def _taken(
    factory: Callable[..., object],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    offered: Mapping[str, object],
) -> dict[str, object]:
    """Those of ``offered`` for which ``factory`` has a parameter that is still without a value."""
    try:
        signature = inspect.signature(factory)
        given = signature.bind_partial(*arguments, **options).arguments
    except (TypeError, ValueError):  # no signature, or arguments that do not fit: the call itself says so best
        return {}
    return {name: value for name, value in offered.items() if name in signature.parameters and name not in given}


def built(text: str, argument: str, make: Callable[[], object]) -> nn.Module:
    """``make()``; an error, or what is no module, raises :class:`GradscopeError` with ``argument`` in front."""
    with in_one_line(f"{argument}: {text} cannot be built:"):
        model = make()
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"{argument}: {text} must return a torch.nn.Module, got {type(model).__name__}")
    return model

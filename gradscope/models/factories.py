"""Call ``package.module:factory(...)``: the user's code, which runs only if it is trusted."""

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
    """Call ``factory(*values, ...)`` of ``package.module:factory(...)``; the module may be in the working directory.

    The factory gets each keyword argument of ``offered`` for which it has a parameter and ``text`` gives no value.
    Raises :class:`GradscopeError` that begins with ``argument`` for a text of another form, and for a factory that
    cannot be imported or called; the factory's own errors pass through.
    """
    reference = parse_reference(text, argument)
    if reference.kind != "factory":
        raise GradscopeError(f"{argument} must be package.module:factory, got {text!r}")
    factory = find_code(reference, argument)
    arguments = (*values, *reference.arguments)
    with working_directory_importable():
        return factory(*arguments, **_accepted(factory, arguments, reference.options, offered), **reference.options)


def find_code(reference: ModelRef, argument: str) -> Callable[..., object]:
    """Import the object that ``package.module:name`` names, without calling it. The import runs the module.

    Raises :class:`GradscopeError` that begins with ``argument`` if it cannot be imported or is not callable.
    """
    message = f"{argument}: {reference.text}: {reference.module} cannot be imported:"
    with working_directory_importable(), in_one_line(message):
        target: Any = importlib.import_module(reference.module)
    for part in reference.name.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        problem = "has no" if target is None else "must hold a function, got another object:"
        raise GradscopeError(f"{argument}: {reference.text}: {reference.module} {problem} {reference.name}")
    code: Callable[..., object] = target
    return code


def find_function(
    text: str, argument: str, trust_code: bool, in_front: Callable[[type], tuple[object, ...]] = lambda kind: ()
) -> Callable[..., Any]:
    """Import the function that ``package.module:name`` names; ``name(key=value)`` sets options by name.

    A class is called and gives its object; ``in_front`` of the class gives arguments that precede those of ``text``.
    Raises :class:`GradscopeError` that begins with ``argument`` for a text of another form, code that is not trusted,
    and an object that cannot be made.
    """
    reference = parse_reference(text, argument)
    if reference.kind != "factory":
        raise GradscopeError(f"{argument} must be package.module:function, got {text!r}")
    require_trust(reference, trust_code, argument)
    code: Any = find_code(reference, argument)
    result: Any = partial(code, **reference.options) if reference.options else code
    if isinstance(code, type):
        with in_one_line(f"{argument}: {text} cannot be made:"):
            result = code(*in_front(code), *reference.arguments, **reference.options)
    elif reference.arguments:
        raise GradscopeError(f"{argument} must give arguments by name, as in f(strength=2), got {text}")
    if not callable(result):
        raise GradscopeError(f"{argument}: {text} must make a callable, got {type(result).__name__}")
    function: Callable[..., Any] = result
    return function


def _accepted(
    factory: Callable[..., object],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    offered: Mapping[str, object],
) -> dict[str, object]:
    """Select the arguments of ``offered`` for which ``factory`` has a parameter without a value."""
    try:
        signature = inspect.signature(factory)
        given = signature.bind_partial(*arguments, **options).arguments
    except (TypeError, ValueError):  # no signature, or arguments that do not fit: the call's own error is clearer
        return {}
    return {name: value for name, value in offered.items() if name in signature.parameters and name not in given}


def built(text: str, argument: str, make: Callable[[], object]) -> nn.Module:
    """Return ``make()``; an error or another type raises :class:`GradscopeError` that begins with ``argument``."""
    with in_one_line(f"{argument}: {text} cannot be built:"):
        model = make()
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"{argument}: {text} must return a torch.nn.Module, got {type(model).__name__}")
    return model

"""Options that adapt an attack to a defence."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from gradscope.errors import GradscopeError
from gradscope.measure.options.common import Options
from gradscope.options import ATTACK, option

#: A part of a model and its stand-in, as the command line has them: ``NAME=package.module:function``.
_NAMED = re.compile(r"([^:(=]+)=(.+)")


def _standins(value: object) -> dict[str, Any]:
    """Stand-ins by the part of the model that they stand in for, "" of the whole model."""
    given: list[tuple[str, Any]] = [("", value)]
    if isinstance(value, Mapping):
        given = [(str(name), standin) for name, standin in value.items()]
    elif isinstance(value, list | tuple):
        given = [_part_and_standin(text) for text in value]
    elif isinstance(value, str):
        given = [_part_and_standin(value)]
    found: dict[str, Any] = {}
    for name, standin in given if value is not None else ():
        if name in found:
            raise GradscopeError(f"backward must be given once for each part, got {name or 'the whole model'} again")
        found[name] = _checked(name, standin)
    if "" in found and len(found) > 1:
        raise GradscopeError("backward must be given for the whole model or for parts by name, got both")
    return found


def _part_and_standin(text: object) -> tuple[str, Any]:
    found = _NAMED.fullmatch(text) if isinstance(text, str) else None
    return (found[1], found[2]) if found else ("", text)


def _checked(name: str, standin: Any) -> Any:
    if standin == "identity" and not name:
        raise GradscopeError("backward must name the part that is the identity, as NAME=identity")
    if not (callable(standin) or (isinstance(standin, str) and (standin == "identity" or ":" in standin))):
        got = repr(standin) if isinstance(standin, str) else type(standin).__name__
        raise GradscopeError(f"backward must be a function, package.module:function or identity, got {got}")
    return standin


def _own(value: object) -> object:
    """A loss of the user's own."""
    if value is None or callable(value) or (isinstance(value, str) and ":" in value):
        return value
    got = repr(value) if isinstance(value, str) else type(value).__name__
    raise GradscopeError(f"loss must be a function or package.module:function, got {got}")


def name_of(given: Any) -> str:
    """What a manifest calls a function that was given, or named."""
    known = given if isinstance(given, str) else getattr(given, "__name__", None)
    return str(known or type(given).__name__)


class Adaptive(Options):
    """Options of attacks that are adapted to the model (Tramer et al. 2020)."""

    #: Settled here; :meth:`adapted` says what they mean, where they are given.
    adaptive: ClassVar[frozenset[str]] = frozenset({"backward", "draws"})

    backward: Annotated[Any, BeforeValidator(_standins)] = option(
        (),
        "take the gradient from this function in place of the model, whose values stay: package.module:function (in "
        "Python a callable, or several in a dictionary by name), or for a part of the model "
        "NAME=package.module:function or NAME=identity; repeatable",
        ATTACK,
        metavar="[NAME=]FUNCTION",
        repeatable=True,
    )

    draws: int | None = option(
        None,
        "attack and judge a model whose output is random by the mean of its softmax over this many draws a pass (EoT)",
        ATTACK,
        ge=2,
        le=10_000,
        usual="one draw",
    )

    @property
    def standins(self) -> dict[str, Any]:
        """The functions whose gradients are taken, by part of the model; "" is the whole model."""
        return dict(self.backward)

    @property
    def codes(self) -> Iterator[tuple[str, str]]:
        """The code that is named: the argument, and the reference."""
        return (("backward", one) for one in self.standins.values() if isinstance(one, str) and one != "identity")

    def adapted(self) -> dict[str, Any]:
        """What the options come to, as the manifest records it: only what is given, so that older names stay."""
        parts = {name or "the model": name_of(standin) for name, standin in self.standins.items()}
        return {**({"backward": parts} if parts else {}), **({} if self.draws is None else {"draws": self.draws})}


class AdaptiveLoss(Adaptive):
    """Options of attacks among which is PGD on a loss of the user's own."""

    adaptive: ClassVar[frozenset[str]] = Adaptive.adaptive | {"loss"}

    loss: Annotated[Any, BeforeValidator(_own)] = option(
        None,
        "also run pgd-own, PGD on this loss of yours: package.module:function (in Python a callable), called with "
        "logits and labels, that returns a number for each image, larger where it is nearer to fooling the model",
        ATTACK,
        metavar="FUNCTION",
    )

    @property
    def codes(self) -> Iterator[tuple[str, str]]:
        """The code that is named."""
        yield from super().codes
        if isinstance(self.loss, str):
            yield "loss", self.loss

    def adapted(self) -> dict[str, Any]:
        """As of all adaptive options."""
        return super().adapted() | ({} if self.loss is None else {"loss": name_of(self.loss)})

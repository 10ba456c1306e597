"""Options that adapt an attack to a defence."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from gradscope.errors import GradscopeError
from gradscope.measure.options.common import Options
from gradscope.options import ATTACK, option

#: A part of a model and its stand-in, as written on the command line: ``NAME=package.module:function``.
_NAMED = re.compile(r"([^:(=]+)=(.+)")


def _standins(value: object) -> dict[str, Any]:
    """Read the stand-ins: part of the model to stand-in; the key "" is the whole model."""
    given: list[tuple[str, Any]] = [("", value)]
    if isinstance(value, Mapping):
        given = [(str(name), standin) for name, standin in value.items()]
    elif isinstance(value, list | tuple):
        given = [_part_and_standin(text) for text in value]
    elif isinstance(value, str):
        given = [_part_and_standin(value)]
    standins: dict[str, Any] = {}
    for name, standin in given if value is not None else ():
        if name in standins:
            raise GradscopeError(f"backward must be given once for each part, got {name or 'the whole model'} again")
        standins[name] = _checked(name, standin)
    if "" in standins and len(standins) > 1:
        raise GradscopeError("backward must be given for the whole model or for parts by name, got both")
    return standins


def _part_and_standin(text: object) -> tuple[str, Any]:
    match = _NAMED.fullmatch(text) if isinstance(text, str) else None
    return (match[1], match[2]) if match else ("", text)


def _checked(name: str, standin: Any) -> Any:
    if standin == "identity" and not name:
        raise GradscopeError("backward must name the part that is the identity, as NAME=identity")
    if not (callable(standin) or (isinstance(standin, str) and (standin == "identity" or ":" in standin))):
        got = repr(standin) if isinstance(standin, str) else type(standin).__name__
        raise GradscopeError(f"backward must be a function, package.module:function or identity, got {got}")
    return standin


def _own_loss(value: object) -> object:
    """Check a user's own loss: a callable or ``package.module:function``."""
    if value is None or callable(value) or (isinstance(value, str) and ":" in value):
        return value
    got = repr(value) if isinstance(value, str) else type(value).__name__
    raise GradscopeError(f"loss must be a function or package.module:function, got {got}")


def name_of(given: Any) -> str:
    """Name a function, given as an object or by reference, for the manifest."""
    known = given if isinstance(given, str) else getattr(given, "__name__", None)
    return str(known or type(given).__name__)


class Adaptive(Options):
    """Options that adapt attacks to a defence (Tramer et al. 2020)."""

    #: Options that :meth:`adapted` records in the manifest when they are given.
    adaptive: ClassVar[frozenset[str]] = frozenset({"backward", "draws"})

    backward: Annotated[Any, BeforeValidator(_standins)] = option(
        (),
        "function whose gradient replaces the model's in the backward pass; the outputs stay the model's (BPDA). "
        "package.module:function (in Python a callable, or a dictionary of them by part), or for one part of the model "
        "NAME=package.module:function or NAME=identity; repeatable",
        ATTACK,
        metavar="[NAME=]FUNCTION",
        repeatable=True,
    )

    draws: int | None = option(
        None,
        "number of forward passes whose softmax is averaged, to attack and judge a model with random outputs (EoT)",
        ATTACK,
        ge=2,
        le=10_000,
        usual="one pass",
    )

    @property
    def standins(self) -> dict[str, Any]:
        """The stand-ins by part of the model; the key "" is the whole model."""
        return dict(self.backward)

    @property
    def codes(self) -> Iterator[tuple[str, str]]:
        """The references to the user's code: pairs of argument and ``package.module:function``."""
        references = (standin for standin in self.standins.values() if isinstance(standin, str))
        return (("backward", reference) for reference in references if reference != "identity")

    def adapted(self) -> dict[str, Any]:
        """Return the given options as the manifest records them; without the others, older stages keep their names."""
        parts = {name or "the model": name_of(standin) for name, standin in self.standins.items()}
        return {**({"backward": parts} if parts else {}), **({} if self.draws is None else {"draws": self.draws})}


class AdaptiveLoss(Adaptive):
    """Options that adapt attacks, with a loss of the user's own for PGD."""

    adaptive: ClassVar[frozenset[str]] = Adaptive.adaptive | {"loss"}

    loss: Annotated[Any, BeforeValidator(_own_loss)] = option(
        None,
        "your own loss, for the additional attack pgd-own: package.module:function (in Python a callable). It gets "
        "logits and labels and returns one number per image; PGD maximises it",
        ATTACK,
        metavar="FUNCTION",
    )

    @property
    def codes(self) -> Iterator[tuple[str, str]]:
        """The references to the user's code, as of :class:`Adaptive`, and that of the loss."""
        yield from super().codes
        if isinstance(self.loss, str):
            yield "loss", self.loss

    def adapted(self) -> dict[str, Any]:
        """Return the given options as the manifest records them, the loss included."""
        return super().adapted() | ({} if self.loss is None else {"loss": name_of(self.loss)})

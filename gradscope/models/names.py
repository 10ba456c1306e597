"""The names of the architectures that gradscope trains. Without torch, so that the command line checks them fast."""

from dataclasses import dataclass

from gradscope.errors import unknown_name
from gradscope.models.references import check_reference, parse_reference


@dataclass(frozen=True)
class Architecture:
    """Facts about a network that are known before it is built.

    ``smallest``: the smallest image side, in pixels. ``paper``: whether the paper uses it.
    """

    description: str
    smallest: int
    paper: bool


ARCHITECTURES: dict[str, Architecture] = {
    "cnn2": Architecture("two 3x3 convolutions and two linear layers, for digits and quick looks", 4, False),
    "cnn4": Architecture("four 3x3 convolutions and two linear layers, no batch norm", 8, True),
    "cnn6": Architecture("six 4x4 convolutions and two linear layers, with batch norm", 8, True),
    "resnet18": Architecture("torchvision's ResNet-18; 3x3 stem without pool below 64 pixels", 8, True),
    "resnet50": Architecture("torchvision's ResNet-50; 3x3 stem without pool below 64 pixels", 8, True),
    "densenet121": Architecture("torchvision's DenseNet-121; 3x3 stem without pool below 64 pixels", 8, True),
}


def is_own(architecture: str) -> bool:
    """Whether ``architecture`` is a user's ``package.module:factory(...)`` and not one of :data:`ARCHITECTURES`."""
    return architecture not in ARCHITECTURES and parse_reference(architecture, "architecture").kind == "factory"


def check_architecture(architecture: str, *, trust_code: bool, argument: str = "architecture") -> None:
    """Raise :class:`GradscopeError` for an unknown name, and for a user's code that is missing or not trusted."""
    if is_own(architecture):
        check_reference(parse_reference(architecture), None, trust_code=trust_code, argument=argument)
    elif architecture not in ARCHITECTURES:
        raise unknown_name(argument, architecture, ARCHITECTURES)


def short_name(architecture: str) -> str:
    """Return the name without module and arguments, for the name of a file.

    >>> short_name("my_nets:small(7)"), short_name("cnn4")
    ('small', 'cnn4')
    """
    return parse_reference(architecture).name if is_own(architecture) else architecture

"""The networks that gradscope trains. Each contains its normalisation, so that images are [0, 1] everywhere else."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from gradscope import vision
from gradscope.errors import GradscopeError, lookup
from gradscope.models.factories import built, call_factory
from gradscope.models.names import ARCHITECTURES, check_architecture, is_own

#: From this side on, in pixels, torchvision's networks keep their ImageNet stem (stride 2, then a pool).
IMAGENET_STEM_FROM = 64


class Normalise(nn.Module):
    """``(x - mean) / std`` for each channel of ``(N, C, H, W)`` images; a single value applies to every channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images ``(N, C, H, W)``; the shape stays the same."""
        return (images - self.mean) / self.std


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise :class:`GradscopeError` unless both have 1 or ``channels`` finite values and every std is above 0."""
    for argument, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            wanted = f", or one for each of {channels} channels" if channels > 1 else ", as there is one channel"
            raise GradscopeError(f"{argument} must be one number{wanted}, got {len(values)} numbers")
        if not all(isfinite(value) for value in values):
            raise GradscopeError(f"{argument} must be finite, got {list(values)}")
    if min(std) <= 0:
        raise GradscopeError(f"std must be above 0, got {list(std)}")


def normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """Put ``network`` behind :class:`Normalise`; the children are named ``normalise`` and ``network``."""
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std), network=network))


def _image_size(value: Any) -> int | tuple[int, int]:
    if isinstance(value, list):
        height, width = value
        return int(height), int(width)
    return int(value)


@dataclass(frozen=True)
class ModelSpec:
    """The arguments of :func:`build`. ``image_size`` is the side of square images in pixels, else height and width.

    ``architecture`` is one of :data:`~gradscope.models.names.ARCHITECTURES`, which take square images, or a user's
    ``package.module:factory(...)``, which takes images in [0, 1] unchanged: mean 0 and std 1. Raises
    :class:`GradscopeError` for a specification from which no network can be built.
    """

    architecture: str
    classes: int
    channels: int
    image_size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not is_own(self.architecture):
            self._check_size(lookup(ARCHITECTURES, self.architecture, "architecture").smallest)
        if self.classes < 2:
            raise GradscopeError(f"classes must be at least 2, got {self.classes}")
        if self.channels < 1:
            raise GradscopeError(f"channels must be at least 1, got {self.channels}")
        check_normalisation(self.mean, self.std, self.channels)

    @property
    def side(self) -> int:
        """Side of square images, in pixels."""
        assert isinstance(self.image_size, int)
        return self.image_size

    def _check_size(self, smallest: int) -> None:
        if not isinstance(self.image_size, int):
            height, width = self.image_size
            raise GradscopeError(f"image_size must be square for {self.architecture}, got {height} x {width}")
        if self.image_size < smallest:
            raise GradscopeError(
                f"image_size must be at least {smallest} pixels for {self.architecture}, got {self.image_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Convert the fields to plain types, for a checkpoint or JSON."""
        size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        return asdict(self) | {"image_size": size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the output of :meth:`to_dict`.

        Raises KeyError for a missing field, TypeError or ValueError for a wrong type.
        """
        return cls(
            architecture=str(values["architecture"]),
            classes=int(values["classes"]),
            channels=int(values["channels"]),
            image_size=_image_size(values["image_size"]),
            mean=tuple(float(value) for value in values["mean"]),
            std=tuple(float(value) for value in values["std"]),
        )


def build(spec: ModelSpec, *, trust_code: bool = False, argument: str = "architecture") -> nn.Sequential:
    """Build the network of ``spec`` with new weights from torch's global generator, in train mode.

    It takes ``(N, channels, H, W)`` images in [0, 1] and returns logits ``(N, classes)``. A user's factory gets
    ``num_classes`` if it has such a parameter. It runs code, which needs ``trust_code``. Messages about a factory begin
    with ``argument``.
    """
    builder = _BUILDERS.get(spec.architecture)
    network = _own(spec, trust_code, argument) if builder is None else builder(spec)
    return normalised(network, spec.mean, spec.std).train()


def _own(spec: ModelSpec, trust_code: bool, argument: str) -> nn.Module:
    """Build the network that a user's factory returns."""
    text = spec.architecture
    check_architecture(text, trust_code=trust_code, argument=argument)
    network = built(text, argument, lambda: call_factory(text, argument, num_classes=spec.classes))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise GradscopeError(f"{argument}: {text} must have parameters to train, got none")
    return network


def _cnn6(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(
        *_same_convolution(spec.channels, 264),
        *_same_convolution(264, 128),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        *_same_convolution(128, 512),
        *_same_convolution(512, 128),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        *_same_convolution(128, 128),
        *_same_convolution(128, 128),
        nn.MaxPool2d(2),
        nn.Dropout(0.35),
        nn.Flatten(),
        nn.Linear(128 * (spec.side // 8) ** 2, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(256, spec.classes),
    )


def _same_convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """Make a 4x4 convolution that keeps the image size, batch norm and ReLU.

    An even kernel pads one more pixel on the right and at the bottom, as ``padding="same"`` does. The outputs are equal
    bit for bit, but ``padding="same"`` warns of a copy on every run.
    """
    return [
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(inputs, outputs, 4, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def _cnn4(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(128 * (spec.side // 8) ** 2, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(1024, spec.classes),
    )


def _cnn2(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (spec.side // 2) ** 2, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, spec.classes),
    )


def _resnet(name: str, spec: ModelSpec) -> nn.Module:
    network: nn.Module = vision.torchvision.models.get_model(name, weights=None, num_classes=spec.classes)
    network.conv1 = _stem(spec, "fan_out")
    if spec.side < IMAGENET_STEM_FROM:
        network.maxpool = nn.Identity()
    return network


def _densenet(name: str, spec: ModelSpec) -> nn.Module:
    network: nn.Module = vision.torchvision.models.get_model(name, weights=None, num_classes=spec.classes)
    features = network.get_submodule("features")
    features.conv0 = _stem(spec, "fan_in")
    if spec.side < IMAGENET_STEM_FROM:
        features.pool0 = nn.Identity()
    return network


def _stem(spec: ModelSpec, fan: Literal["fan_in", "fan_out"]) -> nn.Conv2d:
    """Make the first convolution of a torchvision network for any number of channels, initialised like its own."""
    small = spec.side < IMAGENET_STEM_FROM
    kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
    stem = nn.Conv2d(spec.channels, 64, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode=fan, nonlinearity="relu")
    return stem


#: The function that builds the network of each of :data:`~gradscope.models.names.ARCHITECTURES`.
_BUILDERS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "cnn2": _cnn2,
    "cnn4": _cnn4,
    "cnn6": _cnn6,
    "resnet18": partial(_resnet, "resnet18"),
    "resnet50": partial(_resnet, "resnet50"),
    "densenet121": partial(_densenet, "densenet121"),
}

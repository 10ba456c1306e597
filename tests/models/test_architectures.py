"""Sizes by hand arithmetic, outputs against plainly written formulas."""

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, Normalise, build
from gradscope.models.names import ARCHITECTURES
from gradscope.vision import torchvision

CIFAR = ModelSpec("cnn6", classes=10, channels=3, image_size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def convolution(inputs: int, outputs: int, side: int, bias: bool = True) -> int:
    return outputs * inputs * side * side + (outputs if bias else 0)


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def test_normalise_of_one_pixel_by_hand() -> None:
    normalise = Normalise((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    pixel = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert normalise(pixel).flatten().tolist() == [1.0, -1.0, 0.5]
    assert not list(normalise.parameters())
    assert set(normalise.state_dict()) == {"mean", "std"}


def test_normalise_broadcasts_one_value_and_follows_the_dtype() -> None:
    normalise = Normalise((1,), (2,))
    assert normalise(torch.zeros(2, 3, 4, 4)).unique().tolist() == [-0.5]
    assert normalise.double()(torch.zeros(1, 1, 1, 1, dtype=torch.float64)).dtype == torch.float64


def test_cnn6_size() -> None:
    widths = [3, 264, 128, 512, 128, 128, 128]
    convolutions = sum(convolution(a, b, 4) for a, b in pairwise(widths))
    norms = 2 * sum(widths[1:])
    head = linear(128 * 4 * 4, 256) + 2 * 256 + linear(256, 10)
    assert convolutions + norms + head == 3_706_274
    assert parameters(build(CIFAR)) == 3_706_274


def test_cnn4_size() -> None:
    convolutions = convolution(3, 32, 3) + convolution(32, 64, 3) + convolution(64, 128, 3) + convolution(128, 128, 3)
    expected = convolutions + linear(128 * 4 * 4, 1024) + linear(1024, 10)
    assert expected == 2_349_258
    assert parameters(build(replace(CIFAR, architecture="cnn4"))) == expected


@pytest.mark.parametrize(("side", "expected"), [(8, 151_306), (28, 1_625_866)])
def test_cnn2_size(side: int, expected: int) -> None:
    spec = ModelSpec("cnn2", classes=10, channels=1, image_size=side, mean=(0.0,), std=(1.0,))
    flat = 64 * (side // 2) ** 2
    assert convolution(1, 32, 3) + convolution(32, 64, 3) + linear(flat, 128) + linear(128, 10) == expected
    assert parameters(build(spec)) == expected


@pytest.mark.parametrize(
    ("architecture", "published", "features"),
    [("resnet18", 11_689_512, 512), ("resnet50", 25_557_032, 2048), ("densenet121", 7_978_856, 1024)],
)
def test_torchvision_sizes_follow_from_the_published_ones(architecture: str, published: int, features: int) -> None:
    ten_classes = published - linear(features, 1000) + linear(features, 10)
    smaller_stem = convolution(3, 64, 7, bias=False) - convolution(3, 64, 3, bias=False)
    spec = replace(CIFAR, architecture=architecture)
    assert parameters(build(spec)) == ten_classes - smaller_stem
    one_channel = replace(spec, channels=1, image_size=64, mean=(0.5,), std=(0.5,))
    assert parameters(build(one_channel)) == ten_classes - 2 * convolution(1, 64, 7, bias=False)


def test_multiplications_are_the_papers() -> None:
    """1.14 G for cnn6 and 50 M for cnn4, from PAPER.md."""
    assert multiplications(CIFAR) == pytest.approx(1.14e9, rel=0.005)
    assert multiplications(replace(CIFAR, architecture="cnn4")) == pytest.approx(50e6, rel=0.01)


def multiplications(spec: ModelSpec) -> int:
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    model = build(spec).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, spec.channels, spec.image_size, spec.image_size))
    return total


@pytest.mark.parametrize("side", [8, 9, 32])
def test_cnn6_pads_as_same_does_to_the_bit(side: int) -> None:
    first, second = [module for module in build(CIFAR).modules() if isinstance(module, nn.Conv2d)][:2]
    layers = build(CIFAR).network[:2]
    layers[1].load_state_dict(first.state_dict())
    same = nn.Conv2d(3, 264, 4, padding="same")
    same.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = same(images)
    assert torch.equal(layers(images), expected)
    assert expected.shape == (2, 264, side, side)
    assert second.kernel_size == (4, 4)


def test_cnn2_against_the_formula() -> None:
    spec = ModelSpec("cnn2", classes=10, channels=1, image_size=8, mean=(0.3,), std=(0.4,))
    model = build(spec)
    images = torch.rand(3, 1, 8, 8)
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    hidden = F.conv2d((images - 0.3) / 0.4, w1, b1, padding=1).relu()
    hidden = F.max_pool2d(F.conv2d(hidden, w2, b2, padding=1).relu(), 2).flatten(1)
    expected = (hidden @ w3.T + b3).relu() @ w4.T + b4
    torch.testing.assert_close(model(images), expected)


def test_the_layers_are_the_papers() -> None:
    def described(architecture: str) -> list[str]:
        names = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.BatchNorm1d: "norm", nn.ReLU: "relu"}
        names |= {nn.MaxPool2d: "pool", nn.Linear: "linear"}
        network = build(replace(CIFAR, architecture=architecture)).network
        kept = [layer for layer in network if not isinstance(layer, nn.ZeroPad2d | nn.Flatten)]
        return [f"drop{layer.p}" if isinstance(layer, nn.Dropout) else names[type(layer)] for layer in kept]

    two = ["conv", "norm", "relu"] * 2 + ["pool"]
    head = ["linear", "norm", "relu", "drop0.5", "linear"]
    assert described("cnn6") == [*two, "drop0.2", *two, "drop0.25", *two, "drop0.35", *head]
    one = ["conv", "relu"]
    middle = [*one, *one, "pool", "drop0.25", *one, "pool", *one, "pool", "drop0.25"]
    assert described("cnn4") == [*middle, "linear", "relu", "drop0.5", "linear"]


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "densenet121"])
def test_stem_depends_on_the_image_size(architecture: str, side: int) -> None:
    model = build(replace(CIFAR, architecture=architecture, image_size=side)).eval()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.kernel_size == ((3, 3) if side == 32 else (7, 7))
    shapes = []
    name = "features.denseblock1" if architecture == "densenet121" else "layer1"
    model.network.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(output.shape[-2:]))
    with torch.no_grad():
        logits = model(torch.rand(2, 3, side, side))
    assert logits.shape == (2, 10)
    assert shapes == [(32, 32) if side == 32 else (16, 16)]


def test_at_64_pixels_resnet18_is_torchvisions() -> None:
    spec = replace(CIFAR, architecture="resnet18", image_size=64)
    model = build(spec).eval()
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    theirs.load_state_dict(model.network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(model.normalise(images)))


@pytest.mark.parametrize(("architecture", "fan"), [("resnet18", 64 * 9), ("densenet121", 3 * 9)])
def test_stem_starts_as_torchvision_starts_it(architecture: str, fan: int) -> None:
    """Kaiming: std sqrt(2 / fan); 1,728 draws give it to 1.7 %."""
    torch.manual_seed(0)
    stem = next(iter(build(replace(CIFAR, architecture=architecture)).network.parameters()))
    assert stem.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.07)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_smallest_image_and_one_channel(architecture: str) -> None:
    smallest = ARCHITECTURES[architecture].smallest
    spec = ModelSpec(architecture, classes=4, channels=1, image_size=smallest, mean=(0.5,), std=(0.5,))
    model = build(spec)
    assert [name for name, _ in model.named_children()] == ["normalise", "network"]
    assert model.training
    assert model(torch.rand(2, 1, smallest, smallest)).shape == (2, 4)
    with pytest.raises(
        GradscopeError, match=rf"image_size must be at least {smallest} pixels for .*, got {smallest - 1}"
    ):
        replace(spec, image_size=smallest - 1)


def test_specification_round_trip() -> None:
    values = CIFAR.to_dict()
    assert {type(value) for value in values.values()} == {str, int, list}
    assert ModelSpec.from_dict(values) == CIFAR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet81"}, "architecture: 'resnet81' is unknown; did you mean 'resnet18'"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"mean": (0.5, 0.5)}, "mean must be one number, or one for each of 3 channels, got 2 numbers"),
        ({"mean": (math.nan,)}, "mean must be finite"),
        ({"std": ()}, "std must be one number, or one for each of 3 channels, got 0 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
    ],
)
def test_what_no_network_can_be_built_from(change: dict[str, object], message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        replace(CIFAR, **change)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)

"""Tests that need a GPU; skipped without one.

``GRADSCOPE_CUDA_TESTS_DEVICE=cpu`` rehearses them on the CPU: the weights of the "device's" copy of a model are moved
by :data:`REHEARSED_ROUNDING`, which changes results as much as another order of summation does. What needs CUDA itself
(memory that runs out, TF32 units) is skipped in a rehearsal.
"""

import copy
import os
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.data.image_set import ImageSet
from gradscope.models.architectures import ModelSpec, build
from gradscope.seeding import generator, seeded

CLASSES = 6
#: Relative change of each weight in a rehearsal: a few roundings of float32.
REHEARSED_ROUNDING = 3e-7
#: Moves a model to the device.
ToDevice = Callable[[nn.Module], nn.Module]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore warnings: a GPU machine may have other versions of torch and libraries."""
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that tests compare with the CPU."""
    found = torch.device(os.environ.get("GRADSCOPE_CUDA_TESTS_DEVICE", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device (GRADSCOPE_CUDA_TESTS_DEVICE=cpu rehearses)")
    return found


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """The device, for tests that a CPU cannot rehearse."""
    if device.type != "cuda":
        pytest.skip("needs CUDA; a rehearsal on the CPU has none")
    return device


@pytest.fixture(scope="session")
def to_device(device: torch.device) -> ToDevice:
    """Copy a model to the device."""

    def copied(model: nn.Module) -> nn.Module:
        moved = copy.deepcopy(model).to(device)
        if device.type == "cpu":
            stream = generator(0, "rehearsal")
            for parameter in moved.parameters():
                parameter.data *= 1 + REHEARSED_ROUNDING * torch.randn(parameter.shape, generator=stream)
        return moved

    return copied


def blobs(count: int, side: int, *, noise: float = 0.15, seed: int = 0) -> ImageSet:
    """Images of :data:`CLASSES` smooth patterns under noise, in turn."""
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=generator(0, "patterns"))
    large = F.interpolate(patterns, size=side, mode="bilinear")
    labels = torch.arange(count) % CLASSES
    stream = generator(seed, "noise")
    images = (0.25 + 0.5 * large[labels] + noise * torch.randn(count, 3, side, side, generator=stream)).clamp(0, 1)
    return ImageSet.from_tensors("blobs", (images * 255).byte(), labels, [str(name) for name in range(CLASSES)])


@pytest.fixture(scope="session")
def make_blobs() -> Callable[..., ImageSet]:
    return blobs


@pytest.fixture(scope="session")
def images(device: torch.device) -> ImageSet:
    """24 images of 16 x 16 pixels."""
    return blobs(24, 16, noise=0.3, seed=1)


def network(architecture: str, side: int) -> nn.Module:
    """A network with the same fresh weights every time."""
    spec = ModelSpec(architecture, CLASSES, 3, side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with seeded(0, "weights"):
        return build(spec)


@pytest.fixture(scope="session")
def make_network() -> Callable[[str, int], nn.Module]:
    return network


@pytest.fixture(scope="session")
def model(device: torch.device) -> nn.Module:
    """A cnn4 on the CPU trained on the images, so that losses and gradients have all magnitudes."""
    trained = network("cnn4", 16)
    batch, labels = blobs(120, 16).batch(torch.arange(120), "cpu")
    optimizer = torch.optim.Adam(trained.parameters(), lr=2e-3)
    with seeded(0, "dropout"):
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(trained(batch), labels).backward()
            optimizer.step()
    return trained.eval()

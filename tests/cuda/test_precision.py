"""Measurements use IEEE float32. TF32, cuDNN's default for convolutions, would round operands to 10 bits."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import look, prepared
from gradscope.config import PGD
from tests.conftest import state_digest
from tests.cuda.measurements import MEASUREMENTS

pytestmark = pytest.mark.cuda

#: Largest relative L2 error of an image's gradient against float64. float32 is below 2e-5 (2e-6 measured on CPUs;
#: Winograd's convolutions lose another digit); TF32 is above 4e-4, half a unit of its tenth bit.
IEEE = 1e-4


def flags() -> tuple[bool, bool]:
    """Whether convolutions and matrix products may use TF32."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def tf32_outside(device: torch.device) -> Iterator[None]:
    """Allow TF32 outside, like ``torch.set_float32_matmul_precision("high")`` and cuDNN's default."""
    before = flags()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def smooth(module: nn.Module) -> nn.Module:
    """The network without kinks; at a kink, rounding could add or remove a whole path of the gradient."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(2))
        else:
            smooth(child)
    return module


def gradient(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    """Each image's gradient ``(N, D)``, float64 on the CPU."""
    settings = PGD(precision=precision)
    with prepared(model, settings) as working:
        found = look(working, images.double() if precision == "float64" else images, labels, settings)
    assert found.gradient is not None
    return found.gradient.flatten(1).double().cpu()


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max())


@pytest.mark.parametrize("architecture", ["cnn2", "cnn4", "cnn6", "resnet18"])
def test_float32_gradients_are_those_of_float64(architecture, device, images, make_network, to_device, tf32_outside):
    model = smooth(make_network(architecture, 16))
    batch, labels = images.batch(torch.arange(8), "cpu")
    exact = gradient(model, batch, labels, "float64")
    on_device = to_device(model), batch.to(device), labels.to(device)
    assert relative_error(gradient(*on_device, "float64"), exact) < (1e-10 if device.type == "cuda" else IEEE)
    assert relative_error(gradient(*on_device, "float32"), exact) < IEEE


def test_without_it_tf32_would_be_seen(cuda, images, make_network, to_device, tf32_outside):
    """The same comparison fails if nothing turns TF32 off: the tests above can fail."""
    model = smooth(make_network("cnn6", 16)).eval()
    batch, labels = images.batch(torch.arange(24), "cpu")
    exact = gradient(model, batch, labels, "float64")
    point = batch.to(cuda).requires_grad_()
    loss = nn.functional.cross_entropy(to_device(model)(point), labels.to(cuda), reduction="sum")
    (slope,) = torch.autograd.grad(loss, point)
    assert relative_error(slope.flatten(1).double().cpu(), exact) > IEEE


class Watched(nn.Module):
    """A model that records the flags in forward passes and when the gradient reaches its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: set[tuple[bool, bool]] = set()

    def __deepcopy__(self, memo: object) -> "Watched":
        """A copy in float64 records in the same list."""
        import copy

        copied = Watched(copy.deepcopy(self.model))
        copied.seen = self.seen
        return copied

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(flags())
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(lambda slope: self.seen.add(flags()))
        return logits


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_is_strict_inside_and_leaves_no_trace(name, device, images, model, to_device, tf32_outside):
    watched = Watched(to_device(model))
    random = torch.cuda.get_rng_state() if device.type == "cuda" else None
    before = state_digest(watched)
    MEASUREMENTS[name](watched, images.subset(torch.arange(6)), device)
    assert watched.seen == {(False, False)}
    assert flags() == (True, True)
    assert state_digest(watched) == before
    assert random is None or torch.equal(torch.cuda.get_rng_state(), random)

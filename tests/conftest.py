import gc
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscope.auditing.budgets import BUDGETS, ScaleBudget
from gradscope.config import Budget, Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.distributed.processes import Hardware
from gradscope.training.options import TrainOptions
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, run_training

# torch and matplotlib make many objects that live on; looking through them for garbage takes a tenth of the suite.
gc.freeze()
gc.set_threshold(200_000, 50, 100)


def first_of(values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: `make test` runs it with the first of ``values``, `make soak` with the others."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def state_digest(model: nn.Module) -> str:
    """Everything about a model that measuring must leave alone, and the global random state."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
        digest.update(repr(value.stride()).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad} {parameter.grad}".encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {module.training}".encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def digest() -> Callable[[nn.Module], str]:
    return state_digest


class Linear(nn.Module):
    """``z = W x + b`` on flattened images: every gradient is known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


def make_convolutional(classes: int = 5, channels: int = 3, batch_norm: bool = True) -> nn.Module:
    torch.manual_seed(3)
    norm: list[nn.Module] = [nn.BatchNorm2d(8)] if batch_norm else []
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        *norm,
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    )
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


@pytest.fixture
def convolutional() -> nn.Module:
    """A small network with batch norm and dropout, in training mode, for 3 x 8 x 8 images of 5 classes."""
    return make_convolutional()


def random_images(count: int, channels: int = 3, side: int = 8, classes: int = 5, seed: int = 0) -> ImageSet:
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=stream)
    labels = torch.randint(0, classes, (count,), generator=stream)
    return ImageSet.from_tensors("random", images, labels, [str(name) for name in range(classes)])


@pytest.fixture
def image_set() -> ImageSet:
    return random_images(40)


Unpack = Callable[..., Path]


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """``unpack(name, per_class, npz)``: a real data set, its first ``per_class`` images of each class and split."""
    script = Path(__file__).parents[1] / ".." / "shared" / "data" / "unpack.py"
    folder = tmp_path_factory.mktemp("real-images")

    def write(name: str, per_class: int, *, npz: bool = False) -> Path:
        if not script.is_file():
            pytest.skip(f"no real images: {script} is not there")
        path = folder / (f"{name}-{per_class}.npz" if npz else f"{name}-{per_class}")
        if not path.exists():
            options = ["--per-class", str(per_class), *(["--npz"] if npz else [])]
            subprocess.run([sys.executable, script, name, path, *options], check=True, capture_output=True)
        return path

    return write


@pytest.fixture(scope="session")
def cifar10_folder(unpack: Unpack) -> Path:
    """20 real CIFAR-10 images of each class and split, in an ImageFolder tree."""
    return unpack("cifar10", 20)


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budget ``quick`` of audits and judgements with a tenth of its work, where no strength of the attacks matters."""
    attacks = Budget(steps=4, restarts=2, smoothing=2, targets=2, queries=40, noise_points=5)
    less = {"attacks": attacks, "probed": 32, "directions": 2, "draws": 4, "scale": ScaleBudget(16, 5, 2, ("pgd",))}
    monkeypatch.setitem(BUDGETS, "quick", replace(BUDGETS["quick"], **less))


@pytest.fixture(scope="session")
def digits() -> Splits:
    return sources.load(Data())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Checkpoints ``sl.pt``, its epochs beside it, and ``rl.pt``, on digits."""
    root = tmp_path_factory.mktemp("checkpoints")
    for mode, epochs in (("sl", 3), ("rl", 4)):
        training, splits = configure_training(TrainingRequest(options=TrainOptions(mode=mode, epochs=epochs)))
        out = root / f"{mode}.pt"
        run_training(training, splits, out, Hardware("cpu"), resume=False, overwrite=False, keep_epochs=mode == "sl")
    return [str(root / f"{mode}.pt") for mode in ("sl", "rl")]

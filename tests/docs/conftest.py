"""The files and names that the pages take for granted: small checkpoints, images, and stand-ins for other libraries."""

import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope as gs
from gradscope.data.image_set import Splits
from gradscope.vision import torchvision
from tests.docs.blocks import ROOT

CLASSES = 10
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, trained: list[str]) -> Path:
    """What the pages find in their working directory."""
    root = tmp_path_factory.mktemp("docs")
    for path in trained:
        shutil.copy(path, root)
        shutil.copy(path, root / f"{Path(path).stem}-adv.pt")
    shutil.copytree(Path(trained[0]).with_suffix(".epochs"), root / "sl.epochs")
    shutil.copytree(ROOT / "analyses", root / "analyses")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in range(CLASSES):
            folder = root / "images" / split / f"class{name}"
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        arrays[f"X_{split}"] = random.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(40) % CLASSES
    np.savez(root / "mine.npz", **arrays)
    (root / "data").mkdir()
    np.savez(root / "data" / "cifar10.npz", **arrays, classes=np.array(CIFAR10.split()))
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=CLASSES).state_dict(), root / "resnet18.pth")
    return root


class _HuggingFace(nn.Module):
    """Stands in for an image classifier of transformers: normalised images -> an object with logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))

    @classmethod
    def from_pretrained(cls, name: str) -> "_HuggingFace":
        made = cls()
        made.network(torch.zeros(1, 3, 32, 32))
        return made

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return types.SimpleNamespace(logits=self.network(pixel_values))


def _load_model(model_name: str, dataset: str = "cifar10", threat_model: str = "Linf", **_: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))


@pytest.fixture
def other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """RobustBench and transformers, which are not installed, as far as the pages call them."""
    robustbench, utils = types.ModuleType("robustbench"), types.ModuleType("robustbench.utils")
    robustbench.__path__ = []
    utils.load_model = _load_model  # type: ignore[attr-defined]
    transformers = types.ModuleType("transformers")
    transformers.AutoModelForImageClassification = _HuggingFace  # type: ignore[attr-defined]
    for module in (robustbench, utils, transformers):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def names(digits: Splits, files: Path) -> dict[str, Any]:
    """What a page's Python finds: a model, images and labels, and a loader of these."""
    images = digits.test.images[:48].float() / 255
    labels = digits.test.labels[:48]
    return {
        "__name__": "__main__",
        "model": gs.load(files / "sl.pt"),
        "other_model": gs.load(files / "rl.pt"),
        "network": gs.load(files / "sl.pt").network,
        "x": images,
        "y": labels,
        "loader": DataLoader(TensorDataset(images, labels), batch_size=16),
    }


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")

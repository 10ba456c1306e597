"""Models and images of the user's own, from the shell: training, then measuring."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gradscope.models import checkpoint as checkpoints
from gradscope.results.schemas import STEPS
from gradscope.results.tables import find_table, read_table

Done = Callable[..., str]
Run = Callable[..., Any]
NETS = """
from types import SimpleNamespace
from torch import nn

def small(num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(16 * width, num_classes),
    )

class Face(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = small(10, width)
    def forward(self, images):
        return SimpleNamespace(logits=self.inner(images))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of networks, and digits cut to 8 x 6, as floats, test images alone."""
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    digits = load_digits()
    images = (digits.images[:60, None, :, :6] / 16).astype(np.float32)
    np.savez(tmp_path / "narrow.npz", images=images, labels=digits.target[:60])
    np.savez(
        tmp_path / "whole.npz",
        **dict(zip(("X_train", "X_test"), (images, images), strict=True)),
        **dict.fromkeys(("y_train", "y_test"), digits.target[:60]),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_mine", raising=False)
    return tmp_path


def test_an_own_architecture_is_trained_and_measured(project: Path, done: Done, run: Run) -> None:
    own = ("train", "--mode", "rl", "--epochs", 1, "--arch", "nets_of_mine:small(width=4)", "--train-samples", 100)
    refused = run(*own)
    assert refused.code == 2
    assert "nets_of_mine:small(width=4) runs the code of nets_of_mine" in refused.err
    assert "--trust-code" in refused.err
    assert done(*own, "--trust-code").startswith("checkpoints/digits-small-rl-s0.pt  clean accuracy")
    config = checkpoints.load(project / "checkpoints" / "digits-small-rl-s0.pt").config
    assert (config["architecture"], config["train_samples"]) == ("nets_of_mine:small(width=4)", 100)
    measure = ("analyze", "checkpoints/digits-small-rl-s0.pt", "--samples", 8, "--steps", 2, "--no-figures")
    untrusted = run(*measure)
    assert untrusted.code == 2
    assert "runs the code of nets_of_mine" in untrusted.err
    done(*measure, "--trust-code", "--out", project / "out")
    table = find_table(project / "out" / STEPS.file)
    assert table is not None
    assert set(read_table(table, STEPS)["arch"]) == {"nets_of_mine:small(width=4)"}


def test_test_images_of_any_shape_suffice_to_measure(project: Path, done: Done) -> None:
    model = ("nets_of_mine:Face(4)", "--trust-code", "--dataset", "npz", "--data-root", "narrow.npz")
    few = ("--samples", 8, "--steps", 2, "--out", project / "out", "--overwrite")
    done("analyze", *model, *few)
    assert (project / "out" / "report.html").exists() or list((project / "out" / "figures").glob("*.pdf"))
    done("attack", *model, "--attacks", "pgd,square", "--queries", 5, "--restarts", 1, *few)
    done("audit", *model, "--budget", "quick", "--samples", 12, "--allow-inconclusive", "--out", project / "audit")
    done("report", project / "audit")
    for space in ("input", "weights"):
        planes = ("--space", space, "--points", 3, "--images", 2, "--out", project / space)
        done("landscape", *model, *planes)


def test_training_needs_training_images(run: Run) -> None:
    refused = run("train", "--mode", "sl", "--dataset", "npz", "--data-root", "narrow.npz")
    assert refused.code == 2
    assert "narrow: the data set must have training images, got only test images" in refused.err


def test_images_that_are_not_square_train_where_the_network_takes_them(project: Path, done: Done, run: Run) -> None:
    data = ("train", "--mode", "sl", "--epochs", 1, "--dataset", "npz", "--data-root", "whole.npz")
    refused = run(*data, "--arch", "cnn2")
    assert refused.code == 2
    assert "image-size must be square for cnn2, got 8 x 6" in refused.err
    done(*data, "--arch", "nets_of_mine:small", "--trust-code", "--out", project / "own.pt")
    done("analyze", "own.pt", "--trust-code", "--samples", 8, "--steps", 2, "--out", project / "out")

"""Every forward pass of a measurement is IEEE float32; what only steers training is left to the hardware."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscope.cli import main

Passes = dict[str, int]


@pytest.fixture
def passes() -> Iterator[Passes]:
    """How many forward passes of any module were computed strictly, how many not."""
    counts = {"strict": 0, "loose": 0}

    def look(module: nn.Module, arguments: object) -> None:
        backends = torch.backends
        strict = not backends.cudnn.allow_tf32 and not backends.cuda.matmul.allow_tf32
        strict &= backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
        counts["strict" if strict else "loose"] += 1

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    yield counts
    hook.remove()


MEASUREMENTS: dict[str, Callable[[str, str], tuple[object, ...]]] = {
    "analyze": lambda sl, rl: ("analyze", sl, "--attack", "pgd,pgd-paper", "--steps", 2, "--samples", 4),
    "analyze in float64": lambda sl, rl: ("analyze", sl, "--precision", "float64", "--steps", 2, "--samples", 4),
    "input landscape": lambda sl, rl: ("landscape", sl, "--images", 2, "--points", 3, "--steps", 2),
    "shared planes": lambda sl, rl: ("landscape", sl, rl, "--plane", "shared", "--images", 2, "--points", 3),
    "weight landscape": lambda sl, rl: ("landscape", sl, "--space", "weights", "--images", 8, "--points", 3),
    "adversarial weight landscape": lambda sl, rl: (
        *("landscape", sl, "--space", "weights", "--adversarial", "--images", 8, "--points", 3, "--steps", 1),
    ),
    "line": lambda sl, rl: ("landscape", sl, "--space", "weights", "--towards", rl, "--images", 8, "--points", 3),
    "attack": lambda sl, rl: (
        *("attack", sl, "--attacks", "all", "--surrogate", rl, "--epsilon", 1, "--samples", 4, "--steps", 2),
        *("--restarts", 2, "--smoothing", 2, "--targets", 2, "--queries", 5, "--draws", 3, "--save-images"),
    ),
    "transfer": lambda sl, rl: ("transfer", sl, rl, "--samples", 4, "--steps", 2),
    "audit": lambda sl, rl: ("audit", sl, "--budget", "quick", "--samples", 8, "--allow-inconclusive"),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_compute_strictly(name: str, trained: list[str], tmp_path: Path, passes: Passes) -> None:
    arguments = MEASUREMENTS[name](*trained)
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments), "--no-figures", "--out", str(tmp_path / "results")])
    assert not left.value.code
    assert passes["strict"] > 0
    assert passes["loose"] == 0


def test_training_is_judged_strictly(tmp_path: Path, passes: Passes) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--mode", "sl", "--epochs", "1", "--out", str(tmp_path / "sl.pt")])
    assert not left.value.code
    assert passes["strict"] > 0
    assert passes["loose"] > 0

"""torchvision imports beside any torch, a CPU-only one too."""

import subprocess
import sys
from pathlib import Path

import gradscope

REPOSITORY = Path(gradscope.__file__).parent.parent


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


def test_torchvision_imports_builds_and_runs() -> None:
    finished = run(
        "from gradscope.vision import torchvision\n"
        "import torch\n"
        "model = torchvision.models.resnet18(weights=None, num_classes=7).eval()\n"
        "with torch.no_grad(): print(tuple(model(torch.zeros(2, 3, 64, 64)).shape))\n"
        "from torchvision.transforms import v2\n"
        "print(tuple(v2.functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape))\n"
        "assert torch.ops.torchvision.nms and torchvision.datasets.CIFAR10\n"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split("\n")[:2] == ["(2, 7)", "(3, 4, 4)"]


def test_where_the_compiled_operators_load_they_are_used() -> None:
    """Otherwise the schemas are there, and calling one says that nothing is behind it."""
    finished = run(
        "from gradscope import vision\n"
        "import torch\n"
        "boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0.5, 0.6])\n"
        "try: kept = torch.ops.torchvision.nms(boxes, scores, 0.5).tolist()\n"
        "except NotImplementedError: kept = None\n"
        "assert kept == (None if hasattr(vision, '_declared') else [1]), kept\n"
    )
    assert finished.returncode == 0, finished.stderr


def test_torchvision_that_is_imported_already_is_left_alone() -> None:
    """Where its compiled operators do not load, the schemas that it needs are somebody else's."""
    finished = run(
        "import torch\n"
        "own = torch.library.Library('torchvision', 'DEF')\n"
        "own.define('mine(Tensor x) -> Tensor')\n"
        "try: import torchvision\n"
        "except RuntimeError:\n"
        "    for name in ('nms', 'qnms'): own.define(f'{name}(Tensor a, Tensor b, float c) -> Tensor')\n"
        "    import torchvision\n"
        "from gradscope.vision import torchvision as ours\n"
        "assert ours is torchvision and torch.ops.torchvision.mine\n"
    )
    assert finished.returncode == 0, finished.stderr


def test_a_library_of_ones_own_for_torchvision_may_be_there() -> None:
    finished = run(
        "import torch\n"
        "own = torch.library.Library('torchvision', 'DEF')\n"
        "own.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from gradscope.vision import torchvision\n"
        "assert torch.ops.torchvision.nms and torchvision.models\n"
    )
    assert finished.returncode == 0, finished.stderr

"""Out of memory: a measurement finishes in smaller batches with the same numbers, or says in one line what to do.

In a rehearsal there is memory enough, and all must finish.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gradscope.cli import main
from gradscope.config import Data, Grid
from gradscope.distributed.processes import Hardware
from gradscope.distributed.units import is_out_of_memory
from gradscope.models import checkpoint as checkpoints
from gradscope.probes.input_landscape import evaluate_planes
from gradscope.training.loop import train
from gradscope.training.phases import resolve
from tests.cuda.measurements import FEW, planes_of, weight_landscape

pytestmark = pytest.mark.cuda

#: MiB left free. On cnn4 a batch of 512 images of 32 x 32 takes about 600 with gradients and 300 without, 2,048 points
#: of a plane take 1,200, and a batch of 32 takes 40. cuDNN and cuBLAS need some too.
LEFT = 192
TABLES = {"analyze": "summary.csv", "attack": "attacks.csv"}
#: Another batch size changes the order of summation and perhaps cuDNN's algorithm, always in float32: at most one image
#: of 512 may change sides.
SAME = 3e-3


@contextmanager
def memory_of(mebibytes: int, device: torch.device) -> Iterator[None]:
    """Limit free memory to this much beyond what is in use."""
    if device.type != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.mem_get_info()[1]
    allowed = torch.cuda.memory_reserved() + mebibytes * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / whole)
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    try:
        yield
        assert torch.cuda.memory_stats()["num_ooms"] > before, "memory did not run out: this test shows nothing"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def many(device: torch.device) -> int:
    """Images that do not fit into memory at once."""
    return 512 if device.type == "cuda" else 16


@pytest.fixture(scope="session")
def checkpoint(device, many, make_blobs, tmp_path_factory) -> Path:
    """A cnn4 for images of 32 x 32, and the file of the images."""
    folder = tmp_path_factory.mktemp("memory")
    images = make_blobs(many, 32)
    arrays = {"X": images.images.numpy(), "y": images.labels.numpy()}
    np.savez(folder / "images.npz", **{f"{key}_{split}": arrays[key] for key in "Xy" for split in ("train", "test")})
    data = Data(dataset="npz", data_root=folder / "images.npz")
    training = resolve("sl", data, 32, epochs=1, settings=["architecture=cnn4"])
    path = folder / "cnn4.pt"
    few = replace(images.subset(torch.arange(12)), name="npz")
    checkpoints.save(path, train(training, few, path, Hardware("cpu")))
    return path


@pytest.fixture
def run(checkpoint, device, tmp_path, capsys) -> Callable[..., tuple[int, str, Path]]:
    """Run a command on the checkpoint; return its exit code, its stderr, and its table."""

    def command(name: str, *options: object, out: str) -> tuple[int, str, Path]:
        source = ["--data-root", str(checkpoint.parent / "images.npz"), "--device", device.type, "--no-figures"]
        with pytest.raises(SystemExit) as left:
            main([name, str(checkpoint), *map(str, options), *source, "--out", str(tmp_path / out)])
        return int(left.value.code or 0), capsys.readouterr().err, tmp_path / out / TABLES[name]

    return command


def same_numbers(found: Path, expected: Path) -> None:
    """Tables are equal except for times and the last digits."""
    ours, theirs = (pd.read_csv(path) for path in (found, expected))
    if "metric" in ours:
        ours, theirs = (table[table["metric"] != "seconds"].reset_index(drop=True) for table in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs, rtol=SAME, atol=SAME)


def names_the_option(code: int, said: str) -> None:
    """Find the one line after any cautions about the model."""
    assert code == 2
    (line,) = (line for line in said.splitlines() if not line.startswith("gradscope: caution: "))
    assert line.startswith("gradscope: --batch-size must be smaller")


@pytest.mark.parametrize(
    "line",
    [
        ("analyze", "--attack", "pgd", "--steps", 2),
        ("attack", "--attacks", "pgd,square", "--steps", 2, "--queries", 3),
    ],
    ids=lambda line: line[0],
)
def test_a_batch_that_is_too_large_finishes_or_names_the_option(line, run, many, device):
    name, *options = line
    options += ["--samples", many]
    code, said, expected = run(name, *options, "--batch-size", 32, out="small")
    assert code == 0, said
    with memory_of(LEFT, device):
        code, said, found = run(name, *options, "--batch-size", many, out="large")
    if code == 0:
        same_numbers(found, expected)
    else:
        assert device.type == "cuda"
        names_the_option(code, said)
    code, said, found = run(name, *options, "--batch-size", 32, out="again")
    assert code == 0, f"what follows a full memory has to work: {said}"
    same_numbers(found, expected)


def test_an_input_landscape_halves_its_batches_to_the_same_numbers(make_network, make_blobs, device, to_device):
    model = to_device(make_network("cnn4", 32)).eval()
    planes, labels = planes_of(model, make_blobs(FEW, 32), device, "l2")
    grid = Grid(points=51 if device.type == "cuda" else 5)
    few = planes[:1], labels[:1], grid
    expected = evaluate_planes(model, *few)
    with memory_of(LEFT, device):
        found = evaluate_planes(model, *few)
    torch.testing.assert_close(found.loss, expected.loss, rtol=SAME, atol=0)
    torch.testing.assert_close(found.margin, expected.margin, rtol=0, atol=SAME)


def test_a_weight_landscape_halves_its_batches_to_the_same_numbers(make_network, make_blobs, many, device, to_device):
    model, images = to_device(make_network("cnn4", 32)).eval(), make_blobs(2 * many, 32)
    expected = weight_landscape(model, images, device)
    with memory_of(LEFT, device):
        found = weight_landscape(model, images, device)
    for name, values in expected.items():
        # In a group of a hundred images, one or two are within rounding of a boundary at some point.
        torch.testing.assert_close(found[name], values, rtol=SAME, atol=2 if "right" in name else 0)


def test_a_gpu_without_memory_for_one_image_says_so(run, cuda):
    with memory_of(1, cuda):
        code, said, _ = run("analyze", "--steps", 2, "--samples", 1, "--batch-size", 1, out="none")
    names_the_option(code, said)
    assert "--device cpu" in said


def test_training_in_batches_that_are_too_large_names_the_option(checkpoint, cuda, many, tmp_path, capsys):
    source = ["--dataset", "npz", "--data-root", str(checkpoint.parent / "images.npz"), "--device", "cuda"]
    line = ["train", "--mode", "sl", "--arch", "cnn4", "--epochs", "1", "--batch-size", str(many), *source]
    with memory_of(LEFT, cuda), pytest.raises(SystemExit) as left:
        main([*line, "--out", str(tmp_path / "sl.pt")])
    names_the_option(int(left.value.code or 0), capsys.readouterr().err)


def test_errors_of_a_full_memory_are_known(cuda):
    with memory_of(LEFT, cuda), pytest.raises(RuntimeError) as raised:
        torch.empty(2 * LEFT * 2**20, dtype=torch.uint8, device=cuda)
    assert is_out_of_memory(raised.value)
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2, 3, device=cuda) @ torch.zeros(2, 3, device=cuda)
    assert not is_out_of_memory(raised.value)

"""``make bench``: the speed targets of the design as ratios, each pair measured side by side in this run.

Run it on a quiet machine: a second busy process changes the ratios by a third.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.pgd import prepared, threat_model
from gradscope.config import PGD, Data, Grid
from gradscope.data.image_set import ImageSet
from gradscope.models.architectures import ModelSpec, build
from gradscope.probes.input_landscape import (
    POINTS_AT_ONCE,
    Planes,
    adversarial_planes,
    attack_walk,
    coordinates,
    evaluate_planes,
)
from gradscope.probes.trajectory import measure_trajectory
from gradscope.probes.weight_landscape import Measures, evaluate_plane, filter_normalised_direction
from gradscope.results.rows import METRICS
from gradscope.training.hardware import Hardware
from gradscope.training.loop import Run
from gradscope.training.phases import resolve
from gradscope.training.totals import Totals
from tests.benchmarks import paper
from tests.benchmarks.measure import HEADER, Ratio, seconds, side_by_side

STEPS = 40
ATTACKED = 128
TRAINED = 2560


def random_images(count: int) -> ImageSet:
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream)
    labels = torch.arange(count) % 10
    return ImageSet.from_tensors("random", images, labels, [str(name) for name in range(10)])


def cnn4(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec("cnn4", 10, 3, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return build(spec).to(device)


def tracked_pgd(device: str, rounds: int) -> list[Ratio]:
    import torchattacks

    images = random_images(ATTACKED).on(device)
    model = cnn4(device).eval()
    batch, labels = images.batch(torch.arange(ATTACKED), device)
    attack = torchattacks.PGDL2(model, eps=1.0, alpha=0.1, steps=STEPS, random_start=True)

    def ours() -> object:
        return measure_trajectory(model, images, PGD(steps=STEPS), frozenset(METRICS), device=device)

    def the_papers() -> object:
        return paper.tracked_pgd(model, batch, labels, STEPS)

    name = f"PGD-{STEPS} with every metric"
    gpu = device != "cpu"
    return [
        side_by_side(
            name,
            "torchattacks.PGDL2, no metrics",
            ours,
            lambda: attack(batch, labels),
            target=0.5 if gpu else 1.0,
            rounds=rounds,
        ),
        side_by_side(name, "the paper's tracked PGD", ours, the_papers, target=0.55, rounds=rounds),
    ]


def input_plane(device: str, rounds: int) -> list[Ratio]:
    model, planes, labels = plane_around_one(device)
    grid, size = Grid(points=51), POINTS_AT_ONCE[device]
    axis = coordinates(grid).tolist()
    first, second = (direction.reshape(planes.origins.shape) for direction in (planes.first, planes.second))
    ready = torch.rand(len(axis) ** 2, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)

    def ours() -> object:
        return evaluate_planes(model, planes, labels, grid)

    def one_at_a_time() -> object:
        return paper.input_plane(model, planes.origins, labels, first, second, axis)

    def its_own() -> object:
        with torch.no_grad():
            return [model(part) for part in ready.split(size)]

    name, much = "input landscape, 51 x 51, one image", 0.02 if device != "cpu" else 0.55
    return [
        side_by_side(name, "one forward pass a point", ours, one_at_a_time, target=much, rounds=rounds),
        side_by_side(name, f"the model on ready batches of {size}", ours, its_own, target=1 / 0.9, rounds=rounds),
    ]


def large_plane(device: str) -> str:
    model, planes, labels = plane_around_one(device)
    took = seconds(lambda: evaluate_planes(model, planes, labels, Grid(points=300)))
    return f"{'input landscape, 300 x 300, one image':38} {'-':42} {took:8.2f} {'-':>8} s"


def plane_around_one(device: str) -> tuple[torch.nn.Module, Planes, torch.Tensor]:
    model, numbers, settings = cnn4(device).eval(), torch.arange(1), PGD(steps=10)
    images, labels = random_images(1).batch(numbers, device)
    with prepared(model, settings) as attacked:
        walk = attack_walk(attacked, images, labels, settings, numbers=numbers)
    return model, adversarial_planes(images, walk, threat_model(settings), numbers=numbers), labels


def weight_plane(device: str, rounds: int) -> Ratio:
    import loss_landscapes
    import loss_landscapes.metrics

    model, images = cnn4(device).eval(), random_images(256)
    batch, labels = images.batch(torch.arange(256), device)
    metric = loss_landscapes.metrics.Loss(torch.nn.CrossEntropyLoss(), batch, labels)
    measures = Measures(images, torch.arange(256), torch.device(device))
    first, second = (filter_normalised_direction(model, seed=0, name=name) for name in ("first", "second"))
    axis = coordinates(Grid(points=5, span=1.0))
    return side_by_side(
        "weight landscape, 5 x 5, 256 images",
        "loss_landscapes.random_plane",
        lambda: evaluate_plane(model, first, second, (axis, axis), measures),
        lambda: loss_landscapes.random_plane(model, metric, 1, 5, normalization="filter", deepcopy_model=True),
        target=0.5,
        rounds=rounds,
    )


def training_run(mode: str, device: str, settings: list[str], folder: Path, **options: object) -> Run:
    training = resolve(mode, Data(dataset="cifar10"), 32, epochs=2, settings=settings, options=options)
    hardware = Hardware("cpu" if device == "cpu" else "cuda")
    return Run(hardware.fabric(training.precision), training, random_images(TRAINED), folder / "c.pt")


def rl_adversarial_update(device: str, rounds: int, folder: Path) -> Ratio:
    settings = ["batch_size=256", "horizontal_flip=false", "shift=0"]
    run = training_run("rl-adv", device, settings, folder)
    phase, indices = run.training.phases[1], torch.arange(256)
    stream, totals = torch.Generator().manual_seed(0), Totals(run.fabric.device)
    run.model.train()
    model = cnn4(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, labels = run.images.batch(indices, device)
    return side_by_side(
        "RL-adv update, batch 256",
        "4 forward and 3 backward passes",
        lambda: run._update(phase, indices, stream, totals),
        lambda: paper.adversarial_update(model, optimizer, images, labels),
        target=0.65,
        rounds=2 * rounds,
    )


def supervised_epoch(device: str, rounds: int, folder: Path) -> Ratio:
    run = training_run("sl", device, [], folder, precision="bf16")
    model = cnn4(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dataset = paper.PilImages(run.images.images[run.trained].cpu(), run.images.labels[run.trained].cpu())

    def epoch(loader: DataLoader) -> Callable[[], object]:
        return lambda: paper.supervised_epoch(model, optimizer, loader, device)

    def loader(workers: int) -> DataLoader:
        kept = workers > 0
        return DataLoader(dataset, 128, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=kept)

    # Against the better of the two usual settings.
    counts = {workers: epoch(loader(workers)) for workers in (0, 2)}
    pairs = [
        side_by_side(
            f"SL epoch, augmented, bf16, {len(dataset)} images",
            f"DataLoader, PIL, float32, {workers} workers",
            lambda: run._train_epoch(run.training.phases[0], 0, 0),
            theirs,
            target=0.4 if device == "cpu" else 0.1,
            rounds=rounds,
        )
        for workers, theirs in counts.items()
    ]
    return max(pairs, key=lambda pair: pair.ratio)


def memory(folder: Path) -> Ratio:
    """Peak resident memory of `gradscope analyze` on 1,000 and on 10,000 images, in processes of their own."""
    checkpoint, data = folder / "memory.pt", folder / "images.npz"
    images = random_images(10_000)
    arrays = {"X_test": images.images.numpy(), "y_test": images.labels.numpy()}
    np.savez(data, X_train=arrays["X_test"][:200], y_train=arrays["y_test"][:200], **arrays)
    source = ["--dataset", "npz", "--data-root", str(data)]
    peak_memory("train", "--mode", "sl", *source, "--arch", "cnn2", "--epochs", "1", "--out", str(checkpoint))
    peaks = [
        peak_memory(
            *("analyze", str(checkpoint), *source, "--device", "cpu", "--steps", "3"),
            *("--samples", str(samples), "--out", str(folder / f"analysis-{samples}")),
        )
        for samples in (10_000, 1_000)
    ]
    many, few = peaks
    return Ratio("analyze 10,000 images, peak memory", "1,000 images", many, few, (many / few,), 1.2, "MiB")


def peak_memory(*arguments: str) -> float:
    """Peak resident memory of a command in MiB."""
    # Not getrusage: its peak is carried over from this process, which has been larger.
    report = "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    code = f"from gradscope.cli import main\ntry:\n    main({list(arguments)!r})\nfinally:\n    {report}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"median of {arguments.rounds} rounds; spread: lowest and highest ratio of a round")
    print(HEADER)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for ratio in tracked_pgd(arguments.device, arguments.rounds):
            print(ratio.row(), flush=True)
        for ratio in input_plane(arguments.device, arguments.rounds):
            print(ratio.row(), flush=True)
        print(large_plane(arguments.device), flush=True)
        print(weight_plane(arguments.device, arguments.rounds).row(), flush=True)
        print(rl_adversarial_update(arguments.device, arguments.rounds, folder).row(), flush=True)
        print(supervised_epoch(arguments.device, max(2, arguments.rounds // 2), folder).row(), flush=True)
        print(memory(folder).row(), flush=True)


if __name__ == "__main__":
    main()

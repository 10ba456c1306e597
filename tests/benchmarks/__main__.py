"""``make bench``: check the speed targets of the design as ratios; each pair is timed side by side in this run.

On a GPU it also times training and measuring in images per second and seconds. Run it on a quiet machine: a second
busy process changes the ratios by a third.
"""

import argparse
import csv
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import gradscope
import gradscope.vision
from gradscope.attacks.distances import ATTACK as DISTANCE
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.pgd import pgd, prepared, threat_model, usual_batch_size
from gradscope.attacks.registry import PAPER_BATCH
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BUDGETS, ScaleBudget
from gradscope.config import PGD, Budget, Data, Grid
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.distributed.units import Work
from gradscope.errors import Caution
from gradscope.measure.writer import Writer
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.inspection import (
    channels_last,
    laid_out,
    measuring,
    strict_float32,
    takes_channels_last,
)
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
from gradscope.process import keep_memory
from gradscope.results.metrics import METRICS
from gradscope.training.graphs import WARM_UP
from gradscope.training.loop import Run
from gradscope.training.phases import resolve
from gradscope.training.precision import auto_precision
from tests.benchmarks import paper
from tests.benchmarks.measure import HEADER, Absolute, Ratio, rate, seconds, side_by_side, took, waiting

STEPS = 40
ATTACKED = 128
TRAINED = 2560
ARCHITECTURES = ("cnn4", "cnn6")
#: Highest cost of a trial in runs of the attack, counted in steps: our attacks, plus repairs if the attack is weaker.
JUDGED = {"whole": 5, "steps too small": 15}


@dataclass(frozen=True)
class Bench:
    """Where benchmarks run and how often; ``quick``: on tiny sizes, which test that they run, not their speed."""

    device: torch.device
    rounds: int
    quick: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def size(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual


def random_images(count: int) -> ImageSet:
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream)
    labels = torch.arange(count) % 10
    return ImageSet.from_tensors("random", images, labels, [str(name) for name in range(10)])


def network(architecture: str, device: torch.device, channels: int = 3, side: int = 32) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(architecture, 10, channels, side, (0.5,) * channels, (0.25,) * channels)
    return build(spec).to(device)


def tracked_pgd(bench: Bench) -> Iterator[Ratio]:
    import torchattacks

    count, steps = bench.size(ATTACKED, 8), bench.size(STEPS, 2)
    images = random_images(count).on(bench.device)
    model = network("cnn4", bench.device).eval()
    batch, labels = images.batch(torch.arange(count), bench.device)
    attack = torchattacks.PGDL2(model, eps=1.0, alpha=0.1, steps=steps, random_start=True)

    def ours() -> object:
        return measure_trajectory(model, images, PGD(steps=steps), frozenset(METRICS), work=Work(device=bench.device))

    def passes() -> None:
        """Make the same number of forward and input-gradient passes, in the fastest layout and batches."""
        with measuring(model):
            for part, truth in zip(batch.split(best), labels.split(best), strict=True):
                point = laid_out(part)
                for _ in range(steps + 1):
                    point = point.detach().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(model(point), truth, reduction="sum"), point)

    best = usual_batch_size(None, bench.device)
    pairs = {
        "as many bare passes": (passes, 1.25 if bench.on_gpu else 1.15),
        "torchattacks.PGDL2, no metrics": (lambda: attack(batch, labels), 0.9 if bench.on_gpu else 0.75),
        "the paper's tracked PGD": (lambda: paper.tracked_pgd(model, batch, labels, steps), 0.55),
    }
    name = f"PGD-{steps} with every metric"
    with strict_float32():  # for theirs too
        for against, (theirs, target) in pairs.items():
            yield side_by_side(name, against, ours, theirs, target=target, rounds=bench.rounds)


def pgd_rates(bench: Bench) -> Iterator[Absolute]:
    count, steps = bench.size(512, 8), bench.size(100, 2)
    images = random_images(count).on(bench.device)
    for architecture in ARCHITECTURES:
        model = network(architecture, bench.device).eval()

        def attacked(steps: int, model: torch.nn.Module = model) -> object:
            return measure_trajectory(
                model, images, PGD(steps=steps), frozenset(METRICS), work=Work(device=bench.device)
            )

        attacked(2)
        name = f"PGD-{steps} with every metric, {architecture}"
        yield rate(name, count, lambda attacked=attacked: attacked(steps), rounds=bench.rounds)


def input_plane(bench: Bench) -> Iterator[Ratio]:
    model, planes, labels = plane_around_one("cnn4", bench.device)
    grid = Grid(points=bench.size(51, 5))
    size = POINTS_AT_ONCE[bench.device.type]
    axis = coordinates(grid).tolist()
    first, second = (direction.reshape(planes.origins.shape) for direction in (planes.first, planes.second))
    ready = torch.rand(len(axis) ** 2, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)

    def ours() -> object:
        return evaluate_planes(model, planes, labels, grid)

    def one_at_a_time() -> object:
        return paper.input_plane(model, planes.origins, labels, first, second, axis)

    def its_own() -> object:
        with torch.no_grad():
            return [model(part) for part in ready.split(size)]

    pairs = {
        "one forward pass a point": (one_at_a_time, 0.02 if bench.on_gpu else 0.3),
        f"the model on ready batches of {size}": (its_own, 1 / 0.9),
    }
    name = f"input landscape, {grid.points} x {grid.points}, one image"
    with strict_float32():
        for against, (theirs, target) in pairs.items():
            yield side_by_side(name, against, ours, theirs, target=target, rounds=bench.rounds)


def input_plane_times(bench: Bench) -> Iterator[Absolute]:
    """Time input planes; on a CPU only of cnn4, which takes a minute."""
    points = bench.size(300, 5)
    for architecture in ARCHITECTURES if bench.on_gpu or bench.quick else ("cnn4",):
        around = plane_around_one(architecture, bench.device)
        evaluate_planes(*around, Grid(points=min(points, 65)))
        name = f"input landscape, {points} x {points}, {architecture}"
        yield took(name, lambda around=around: evaluate_planes(*around, Grid(points=points)), rounds=bench.rounds)


def plane_around_one(architecture: str, device: torch.device) -> tuple[torch.nn.Module, Planes, torch.Tensor]:
    model, numbers, settings = network(architecture, device).eval(), torch.arange(1), PGD(steps=10)
    images, labels = random_images(1).batch(numbers, device)
    with prepared(model, settings) as attacked:
        walk = attack_walk(attacked, images, labels, settings, numbers=numbers)
    return model, adversarial_planes(images, walk, threat_model(settings), numbers=numbers), labels


def weight_plane(bench: Bench) -> Iterator[Ratio]:
    import loss_landscapes
    import loss_landscapes.metrics

    count = bench.size(256, 16)
    model, images = network("cnn4", bench.device).eval(), random_images(count)
    batch, labels = images.batch(torch.arange(count), bench.device)
    metric = loss_landscapes.metrics.Loss(torch.nn.CrossEntropyLoss(), batch, labels)

    def theirs() -> object:
        with bench.device:  # it makes directions on the default device, not on the model's
            return loss_landscapes.random_plane(model, metric, 1, 5, normalization="filter", deepcopy_model=True)

    name, target = f"weight landscape, 5 x 5, {count} images", 0.2 if bench.on_gpu else 0.4
    ours = plane_of_weights(model, images, 5, bench.device)
    with strict_float32():
        yield side_by_side(name, "loss_landscapes.random_plane", ours, theirs, target=target, rounds=bench.rounds)


def weight_plane_times(bench: Bench) -> Iterator[Absolute]:
    points, images = bench.size(51, 3), random_images(bench.size(256, 16))
    model = network("cnn4", bench.device).eval()
    plane_of_weights(model, images, 3, bench.device)()
    name = f"weight landscape, {points} x {points}, {len(images)} images"
    yield took(name, plane_of_weights(model, images, points, bench.device), rounds=bench.rounds)


def plane_of_weights(
    model: torch.nn.Module, images: ImageSet, points: int, device: torch.device
) -> Callable[[], object]:
    measures = Measures(images, torch.arange(len(images)), device)
    first, second = (filter_normalised_direction(model, seed=0, name=name) for name in ("first", "second"))
    axis = coordinates(Grid(points=points, span=1.0))
    return lambda: evaluate_plane(model, first, second, (axis, axis), measures)


def digits(side: int, channels: int) -> tuple[ImageSet, ImageSet]:
    """Load scikit-learn's digits at another size with equal channels: 1,400 for training, the rest held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = F.interpolate(torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8), side).expand(
        -1, channels, -1, -1
    )
    parts = zip(images.split(1400), torch.from_numpy(labels).split(1400), strict=True)
    training, held_out = (ImageSet.from_tensors("digits", part.contiguous(), truth) for part, truth in parts)
    return training, held_out


def digit_classifier(architecture: str, side: int, channels: int, bench: Bench) -> tuple[torch.nn.Module, ImageSet]:
    """Train a network for a few epochs on the digits; return it with unseen images."""
    training, held_out = digits(side, channels)
    torch.manual_seed(0)
    model = build(ModelSpec(architecture, 10, channels, side, (0.5,), (0.5,))).to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(bench.size(5, 1)):
        for part in torch.randperm(len(training)).split(100):
            images, labels = training.batch(part, bench.device)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), held_out


def radius_that_leaves(share: float, model: torch.nn.Module, images: ImageSet, device: torch.device) -> float:
    """Find by bisection an L-infinity radius at which about ``share`` of ``images`` are not fooled."""
    low, high = 0.0, 0.5
    for _ in range(6):
        threat = ThreatModel("linf", (low + high) / 2)
        outcome = evaluate(model, images, ["pgd-margin"], threat, Budget(steps=20), work=Work(device=device))
        low, high = (threat.epsilon, high) if outcome.robust_accuracy > share else (low, threat.epsilon)
    return (low + high) / 2


def autoattack(bench: Bench) -> Iterator[Ratio]:
    """Compare standard AutoAttack with its authors' (``pip install pyautoattack``) at 25 % robust accuracy.

    Theirs runs first, in an unchanged process; ours then keeps freed memory, as gradscope's commands do.
    """
    if find_spec("pyautoattack") is None:
        print("autoattack: left out, pyautoattack is not installed", flush=True)
        return
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    budget = Budget(steps=bench.size(100, 2), queries=bench.size(5000, 3))
    cases = (("cnn4", 32, 3, 48, 0.6), ("cnn2", 8, 1, 200, 0.8))
    for architecture, side, channels, count, target in cases:
        model, held_out = digit_classifier(architecture, side, channels, bench)
        images = held_out.subset(torch.arange(bench.size(count, 8)))
        threat = ThreatModel("linf", radius_that_leaves(0.25, model, images, bench.device))
        batch, labels = images.batch(torch.arange(len(images)), bench.device)
        found = {}

        def ours(model=model, images=images, threat=threat, found=found) -> None:
            outcome = evaluate(model, images, ["autoattack"], threat, budget, work=Work(device=bench.device))
            found["ours"] = outcome.robust_accuracy

        def theirs(model=model, batch=batch, labels=labels, threat=threat, found=found) -> None:
            attack = AutoAttack(model, norm="Linf", eps=threat.epsilon, seed=0, device=bench.device)
            for part in (attack.apgd, attack.apgd_targeted, attack.fab):
                part.n_iter = budget.steps
            attack.square.n_queries = budget.queries
            examples, _ = attack.run_standard_evaluation(batch, labels)
            with torch.no_grad():
                found["theirs"] = float((model(examples).argmax(dim=1) == labels).double().mean())

        with measuring(model):
            of_theirs = seconds(theirs)
            keep_memory()
            times = seconds(ours), of_theirs
        stand = f"{found['ours']:.1%} and {found['theirs']:.1%} stand"
        yield Ratio(
            f"AutoAttack, {architecture}, {len(images)} images",
            f"its authors', {stand}",
            *times,
            (times[0] / times[1],),
            target,
        )


def audit(bench: Bench) -> Iterator[Ratio]:
    model, held_out = digit_classifier("cnn4", 32, 3, bench)
    images = held_out.subset(torch.arange(bench.size(200, 8)))
    # Like an undefended model at the usual radius: if many images are not fooled, their queries are most of the work.
    settings = PGD(norm="linf", epsilon=radius_that_leaves(0.02, model, images, bench.device), steps=bench.size(40, 1))

    def attacked() -> None:
        with prepared(model, settings) as working:
            for indices in torch.arange(len(images)).split(usual_batch_size(None, bench.device)):
                pgd(working, *images.batch(indices, bench.device), settings)

    def audited() -> object:
        return gradscope.audit(model, images, budget="quick", norm="linf", epsilon=settings.epsilon, progress=False)

    name, against = f"audit, quick, {len(images)} images", f"PGD-{settings.steps} on the same images"
    yield side_by_side(name, against, audited, attacked, target=5, rounds=1 if bench.quick else min(bench.rounds, 2))


def standard(bench: Bench) -> Iterator[Ratio]:
    """Time the default audit once against one without the parts added since its speed was first measured."""
    model, held_out = digit_classifier("cnn4", 32, 3, bench)
    images = held_out.subset(torch.arange(bench.size(len(held_out), 40)))
    epsilon = radius_that_leaves(0.02, model, images, bench.device)
    whole = BUDGETS["standard"]
    names = tuple(name for name in whole.names if name != DISTANCE)
    least = ScaleBudget(images=1, temperatures=3, steps=1, attacks=("pgd",))
    BUDGETS["without"] = replace(whole, names=names, by_label=False, unit_test=False, scale=least)

    def audited(budget: str) -> object:
        return gradscope.audit(model, images, budget=budget, norm="linf", epsilon=epsilon, progress=False)

    name = f"audit, standard, {len(images)} images"
    against = "without distances, attack by label, unit test and (nearly) scale"
    theirs, ours = seconds(partial(audited, "without")), seconds(partial(audited, "standard"))
    yield Ratio(name, against, ours, theirs, (ours / theirs,), target=1.5)


def judge(bench: Bench) -> Iterator[Ratio]:
    """Time a trial against the attack alone: for a sound attack, and for one whose steps are too small."""
    import torchattacks

    model, held_out = digit_classifier("cnn4", 32, 3, bench)
    images = held_out.subset(torch.arange(bench.size(200, 40)))
    epsilon, steps = radius_that_leaves(0.02, model, images, bench.device), bench.size(40, 2)
    for what, step in (("whole", 2.5 * epsilon / steps), ("steps too small", 0.01 * epsilon / steps)):
        attack = torchattacks.PGD(model, eps=epsilon, alpha=step, steps=steps, random_start=False)

        def alone(attack: Any = attack) -> None:
            with strict_float32():
                for indices in torch.arange(len(images)).split(PAPER_BATCH):
                    attack(*images.batch(indices, bench.device))

        def judged(attack: Any = attack) -> object:
            return gradscope.judge(attack, model, images, budget="quick", norm="linf", epsilon=epsilon, progress=False)

        name, against = f"judge, quick, {len(images)} images, {what}", f"the attack alone, torchattacks.PGD, {steps}"
        rounds = 1 if bench.quick else min(bench.rounds, 2)
        yield side_by_side(name, against, judged, alone, target=JUDGED[what], rounds=rounds)


def spectrum(bench: Bench) -> Iterator[Ratio]:
    """Time trace and density against the same number of bare Hessian-vector products, made like PyHessian's."""
    images = random_images(bench.size(512, 32))
    model = network("cnn4", bench.device).eval()
    probes, iterations = bench.size(2, 2), bench.size(6, 2)
    parameters = list(model.parameters())

    def ours() -> object:
        options = {"probes": probes, "iterations": iterations, "eigenvalues": 1, "images": len(images)}
        return gradscope.spectrum(model, images, progress=False, **options)

    def theirs(size: int = 64) -> None:
        with strict_float32():
            for _ in range((1 + probes) * iterations):
                vectors = [torch.ones_like(parameter) for parameter in parameters]
                for indices in torch.arange(len(images)).split(size):
                    batch, labels = images.batch(indices, bench.device)
                    loss = F.cross_entropy(model(laid_out(batch)), labels)
                    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
                    torch.autograd.grad(slopes, parameters, vectors)

    against = f"{(1 + probes) * iterations} bare Hessian-vector products"
    name = f"trace and density, cnn4, {len(images)} images"
    yield side_by_side(name, against, ours, theirs, target=1.2, rounds=1 if bench.quick else min(bench.rounds, 3))


def training_run(mode: str, images: ImageSet, settings: list[str], bench: Bench, **options: object) -> Run:
    training = resolve(mode, Data(dataset="cifar10"), 32, epochs=2, settings=settings, options=options)
    hardware = Hardware(bench.device.type)
    return Run(hardware.fabric(training.precision), training, images, bench.folder / "c.pt")


def training_rates(bench: Bench) -> Iterator[Absolute]:
    """Time epochs of the training loop on images on the device, without validation and written files."""
    batch_size = bench.size(256, 16)
    precision, rounds = auto_precision(bench.device, 32), bench.rounds if bench.on_gpu else min(2, bench.rounds)
    for architecture, on_cpu in {"cnn4": 1280, "cnn6": 256}.items():
        images = random_images(bench.size(50_000 if bench.on_gpu else on_cpu + on_cpu // 9, 60))
        for mode in ("sl", "rl", "rl-adv"):
            options = {"architecture": architecture, "precision": precision}
            run = training_run(mode, images, [f"batch_size={batch_size}"], bench, **options)
            phase, updates = run.training.phases[-1], run.updates
            run.update = run.update_of(phase)
            run.updates = min(20 if bench.on_gpu else 1, updates)
            run._train_epoch(phase, 0, 0)
            run.updates = updates
            name = f"training, {architecture}, {mode}, {precision}, batch {batch_size}"
            yield rate(
                name,
                updates * batch_size,
                lambda run=run, phase=phase: run._train_epoch(phase, 1, 0),
                rounds=rounds,
            )
            if bench.on_gpu:
                shares = (waiting(lambda run=run, phase=phase: run._train_epoch(phase, 1, 0)),)
                yield Absolute(f"{name}: the GPU waits", shares, "%")


def rl_adversarial_update(bench: Bench) -> Iterator[Ratio]:
    count = bench.size(256, 16)
    settings = [f"batch_size={count}", "horizontal_flip=false", "shift=0"]
    run = training_run("rl-adv", random_images(bench.size(TRAINED, 40)), settings, bench, precision="32")
    phase, indices, stream = run.training.phases[1], torch.arange(count), torch.Generator().manual_seed(0)
    update = run.update_of(phase)
    run.model.train()

    def ours() -> None:
        for batch in run.batches.of(indices, count, phase, stream):
            update(batch)

    for _ in range(WARM_UP):
        ours()
    model = network("cnn4", bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, labels = run.images.batch(indices, bench.device)
    yield side_by_side(
        f"RL-adv update, batch {count}",
        "4 forward and 3 backward passes",
        ours,
        lambda: paper.adversarial_update(model, optimizer, images, labels),
        target=0.4,
        rounds=2 * bench.rounds,
    )


def supervised_epoch(bench: Bench) -> Iterator[Ratio]:
    precision = auto_precision(bench.device, 32)
    run = training_run("sl", random_images(bench.size(TRAINED, 300)), [], bench, precision=precision)
    run.update = run.update_of(run.training.phases[0])
    model = network("cnn4", bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dataset = paper.PilImages(run.images.images[run.trained].cpu(), run.images.labels[run.trained].cpu())

    def epoch(loader: DataLoader) -> Callable[[], object]:
        return lambda: paper.supervised_epoch(model, optimizer, loader, str(bench.device))

    def loader(workers: int) -> DataLoader:
        kept = workers > 0
        return DataLoader(dataset, 128, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=kept)

    # Compare with the faster of the two usual settings.
    counts = {workers: epoch(loader(workers)) for workers in (0, 2)}
    pairs = [
        side_by_side(
            f"SL epoch, augmented, {precision}, {len(dataset)} images",
            f"DataLoader, PIL, float32, {workers} workers",
            lambda: run._train_epoch(run.training.phases[0], 0, 0),
            theirs,
            target=0.05 if bench.on_gpu else 0.35,
            rounds=1 if bench.quick else max(2, bench.rounds // 2),
        )
        for workers, theirs in counts.items()
    ]
    yield max(pairs, key=lambda pair: pair.ratio)


def layouts(bench: Bench) -> Iterator[Ratio]:
    """Time forward and backward passes in both memory layouts; checks :func:`takes_channels_last` for the device."""
    target = 1.0 if takes_channels_last(bench.device) else inf
    for architecture, shape in (("cnn4", (32, 3, 32, 32)), ("cnn6", (32, 3, 32, 32)), ("cnn2", (384, 1, 8, 8))):
        model, images = network(architecture, bench.device, *shape[1:3]).eval(), torch.rand(shape, device=bench.device)
        count = bench.size(30 if architecture != "cnn6" or bench.on_gpu else 3, 1)
        last, plain = (partial(there_and_back, model, laid, count) for laid in (channels_last(images), images))
        name = f"channels last, {architecture}, {len(images)} images"
        with strict_float32(), measuring(model):
            yield side_by_side(name, "the plain layout", last, plain, target=target, rounds=bench.rounds)


def there_and_back(model: torch.nn.Module, images: torch.Tensor, count: int) -> None:
    for _ in range(count):
        point = images.detach().requires_grad_()
        torch.autograd.grad(model(point).logsumexp(dim=1).sum(), point)


def kept_memory(bench: Bench) -> Iterator[Ratio]:
    """Time forward and backward passes before and then after :func:`keep_memory`, which the commands call."""
    model, images = network("cnn4", bench.device).eval(), laid_out(torch.rand(bench.size(128, 2), 3, 32, 32))
    count = bench.size(8, 1)
    work = partial(there_and_back, model, images.to(bench.device), count)
    with strict_float32(), measuring(model):
        given_back = [(work(), seconds(work))[1] for _ in range(bench.rounds)]
        keep_memory()
        kept = [(work(), seconds(work))[1] for _ in range(bench.rounds)]
    ratios = tuple(ours / theirs for ours, theirs in zip(kept, given_back, strict=True))
    name = f"freed memory kept, cnn4, {len(images)} images"
    yield Ratio(name, "given back", median(kept), median(given_back), ratios, 1.0)


def memory(bench: Bench) -> Iterator[Ratio]:
    """Compare peak resident memory of `gradscope analyze` on 1,000 and 10,000 images, on the CPU, in new processes."""
    many, few = bench.size(10_000, 100), bench.size(1_000, 10)
    analyze = analysis_on_disk("cnn2", many, bench.folder / "memory")
    peaks = [
        peak_memory(*analyze, "--steps", "3", "--samples", str(samples), "--out", str(bench.folder / f"of-{samples}"))
        for samples in (many, few)
    ]
    ratios = (peaks[0] / peaks[1],)
    yield Ratio(f"analyze {many:,} images, peak memory", f"{few:,} images", *peaks, ratios, 1.2, "MiB")


def analysis_on_disk(architecture: str, count: int, folder: Path) -> list[str]:
    """Train a network for an epoch, write ``count`` random images to ``folder``; return the command to analyse it."""
    folder.mkdir()
    checkpoint, data = str(folder / "model.pt"), folder / "images.npz"
    images = random_images(count)
    arrays = {"X_test": images.images.numpy(), "y_test": images.labels.numpy()}
    np.savez(data, X_train=arrays["X_test"][:200], y_train=arrays["y_test"][:200], **arrays)
    source = ["--dataset", "npz", "--data-root", str(data), "--device", "cpu"]
    peak_memory("train", "--mode", "sl", *source, "--arch", architecture, "--epochs", "1", "--out", checkpoint)
    return ["analyze", checkpoint, *source, "--no-figures"]


def two_at_once(bench: Bench) -> Iterator[Ratio]:
    """Time two commands on the same cores against one alone, with the commands' own waiting policy of threads."""
    analyze = [*analysis_on_disk("cnn4", 300, bench.folder / "at-once"), "--steps", "20", "--overwrite"]
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP_", "OMP_"))}
    quiet = subprocess.DEVNULL

    def run(count: int) -> None:
        samples, out = str(bench.size(96, 2)), bench.folder / "at-once"
        command = [sys.executable, "-m", "gradscope", *analyze, "--samples", samples, "--out"]
        begun = [
            subprocess.Popen([*command, str(out / str(number))], env=settings, stdout=quiet, stderr=quiet)
            for number in range(count)
        ]
        codes = [process.wait() for process in begun]
        assert not any(codes)

    rounds = 1 if bench.quick else min(bench.rounds, 3)
    name, against = "two `analyze` of cnn4 at once", "one alone"
    yield side_by_side(name, against, partial(run, 2), partial(run, 1), target=1.5, rounds=rounds)


def peak_memory(*arguments: str) -> float:
    """Measure the peak resident memory of a command in MiB."""
    # Not getrusage: it inherits the peak of this process, which was larger.
    report = "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    code = f"from gradscope.cli import main\ntry:\n    main({list(arguments)!r})\nfinally:\n    {report}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2]) / 1024


def refusal(bench: Bench) -> Iterator[Absolute]:
    """Time the refusal of a wrong flag, a wrong name and a wrong path."""
    mistakes = {
        "an unknown flag": ("analyze", "c.pt", "--stepz", "3"),
        "an unknown attack": ("attack", "c.pt", "--attacks", "pgdd"),
        "a file that is not there": ("audit", str(bench.folder / "missing.pt")),
    }
    for name, arguments in mistakes.items():

        def refused(arguments: tuple[str, ...] = arguments) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "-m", "gradscope", *arguments], capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert done.returncode == 2, done.stderr
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        values = tuple(refused() for _ in range(bench.rounds))
        yield Absolute(f"{name} is refused, CPU", values, "s", 0.5)


def writing(bench: Bench) -> Iterator[Ratio]:
    """Time how long `analyze` writes the results of many models and of a tenth of them."""
    many, few = bench.size(60, 4), bench.size(6, 2)
    source = digits(8, 1)[1]
    model = build(ModelSpec("cnn2", 10, 1, 8, (0.5,), (0.5,))).eval()
    models = {f"model-{number}": model for number in range(many)}
    spent, add = [0.0], Writer.add

    def timed(writer: Writer, part: Any) -> None:
        began = time.perf_counter()
        add(writer, part)
        spent[0] += time.perf_counter() - began

    def written(count: int) -> float:
        spent[0] = 0.0
        given = dict(list(models.items())[:count])
        gradscope.trace(given, source, attack="pgd", steps=5, progress=False)
        return spent[0]

    Writer.add = timed  # type: ignore[method-assign]
    try:
        times = written(many), written(few)
    finally:
        Writer.add = add  # type: ignore[method-assign]
    yield Ratio(f"writing results of {many} models", f"of {few}", *times, (times[0] / times[1],), 12)


def quickstart(bench: Bench) -> Iterator[Absolute]:
    """Time the study of `make quickstart`, two stages at once."""
    recipe = Path(__file__).parents[2] / "analyses" / "quickstart.toml"
    few = ("--set", "training.epochs=2", "--set", "measure.0.steps=2") if bench.quick else ()

    def run() -> None:
        where = ("--out", str(bench.folder / "results"), "--checkpoints", str(bench.folder / "checkpoints"))
        command = ["study", str(recipe), "--jobs", "2", "--device", bench.device.type, *where, *few]
        subprocess.run([sys.executable, "-m", "gradscope", *command], check=True, capture_output=True)

    yield Absolute("quickstart on digits, --jobs 2", (seconds(run),), "s", 75)


#: The most important come first, because a GPU's time may end before the last.
BENCHMARKS: dict[str, Callable[[Bench], Iterator[Ratio | Absolute]]] = {
    "training-rate": training_rates,
    "pgd-rate": pgd_rates,
    "input-plane-time": input_plane_times,
    "weight-plane-time": weight_plane_times,
    "pgd": tracked_pgd,
    "input-plane": input_plane,
    "weight-plane": weight_plane,
    "rl-adv-update": rl_adversarial_update,
    "sl-epoch": supervised_epoch,
    "layout": layouts,
    "memory": memory,
    "two-at-once": two_at_once,
    "spectrum": spectrum,
    "audit": audit,
    "judge": judge,
    "standard": standard,
    "kept-memory": kept_memory,
    "autoattack": autoattack,
    "refusal": refusal,
    "writing": writing,
    "quickstart": quickstart,
}
#: Skipped unless named: on a CPU those that take up to hours, on a GPU those of the CPU's memory.
LEFT_OUT = {
    "cpu": ("pgd-rate", "weight-plane-time", "standard"),
    "cuda": ("memory", "two-at-once", "kept-memory", "refusal", "writing"),
}


def in_own_process(name: str, bench: Bench) -> list[Ratio | Absolute]:
    """Run a benchmark in a fresh process, because the memory that glibc keeps depends on earlier work."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(results_of, name, bench).result()


def results_of(name: str, bench: Bench) -> list[Ratio | Absolute]:
    warnings.simplefilter("ignore", Caution)
    return list(BENCHMARKS[name](bench))


def write(path: Path, machine: dict[str, object], records: list[dict[str, object]]) -> None:
    """Write the rows so far: JSON with the machine at the top, or CSV with it in every row."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**machine, "results": records}, indent=2) + "\n")
        return
    with path.open("w", newline="") as file:
        rows = [{**record, **machine} for record in records]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: test that everything runs, not how fast")
    parser.add_argument(
        "--until", type=float, default=float("inf"), metavar="SECONDS", help="begin no benchmark after SECONDS"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="results as .csv or .json, written after each benchmark"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type not in LEFT_OUT or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device must be cpu, or cuda where torch sees a GPU, got {arguments.device!r}")
    if arguments.out is not None and arguments.out.suffix not in (".csv", ".json"):
        parser.error(f"--out must end with .csv or .json, got {str(arguments.out)!r}")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    machine = {
        "processor": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "quick": arguments.quick,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()) + f", load {os.getloadavg()[0]:.1f}")
    print("median of the rounds; spread: lowest and highest of a round")
    warnings.simplefilter("ignore", Caution)
    print(HEADER)
    records: list[dict[str, object]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(device, arguments.rounds, arguments.quick, Path(temporary))
        for name in arguments.only or [name for name in BENCHMARKS if name not in LEFT_OUT[device.type]]:
            if time.perf_counter() - began > arguments.until:
                print(f"{name}: left out, {arguments.until:g} seconds are over", flush=True)
                continue
            for result in BENCHMARKS[name](bench) if on_gpu else in_own_process(name, bench):
                print(result.row(), flush=True)
                records.append({"benchmark": name, **result.record()})
                if arguments.out is not None:
                    write(arguments.out, machine, records)
    print(f"{time.perf_counter() - began:.0f} seconds in all")


if __name__ == "__main__":
    # A new process looks functions up by the name of their module.
    from tests.benchmarks.__main__ import main

    main()

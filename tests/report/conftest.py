"""Synthetic results directories: known numbers, no model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradscope.results.rows import METRICS, SAMPLES, STEPS
from gradscope.results.tables import write_json, write_table

FOUR_MODES = (("sl-0", "sl"), ("rl-0", "rl"), ("sl-adv-0", "sl-adv"), ("rl-adv-0", "rl-adv"))
ATTACKS = {
    "pgd": {"norm": "l2", "epsilon": 1.0, "step_size": 0.1, "steps": 20, "box": True, "reduction": "sum"},
    "pgd-paper": {"norm": "l2", "epsilon": 1.0, "step_size": 0.1, "steps": 20, "box": False, "norm_floor": 1e-6},
}
MakeResults = Callable[..., Path]


def identity(checkpoint: str, mode: str, attack: str) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "mode": mode,
        "dataset": "digits",
        "arch": "small-cnn",
        "seed": None if mode == "foreign" else 0,
        "attack": attack,
    }


def step_rows(
    checkpoints: Sequence[tuple[str, str]],
    attacks: Sequence[str],
    metrics: Sequence[str],
    steps: int,
    images: int,
    dead: float,
) -> list[dict[str, Any]]:
    """Curves that look like measured ones; the share ``dead`` of the last checkpoint's gradients dies on the way."""
    random = np.random.default_rng(0)
    rows = []
    for rank, (checkpoint, mode) in enumerate(checkpoints):
        for attack in attacks:
            scale = 10.0 ** -(2 * rank) * (0.7 if attack == "pgd" else 1)
            for metric in metrics:
                for step in range(int(metric in ("cosine", "sign", "zero")), steps + (metric not in NEEDS_NEXT)):
                    base = {
                        "cosine": 0.95 - 0.2 * rank * (1 - np.exp(-step / 5)),
                        "sign": 0.9 - 0.08 * rank,
                        "zero": 0.02 * rank,
                        "norm": 3 * scale * (1 + step / 5),
                        "loss": 6 / (1 + rank) * (1 - np.exp(-(step + 0.1) / 8)),
                        "margin": 10 * (1 + 5 * rank) * (1 - step / 7),
                        "entropy": 1.5 / (1 + rank) * (1 - np.exp(-(step + 0.1) / 4)),
                        "accuracy": 0.97 * np.exp(-step / (4 + 6 * rank)),
                        "dispersion": 0.8 + 0.03 * rank,
                    }[metric] * (0.9 if attack == "pgd-paper" else 1)
                    last = rank == len(checkpoints) - 1 and metric in ("cosine", "sign", "zero")
                    undefined = int(dead * images * step / steps) if last else 0
                    mean = base + abs(base) * random.normal(0, 0.02)
                    half = 0.06 * abs(base)
                    if undefined == images:
                        mean = half = np.nan
                    rows.append(
                        identity(checkpoint, mode, attack)
                        | {
                            "step": step,
                            "metric": metric,
                            "unit": METRICS[metric].unit,
                            "mean": mean,
                            "std": half * np.sqrt(images) / 2,
                            "ci_low": mean - half,
                            "ci_high": mean + half,
                            "n": images - undefined,
                            "undefined": undefined,
                        }
                    )
    return rows


NEEDS_NEXT = ("cosine", "sign", "zero", "norm", "dispersion")


def sample_rows(
    checkpoints: Sequence[tuple[str, str]], attacks: Sequence[str], metrics: Sequence[str], images: int, dead: float
) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    rows = []
    for rank, (checkpoint, mode) in enumerate(checkpoints):
        for attack in attacks:
            for point in ("clean", "final"):
                drop = 12 if point == "final" else 0
                margins = (random.normal(6, 4, images) - drop / (1 + rank)) * 3.0**rank
                norms = np.exp(random.normal(0, 2, images)) * 10.0 ** -(2 * rank)
                norms[random.random(images) < dead * rank] = 0
                entropies = 3 * np.exp(-np.abs(margins))
                entropies[random.random(images) < dead / 10] = np.nan
                values = {"norm": norms, "entropy": entropies, "margin": margins, "accuracy": (margins > 0) * 1.0}
                for metric in metrics:
                    rows += [
                        identity(checkpoint, mode, attack)
                        | {
                            "index": index,
                            "label": index % 10,
                            "metric": metric,
                            "point": point,
                            "unit": METRICS[metric].unit,
                            "value": value,
                        }
                        for index, value in enumerate(values[metric].tolist())
                    ]
    return rows


@pytest.fixture
def make_results(tmp_path: Path) -> MakeResults:
    """Write a results directory and return it."""

    def make(
        checkpoints: Sequence[tuple[str, str]] = FOUR_MODES,
        attacks: Sequence[str] = ("pgd", "pgd-paper"),
        step_metrics: Sequence[str] = ("cosine", "norm", "accuracy"),
        sample_metrics: Sequence[str] = ("norm", "entropy", "margin", "accuracy"),
        steps: int = 20,
        images: int = 50,
        dead: float = 0.2,
        name: str = "results",
    ) -> Path:
        directory = tmp_path / name
        if step_metrics:
            write_table(
                directory / STEPS.file, STEPS, step_rows(checkpoints, attacks, step_metrics, steps, images, dead)
            )
        if sample_metrics:
            write_table(
                directory / SAMPLES.file, SAMPLES, sample_rows(checkpoints, attacks, sample_metrics, images, dead)
            )
        write_json(directory / "manifest.json", {"attacks": {attack: ATTACKS[attack] for attack in attacks}})
        return directory

    return make

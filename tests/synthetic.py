"""Synthetic results directories: known numbers, no model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradscope.results.files import write_json
from gradscope.results.metrics import METRICS
from gradscope.results.schemas import (
    ATTACKS as ATTACK_ROWS,
)
from gradscope.results.schemas import (
    AUDIT,
    AUDIT_JSON,
    CLAIMS,
    LANDSCAPE,
    SAMPLES,
    SIMILARITY,
    STEPS,
    SUMMARY,
    TRANSFER,
)
from gradscope.results.tables import write_table

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


#: Names as a user, or somebody who hands a user a checkpoint, may choose them.
HOSTILE = ("</script><img src=x onerror=alert(1)>", "\"&'<!--{{ 7 * 7 }}")
SHARE = {"ci_low": 0.3, "ci_high": 0.7}


def named(checkpoint: str, attack: str) -> dict[str, Any]:
    return identity(checkpoint, "rl", attack) | {"dataset": HOSTILE[1]}


def manifest(kind: str, names: Sequence[str], **others: Any) -> dict[str, Any]:
    """How it was made, as the commands write it."""
    data = {"name": HOSTILE[1], "split": "test", "images": 40, "of": 359, "fingerprint": "3b59"}
    config = {"phases": [{"epochs": 2}, {"epochs": 3}]}
    entries = [
        {"label": name, "source": "a.pt", "sha256": f"{rank}8319e5414557ab6", "config": config, "data": data}
        | {"seconds": {"pgd": 1.25, "pgd-paper": 0.75}, "trained": {"command": ["gradscope", "train"]}}
        for rank, name in enumerate(names)
    ]
    made = {"gradscope": "0.1.0", "packages": {"torch": "2.13.0"}, "device": "cpu", "command": ["gradscope", kind]}
    settings = {name: ATTACKS[name] for name in ("pgd", "pgd-paper")}
    content = {"kind": kind, "attacks": settings, "complete": True, "checkpoints": entries, "provenance": made}
    return {**content, "seed": 0, **others}


def write_analysis(folder: Path, names: Sequence[str]) -> None:
    rows = step_rows([(name, "rl") for name in names], ("pgd", "pgd-paper"), ("accuracy", "entropy"), 3, 40, 0)
    write_table(folder / STEPS.file, STEPS, [row | named(row["checkpoint"], row["attack"]) for row in rows])
    accuracies = {("clean/all", "pgd"): 0.9, ("worst/all", "pgd"): 0.02, ("clean/all", "pgd-paper"): 0.9}
    accuracies[("worst/all", "pgd-paper")] = 0.4
    summary = [
        named(name, attack)
        | {"metric": "accuracy", "subset": subset, "unit": "-", "value": value, "n": 40}
        | {"ci_low": value - 0.02, "ci_high": value + 0.02}
        for name in names
        for (subset, attack), value in accuracies.items()
    ]
    entropy = named(names[0], "pgd") | {"metric": "entropy", "subset": "clean/all", "unit": "bits", "n": 40, **SHARE}
    write_table(folder / SUMMARY.file, SUMMARY, [*summary, entropy | {"value": 0.5}])
    write_json(folder / "manifest.json", manifest("analysis", names))


def write_landscape(folder: Path, names: Sequence[str]) -> None:
    rows = [
        named(name, "pgd")
        | {"space": "input", "index": 7, "label": 1, "a": a, "b": b, "loss": a * a + b, "margin": 1 - a, "predicted": 1}
        for name in names
        for a in (-1.0, 0.0, 1.0)
        for b in (-1.0, 0.0, 1.0)
    ]
    write_table(folder / LANDSCAPE.file, LANDSCAPE, rows)
    settings = {"seed": 0, "epsilon": 1.0, "axes": [{"name": HOSTILE[0]}], "classes": ["zero", HOSTILE[0]]}
    write_json(folder / "manifest.json", manifest("landscape", names, landscape=settings))


def attack_rows_of(name: str) -> list[dict[str, Any]]:
    ball = named(name, "none") | {"norm": "linf", "epsilon": 0.1}
    all_of = {"subset": "all", "unit": "-", "n": 40, **SHARE}
    costs = {"subset": "attacked", "n": 36, "ci_low": None, "ci_high": None}
    return [
        ball | {"metric": "accuracy", "value": 0.9} | all_of,
        ball | {"attack": "pgd", "metric": "accuracy", "value": 0.55} | all_of | {"subset": "attacked", "n": 36},
        ball | {"attack": "pgd", "metric": "robust-accuracy", "value": 0.5} | all_of,
        ball | {"attack": "pgd", "metric": "forward", "unit": "passes per image", "value": 10.0} | costs,
        ball | {"attack": "pgd", "metric": "backward", "unit": "passes per image", "value": 9.0} | costs,
    ]


def write_audit(folder: Path, names: Sequence[str]) -> None:
    check = {"id": "N3", "name": "loss", "state": "fired", "accuses": True, "value": 0.3, "threshold": 0.005}
    check |= {"p_value": 1e-5, "cause": HOSTILE[0], "next_step": "believe the lower", "images": [3]}
    threat = {"norm": "linf", "epsilon": 0.1, "box": True}
    audits = [
        {"checkpoint": name, "mode": "rl", "dataset": "digits", "arch": "small-cnn", "seed": 0, "threat": threat}
        | {"verdict": "masking found", "causes": ["saturation"], "reason": "N3 fired", "checks": [check]}
        | {"robust_accuracy": {"upper_bound": 0.1, "ci_low": 0.05, "ci_high": 0.2, "n": 40}, "under": {"pgd": 0.4}}
        | {"clean_accuracy": {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95}, "budget": "quick", "left_out": {}}
        for name in names
    ]
    write_json(folder / AUDIT_JSON, {"schema": 1, "audits": audits})
    rows = [
        named(name, "")
        | {"norm": "linf", "epsilon": 0.1, "budget": "quick", "verdict": "masking found", "check": "N3", "images": "3"}
        | {"name": "loss", "state": "fired", "accuses": 1, "value": 0.3, "threshold": 0.005, "p_value": 1e-5}
        | {"ci_low": None, "ci_high": None, "cause": HOSTILE[0], "next_step": "believe the lower"}
        for name in names
    ]
    write_table(folder / AUDIT.file, AUDIT, rows)
    skipped = manifest("audit", names)
    for entry in skipped["checkpoints"]:
        entry["skipped"] = {"fab": "costs more than this budget allows"}
    write_json(folder / "manifest.json", skipped)


def write_attack(folder: Path, names: Sequence[str]) -> None:
    write_table(folder / ATTACK_ROWS.file, ATTACK_ROWS, [row for name in names for row in attack_rows_of(name)])
    write_json(folder / "manifest.json", manifest("attack", names, complete=False))


def write_transfer(folder: Path, names: Sequence[str]) -> None:
    values = {"norm": "l2", "epsilon": 1.0, "accuracy": 0.5, "n": 40, **SHARE}
    sources = ("", *names)
    rows = [{"source": one, **named(name, "pgd" if one else "none"), **values} for one in sources for name in names]
    write_table(folder / TRANSFER.file, TRANSFER, rows)
    pair = {"metric": "gradient-cosine", "unit": "-", "n": 40, "undefined": 0}
    alike = [
        {
            "other": one,
            **named(name, "none"),
            **pair,
            "value": 1.0 if one == name else 0.25,
            "ci_low": 0.2,
            "ci_high": 1.0,
        }
        for one in names
        for name in names
    ]
    bent = {"other": "", "metric": "relative-curvature", "unit": "per unit pixel range", "n": 40, "undefined": 0}
    curved = [named(name, "none") | bent | {"value": 12.5, "ci_low": 9.0, "ci_high": 15.0} for name in names]
    write_table(folder / SIMILARITY.file, SIMILARITY, [*alike, *curved])
    write_json(folder / "manifest.json", manifest("transfer", names))


def write_claims(root: Path) -> None:
    claim = {"claim": "C1", "statement": HOSTILE[0], "dataset": "digits", "arch": "cnn2", "statistic": "RL minus SL"}
    claim |= {"direction": "above 0", "unit": "points", "value": -2.5, "ci_low": -4.0, "ci_high": -1.0, "n": 40}
    claim |= {"seeds_low": -3.0, "seeds_high": -2.0, "p_value": 0.01, "seeds": 3, "paper": "+38.5", "why": "lower"}
    untested = dict.fromkeys(CLAIMS.names) | {"claim": "C2", "statement": "else", "verdict": "not tested", "why": "x"}
    write_table(root / CLAIMS.file, CLAIMS, [claim | {"verdict": "not supported"}, untested])
    write_json(root / "manifest.json", {"name": HOSTILE[0], "complete": True})


PARTS = {
    "analysis": write_analysis,
    "landscape": write_landscape,
    "attack": write_attack,
    "transfer": write_transfer,
    "audit": write_audit,
}


def write_study(root: Path, *parts: str) -> Path:
    """A study of these parts, or of all, whose every name is hostile, without figures."""
    for name in parts or PARTS:
        PARTS[name](root / name, HOSTILE)
    write_claims(root)
    return root


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report, to be left as it is."""
    from gradscope.reporting.page import write_report

    root = write_study(tmp_path_factory.mktemp("reports") / "a & b's <study>")
    write_report(root)
    return root


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Write a study without figures below ``tmp_path``."""
    return lambda *parts: write_study(tmp_path / "study", *parts)

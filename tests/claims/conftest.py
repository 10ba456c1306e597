"""Made directories of results: every value is known, and so is every difference."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradscope.results.schemas import ATTACK_SAMPLES, HISTORY, SAMPLES, SIMILARITY, TRANSFER_SAMPLES
from gradscope.results.tables import write_table

EXACT = {"norm": "l2", "epsilon": 1.0, "step_size": 0.1, "steps": 100, "loss": "cross-entropy", "start": "ball"}
SETTINGS = {
    "pgd": {**EXACT, "box": True, "reduction": "sum", "norm_floor": 0.0, "precision": "float32"},
    "pgd-paper": {**EXACT, "start": "cube", "box": False, "reduction": "mean", "norm_floor": 1e-6},
}
BUDGET = {"steps": 50}
Cells = Mapping[tuple[str, ...], Sequence[float]]


class Directories:
    """Writes directories of results of models ``LABEL: (mode, seed)``; images are numbered 0, 10, 20 and on."""

    def __init__(self, root: Path, models: Mapping[str, tuple[str, int | None]]) -> None:
        self.root, self.models = root, dict(models)
        self.dataset, self.arch = "cifar10", "cnn4"
        self.configs: dict[str, dict[str, Any]] = {}
        self.all: list[Path] = []

    def identity(self, label: str, attack: str) -> dict[str, Any]:
        mode, seed = self.models[label]
        named = {"checkpoint": label, "mode": mode, "dataset": self.dataset, "arch": self.arch}
        return {**named, "seed": seed, "attack": attack}

    def images(self, values: Sequence[float]) -> list[dict[str, Any]]:
        return [{"index": 10 * at, "label": at % 3, "unit": "-", "value": value} for at, value in enumerate(values)]

    def manifest(self, path: Path, **content: Any) -> Path:
        entries = [
            {"label": label, "sha256": f"file of {label}", "config": self.configs.get(label), "trained": None}
            for label in self.models
        ]
        (path / "manifest.json").write_text(json.dumps({"checkpoints": entries, **content}))
        self.all.append(path)
        return path

    def new(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path

    def analysis(self, cells: Cells, name: str = "analysis", settings: Mapping[str, Any] = SETTINGS) -> Path:
        """``cells``: (label, attack, metric, point) to the values of the images."""
        path = self.new(name)
        rows = [
            self.identity(label, attack) | {"metric": metric, "point": point} | image
            for (label, attack, metric, point), values in cells.items()
            for image in self.images(values)
        ]
        write_table(path / SAMPLES.file, SAMPLES, rows)
        return self.manifest(path, kind="analysis", attacks=settings, batch_sizes={"pgd": 32, "pgd-paper": 128})

    def landscape(self, cells: Cells, name: str = "landscape", points: int = 11) -> Path:
        """``cells``: (label, metric) to the values of the images."""
        path = self.new(name)
        rows = [
            self.identity(label, "pgd") | {"metric": metric, "point": "around"} | image
            for (label, metric), values in cells.items()
            for image in self.images(values)
        ]
        write_table(path / SAMPLES.file, SAMPLES, rows)
        grid = {"space": "input", "points": points, "indices": list(range(points))}
        return self.manifest(path, kind="landscape", landscape=grid, attacks={"pgd": SETTINGS["pgd"]})

    def battery(
        self,
        cells: Cells,
        name: str = "attacks",
        kind: str = "attack",
        epsilon: float = 1.0,
        budget: Mapping[str, Any] = BUDGET,
    ) -> Path:
        """``cells``: (label, attack) to 1, 0 or, where an image was not attacked, None; attack "none" is clean."""
        path = self.new(name)
        rows = [
            self.identity(label, attack)
            | {"norm": "l2", "epsilon": epsilon, "metric": "accuracy", "first": 0}
            | {"point": "clean" if attack == "none" else "worst"}
            | image
            for (label, attack), values in cells.items()
            for image in self.images(values)
            if image["value"] is not None
        ]
        write_table(path / ATTACK_SAMPLES.file, ATTACK_SAMPLES, rows)
        attacks = {attack: {"meaning": ""} for _, attack in cells if attack != "none"}
        return self.manifest(path, kind=kind, attacks=attacks, budget=budget, norm="l2")

    def transfer(self, cells: Cells, name: str = "transfer", attack: str = "pgd") -> Path:
        """``cells``: (source, target) to 1 or 0; source "" is clean."""
        path = self.new(name)
        rows = [
            {"source": source, **self.identity(target, attack if source else "none"), "metric": "accuracy"}
            | {"point": "final" if source else "clean"}
            | image
            for (source, target), values in cells.items()
            for image in self.images(values)
        ]
        write_table(path / TRANSFER_SAMPLES.file, TRANSFER_SAMPLES, rows)
        return self.manifest(path, kind="transfer", attacks={attack: SETTINGS[attack]}, batch_size=128)

    def similarity(self, cosines: Mapping[tuple[str, str], float], name: str = "transfer") -> None:
        """Beside a transfer: the cosine of every two models' gradients, written both ways; each with itself 1."""
        both = {**cosines, **{pair[::-1]: value for pair, value in cosines.items()}}
        both |= {(label, label): 1.0 for label in self.models}
        rows = [
            {"other": one, **self.identity(other, "none"), "metric": "gradient-cosine", "unit": "-", "value": value}
            | {"ci_low": value, "ci_high": value, "n": 100, "undefined": 0}
            for (one, other), value in both.items()
        ]
        write_table(self.root / name / SIMILARITY.file, SIMILARITY, rows)

    def history(self, label: str, validation: Sequence[float], seconds: float = 2.0, name: str = "trained") -> Path:
        path = self.root / name
        path.mkdir(exist_ok=True)
        rows = [
            dict.fromkeys(HISTORY.names, 0.0)
            | {"epoch": at, "phase": 0, "validation_accuracy": value, "seconds": seconds}
            for at, value in enumerate(validation, 1)
        ]
        write_table(path / f"{label}.history.csv", HISTORY, rows)
        if path not in self.all:
            self.all.append(path)
        return path


@pytest.fixture
def directories(tmp_path: Path) -> Callable[..., Directories]:
    """Makes :class:`Directories` of models; sl and rl of seed 0 where none are named."""

    def make(**models: tuple[str, int | None]) -> Directories:
        return Directories(tmp_path, models or {"sl": ("sl", 0), "rl": ("rl", 0)})

    return make


@pytest.fixture
def one() -> Callable[..., dict[str, Any]]:
    """The one row of a claim whose statistic holds all the words."""

    def find(rows: Sequence[dict[str, Any]], claim: str, *words: str) -> dict[str, Any]:
        (row,) = [row for row in rows if row["claim"] == claim and all(word in str(row["statistic"]) for word in words)]
        return row

    return find

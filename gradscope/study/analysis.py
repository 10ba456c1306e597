"""An analysis: what is asked for, on which images, and the files that say what came out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.models.subject import Foreign, Reference
from gradscope.probes.trajectory import Trajectory, usual_batch_size
from gradscope.results.manifest import provenance
from gradscope.results.rows import SAMPLES, STEPS, SUMMARY
from gradscope.results.stats import METHODS
from gradscope.results.tables import write_json, write_table

#: What an analysis writes beside its figures.
FILES = (STEPS.file, SAMPLES.file, SUMMARY.file, "manifest.json")


@dataclass(frozen=True)
class Analysis:
    """What ``analyze`` measures: which attacks and metrics, on how many test images.

    ``data`` is what the command says of the data set; the rest is as the checkpoint has it.
    """

    attacks: Mapping[str, PGD]
    metrics: frozenset[str]
    samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    data: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Chosen:
    """The images that are analysed and their indices in the test set."""

    images: ImageSet
    numbers: torch.Tensor
    available: int


class AnalysisFiles:
    """The files of an analysis, rewritten whenever something has been measured."""

    def __init__(self, out: Path, analysis: Analysis, foreign: Foreign, device: torch.device) -> None:
        self.out = out
        self.measured: list[tuple[dict[str, Any], Trajectory]] = []
        self.manifest: dict[str, Any] = {
            "kind": "analysis",
            "attacks": {name: settings.model_dump() for name, settings in analysis.attacks.items()},
            "metrics": sorted(analysis.metrics),
            "batch_sizes": {
                name: analysis.batch_size or usual_batch_size(settings, device)
                for name, settings in analysis.attacks.items()
            },
            "seed": analysis.seed,
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [],
            "provenance": provenance(device_name(device)),
        }

    def begin(self, reference: Reference, chosen: Chosen) -> None:
        """Name the next checkpoint and its images in the manifest."""
        ours = reference.checkpoint
        self.manifest["checkpoints"].append(
            {
                "label": reference.label,
                "source": reference.text,
                "weights": None if reference.weights is None else str(reference.weights),
                "sha256": _digest(reference),
                "config": None if ours is None else _published(ours.config),
                "trained": None if ours is None else ours.provenance,
                "data": {
                    "name": chosen.images.name,
                    "split": "test",
                    "images": len(chosen.images),
                    "of": chosen.available,
                    "fingerprint": chosen.images.fingerprint,
                },
                "seconds": {},
            }
        )

    def add(self, identity: dict[str, Any], measured: Trajectory, seconds: float) -> None:
        """Add one attack's results on the checkpoint that was begun, and write everything."""
        self.measured.append((identity, measured))
        self.manifest["checkpoints"][-1]["seconds"][identity["attack"]] = seconds
        results = self.measured
        if len(results) == 1:
            self._remove_figures()
        write_table(self.out / STEPS.file, STEPS, chain.from_iterable(one.step_rows(who) for who, one in results))
        write_table(self.out / SAMPLES.file, SAMPLES, chain.from_iterable(one.sample_rows(who) for who, one in results))
        write_table(
            self.out / SUMMARY.file, SUMMARY, chain.from_iterable(one.summary_rows(who) for who, one in results)
        )
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Say in the manifest that everything asked for has been measured."""
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

    def _remove_figures(self) -> None:
        """Remove the figures of results that are about to be replaced: they show other numbers."""
        for path in (self.out / "figures").glob("*-*.p[dn][fg]"):
            path.unlink()


def _digest(reference: Reference) -> str | None:
    """SHA-256 of the file the weights came from; None where a factory brought its own."""
    file = Path(reference.text) if reference.checkpoint is not None else reference.weights
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration without where its images lay: the fingerprint says which they were."""
    return config | {"data": {key: value for key, value in config["data"].items() if key != "data_root"}}


def device_name(device: torch.device) -> str:
    """The device's product name where it has one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

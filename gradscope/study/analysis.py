"""An analysis: what is asked for, on which images, and the files that say what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gradscope.config import PGD
from gradscope.models.subject import Foreign, Reference
from gradscope.probes.trajectory import Trajectory, usual_batch_size
from gradscope.results.rows import SAMPLES, STEPS, SUMMARY
from gradscope.results.stats import METHODS
from gradscope.results.tables import write_json, write_table
from gradscope.sharing import Team
from gradscope.study.directory import clear
from gradscope.study.examined import sources
from gradscope.study.inputs import Chosen, Request, arithmetic, describe, made_by
from gradscope.study.tiles import Tiles


@dataclass(frozen=True, kw_only=True)
class Analysis(Request):
    """What ``analyze`` measures: which attacks and metrics, on how many test images."""

    attacks: Mapping[str, PGD]
    metrics: frozenset[str]
    samples: int | None = None
    batch_size: int | None = None
    resume: bool = False


class AnalysisFiles:
    """The files of an analysis, rewritten whenever something has been measured, and how far what is measured is."""

    def __init__(
        self, out: Path, analysis: Analysis, foreign: Foreign, team: Team, checked: Sequence[tuple[Reference, Chosen]]
    ) -> None:
        self.out = out
        self.entries = [describe(reference, chosen) for reference, chosen in checked]
        self.measured: list[tuple[dict[str, Any], Trajectory]] = []
        self.manifest: dict[str, Any] = {
            "kind": "analysis",
            "attacks": {name: settings.model_dump() for name, settings in analysis.attacks.items()},
            "metrics": sorted(analysis.metrics),
            "batch_sizes": {
                name: analysis.batch_size or usual_batch_size(settings, team.device)
                for name, settings in analysis.attacks.items()
            },
            "seed": analysis.seed,
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [],
            "provenance": made_by(team),
        }
        depends = {
            "attack": self.manifest["attacks"],
            "metrics": self.manifest["metrics"],
            "batch_size": self.manifest["batch_sizes"],
            "seed": analysis.seed,
            "checkpoint": sources(self.entries),
            "image": [chosen.images.fingerprint for _, chosen in checked],
            "normalisation": self.manifest["foreign"],
            **arithmetic(team),
        }
        self.tiles = Tiles(out, depends, team, resume=analysis.resume)

    def begin(self) -> None:
        """Name the next checkpoint and its images in the manifest."""
        self.manifest["checkpoints"].append(self.entries[len(self.manifest["checkpoints"])])

    def add(self, identity: dict[str, Any], measured: Trajectory, seconds: float) -> None:
        """Add one attack's results on the checkpoint that was begun, and write everything."""
        self.measured.append((identity, measured))
        self.manifest["checkpoints"][-1]["seconds"][identity["attack"]] = seconds
        results = self.measured
        if len(results) == 1:
            clear(self.out)
        write_table(self.out / STEPS.file, STEPS, chain.from_iterable(one.step_rows(who) for who, one in results))
        write_table(self.out / SAMPLES.file, SAMPLES, chain.from_iterable(one.sample_rows(who) for who, one in results))
        write_table(
            self.out / SUMMARY.file, SUMMARY, chain.from_iterable(one.summary_rows(who) for who, one in results)
        )
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Say in the manifest that everything asked for has been measured. The pieces stay until it is drawn."""
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

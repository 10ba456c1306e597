"""What the landscape stages of input and weight space share: what they are told, and the files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gradscope.config import PGD
from gradscope.models.subject import Foreign
from gradscope.results.landscape import bands
from gradscope.results.rows import BANDS, LANDSCAPE, LANDSCAPE_METRICS, METRICS, PATH, SAMPLES, SUMMARY
from gradscope.results.stats import METHODS, UNDEFINED, Interval
from gradscope.results.tables import read_table, write_json, write_table
from gradscope.sharing import Team
from gradscope.study.directory import clear
from gradscope.study.inputs import Chosen, Request, Viewed, arithmetic, describe, made_by
from gradscope.study.tiles import Tiles

Row = dict[str, Any]
#: Rows of each table by its file, made anew whenever they are written: as rows they would not fit in memory.
Rows = Mapping[str, Callable[[], Iterable[Row]]]


@dataclass(frozen=True, kw_only=True)
class Landscape(Request):
    """What every landscape is told: ``points`` a side, ``images`` how many, and whether to go on where one stopped."""

    points: int
    images: int | None = None
    resume: bool = False


def summary_row(identity: Row, metric: str, subset: str, value: float, interval: Interval | None, count: int) -> Row:
    """A row of SUMMARY; ``interval`` None is undefined, and what is given is cut where the metric's range ends."""
    known = LANDSCAPE_METRICS.get(metric) or METRICS[metric]
    low, high = UNDEFINED if interval is None else interval.within(known.low, known.high)
    columns = {"metric": metric, "subset": subset, "unit": known.unit, "value": value}
    return identity | columns | {"ci_low": low, "ci_high": high, "n": count}


class LandscapeFiles:
    """The files of a landscape, rewritten whenever a checkpoint has been measured, and its unfinished pieces."""

    def __init__(
        self,
        out: Path,
        request: Landscape,
        foreign: Foreign,
        team: Team,
        viewed: Sequence[Viewed],
        chosen: Chosen,
        landscape: Mapping[str, Any],
        attacks: Mapping[str, PGD],
        others: Mapping[str, Any] | None = None,
    ) -> None:
        """``landscape`` describes the planes; ``others`` is what else the values depend on, by name."""
        self.out = out
        self.measured: list[Rows] = []
        self.manifest: Row = {
            "kind": "landscape",
            "landscape": {"seed": request.seed, "points": request.points, **landscape},
            "attacks": {name: settings.model_dump() for name, settings in attacks.items()},
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [describe(one.reference, chosen) for one in viewed],
            "provenance": made_by(team),
        }
        depends = {
            **self.manifest["landscape"],
            "attack": self.manifest["attacks"],
            "checkpoint": [entry["sha256"] or entry["source"] for entry in self.manifest["checkpoints"]],
            "image": chosen.images.fingerprint,
            "normalisation": self.manifest["foreign"],
            **arithmetic(team),
            **(others or {}),
        }
        self.tiles = Tiles(out, depends, team, resume=request.resume)

    def add(self, rows: Rows, seconds: float, facts: Mapping[str, Any]) -> None:
        """Add the rows of the next checkpoint, and ``facts`` on it for the manifest, and write everything."""
        if not self.measured:
            clear(self.out)
        self.manifest["checkpoints"][len(self.measured)] |= {"seconds": seconds, **facts}
        self.measured.append(rows)
        for table in (LANDSCAPE, PATH, SAMPLES, SUMMARY):
            makers = [of_one[table.file] for of_one in self.measured if table.file in of_one]
            if makers:
                write_table(self.out / table.file, table, chain.from_iterable(make() for make in makers))
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Write the quantiles over images and say that all is measured. The pieces stay until it is drawn."""
        if self.manifest["landscape"]["space"] == "input":
            quantiles = bands(read_table(self.out / LANDSCAPE.file, LANDSCAPE))
            rows = quantiles.itertuples(index=False, name=None)
            write_table(self.out / BANDS.file, BANDS, (dict(zip(BANDS.names, row, strict=True)) for row in rows))
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

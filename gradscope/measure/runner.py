"""The one way a measurement runs: models and images are read, the work is shared and kept, files are written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from gradscope.auditing.first_look import BATCH, first_look
from gradscope.distributed.processes import Hardware, device_name
from gradscope.distributed.ranks import on_every_rank
from gradscope.distributed.units import Each, Team, Work
from gradscope.figures import background
from gradscope.measure.directory import results_directory
from gradscope.measure.inputs import Entry, Given, Inputs, describe
from gradscope.measure.options import Request
from gradscope.measure.options.common import Options
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.writer import Part, Writer, dependencies
from gradscope.models.inspection import FLOAT32, device_of
from gradscope.progress import Advance
from gradscope.results.cautions import cautions
from gradscope.results.manifest import Manifest
from gradscope.results.provenance import provenance
from gradscope.results.stats import METHODS

OptionsT = TypeVar("OptionsT", bound=Options)
Row = dict[str, Any]


class Measurement(ABC, Generic[OptionsT]):
    """One run of a measuring command on one rank of a team. Making it reads and checks every model and image."""

    def __init__(self, options: OptionsT, inputs: Inputs, team: Team, out: Path) -> None:
        self.options, self.inputs, self.team, self.out = options, inputs, team, out
        self.device: torch.device = team.device
        self.entries: Sequence[Entry] = self.read()
        for entry in self.entries:
            options.require_pixel_units(entry.chosen.images.images.shape[1:])

    @abstractmethod
    def read(self) -> Sequence[Entry]:
        """Every model with its images, each loaded once to see that they fit, before the first is measured."""

    @property
    def batch_size(self) -> int | None:
        """Images worked on at once; None: what is usual for the work."""
        return getattr(self.options, "batch_size", None)

    def work(self, each: Each, advance: Advance) -> Work:
        """How images are worked through: with the seed, the device and the batch size of the measurement."""
        return Work(self.options.seed, self.device, self.batch_size, each, advance)

    def accept(self, entry: Entry, look: Row) -> None:
        """Raise :class:`GradscopeError` where the first look at a model shows that nothing can be found on its images.

        Before any model is measured.
        """

    @abstractmethod
    def described(self) -> Row:
        """What the manifest says of the measurement beside what it says of all."""

    def depends(self) -> Row:
        """What the numbers depend on beside what the manifest says."""
        return {}

    @abstractmethod
    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Measure; yield each part when it is there. Every rank of the team goes through all of them."""

    def conclude(self) -> None:
        """Write what is made from all tables together."""


def _say_nothing(caution: str) -> None:
    """Leave cautions to those who read the manifest."""


def run(request: Request, out: Path, given: Given | None = None, *, warn: Callable[[str], None] = _say_nothing) -> Path:
    """Measure what ``request`` asks for; write tables, manifest and figures to ``out``.

    Every model is loaded and checked before the first is measured, and the tables grow as the work goes on. Finished
    pieces of it are kept until all is done, so that an interrupted run can be resumed, to the same files but for the
    seconds. ``given`` are models and images in memory, measured where the first model is. ``warn`` is told what to know
    of the models before their numbers are read, which the manifest records, too.
    """
    request.check()
    if given is None:
        on_every_rank(Hardware(request.where.device, request.where.devices), partial(_run, request, out, None, warn))
    else:
        Team(device_of(next(iter(given.models.values())).model)).run(partial(_run, request, out, given, warn))
    return out


def _run(request: Request, out: Path, given: Given | None, warn: Callable[[str], None], team: Team) -> None:
    options, where = request.options, request.where
    module, _, name = options.measurement.partition(":")
    kind: type[Measurement[Any]] = getattr(import_module(module), name)
    directory: AbstractContextManager[None] = nullcontext()
    if team.is_first:
        directory = results_directory(out, options.kind, resume=where.resume, overwrite=where.overwrite)
    inputs = Inputs(request, team.device, given)
    with directory, inputs.watched():
        measurement = kind(options, inputs, team, out)
        manifest = _manifest(request, measurement, inputs, team)
        if team.is_first:
            for entry, described in zip(measurement.entries, manifest["checkpoints"], strict=True):
                described["first_look"] = _look(entry, inputs, options)
            for caution in (*cautions(Manifest.model_validate(manifest)), *_too_many_targets(measurement)):
                warn(caution)
            for entry, described in zip(measurement.entries, manifest["checkpoints"], strict=True):
                measurement.accept(entry, described["first_look"])
        more = {
            "checkpoint": _sources(manifest["checkpoints"]),
            "surrogate": _sources(manifest.get("surrogates", ())),
            "image": [entry.chosen.images.fingerprint for entry in measurement.entries],
            "device": team.device.type,
            "float32": FLOAT32,
            "torch": torch.__version__,
            **measurement.depends(),
        }
        kept = PartialResults(out, dependencies(manifest, more), team, resume=where.resume)
        writer = Writer(out, manifest)
        for part in measurement.parts(kept):
            if team.is_first:
                writer.add(part)
        if team.is_first:
            measurement.conclude()
            writer.complete()
            if not where.no_figures:
                background.draw(out)
            kept.remove()


def _manifest(request: Request, measurement: Measurement[Any], inputs: Inputs, team: Team) -> Row:
    foreign = {"mean": inputs.foreign.mean, "std": inputs.foreign.std}
    made_by = provenance(device_name(team.device)) | {"processes": team.size, "float32": FLOAT32}
    return {
        "kind": request.options.kind,
        **measurement.described(),
        "seed": request.options.seed,
        "options": request.options.content(),
        "intervals": METHODS,
        "foreign": foreign,
        "complete": False,
        "checkpoints": [describe(entry) for entry in measurement.entries],
        "provenance": made_by,
    }


def _look(entry: Entry, inputs: Inputs, options: Options) -> Row:
    chosen, size = entry.chosen, min(BATCH, getattr(options, "batch_size", None) or BATCH)
    model = inputs.attacked(entry.reference, chosen.images).model
    return first_look(model, chosen.images, chosen.numbers, options.seed, inputs.device, size)


def _too_many_targets(measurement: Measurement[Any]) -> Iterator[str]:
    """A sentence for each data set that has fewer wrong classes than attacks were told to aim at."""
    for name, classes in {(one.chosen.images.name, len(one.chosen.images.classes)) for one in measurement.entries}:
        targets = getattr(measurement.options, "targets", None) or 0
        if targets >= classes:
            yield f"targets is {targets}, and {name} has {classes - 1} wrong classes: attacks aim at these"


def _sources(entries: Sequence[Row]) -> list[str]:
    """What the models of a manifest are known by: the file's SHA-256, or the foreign model's name."""
    return [entry["sha256"] or entry["source"] for entry in entries]

"""Run a measurement: load models and images, share and save the work, and write the files."""

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
    """One run of a measuring command on one rank of a team. The constructor loads and checks every model and image."""

    def __init__(self, options: OptionsT, inputs: Inputs, team: Team, out: Path) -> None:
        self.options, self.inputs, self.team, self.out = options, inputs, team, out
        self.device: torch.device = team.device
        self.entries: Sequence[Entry] = self.read()
        for entry in self.entries:
            options.require_pixel_units(entry.chosen.images.images.shape[1:])

    @abstractmethod
    def read(self) -> Sequence[Entry]:
        """Load every model with its images, to check that they fit before the first is measured."""

    @property
    def batch_size(self) -> int | None:
        """The number of images processed at once; None: the default of the work."""
        return getattr(self.options, "batch_size", None)

    def work(self, each: Each, advance: Advance) -> Work:
        """Make the :class:`Work` with the seed, device and batch size of the measurement."""
        return Work(self.options.seed, self.device, self.batch_size, each, advance)

    def accept(self, entry: Entry, look: Row) -> None:
        """Raise :class:`GradscopeError` if the first look at a model shows that its images cannot give a result.

        Called before any model is measured.
        """

    @abstractmethod
    def described(self) -> Row:
        """Describe the measurement for the manifest, beside the entries common to all measurements."""

    def depends(self) -> Row:
        """Return everything beside the manifest that the values depend on."""
        return {}

    @abstractmethod
    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Measure; yield each part when it is ready. Every rank of the team iterates over all of them."""

    def conclude(self) -> None:
        """Write the files that are computed from all tables together."""


def _say_nothing(caution: str) -> None:
    """Ignore cautions, which the manifest holds, too."""


def run(request: Request, out: Path, given: Given | None = None, *, warn: Callable[[str], None] = _say_nothing) -> Path:
    """Run the measurement of ``request``; write tables, manifest and figures to ``out``.

    Every model is loaded and checked before the first is measured, and the tables grow during the run. Finished pieces
    are kept until the end, so that an interrupted run can resume and gives the same files except for the seconds.
    ``given`` holds models and images in memory, which are measured on the first model's device. ``warn`` is called with
    each caution about the models, which the manifest records, too.
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
    origin = provenance(device_name(team.device)) | {"processes": team.size, "float32": FLOAT32}
    return {
        "kind": request.options.kind,
        **measurement.described(),
        "seed": request.options.seed,
        "options": request.options.content(),
        "intervals": METHODS,
        "foreign": foreign,
        "complete": False,
        "checkpoints": [describe(entry) for entry in measurement.entries],
        "provenance": origin,
    }


def _look(entry: Entry, inputs: Inputs, options: Options) -> Row:
    chosen, size = entry.chosen, min(BATCH, getattr(options, "batch_size", None) or BATCH)
    model = inputs.attacked(entry.reference, chosen.images).model
    return first_look(model, chosen.images, chosen.numbers, options.seed, inputs.device, size)


def _too_many_targets(measurement: Measurement[Any]) -> Iterator[str]:
    """Yield a sentence for each data set that has fewer wrong classes than ``targets``."""
    for name, classes in {(one.chosen.images.name, len(one.chosen.images.classes)) for one in measurement.entries}:
        targets = getattr(measurement.options, "targets", None) or 0
        if targets >= classes:
            yield f"targets is {targets}, but {name} has only {classes - 1} wrong classes: attacks aim at these"


def _sources(entries: Sequence[Row]) -> list[str]:
    """Identify the models of a manifest: by the file's SHA-256, or the foreign model's name."""
    return [entry["sha256"] or entry["source"] for entry in entries]

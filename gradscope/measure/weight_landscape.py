"""Measure landscapes of weight space: planes and lines around a network's weights."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscope.config import Grid
from gradscope.distributed.units import Unit, Values, halving
from gradscope.errors import GradscopeError
from gradscope.measure.epochs import AlongEpochs, SavedEpoch
from gradscope.measure.inputs import Chosen, Entry
from gradscope.measure.landscape import summary_row
from gradscope.measure.options import LandscapeOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.ways import Curve, barriers, direction_to, train_curves
from gradscope.measure.writer import Part, Rows
from gradscope.models import checkpoint as checkpoints
from gradscope.models.alignment import aligned_state
from gradscope.models.factories import call_factory
from gradscope.models.inspection import copied, is_scripted, measuring, one_line
from gradscope.models.loading import LoadedModel
from gradscope.probes.comparison import MOST_PRODUCTS, TOLERANCE
from gradscope.probes.connection import IMAGES, LEARNING_RATE
from gradscope.probes.curvature import Eigenvalue, weight_curvature, weight_curvature_along
from gradscope.probes.input_landscape import coordinates, roughness
from gradscope.probes.weight_landscape import (
    Custom,
    Direction,
    Measures,
    aligned_axis,
    direction_towards,
    evaluate_curve,
    evaluate_plane,
    filter_normalised_direction,
    line_axis,
    orthogonal_to,
    principal_directions,
    reestimate_batch_norm,
    sharpness,
)
from gradscope.progress import Advance, progress_bar
from gradscope.results.schemas import EPOCHS, LANDSCAPE, PATH, SUMMARY
from gradscope.results.stats import Interval, jackknife_interval, wilson_interval
from gradscope.seeding import generator

#: Points per piece; a piece holds whole rows.
_TILE_POINTS = 32
#: Images per batch of second derivatives, whose graph must fit in memory.
_CURVATURE_BATCH = 64
#: Training images on which batch norm's statistics are estimated again, and their approximate number per batch.
NORM_IMAGES, _NORM_BATCH = 1024, 256


@dataclass(frozen=True)
class Plane:
    """A plane or line through a model: directions, the coordinates along them, and the path of its training."""

    first: Direction
    second: Direction | None
    axes: tuple[Tensor, Tensor]
    path: Sequence[tuple[int, float, float, float]] = ()
    saved: Sequence[SavedEpoch] = ()
    explained: tuple[float, float] | None = None
    way: str = ""


#: The points at which a model is measured.
View = Plane | Curve


class WeightLandscapeMeasurement(Measurement[LandscapeOptions]):
    """``gradscope landscape --space weights``: loss and accuracy at every point of every model's plane."""

    def read(self) -> Sequence[Entry]:
        """Load all models on the same images, with the plane of each."""
        options, inputs = self.options, self.inputs
        if options.metric is not None and not inputs.foreign.trust_code:
            raise GradscopeError(f"metric: {options.metric} runs code; pass `trust_code` if you trust it")
        references = inputs.references(() if options.towards is None else (options.towards,))
        if options.towards is not None and len(references) == len(inputs.request.models):
            raise GradscopeError(f"model must name each model once, got {options.towards!r} again")
        splits = inputs.one_data_set(references, "landscape")
        self.subjects = [inputs.load(reference, splits.test) for reference in references]
        self.other = self.subjects.pop() if options.towards is not None else None
        self.planes = [_planes(subject, self.other, options) for subject in self.subjects]
        if options.batch_norm == "re-estimated" and any(is_scripted(subject.model) for subject in self.subjects):
            raise GradscopeError(
                "batch_norm must be as-is for a TorchScript model, whose statistics cannot be estimated again"
            )
        self.images = inputs.choose(splits.test, options.images, "images")
        custom = None
        if options.metric is not None:
            custom = _custom(options.metric, self.images, self.subjects, self.device)
        self.train = splits.train if options.curve is not None or options.batch_norm == "re-estimated" else None
        self.measures = Measures(
            *(self.images.images, self.images.numbers, self.device),
            attack=options.settings,
            seed=options.seed,
            reestimate=self._norm_batches() if options.batch_norm == "re-estimated" else [],
            custom=custom,
        )
        return [Entry(reference, self.images) for reference in references[: len(self.subjects)]]

    def _norm_batches(self) -> list[Tensor]:
        """Load training images for batch norm in batches of equal size, which count equally in the mean statistics."""
        train = self.train
        assert train is not None
        drawn = torch.randperm(len(train), generator=generator(self.options.seed, "batch norm"))[:NORM_IMAGES]
        size = len(drawn) // max(1, round(len(drawn) / _NORM_BATCH))
        if size < 2:
            raise GradscopeError(
                f"batch_norm must be 'as-is' with fewer than 2 training images, {train.name} has {len(train)}"
            )
        return [train.batch(part, self.device)[0] for part in drawn.split(size) if len(part) == size]

    def described(self) -> Row:
        """Describe points, axes and images for the manifest."""
        options, other = self.options, self.other
        filters = "multiples of the filters' norms"
        axes = [(f"random direction {number}, filter-normalised", filters) for number in (1, 2)]
        if other is not None:
            units = ", its units aligned" if options.ways == ("aligned",) else ""
            axes[0] = (f"towards {other.label}{units}", "share of the way")
            axes[1] = ("random direction, filter-normalised, orthogonal", filters)
        if options.epochs is not None:
            axes = [(f"principal direction {number} of the epochs", "L2 distance of the weights") for number in (1, 2)]
        whose = "training" if self.inputs.given is None else "given"
        reestimated = f"re-estimated on {NORM_IMAGES} {whose} images or all"
        landscape = {
            "seed": options.seed,
            "points": options.points,
            "space": "weights",
            "span": options.grid.span,
            "axes": [{"name": name, "unit": unit} for name, unit in axes[: 1 if options.line else 2]],
            "line": options.line,
            "towards": None if other is None else other.label,
            "orthogonalised": options.directions != "random",
            "images": len(self.images.images),
            "batch_norm": "as-is" if options.batch_norm == "as-is" else reestimated,
            "adversarial": None if options.settings is None else options.settings.model_dump(),
            "custom": options.metric,
        }
        if other is not None and options.line:
            landscape["ways"] = list(options.ways)
        if options.curve is not None:
            training = {"updates": options.curve_updates, "images": IMAGES, "learning_rate": LEARNING_RATE}
            landscape["curve"] = {"kind": options.curve, **training, "trained_on": f"{whose} images"}
        settings = options.at_epochs or options.settings
        attacks = {} if settings is None else {options.attack: settings.model_dump()}
        return {"landscape": landscape, "attacks": attacks}

    def depends(self) -> Row:
        """Represent the directions by numbers that change if a direction changes."""
        planes = [plane for planes in self.planes for plane in planes]
        directions = [
            part for plane in planes for along in (plane.first, plane.second or {}) for part in along.values()
        ]
        curve = {} if self.options.curve is None or self.train is None else {"curve images": self.train.fingerprint}
        return {"direction": [float(part.double().sum()) for part in directions], **curve}

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model."""
        started = time.perf_counter()
        views = self._views(kept)
        training = (time.perf_counter() - started) / len(views)
        with progress_bar("landscape", sum(map(_points, views)), "points", visible=self.team.is_first) as advance:
            for position, (subject, of_model) in enumerate(zip(self.subjects, views, strict=True)):
                started = time.perf_counter()
                result = self._measure(position, subject, of_model, kept, advance)
                rows = {**result.rows(), **self._along_epochs(subject, result.plane, kept)}
                seconds = training + time.perf_counter() - started
                yield Part(position, rows, {"seconds": seconds, **result.facts()})

    def _views(self, kept: PartialResults) -> list[Sequence[View]]:
        """Return the views of each model; train its curve to the other checkpoint first."""
        options = self.options
        if options.curve is None or self.other is None or self.train is None:
            return [*self.planes]
        curves = train_curves(self.subjects, self.other, self.train, options, kept)
        return [
            [*planes, Curve(controls, _between(planes[0].axes), options.curve)]
            for planes, controls in zip(self.planes, curves, strict=True)
        ]

    def _along_epochs(self, subject: LoadedModel, plane: Plane, kept: PartialResults) -> Rows:
        """Measure each saved epoch, if there are some."""
        attack = self.options.at_epochs
        if attack is None:
            return {}
        along = AlongEpochs(subject.model, plane.saved, self.images, attack, self.options.seed, self.device)
        units, measured = along.units(), []
        with progress_bar("epochs", len(units), visible=self.team.is_first) as advance:
            for values in kept.each(units):
                measured.append(values)
                advance(1, subject.label)
        identity = subject.identity(self.images.images.name, "none")
        return {EPOCHS: partial(along.rows, identity, self.options.attack, measured)}

    def _measure(
        self, position: int, subject: LoadedModel, views: Sequence[View], kept: PartialResults, advance: Advance
    ) -> "_Result":
        """Measure a model on all its views."""
        label, model = subject.label, subject.model
        units: list[Unit] = []
        owners, done = [], [0]
        shown = [0]

        def advanced(done: int, note: str) -> None:
            shown[0] += done
            advance(done, label)

        for number, view in enumerate(views):
            height = max(1, _TILE_POINTS // len(view.axes[1]))
            for start, along in enumerate(view.axes[0].split(height)):
                name = f"{view.way if number else 'rows'}-{position}-{start * height}"
                units.append((name, partial(self._evaluate, model, view, along, advanced)))
                owners.append(number)
                done.append(done[-1] + len(along) * len(view.axes[1]))
        # One rank computes it for all images, because sums over parts round differently.
        units.append((f"compared-{position}", lambda: self._compared(model, advance, label)))
        tiles = []
        for tile, reached in zip(kept.each(units), [*done[1:], done[-1]], strict=True):
            tiles.append(tile)
            advanced(max(0, reached - shown[0]), "")
        *tiles, compared = tiles
        failures = [bytes(tile.pop("failure").tolist()).decode() for tile in tiles if "failure" in tile]
        of_views = []
        for number in range(len(views)):
            own = [tile for tile, owner in zip(tiles, owners, strict=True) if owner == number]
            of_views.append({name: torch.cat([tile[name] for tile in own]) for name in own[0]})
        identity = subject.identity(self.images.images.name, self.options.attacked_with)
        normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        keeps = normed and self.other is not None and self.options.batch_norm == "as-is"
        return _Result(identity, views, of_views, compared, self.measures, failures, keeps)

    def _evaluate(self, model: nn.Module, view: View, along: Tensor, advanced: Advance) -> Values:
        """Measure some rows of a view; if the custom metric fails, ``failure`` holds the first reason."""
        custom = self.measures.custom
        before = len(custom.failures) if custom else 0
        if isinstance(view, Curve):
            measured = evaluate_curve(model, view.controls, along, self.measures, advanced=advanced)
        else:
            axes = along, view.axes[1]
            measured = evaluate_plane(model, view.first, view.second, axes, self.measures, advanced=advanced)
        values = {name: torch.from_numpy(value) for name, value in measured.items()}
        for failure in custom.failures[before : before + 1] if custom else ():
            values["failure"] = torch.tensor(list(failure.encode()), dtype=torch.uint8)
        return values

    def _compared(self, model: nn.Module, advance: Advance, label: str) -> Values:
        """Compute the sums at the weights themselves, and the curvature: of all images and of each group."""
        advance(0, f"{label}: curvature")
        zero = torch.zeros(1, dtype=torch.float64)
        no_direction = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
        centre = evaluate_plane(model, no_direction, None, (zero, zero), self.measures)
        if self.measures.reestimate:
            model = copied(model)
            with measuring(model), torch.no_grad():
                reestimate_batch_norm(model, self.measures.reestimate)
        eigenvalue, sums = halving(partial(self._curvature, model), _CURVATURE_BATCH)
        return {
            **{f"centre-{name}": torch.from_numpy(values)[0, 0] for name, values in centre.items() if name != "custom"},
            "curvature": eigenvalue.value,
            "curvature-residual": eigenvalue.residual,
            "curvature-sums": sums,
        }

    def _curvature(self, model: nn.Module, size: int) -> tuple[Eigenvalue, Tensor]:
        """Compute the largest eigenvalue, and each group's sum of its images' parts; ``size`` images per batch."""
        groups = self.measures.groups
        parts = [torch.arange(group, self.measures.count, groups).split(size) for group in range(groups)]
        batches = [self.images.images.batch(indices, self.device) for group in parts for indices in group]
        largest = weight_curvature(model, batches, seed=self.options.seed, tolerance=TOLERANCE, most=MOST_PRODUCTS // 2)
        along = weight_curvature_along(model, batches, largest.vector[0]).double().cpu()
        sizes = torch.tensor([len(labels) for _, labels in batches], dtype=torch.float64)
        owner = torch.tensor([group for group, indices in enumerate(parts) for _ in indices])
        return largest, torch.zeros(groups, dtype=torch.float64).index_add_(0, owner, sizes * along)


def _points(views: Sequence[View]) -> int:
    return sum(len(view.axes[0]) * len(view.axes[1]) for view in views)


def _between(axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Drop the points beyond the ends of a line from its ``axes``."""
    axis, zero = axes
    return axis[(axis >= 0) & (axis <= 1)], zero


def _planes(subject: LoadedModel, other: LoadedModel | None, options: LandscapeOptions) -> list[Plane]:
    """Make the requested directions and axes; raises :class:`GradscopeError` if they do not span a plane."""
    model, seed, grid = subject.model, options.seed, options.grid
    zero = torch.zeros(1, dtype=torch.float64)
    if options.epochs is not None:
        return [_principal_plane(model, Path(options.epochs), grid)]
    if other is not None:
        return [_plane_towards(subject, other, options, way) for way in options.ways if way != options.curve]
    first = filter_normalised_direction(model, seed=seed, name="first direction")
    if options.line:
        return [Plane(first, None, (coordinates(grid), zero))]
    second = filter_normalised_direction(model, seed=seed, name="second direction")
    return [Plane(first, second, (coordinates(grid), coordinates(grid)))]


def _plane_towards(subject: LoadedModel, other: LoadedModel, options: LandscapeOptions, way: str) -> Plane:
    """Make the line or plane from a model to ``other``; for ``way`` "aligned", ``other`` with its units permuted."""
    model, grid = subject.model, options.grid
    first, aligned = direction_to(subject, other), way == "aligned"
    if aligned:
        first = direction_towards(model, aligned_state(model, other.model, seed=options.seed))
    if not any(part.any() for part in first.values()) and not (aligned and options.line):
        order = " in any order of its units" if aligned else ""
        raise GradscopeError(f"towards must have other weights than {subject.label}{order}, got {other.label}")
    axes = line_axis(grid.span, grid.points), torch.zeros(1, dtype=torch.float64)
    if options.line:
        return Plane(first, None, _between(axes) if aligned else axes, way=way)
    second = filter_normalised_direction(model, seed=options.seed, name="second direction")
    across = coordinates(Grid(points=grid.points, span=0.5 + grid.span))
    return Plane(first, orthogonal_to(second, first), (axes[0], across), way=way)


def _principal_plane(model: nn.Module, folder: Path, grid: Grid) -> Plane:
    files = sorted(folder.glob("[!.]*.pt"))
    if not files:
        raise GradscopeError(f"epochs must be a folder of checkpoints (`train --keep-epochs` makes one), got {folder}")
    saved = [checkpoints.load(file) for file in files]
    (first, second), path, explained = principal_directions(model, [epoch.state_dict for epoch in saved])
    axes = []
    for along in path.T[:2]:
        low, high = min(0.0, along.min()), max(0.0, along.max())
        room = grid.span * (high - low)
        axes.append(aligned_axis(low - room, high + room, grid.points))
    epochs = [SavedEpoch(len(checkpoint.history), checkpoint.state_dict) for checkpoint in saved]
    steps = [(epoch.epoch, float(a), float(b), float(off)) for epoch, (a, b, off) in zip(epochs, path, strict=True)]
    return Plane(first, second, (axes[0], axes[1]), steps, sorted(epochs, key=lambda epoch: epoch.epoch), explained)


def _custom(reference: str, images: Chosen, subjects: Sequence[LoadedModel], device: torch.device) -> Custom:
    """Make the metric that ``factory(images, labels)`` returns; check that it gives a number for every checkpoint."""
    if ":" not in reference:
        raise GradscopeError(f"metric must be package.module:factory, got {reference!r}")
    batch = images.images.batch(torch.arange(len(images.images)), device)
    try:
        metric = call_factory(reference, "metric", *batch)
    except (Exception, SystemExit) as error:
        if isinstance(error, GradscopeError):
            raise
        raise GradscopeError(f"metric: {reference} cannot be made: {one_line(error)}") from error
    if not callable(metric):
        raise GradscopeError(f"metric: {reference} must return a callable metric, got {type(metric).__name__}")
    for subject in subjects:
        custom = Custom(metric)
        if math.isnan(custom(subject.model)):
            raise GradscopeError(
                f"metric: {reference} must give a number for a network; for {subject.label} "
                f"{custom.failures[0] if custom.failures else 'it gave NaN'}"
            )
    return Custom(metric)


class _Result:
    """The values of one checkpoint, as rows of the tables."""

    def __init__(
        self,
        identity: Row,
        views: Sequence[View],
        found: Sequence[Mapping[str, Tensor]],
        compared: Mapping[str, Tensor],
        measures: Measures,
        failures: Sequence[str],
        keeps_norms: bool,
    ) -> None:
        """``failures``: the reasons why the metric failed, in order; ``keeps_norms``: whether the way leads to another
        checkpoint but batch norm's statistics stay those of the first.
        """
        self.identity, self.views, self.found, self.compared, self.measures = identity, views, found, compared, measures
        self.failures = failures
        self.keeps_norms = keeps_norms

    @property
    def plane(self) -> Plane:
        """The first view, for which there are metrics beside the values of its points."""
        plane = self.views[0]
        assert isinstance(plane, Plane)
        return plane

    def rows(self) -> Rows:
        """Return the rows of each table."""
        path = {PATH: self._path} if self.plane.path else {}
        return {LANDSCAPE: self._landscape, SUMMARY: self._summary} | path

    def facts(self) -> Row:
        """Collect facts for the manifest: points at which the metric failed, and variance that directions explain."""
        failed = sum(int(found["custom"].isnan().sum()) for found in self.found) if "custom" in self.found[0] else None
        why = next(iter(self.failures), None)
        facts: Row = {} if failed is None else {"custom_failed": failed, "custom_failure": why}
        if self.plane.explained is not None:
            facts["explained"] = self.plane.explained
        if self.keeps_norms:
            facts["keeps_batch_norm"] = True
        return facts

    def _landscape(self) -> Iterator[Row]:
        for view, found in zip(self.views, self.found, strict=True):
            columns = {}
            for prefix in ("", "adversarial_"):
                if f"{prefix}loss" in found:
                    columns[f"{prefix}loss"] = self.measures.mean(found[f"{prefix}loss"])
                    columns[f"{prefix}accuracy"] = self.measures.mean(found[f"{prefix}right"])
            if "custom" in found:
                columns["custom"] = found["custom"]
            for row, a in enumerate(view.axes[0].tolist()):
                for column, b in enumerate(view.axes[1].tolist()):
                    values = {name: float(table[row, column]) for name, table in columns.items()}
                    yield self.identity | {"space": "weights", "way": view.way, "a": a, "b": b} | values

    def _path(self) -> Iterator[Row]:
        walker = {"space": "weights", "walker": self.identity["checkpoint"]}
        for step, a, b, off in self.plane.path:
            yield self.identity | walker | {"step": step, "a": a, "b": b, "off": off}

    def _summary(self) -> Iterator[Row]:
        count = self.measures.count
        for prefix in ("", "adversarial_"):
            if f"centre-{prefix}loss" not in self.compared:
                continue
            at = f"{'attacked' if prefix else 'clean'}/all"
            attack = self.measures.attack if prefix else None
            identity = self.identity | ({} if attack is None else attack.ball)
            losses, right = (self.compared[f"centre-{prefix}{name}"] for name in ("loss", "right"))
            loss, others = self.measures.mean(losses), self.measures.leave_one_out(losses)
            yield summary_row(identity, "loss", at, float(loss), self._jackknife(loss, others), count)
            correct = int(right.sum())
            accuracy = wilson_interval(correct, count)
            yield summary_row(identity, "accuracy", at, correct / count, accuracy, count)
        losses, centre = self.found[0]["loss"], self.compared["centre-loss"]
        whole, others = self.measures.mean(losses), self.measures.leave_one_out(losses)
        rough = roughness(whole, self.plane.axes)
        yield self._around("roughness", rough, roughness(others, self.plane.axes))
        sharp = sharpness(whole, self.measures.mean(centre), self.plane.axes)
        leaving = sharpness(others, self.measures.leave_one_out(centre), self.plane.axes)
        yield self._around("sharpness", sharp, leaving)
        sums = self.compared["curvature-sums"]
        yield self._around("curvature", self.compared["curvature"][0], self.measures.leave_one_out(sums))
        residual = float(self.compared["curvature-residual"][0])
        yield summary_row(self.identity, "curvature-residual", "around/all", residual, None, count)
        for view, found in zip(self.views, self.found, strict=True):
            if view.way and len(view.axes[1]) == 1:
                yield from barriers(self.identity, view.way, view.axes[0], found, self.measures)

    def _around(self, name: str, value: Tensor, leave_one_out: Tensor) -> Row:
        interval = self._jackknife(value, leave_one_out)
        return summary_row(self.identity, name, "around/all", float(value), interval, self.measures.count)

    def _jackknife(self, value: Tensor, leave_one_out: Tensor) -> Interval:
        return jackknife_interval(float(value), leave_one_out.tolist())

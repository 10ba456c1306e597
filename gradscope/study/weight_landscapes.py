"""The landscape stage of weight space: planes and lines around a network's weights."""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscope.config import PGD, Grid
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.foreign import call_factory
from gradscope.models.inspection import measuring, one_line
from gradscope.models.subject import Foreign
from gradscope.probes.comparison import MOST_PRODUCTS, TOLERANCE
from gradscope.probes.curvature import Eigenvalue, weight_curvature, weight_curvature_along
from gradscope.probes.input_landscape import coordinates, roughness
from gradscope.probes.weight_landscape import (
    Custom,
    Direction,
    Measures,
    aligned_axis,
    direction_towards,
    evaluate_plane,
    filter_normalised_direction,
    line_axis,
    orthogonal_to,
    principal_directions,
    reestimate_batch_norm,
    sharpness,
)
from gradscope.progress import Advance, progress_bar
from gradscope.results.rows import LANDSCAPE, PATH, SUMMARY
from gradscope.results.stats import Interval, jackknife_interval, wilson_interval
from gradscope.seeding import generator
from gradscope.sharing import Team, Unit, Values, halving
from gradscope.study.directory import resumable_directory
from gradscope.study.inputs import Chosen, Viewed, choose, draw_figures, read_all
from gradscope.study.landscapes import (
    Landscape,
    LandscapeFiles,
    Row,
    Rows,
    summary_row,
)
from gradscope.study.ranks import on_every_rank

#: Images where the command does not say.
DEFAULT_IMAGES = 256
#: Multiples of a random direction; share of what lies between two checkpoints; share of the extent of the epochs.
DEFAULT_SPANS = {"random": 1.0, "towards": 0.5, "epochs": 0.2}
#: Points that are kept at a time; rows stay whole.
_TILE_POINTS = 32
#: Images whose graph of second derivatives is in memory at a time.
_CURVATURE_BATCH = 64
#: Training images on which batch norm's statistics are taken anew, and about so many a batch.
NORM_IMAGES, _NORM_BATCH = 1024, 256


@dataclass(frozen=True, kw_only=True)
class WeightLandscape(Landscape):
    """Which directions from a checkpoint's weights, and what is measured there.

    The directions are two random filter-normalised ones; or the first leads ``towards`` another checkpoint, or both
    are the principal ones of the checkpoints in the folder ``epochs``. ``line`` keeps the first only. ``span`` None is
    that of DEFAULT_SPANS. ``settings``, where given, is an attack made anew at every point; ``reestimate`` takes batch
    norm's statistics anew there; ``metric`` is ``package.module:factory`` of a loss_landscapes metric.
    """

    attack: str = "none"
    settings: PGD | None = None
    span: float | None = None
    line: bool = False
    towards: str | None = None
    epochs: Path | None = None
    reestimate: bool = False
    metric: str | None = None

    @property
    def kind(self) -> str:
        """A key of DEFAULT_SPANS."""
        return "towards" if self.towards is not None else "epochs" if self.epochs is not None else "random"

    @property
    def grid(self) -> Grid:
        """Points and span; a bad one raises :class:`GradscopeError`."""
        span = DEFAULT_SPANS[self.kind] if self.span is None else self.span
        return Grid.parse({"points": self.points, "span": span})


@dataclass(frozen=True)
class Plane:
    """Where a checkpoint is viewed: directions, the coordinates along them, and the path of its training."""

    first: Direction
    second: Direction | None
    axes: tuple[Tensor, Tensor]
    path: Sequence[tuple[int, float, float, float]] = ()
    explained: tuple[float, float] | None = None


def run_weight_landscape(texts: Sequence[str], request: WeightLandscape, foreign: Foreign, out: Path) -> Path:
    """Evaluate the plane of every checkpoint and what compares them, write CSV, manifest and figures to ``out``.

    Finished tiles are kept until all is done, so that an interrupted run can be resumed, to the same files.
    """
    check_weight_landscape(request, len(texts), foreign)
    on_every_rank(request, partial(_run, texts, request, foreign, out))
    return out


def _run(texts: Sequence[str], request: WeightLandscape, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "landscape", team, resume=request.resume, overwrite=request.overwrite):
        named = texts if request.towards is None else [*texts, request.towards]
        viewed, splits = read_all(named, request, foreign, team.device, "landscape")
        other = viewed.pop() if request.towards is not None else None
        planes = [_plane(one, other, request) for one in viewed]
        images = choose(splits.test, request.images, DEFAULT_IMAGES, request.seed, "--images")
        custom = None if request.metric is None else _custom(request.metric, images, viewed, team.device)
        files = LandscapeFiles(
            *(out, request, foreign, team, viewed, images),
            _described(request, other, len(images.images)),
            {} if request.settings is None else {request.attack: request.settings},
            {"direction": _digest(planes)},
        )
        stage = _Stage(request, images, splits.train, custom, files, team)
        points = sum(len(plane.axes[0]) * len(plane.axes[1]) for plane in planes)
        with progress_bar("landscape", points, visible=team.is_first) as advance:
            for position, (one, plane) in enumerate(zip(viewed, planes, strict=True)):
                stage.measure(position, one, plane, advance)
        if team.is_first:
            files.complete()
            draw_figures(out, request)
            files.tiles.remove()


def check_weight_landscape(request: WeightLandscape, checkpoints: int, foreign: Foreign) -> None:
    """What is asked for must be possible, before anything is loaded."""
    _ = request.grid
    if request.towards is not None and request.epochs is not None:
        raise GradscopeError("--towards, --epochs: one of them is allowed, for each gives the first direction")
    if request.epochs is not None and (request.line or checkpoints > 1):
        raise GradscopeError(
            f"--epochs: a plane of one checkpoint is allowed, got {checkpoints} and line {request.line}"
        )
    if request.settings is not None and request.settings.restarts > 1:
        raise GradscopeError(f"restarts: 1 is allowed in a landscape, got {request.settings.restarts}")
    if request.metric is not None and not foreign.trust_code:
        raise GradscopeError(f"--metric: {request.metric} runs code; pass --trust-code if you trust it")


def _plane(one: Viewed, other: Viewed | None, request: WeightLandscape) -> Plane:
    """The directions and axes that are asked for; what does not span a plane raises :class:`GradscopeError`."""
    model, seed, grid = one.subject.model, request.seed, request.grid
    still = torch.zeros(1, dtype=torch.float64)
    if request.epochs is not None:
        return _principal_plane(model, request.epochs, grid)
    if other is not None:
        first = direction_towards(model, other.subject.model.state_dict())
        if not any(part.any() for part in first.values()):
            raise GradscopeError(f"--towards: {other.subject.label} has the very weights of {one.subject.label}")
        axis = line_axis(grid.span, grid.points)
        if request.line:
            return Plane(first, None, (axis, still))
        second = orthogonal_to(filter_normalised_direction(model, seed=seed, name="second direction"), first)
        return Plane(first, second, (axis, coordinates(Grid(points=grid.points, span=0.5 + grid.span))))
    first = filter_normalised_direction(model, seed=seed, name="first direction")
    if request.line:
        return Plane(first, None, (coordinates(grid), still))
    second = filter_normalised_direction(model, seed=seed, name="second direction")
    return Plane(first, second, (coordinates(grid), coordinates(grid)))


def _principal_plane(model: nn.Module, folder: Path, grid: Grid) -> Plane:
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise GradscopeError(
            f"--epochs: a folder of checkpoints (`train --keep-epochs` makes one) is allowed, got {folder}"
        )
    saved = [checkpoints.load(file) for file in files]
    (first, second), path, explained = principal_directions(model, [one.state_dict for one in saved])
    axes = []
    for along in path.T[:2]:
        low, high = min(0.0, along.min()), max(0.0, along.max())
        room = grid.span * (high - low)
        axes.append(aligned_axis(low - room, high + room, grid.points))
    steps = [(len(one.history), float(a), float(b), float(off)) for one, (a, b, off) in zip(saved, path, strict=True)]
    return Plane(first, second, (axes[0], axes[1]), steps, explained)


def _custom(reference: str, images: Chosen, viewed: Sequence[Viewed], device: torch.device) -> Custom:
    """The metric that ``factory(images, labels)`` returns, once it has given a number for every checkpoint."""
    if ":" not in reference:
        raise GradscopeError(f"--metric: package.module:factory is allowed, got {reference!r}")
    batch = images.images.batch(torch.arange(len(images.images)), device)
    try:
        metric = call_factory(reference, "--metric", *batch)
    except (Exception, SystemExit) as error:
        if isinstance(error, GradscopeError):
            raise
        raise GradscopeError(f"--metric: {reference} cannot be made: {one_line(error)}") from error
    if not callable(metric):
        raise GradscopeError(
            f"--metric: {reference} must return a metric that can be called, got {type(metric).__name__}"
        )
    for one in viewed:
        custom = Custom(metric)
        if math.isnan(custom(one.subject.model)):
            raise GradscopeError(
                f"--metric: {reference} must give a number for a network; for {one.subject.label} "
                f"{custom.failures[0] if custom.failures else 'it gave NaN'}"
            )
    return Custom(metric)


def _described(request: WeightLandscape, other: Viewed | None, images: int) -> Row:
    filters = "multiples of the filters' norms"
    axes = [(f"random direction {number}, filter-normalised", filters) for number in (1, 2)]
    if other is not None:
        axes[0] = (f"towards {other.subject.label}", "share of the way")
        axes[1] = ("random direction, filter-normalised, orthogonal", filters)
    if request.epochs is not None:
        axes = [(f"principal direction {number} of the epochs", "L2 distance of the weights") for number in (1, 2)]
    return {
        "space": "weights",
        "span": request.grid.span,
        "axes": [{"name": name, "unit": unit} for name, unit in axes[: 1 if request.line else 2]],
        "line": request.line,
        "towards": None if other is None else other.subject.label,
        "orthogonalised": request.kind != "random",
        "images": images,
        "batch_norm": f"re-estimated on {NORM_IMAGES} training images or all" if request.reestimate else "as-is",
        "adversarial": None if request.settings is None else request.settings.model_dump(),
        "custom": request.metric,
    }


def _digest(planes: Sequence[Plane]) -> list[float]:
    """Numbers that change when a direction does: the values of tiles depend on them."""
    parts = [part for plane in planes for direction in (plane.first, plane.second or {}) for part in direction.values()]
    return [float(part.double().sum()) for part in parts]


class _Stage:
    """One run: what is measured at every point of every checkpoint's plane."""

    def __init__(
        self,
        request: WeightLandscape,
        images: Chosen,
        train: ImageSet,
        custom: Custom | None,
        files: LandscapeFiles,
        team: Team,
    ) -> None:
        self.request, self.images, self.files, self.team, self.device = request, images, files, team, team.device
        norm_batches: list[Tensor] = []
        if request.reestimate:
            drawn = torch.randperm(len(train), generator=generator(request.seed, "batch norm"))[:NORM_IMAGES]
            # Batches of one size, for each counts as much in the mean of their statistics.
            size = len(drawn) // max(1, round(len(drawn) / _NORM_BATCH))
            if size < 2:
                raise GradscopeError(
                    f"--batch-norm: at least 2 training images are needed, {train.name} has {len(train)}"
                )
            norm_batches = [train.batch(part, self.device)[0] for part in drawn.split(size) if len(part) == size]
        self.measures = Measures(
            *(images.images, images.numbers, self.device),
            attack=request.settings,
            seed=request.seed,
            reestimate=norm_batches,
            custom=custom,
        )

    def measure(self, position: int, one: Viewed, plane: Plane, advance: Advance) -> None:
        """Measure a checkpoint's plane and write its rows."""
        started = time.perf_counter()
        label, model = one.subject.label, one.subject.model
        width = len(plane.axes[1])
        height = max(1, _TILE_POINTS // width)
        rows = [plane.axes[0][start : start + height] for start in range(0, len(plane.axes[0]), height)]
        units: list[Unit] = []
        told = [0]

        def advanced(done: int, note: str) -> None:
            told[0] += done
            advance(done, label)

        def evaluate(along: Tensor) -> Values:
            return self._evaluate(model, plane, (along, plane.axes[1]), advanced)

        for number, along in enumerate(rows):
            units.append((f"rows-{position}-{number * height}", partial(evaluate, along)))
        # Of all images at once, so one rank's: the products' sums round otherwise where they are added in parts.
        units.append((f"compared-{position}", lambda: self._compared(model, advance, label)))
        tiles = []
        for number, tile in enumerate(self.files.tiles.each(units)):
            tiles.append(tile)
            done = sum(len(along) for along in rows[: number + 1]) * width
            advanced(max(0, done - told[0]), "")
        *tiles, compared = tiles
        if not self.team.is_first:
            return
        failures = [bytes(tile.pop("failure").tolist()).decode() for tile in tiles if "failure" in tile]
        found = {name: torch.cat([tile[name] for tile in tiles]) for name in tiles[0]}
        identity = one.subject.identity(self.images.images.name, self.request.attack)
        normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        keeps = normed and self.request.towards is not None and not self.request.reestimate
        result = _Result(identity, plane, found, compared, self.measures, failures, keeps)
        self.files.add(result.rows(), time.perf_counter() - started, result.facts())

    def _evaluate(self, model: nn.Module, plane: Plane, axes: tuple[Tensor, Tensor], advanced: Advance) -> Values:
        """What is measured on a part of the plane; where the metric fails, also why it does first, as ``failure``."""
        custom = self.measures.custom
        before = len(custom.failures) if custom else 0
        found = evaluate_plane(model, plane.first, plane.second, axes, self.measures, advanced=advanced)
        values = {name: torch.from_numpy(value) for name, value in found.items()}
        for failure in custom.failures[before : before + 1] if custom else ():
            values["failure"] = torch.tensor(list(failure.encode()), dtype=torch.uint8)
        return values

    def _compared(self, model: nn.Module, advance: Advance, label: str) -> Values:
        """The sums at the weights themselves, and the curvature: of all images and of each group of them."""
        advance(0, f"{label}: curvature")
        zero = torch.zeros(1, dtype=torch.float64)
        still = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
        centre = evaluate_plane(model, still, None, (zero, zero), self.measures)
        if self.measures.reestimate:
            model = copy.deepcopy(model)
            with measuring(model), torch.no_grad():
                reestimate_batch_norm(model, self.measures.reestimate)
        found, sums = halving(partial(self._curvature, model), _CURVATURE_BATCH)
        return {
            **{f"centre-{name}": torch.from_numpy(values)[0, 0] for name, values in centre.items() if name != "custom"},
            "curvature": found.value,
            "curvature-residual": found.residual,
            "curvature-sums": sums,
        }

    def _curvature(self, model: nn.Module, size: int) -> tuple[Eigenvalue, Tensor]:
        """The largest eigenvalue, and each group's sum of what its images give of it; ``size`` images a batch."""
        groups = self.measures.groups
        parts = [torch.arange(group, self.measures.count, groups).split(size) for group in range(groups)]
        batches = [self.images.images.batch(indices, self.device) for group in parts for indices in group]
        found = weight_curvature(model, batches, seed=self.request.seed, tolerance=TOLERANCE, most=MOST_PRODUCTS // 2)
        along = weight_curvature_along(model, batches, found.vector[0]).double().cpu()
        sizes = torch.tensor([len(labels) for _, labels in batches], dtype=torch.float64)
        owner = torch.tensor([group for group, indices in enumerate(parts) for _ in indices])
        return found, torch.zeros(groups, dtype=torch.float64).index_add_(0, owner, sizes * along)


class _Result:
    """What was measured of one checkpoint, as rows."""

    def __init__(
        self,
        identity: Row,
        plane: Plane,
        found: Mapping[str, Tensor],
        compared: Mapping[str, Tensor],
        measures: Measures,
        failures: Sequence[str],
        keeps_norms: bool,
    ) -> None:
        """``failures``: why the metric failed, first of all and later; ``keeps_norms``: the way leads to another
        checkpoint, but batch norm's statistics stay behind.
        """
        self.identity, self.plane, self.found, self.compared, self.measures = identity, plane, found, compared, measures
        self.failures = failures
        self.keeps_norms = keeps_norms

    def rows(self) -> Rows:
        """The rows of each table."""
        path = {PATH.file: self._path} if self.plane.path else {}
        return {LANDSCAPE.file: self._landscape, SUMMARY.file: self._summary} | path

    def facts(self) -> Row:
        """What the manifest says of it: points at which the metric failed, and what the directions explain."""
        failed = int(self.found["custom"].isnan().sum()) if "custom" in self.found else None
        why = next(iter(self.failures), None)
        facts: Row = {} if failed is None else {"custom_failed": failed, "custom_failure": why}
        if self.plane.explained is not None:
            facts["explained"] = self.plane.explained
        if self.keeps_norms:
            facts["keeps_batch_norm"] = True
        return facts

    def _landscape(self) -> Iterator[Row]:
        columns = {}
        for prefix in ("", "adversarial_"):
            if f"{prefix}loss" in self.found:
                columns[f"{prefix}loss"] = self.measures.mean(self.found[f"{prefix}loss"])
                columns[f"{prefix}accuracy"] = self.measures.mean(self.found[f"{prefix}right"])
        if "custom" in self.found:
            columns["custom"] = self.found["custom"]
        for row, a in enumerate(self.plane.axes[0].tolist()):
            for column, b in enumerate(self.plane.axes[1].tolist()):
                values = {name: float(table[row, column]) for name, table in columns.items()}
                yield self.identity | {"space": "weights", "a": a, "b": b} | values

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
            losses, right = (self.compared[f"centre-{prefix}{name}"] for name in ("loss", "right"))
            loss, others = self.measures.mean(losses), self.measures.leave_one_out(losses)
            yield summary_row(self.identity, "loss", at, float(loss), self._jackknife(loss, others), count)
            correct = int(right.sum())
            accuracy = wilson_interval(correct, count)
            yield summary_row(self.identity, "accuracy", at, correct / count, accuracy, count)
        losses, centre = self.found["loss"], self.compared["centre-loss"]
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

    def _around(self, name: str, value: Tensor, leave_one_out: Tensor) -> Row:
        interval = self._jackknife(value, leave_one_out)
        return summary_row(self.identity, name, "around/all", float(value), interval, self.measures.count)

    def _jackknife(self, value: Tensor, leave_one_out: Tensor) -> Interval:
        return jackknife_interval(float(value), leave_one_out.tolist())

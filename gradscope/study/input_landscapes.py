"""The landscape stage of input space: a plane around each image, for one checkpoint or several on the same axes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gradscope.attacks.pgd import prepared, threat_model
from gradscope.config import PGD, Grid
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.functional import margin
from gradscope.models.inspection import measuring
from gradscope.models.subject import Foreign
from gradscope.probes.comparison import compare_planes, compare_surroundings
from gradscope.probes.input_landscape import (
    Planes,
    PlaneValues,
    adversarial_planes,
    attack_walk,
    coordinates,
    evaluate_planes,
    shared_planes,
)
from gradscope.probes.trajectory import usual_batch_size
from gradscope.progress import Advance, progress_bar
from gradscope.results.rows import LANDSCAPE, LANDSCAPE_METRICS, PATH, SAMPLES, SUMMARY
from gradscope.results.stats import mean_interval, wilson_interval
from gradscope.seeding import seeded
from gradscope.sharing import Team, Unit, Values
from gradscope.study.directory import resumable_directory
from gradscope.study.inputs import Chosen, Viewed, choose, draw_figures, order, read_all, take
from gradscope.study.landscapes import (
    Landscape,
    LandscapeFiles,
    Row,
    Rows,
    summary_row,
)
from gradscope.study.ranks import on_every_rank

#: Images where the command does not say.
DEFAULT_IMAGES = 16
#: Points of a plane that are kept at a time; rows stay whole.
_TILE_POINTS = 8192
_ALL = slice(None)
#: What of a :class:`Planes` is kept beside the images.
_FIELDS = ("first", "second", "unit", "paths", "fallback")
#: Bytes that the iterates of a batch of attacks may take.
_WALK_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class InputLandscape(Landscape):
    """Which planes, around which images.

    The images are those at ``indices``, or ``images`` drawn by the seed, ``right`` among those only that every
    checkpoint is right about. ``shared`` takes one plane for all checkpoints, of the first two's adversarial
    directions; otherwise each has its own, with a random direction.
    """

    attack: str
    settings: PGD
    span: float
    indices: tuple[int, ...] = ()
    right: bool = False
    shared: bool = False

    @property
    def grid(self) -> Grid:
        """The points of each plane; a bad ``points`` or ``span`` raises :class:`GradscopeError`."""
        return Grid.parse({"points": self.points, "span": self.span})


def run_input_landscape(texts: Sequence[str], request: InputLandscape, foreign: Foreign, out: Path) -> Path:
    """Evaluate the planes and what compares them, write CSV, manifest and figures to ``out``.

    Finished tiles are kept until all is done, so that an interrupted run can be resumed, to the same files.
    """
    check_input_landscape(request, len(texts))
    on_every_rank(request, partial(_run, texts, request, foreign, out))
    return out


def _run(texts: Sequence[str], request: InputLandscape, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "landscape", team, resume=request.resume, overwrite=request.overwrite):
        viewed, splits = read_all(texts, request, foreign, team.device, "landscape")
        images = _choose(splits.test, viewed, request, team)
        size = _batch_size(request.settings, images.images, team.device, len(viewed))
        files = LandscapeFiles(
            *(out, request, foreign, team, viewed, images),
            _described(request, viewed, images, size),
            {request.attack: request.settings},
        )
        stage = _Stage(request, viewed, images, size, files, team)
        with progress_bar("landscape", stage.points, visible=team.is_first) as advance:
            stage.measure(advance)
        if team.is_first:
            files.complete()
            draw_figures(out, request)
            files.tiles.remove()


def check_input_landscape(request: InputLandscape, checkpoints: int) -> None:
    """What is asked for must be possible, before anything is loaded."""
    _ = request.grid
    if request.settings.epsilon == 0:
        raise GradscopeError("--epsilon: a number above 0 is allowed, for the axes are in multiples of it, got 0")
    if request.settings.restarts > 1:
        raise GradscopeError(f"restarts: 1 is allowed in a landscape, got {request.settings.restarts}")
    if request.indices and (request.images is not None or request.right):
        raise GradscopeError("--index: it names the images itself; --images and --right are not allowed beside it")
    if request.shared and checkpoints < 2:
        raise GradscopeError(f"--plane: 'shared' takes the directions of two checkpoints, got {checkpoints}")


def _choose(test: ImageSet, viewed: Sequence[Viewed], request: InputLandscape, team: Team) -> Chosen:
    """The images that are asked for, in the set's order; those of ``--index`` in the order given."""
    if request.indices:
        for index in request.indices:
            if not 0 <= index < len(test):
                raise GradscopeError(f"--index: 0 to {len(test) - 1} is allowed, {test.name} ends there, got {index}")
        return take(test, torch.tensor(list(dict.fromkeys(request.indices))))
    if not request.right:
        return choose(test, request.images, DEFAULT_IMAGES, request.seed, "--images")
    wanted = DEFAULT_IMAGES if request.images is None else request.images
    found: list[int] = []
    # A few forward passes, which every rank makes; a GPU may round otherwise than another, so the first one's count.
    with torch.no_grad():
        for numbers in order(test, request.seed).split(256):
            images, labels = test.batch(numbers, team.device)
            right = torch.ones(len(numbers), dtype=torch.bool, device=team.device)
            for one in viewed:
                with measuring(one.subject.model):
                    right &= one.subject.model(images).argmax(dim=1) == labels
            found += numbers[right.cpu()].tolist()
            if len(found) >= wanted:
                break
    found = team.of_first(found)
    if len(found) < wanted or wanted < 1:
        raise GradscopeError(
            f"--images: 1 to {len(found)} is allowed with --right, so many of {test.name} every checkpoint is right "
            f"about, got {wanted}"
        )
    return take(test, torch.tensor(found[:wanted]).sort().values)


def _batch_size(settings: PGD, images: ImageSet, device: torch.device, checkpoints: int) -> int:
    """Images attacked at once: as everywhere, or as many as the iterates of all checkpoints fit in memory for."""
    walk = checkpoints * (settings.steps + 1) * images.images[0].numel() * 4
    return max(1, min(usual_batch_size(settings, device), len(images), _WALK_BYTES // walk))


def _described(request: InputLandscape, viewed: Sequence[Viewed], images: Chosen, batch_size: int) -> Row:
    unit = "multiples of epsilon"
    labels = [one.subject.label for one in viewed]
    names = ["adversarial direction", "random direction"]
    if request.shared:
        names = [f"adversarial direction of {labels[0]}", f"adversarial direction of {labels[1]}, orthogonal part"]
    return {
        "space": "input",
        "span": request.span,
        "axes": [{"name": name, "unit": unit} for name in names],
        "plane": "shared" if request.shared else "own",
        "epsilon": request.settings.epsilon,
        "chosen": "by index" if request.indices else "right when clean" if request.right else "drawn by seed",
        "indices": images.numbers.tolist(),
        "classes": list(images.images.classes),
        "batch_size": batch_size,
    }


class _Stage:
    """One run: every checkpoint's planes, what is on them and what compares them, in units that ranks divide."""

    def __init__(
        self,
        request: InputLandscape,
        viewed: Sequence[Viewed],
        images: Chosen,
        batch_size: int,
        files: LandscapeFiles,
        team: Team,
    ) -> None:
        self.request, self.viewed, self.images, self.files, self.team = request, viewed, images, files, team
        self.batches = list(torch.arange(len(images.images)).split(batch_size))
        self.place_in_batch = [
            (number, place) for number, part in enumerate(self.batches) for place in range(len(part))
        ]

    @property
    def points(self) -> int:
        """Points of all planes."""
        return len(self.viewed) * len(self.images.images) * self.request.points**2

    def measure(self, advance: Advance) -> None:
        """Measure every checkpoint and write its rows."""
        for position in range(len(self.viewed)):
            started = time.perf_counter()
            kept = self._each([(f"planes-{number}", partial(self._walk, number, advance)) for number in self._numbers])
            planes = list(kept)
            values = self._values(position, planes, advance)
            compare = partial(self._compared, position, planes, values, advance)
            compared = self._each(
                [(f"compared-{position}-{number}", partial(compare, number)) for number in self._numbers]
            )
            result = _Result(self, position, planes, values, list(compared))
            if self.team.is_first:
                self.files.add(result.rows(), time.perf_counter() - started, result.facts())

    @property
    def _numbers(self) -> range:
        return range(len(self.batches))

    def _each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """The units, kept; a model that draws random numbers draws those of the unit, whoever makes it."""

        def drawing(name: str, make: Callable[[], Values]) -> Values:
            with seeded(self.request.seed, name):
                return make()

        return self.files.tiles.each([(name, partial(drawing, name, make)) for name, make in units])

    def _walk(self, number: int, advance: Advance) -> Values:
        """The planes of every checkpoint around a batch of images, and those that they share."""
        settings, seed = self.request.settings, self.request.seed
        threat = threat_model(settings)
        images, labels, named = self._batch(number)
        advance(0, "attacking")
        walks = []
        for one in self.viewed:
            with prepared(one.subject.model, settings) as model:
                walks.append(attack_walk(model, images, labels, settings, numbers=named, seed=seed))
        found = [adversarial_planes(images, walk, threat, numbers=named, seed=seed) for walk in walks]
        if self.request.shared:
            found.append(shared_planes(images, (walks[0], walks[1]), threat, numbers=named, seed=seed))
        return {f"{place}-{name}": getattr(planes, name) for place, planes in enumerate(found) for name in _FIELDS}

    def _batch(self, number: int, part: slice = _ALL) -> tuple[Tensor, Tensor, Tensor]:
        """Images and labels of a batch, or a part of it, on the device, and the images' numbers."""
        indices = self.batches[number][part]
        return *self.images.images.batch(indices, self.team.device), self.images.numbers[indices]

    def _planes(self, position: int, number: int, kept: Values, part: slice = _ALL, *, own: bool = False) -> Planes:
        """The planes that are evaluated for a checkpoint, on the device, or those of its ``own`` direction."""
        place = len(self.viewed) if self.request.shared and not own else position
        images, _, _ = self._batch(number, part)
        first, second, unit, paths, fallback = (kept[f"{place}-{name}"] for name in _FIELDS)
        parts = (first[part], second[part], unit[part], paths[:, part], fallback[part])
        return Planes(images, *(tensor.to(self.team.device) for tensor in parts))

    def _values(self, position: int, planes: Sequence[Values], advance: Advance) -> list[PlaneValues]:
        """Loss, margin and predicted class on the planes of each batch, made tile by tile."""
        points, subject = self.request.points, self.viewed[position].subject
        height = max(1, _TILE_POINTS // points)
        tiles = [range(start, min(start + height, points)) for start in range(0, points, height)]
        work = [
            (number, place, rows)
            for number, part in enumerate(self.batches)
            for place in range(len(part))
            for rows in tiles
        ]
        told = [0]

        def advanced(done: int, note: str) -> None:
            told[0] += done
            advance(done, subject.label)

        def evaluate(number: int, place: int, rows: range) -> Values:
            part = slice(place, place + 1)
            plane, labels = self._planes(position, number, planes[number], part), self._batch(number, part)[1]
            found = evaluate_planes(subject.model, plane, labels, self.request.grid, rows=rows, advanced=advanced)
            return {"loss": found.loss, "margin": found.margin, "predicted": found.predicted}

        def told_of() -> Iterator[Values]:
            units: list[Unit] = [
                (f"plane-{position}-{number}-{place}-{rows.start}", partial(evaluate, number, place, rows))
                for number, place, rows in work
            ]
            done = 0
            for (_, _, rows), unit in zip(work, self._each(units), strict=True):
                done += len(rows) * points
                advanced(max(0, done - told[0]), "")
                yield unit

        found = told_of()
        joined = []
        for part in self.batches:
            of_each = [[next(found) for _ in tiles] for _ in part]
            whole = [{key: torch.cat([tile[key] for tile in one], dim=1) for key in one[0]} for one in of_each]
            fields = ("loss", "margin", "predicted")
            joined.append(PlaneValues(*(torch.cat([one[field] for one in whole]) for field in fields)))
        return joined

    def _compared(
        self, position: int, planes: Sequence[Values], values: Sequence[PlaneValues], advance: Advance, number: int
    ) -> Values:
        """The numbers to compare the images of a batch by, and whether each is ``right`` when clean."""
        request, subject = self.request, self.viewed[position].subject
        images, labels, named = self._batch(number)
        advance(0, f"{subject.label}: curvature")
        with measuring(subject.model), torch.no_grad():
            logits = subject.model(images.contiguous(memory_format=torch.channels_last))
        own = self._planes(position, number, planes[number], own=True)
        around = compare_surroundings(subject.model, own, labels, request.settings, numbers=named, seed=request.seed)
        drawn = self._planes(position, number, planes[number])
        on_plane = compare_planes(subject.model, drawn, labels, values[number], request.grid)
        return on_plane | around | {"right": margin(logits, labels) > 0}


class _Result:
    """What was measured of one checkpoint, as rows."""

    def __init__(
        self,
        stage: _Stage,
        position: int,
        planes: Sequence[Values],
        values: Sequence[PlaneValues],
        compared: Sequence[Values],
    ) -> None:
        self.stage, self.values, request = stage, values, stage.request
        self.identity = stage.viewed[position].subject.identity(stage.images.images.name, request.attack)
        self.walkers = [one.subject.label for one in (stage.viewed[:2] if request.shared else [stage.viewed[position]])]
        drawn = len(stage.viewed) if request.shared else position
        self.paths = torch.cat([part[f"{drawn}-paths"] for part in planes], dim=1).numpy()
        self.fallback = torch.cat([part[f"{drawn}-fallback"] for part in planes])
        self.numbers = stage.images.numbers
        self.right = torch.cat([part["right"] for part in compared])
        self.compared = {name: torch.cat([part[name].double() for part in compared]) for name in LANDSCAPE_METRICS}

    def rows(self) -> Rows:
        """The rows of each table."""
        return {
            LANDSCAPE.file: self._landscape,
            PATH.file: self._path,
            SAMPLES.file: self._samples,
            SUMMARY.file: self._summary,
        }

    def facts(self) -> Row:
        """Which images have a random direction where an adversarial one was wanted."""
        columns = zip(("first", "second"), self.fallback.T, strict=True)
        return {"random_instead_of_adversarial": {which: self.numbers[lost].tolist() for which, lost in columns}}

    def _images(self) -> Iterator[tuple[Row, int]]:
        """The identity of each image's rows, and its place."""
        labels = self.stage.images.images.labels.tolist()
        for place, (index, label) in enumerate(zip(self.numbers.tolist(), labels, strict=True)):
            yield self.identity | {"space": "input", "index": index, "label": label}, place

    def _landscape(self) -> Iterator[Row]:
        axis = coordinates(self.stage.request.grid).tolist()
        planes = ((part, place) for part in self.values for place in range(len(part.loss)))
        for (identity, _), (part, place) in zip(self._images(), planes, strict=True):
            columns = [tensor[place].numpy() for tensor in (part.loss, part.margin, part.predicted)]
            for a, *rows in zip(axis, *columns, strict=True):
                for b, loss, difference, predicted in zip(axis, *rows, strict=True):
                    yield identity | {"a": a, "b": b, "loss": loss, "margin": difference, "predicted": predicted}

    def _path(self) -> Iterator[Row]:
        for walker, paths in zip(self.walkers, self.paths, strict=True):
            for identity, place in self._images():
                shared = {key: value for key, value in identity.items() if key != "label"} | {"walker": walker}
                for step, (a, b, off) in enumerate(paths[place]):
                    yield shared | {"step": step, "a": a, "b": b, "off": off}

    def _samples(self) -> Iterator[Row]:
        for name, values in self.compared.items():
            known = {"metric": name, "point": "around", "unit": LANDSCAPE_METRICS[name].unit}
            for identity, place in self._images():
                shared = {key: value for key, value in identity.items() if key != "space"}
                yield shared | known | {"value": float(values[place])}

    def _summary(self) -> Iterator[Row]:
        subsets = {"all": torch.ones_like(self.right), "correct": self.right, "wrong": ~self.right}
        for name, values in self.compared.items():
            for subset, inside in subsets.items():
                defined = values[inside & ~values.isnan()]
                count = len(defined)
                mean = float(defined.mean()) if count else math.nan
                interval = mean_interval(mean, float(defined.std()), count) if count > 1 else None
                if name.startswith("beyond"):  # shares: a mean of eight yes or no varies no more than one of them
                    interval = wilson_interval(round(float(defined.sum())), count)
                yield summary_row(self.identity, name, f"around/{subset}", mean, interval, count)

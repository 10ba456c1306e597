"""The landscape stage of input space: a plane around each image, for one checkpoint or several on the same axes."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradscope.attacks.pgd import prepared, threat_model
from gradscope.config import PGD, Grid
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.functional import margin
from gradscope.models.inspection import evaluating
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
from gradscope.report import figures
from gradscope.results.rows import LANDSCAPE, LANDSCAPE_METRICS, PATH, SAMPLES, SUMMARY
from gradscope.results.stats import mean_interval, wilson_interval
from gradscope.study.directory import resumable_directory
from gradscope.study.inputs import Chosen, Viewed, choose, order, read_all, resolve_device, take
from gradscope.study.landscapes import (
    Landscape,
    LandscapeFiles,
    Row,
    Rows,
    summary_row,
)

#: Images where the command does not say.
DEFAULT_IMAGES = 16
#: Points of a plane that are kept at a time; rows stay whole.
_TILE_POINTS = 8192
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
    device = resolve_device(request.device)
    with resumable_directory(out, "landscape", resume=request.resume, overwrite=request.overwrite):
        viewed, splits = read_all(texts, request, foreign, device, "landscape")
        images = _choose(splits.test, viewed, request, device)
        size = _batch_size(request.settings, images.images, device, len(viewed))
        files = LandscapeFiles(
            *(out, request, foreign, device, viewed, images),
            _described(request, viewed, images, size),
            {request.attack: request.settings},
        )
        stage = _Stage(request, viewed, images, size, files, device)
        with progress_bar("landscape", stage.points) as advance:
            stage.measure(advance)
        files.complete()
        figures.draw(out)
        files.tiles.remove()
    return out


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


def _choose(test: ImageSet, viewed: Sequence[Viewed], request: InputLandscape, device: torch.device) -> Chosen:
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
    with torch.no_grad():
        for numbers in order(test, request.seed).split(256):
            images, labels = test.batch(numbers, device)
            right = torch.ones(len(numbers), dtype=torch.bool, device=device)
            for one in viewed:
                with evaluating(one.subject.model):
                    right &= one.subject.model(images).argmax(dim=1) == labels
            found += numbers[right.cpu()].tolist()
            if len(found) >= wanted:
                break
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
    """One run: every checkpoint's planes, a batch of images at a time."""

    def __init__(
        self,
        request: InputLandscape,
        viewed: Sequence[Viewed],
        images: Chosen,
        batch_size: int,
        files: LandscapeFiles,
        device: torch.device,
    ) -> None:
        self.request, self.viewed, self.images, self.files, self.device = request, viewed, images, files, device
        self.batches = list(torch.arange(len(images.images)).split(batch_size))

    @property
    def points(self) -> int:
        """Points of all planes."""
        return len(self.viewed) * len(self.images.images) * self.request.points**2

    def measure(self, advance: Advance) -> None:
        """Measure every checkpoint and write its rows."""
        for position in range(len(self.viewed)):
            started = time.perf_counter()
            found = [self._measure_batch(position, number, advance) for number in range(len(self.batches))]
            result = _Result(self, position, *zip(*found, strict=True))
            self.files.add(result.rows(), time.perf_counter() - started, result.facts())

    def _measure_batch(
        self, position: int, number: int, advance: Advance
    ) -> tuple[Planes, PlaneValues, dict[str, Tensor]]:
        """A checkpoint's planes around a batch of images, their values and the numbers that compare them."""
        indices = self.batches[number]
        images, labels = self.images.images.batch(indices, self.device)
        named = self.images.numbers[indices]
        planes, own = self._planes(position, number, images, labels, named, advance)
        parts = [
            self._values(position, f"{number}-{place}", planes[place : place + 1], labels[place : place + 1], advance)
            for place in range(len(indices))
        ]
        values = PlaneValues(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        return planes, values, self._compared(position, number, planes, own, values, labels, named, advance)

    def _planes(
        self, position: int, number: int, images: Tensor, labels: Tensor, named: Tensor, advance: Advance
    ) -> tuple[Planes, Planes]:
        """The planes that are evaluated, and those of the checkpoint's own direction."""
        settings, seed = self.request.settings, self.request.seed
        threat = threat_model(settings)
        fields = ("first", "second", "unit", "paths", "fallback")

        def make() -> dict[str, Tensor]:
            advance(0, "attacking")
            walks = []
            for one in self.viewed:
                with prepared(one.subject.model, settings) as model:
                    walks.append(attack_walk(model, images, labels, settings, numbers=named, seed=seed))
            made = [adversarial_planes(images, walk, threat, numbers=named, seed=seed) for walk in walks]
            if self.request.shared:
                both = (walks[0], walks[1])
                made.append(shared_planes(images, both, threat, numbers=named, seed=seed))
            return {f"{place}-{name}": getattr(planes, name) for place, planes in enumerate(made) for name in fields}

        kept = self.files.tiles.get(f"planes-{number}", make)

        def planes_at(place: int) -> Planes:
            return Planes(images, *(kept[f"{place}-{name}"].to(self.device) for name in fields))

        own = planes_at(position)
        return (planes_at(len(self.viewed)) if self.request.shared else own), own

    def _values(
        self, position: int, name: str, plane: Planes, label: Tensor, advance: Advance
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, margin and predicted class on one plane, tile by tile."""
        points, subject = self.request.points, self.viewed[position].subject
        height = max(1, _TILE_POINTS // points)
        tiles = []
        for start in range(0, points, height):
            rows, told = range(start, min(start + height, points)), [0]

            def advanced(done: int, note: str, told: list[int] = told) -> None:
                told[0] += done
                advance(done, subject.label)

            def make(rows: range = rows, advanced: Advance = advanced) -> dict[str, Tensor]:
                found = evaluate_planes(subject.model, plane, label, self.request.grid, rows=rows, advanced=advanced)
                return {"loss": found.loss, "margin": found.margin, "predicted": found.predicted}

            tiles.append(self.files.tiles.get(f"plane-{position}-{name}-{start}", make))
            advance(len(rows) * points - told[0], subject.label)
        loss, margins, predicted = (
            torch.cat([tile[field] for tile in tiles], dim=1) for field in ("loss", "margin", "predicted")
        )
        return loss, margins, predicted

    def _compared(
        self,
        position: int,
        number: int,
        planes: Planes,
        own: Planes,
        values: PlaneValues,
        labels: Tensor,
        named: Tensor,
        advance: Advance,
    ) -> dict[str, Tensor]:
        """The numbers to compare by, and whether each image is ``right`` when clean."""
        request, subject = self.request, self.viewed[position].subject

        def make() -> dict[str, Tensor]:
            advance(0, f"{subject.label}: curvature")
            with evaluating(subject.model), torch.no_grad():
                logits = subject.model(planes.origins.contiguous(memory_format=torch.channels_last))
            around = compare_surroundings(
                subject.model, own, labels, request.settings, numbers=named, seed=request.seed
            )
            right = margin(logits, labels) > 0
            on_plane = compare_planes(subject.model, planes, labels, values, request.grid)
            return on_plane | around | {"right": right}

        return self.files.tiles.get(f"compared-{position}-{number}", make)


class _Result:
    """What was measured of one checkpoint, as rows."""

    def __init__(
        self,
        stage: _Stage,
        position: int,
        planes: tuple[Planes, ...],
        values: tuple[PlaneValues, ...],
        compared: tuple[dict[str, Tensor], ...],
    ) -> None:
        self.stage, self.values, request = stage, values, stage.request
        self.identity = stage.viewed[position].subject.identity(stage.images.images.name, request.attack)
        self.walkers = [one.subject.label for one in (stage.viewed[:2] if request.shared else [stage.viewed[position]])]
        self.paths = torch.cat([part.paths.cpu() for part in planes], dim=1).numpy()
        self.fallback = torch.cat([part.fallback.cpu() for part in planes])
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

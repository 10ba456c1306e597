"""Measure landscapes of input space: a plane around each image, for one model or several on the same axes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from gradscope.attacks.pgd import prepared, threat_model, usual_batch_size
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Unit, Values
from gradscope.errors import GradscopeError
from gradscope.functional import margin
from gradscope.measure.inputs import Chosen, Entry, order, take
from gradscope.measure.landscape import summary_row
from gradscope.measure.options import LandscapeOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part, Rows
from gradscope.models.inspection import laid_out, measuring
from gradscope.models.loading import LoadedModel
from gradscope.probes.comparison import compare_planes, compare_surroundings
from gradscope.probes.input_landscape import (
    Planes,
    PlaneValues,
    StepFacts,
    adversarial_planes,
    attack_walk,
    coordinates,
    evaluate_planes,
    shared_planes,
)
from gradscope.progress import Advance, progress_bar
from gradscope.results.landscape import bands
from gradscope.results.metrics import LANDSCAPE_METRICS
from gradscope.results.schemas import BANDS, LANDSCAPE, PATH, SAMPLES, SUMMARY
from gradscope.results.stats import mean_interval, wilson_interval
from gradscope.results.tables import read_table, write_table
from gradscope.seeding import seeded

#: Points of a plane per piece; a piece holds whole rows.
_TILE_POINTS = 8192
_ALL = slice(None)
#: The fields of :class:`Planes` that pieces hold.
_FIELDS = ("first", "second", "unit", "paths", "fallback")
#: The maximum memory of the iterates of a batch of attacks, in bytes.
_WALK_BYTES = 2**30


class InputLandscapeMeasurement(Measurement[LandscapeOptions]):
    """``gradscope landscape --space input``: every model's planes, their values, and the numbers that compare them."""

    subjects: list[LoadedModel]
    settings: PGD
    kept: PartialResults

    def read(self) -> Sequence[Entry]:
        """Load all models on the same images."""
        assert self.options.settings is not None
        self.settings = self.options.settings
        references = self.inputs.references()
        test = self.inputs.one_data_set(references, "landscape").test
        self.subjects = [self.inputs.load(reference, test) for reference in references]
        self.images = self._choose(test)
        size = _batch_size(list(self.attacks.values()), self.images.images, self.device, len(self.subjects))
        self.batches = list(torch.arange(len(self.images.images)).split(size))
        return [Entry(reference, self.images) for reference in references]

    def _choose(self, test: ImageSet) -> Chosen:
        """Choose the requested images, in the set's order; those of ``index`` in the given order."""
        options = self.options
        if options.index:
            for index in options.index:
                if not 0 <= index < len(test):
                    raise GradscopeError(
                        f"index must be from 0 to {len(test) - 1}, the test images of {test.name}, got {index}"
                    )
            return take(test, torch.tensor(list(dict.fromkeys(options.index))))
        if not options.right:
            return self.inputs.choose(test, options.images, "images")
        wanted = options.default_images if options.images is None else options.images
        chosen: list[int] = []
        # Every rank runs these few forward passes. The first rank's choice counts, because GPUs may round differently.
        with torch.no_grad():
            for numbers in order(test, options.seed).split(256):
                images, labels = test.batch(numbers, self.device)
                right = torch.ones(len(numbers), dtype=torch.bool, device=self.device)
                for subject in self.subjects:
                    with measuring(subject.model):
                        right &= subject.model(images).argmax(dim=1) == labels
                chosen += numbers[right.cpu()].tolist()
                if len(chosen) >= wanted:
                    break
        chosen = self.team.of_first(chosen)
        if not chosen:
            raise GradscopeError(f"right must be left out: no clean image of {test.name} is right for all models")
        if len(chosen) < wanted or wanted < 1:
            raise GradscopeError(
                f"images must be from 1 to {len(chosen)} with `right`, the images of {test.name} that all models get "
                f"right, got {wanted}"
            )
        return take(test, torch.tensor(chosen[:wanted]).sort().values)

    def described(self) -> Row:
        """Describe points, axes and images for the manifest."""
        options, unit = self.options, "multiples of epsilon"
        labels = [subject.label for subject in self.subjects]
        names = ["adversarial direction", "random direction"]
        if options.plane == "shared":
            names = [f"adversarial direction of {labels[0]}", f"adversarial direction of {labels[1]}, orthogonal part"]
        if options.versus is not None:
            names = [f"towards {options.attack}", f"towards {options.versus}, orthogonal"]
        landscape = {
            "seed": options.seed,
            "points": options.points,
            "space": "input",
            "span": options.grid.span,
            "axes": [{"name": name, "unit": unit} for name in names],
            "plane": options.plane,
            **({} if options.versus is None else {"versus": options.versus}),
            "epsilon": self.settings.epsilon,
            "chosen": "by index" if options.index else "right when clean" if options.right else "drawn by seed",
            "indices": self.images.numbers.tolist(),
            "classes": list(self.images.images.classes),
            "batch_size": len(self.batches[0]),
        }
        return {"landscape": landscape, "attacks": options.resolved()["attacks"]}

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model."""
        self.kept = kept
        points = len(self.subjects) * len(self.images.images) * self.options.points**2
        with progress_bar("landscape", points, "points", visible=self.team.is_first) as advance:
            for position in range(len(self.subjects)):
                started = time.perf_counter()
                walks = self._each(
                    [(f"planes-{number}", partial(self._walk, number, advance)) for number in self._numbers]
                )
                planes = list(walks)
                values = self._values(position, planes, advance)
                compare = partial(self._compared, position, planes, values, advance)
                compared = self._each(
                    [(f"compared-{position}-{number}", partial(compare, number)) for number in self._numbers]
                )
                result = _Result(self, position, planes, values, list(compared))
                yield Part(position, result.rows(), {"seconds": time.perf_counter() - started, **result.facts()})

    def conclude(self) -> None:
        """Write the quantiles over the images."""
        quantiles = bands(read_table(self.out / LANDSCAPE.file, LANDSCAPE))
        rows = quantiles.itertuples(index=False, name=None)
        write_table(self.out / BANDS.file, BANDS, (dict(zip(BANDS.names, row, strict=True)) for row in rows))

    @property
    def attacks(self) -> dict[str, PGD]:
        """The attacks on every image, by name; the first gives the first direction."""
        attacks = {self.options.attack: self.options.settings}
        if self.options.versus is not None:
            attacks[self.options.versus] = self.options.rival
        return {name: settings for name, settings in attacks.items() if settings is not None}

    @property
    def _numbers(self) -> range:
        return range(len(self.batches))

    def _each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """Yield the units through the saved pieces; each unit has its own random stream, whichever rank computes it."""

        def drawing(name: str, make: Callable[[], Values]) -> Values:
            with seeded(self.options.seed, name):
                return make()

        return self.kept.each([(name, partial(drawing, name, make)) for name, make in units])

    def _walk(self, number: int, advance: Advance) -> Values:
        """Attack a batch of images on every checkpoint; returns planes, and losses and gradients along the paths."""
        seed, threat = self.options.seed, threat_model(self.settings)
        images, labels, named = self._batch(number)
        advance(0, "attacking")
        walks: list[list[Tensor]] = []
        facts: Values = {}
        for position, subject in enumerate(self.subjects):
            walks.append([])
            for which, settings in enumerate(self.attacks.values()):
                steps = StepFacts(labels)
                with prepared(subject.model, settings) as model:
                    walk = attack_walk(model, images, labels, settings, numbers=named, seed=seed, facts=steps)
                walks[-1].append(walk)
                facts |= {f"losses-{position}-{which}": steps.losses, f"gradients-{position}-{which}": steps.gradients}
        all_planes = [adversarial_planes(images, walk, threat, numbers=named, seed=seed) for walk, *_ in walks]
        pairs = [(first, other) for first, other in walks] if self.options.versus is not None else []
        if self.options.plane == "shared":
            pairs.append((walks[0][0], walks[1][0]))
        all_planes += [shared_planes(images, pair, threat, numbers=named, seed=seed) for pair in pairs]
        values = {f"{place}-{name}": getattr(one, name) for place, one in enumerate(all_planes) for name in _FIELDS}
        return values | facts

    def _drawn(self, position: int) -> int:
        """Return the index, among the planes of a batch, of the plane drawn for a checkpoint; own planes come first."""
        if self.options.versus is not None:
            return len(self.subjects) + position
        return len(self.subjects) if self.options.plane == "shared" else position

    def _batch(self, number: int, part: slice = _ALL) -> tuple[Tensor, Tensor, Tensor]:
        """Load images and labels of a batch, or a part of it, on the device, and the images' numbers."""
        indices = self.batches[number][part]
        return *self.images.images.batch(indices, self.device), self.images.numbers[indices]

    def _planes(self, position: int, number: int, kept: Values, part: slice = _ALL, *, own: bool = False) -> Planes:
        """Load the planes drawn for a checkpoint, or those of its ``own`` direction, on the device."""
        place = position if own else self._drawn(position)
        images, _, _ = self._batch(number, part)
        first, second, unit, paths, fallback = (kept[f"{place}-{name}"] for name in _FIELDS)
        parts = (first[part], second[part], unit[part], paths[:, part], fallback[part])
        return Planes(images, *(tensor.to(self.device) for tensor in parts))

    def _values(self, position: int, planes: Sequence[Values], advance: Advance) -> list[PlaneValues]:
        """Evaluate loss, margin and predicted class on the planes of each batch, tile by tile."""
        points, subject = self.options.points, self.subjects[position]
        height = max(1, _TILE_POINTS // points)
        tiles = [range(start, min(start + height, points)) for start in range(0, points, height)]
        work = [
            (number, place, rows)
            for number, part in enumerate(self.batches)
            for place in range(len(part))
            for rows in tiles
        ]
        shown = [0]

        def advanced(done: int, note: str) -> None:
            shown[0] += done
            advance(done, subject.label)

        def evaluate(number: int, place: int, rows: range) -> Values:
            part = slice(place, place + 1)
            plane, labels = self._planes(position, number, planes[number], part), self._batch(number, part)[1]
            on_rows = evaluate_planes(subject.model, plane, labels, self.options.grid, rows=rows, advanced=advanced)
            return {"loss": on_rows.loss, "margin": on_rows.margin, "predicted": on_rows.predicted}

        def evaluated() -> Iterator[Values]:
            units: list[Unit] = [
                (f"plane-{position}-{number}-{place}-{rows.start}", partial(evaluate, number, place, rows))
                for number, place, rows in work
            ]
            done = 0
            for (_, _, rows), unit in zip(work, self._each(units), strict=True):
                done += len(rows) * points
                advanced(max(0, done - shown[0]), "")
                yield unit

        results = evaluated()
        joined = []
        for part in self.batches:
            of_images = [[next(results) for _ in tiles] for _ in part]
            whole = [{key: torch.cat([tile[key] for tile in image], dim=1) for key in image[0]} for image in of_images]
            fields = ("loss", "margin", "predicted")
            joined.append(PlaneValues(*(torch.cat([image[field] for image in whole]) for field in fields)))
        return joined

    def _compared(
        self, position: int, planes: Sequence[Values], values: Sequence[PlaneValues], advance: Advance, number: int
    ) -> Values:
        """Compute the metrics that compare the images of a batch, and whether each is ``right`` when clean."""
        options, subject = self.options, self.subjects[position]
        images, labels, named = self._batch(number)
        advance(0, f"{subject.label}: curvature")
        with measuring(subject.model), torch.no_grad():
            logits = subject.model(laid_out(images))
        own = self._planes(position, number, planes[number], own=True)
        around = compare_surroundings(subject.model, own, labels, self.settings, numbers=named, seed=options.seed)
        drawn = self._planes(position, number, planes[number])
        on_plane = compare_planes(subject.model, drawn, labels, values[number], options.grid)
        return on_plane | around | {"right": margin(logits, labels) > 0}


def _batch_size(attacks: Sequence[PGD], images: ImageSet, device: torch.device, checkpoints: int) -> int:
    """Choose the images attacked at once: the usual number, or fewer if the iterates would not fit in memory."""
    walk = checkpoints * sum(settings.steps + 1 for settings in attacks) * images.images[0].numel() * 4
    batch = next((settings for settings in attacks if settings.reduction == "mean"), attacks[0])
    return max(1, min(usual_batch_size(batch, device), len(images), _WALK_BYTES // walk))


class _Result:
    """The values of one checkpoint, as rows of the tables."""

    def __init__(
        self,
        of: InputLandscapeMeasurement,
        position: int,
        planes: Sequence[Values],
        values: Sequence[PlaneValues],
        compared: Sequence[Values],
    ) -> None:
        self.of, self.values, options = of, values, of.options
        self.identity = of.subjects[position].identity(of.images.images.name, options.attack)
        shared, drawn = options.plane == "shared", of._drawn(position)
        # For each path: the name of its walker, and the indices of the model and of the attack.
        sources = [(subject.label, place, 0) for place, subject in enumerate(of.subjects)]
        sources = sources[:2] if shared else sources[position : position + 1]
        if options.versus is not None:
            sources = [(name, position, which) for which, name in enumerate(of.attacks)]
        self.walkers = [name for name, _, _ in sources]
        self.losses, self.gradients = (
            [torch.cat([part[f"{fact}-{place}-{which}"] for part in planes]).tolist() for _, place, which in sources]
            for fact in ("losses", "gradients")
        )
        self.paths = torch.cat([part[f"{drawn}-paths"] for part in planes], dim=1).numpy()
        self.fallback = torch.cat([part[f"{drawn}-fallback"] for part in planes])
        self.numbers = of.images.numbers
        self.right = torch.cat([part["right"] for part in compared])
        self.compared = {name: torch.cat([part[name].double() for part in compared]) for name in LANDSCAPE_METRICS}

    def rows(self) -> Rows:
        """Return the rows of each table."""
        return {
            LANDSCAPE: self._landscape,
            PATH: self._path,
            SAMPLES: self._samples,
            SUMMARY: self._summary,
        }

    def facts(self) -> Row:
        """List the images that got a random direction because there was no adversarial one."""
        columns = zip(("first", "second"), self.fallback.T, strict=True)
        return {"random_instead_of_adversarial": {which: self.numbers[lost].tolist() for which, lost in columns}}

    def _images(self) -> Iterator[tuple[Row, int]]:
        """Yield the identity of each image's rows, and its index among the images."""
        labels = self.of.images.images.labels.tolist()
        for place, (index, label) in enumerate(zip(self.numbers.tolist(), labels, strict=True)):
            yield self.identity | {"space": "input", "index": index, "label": label}, place

    def _landscape(self) -> Iterator[Row]:
        axis = coordinates(self.of.options.grid).tolist()
        planes = ((part, place) for part in self.values for place in range(len(part.loss)))
        for (identity, _), (part, place) in zip(self._images(), planes, strict=True):
            columns = [tensor[place].numpy() for tensor in (part.loss, part.margin, part.predicted)]
            for a, *rows in zip(axis, *columns, strict=True):
                for b, loss, difference, predicted in zip(axis, *rows, strict=True):
                    yield identity | {"a": a, "b": b, "loss": loss, "margin": difference, "predicted": predicted}

    def _path(self) -> Iterator[Row]:
        walks = zip(self.walkers, self.paths, self.losses, self.gradients, strict=True)
        for walker, paths, losses, gradients in walks:
            for identity, place in self._images():
                shared = {key: value for key, value in identity.items() if key != "label"} | {"walker": walker}
                steps = zip(paths[place][: len(losses[place])], losses[place], gradients[place], strict=True)
                for step, ((a, b, off), loss, gradient) in enumerate(steps):
                    known = {"gradient": gradient} if step < len(losses[place]) - 1 else {}
                    yield shared | {"step": step, "a": a, "b": b, "off": off, "loss": loss} | known

    def _samples(self) -> Iterator[Row]:
        for name, values in self.compared.items():
            known = {"metric": name, "point": "around", "unit": LANDSCAPE_METRICS[name].unit}
            for identity, place in self._images():
                shared = {key: value for key, value in identity.items() if key != "space"}
                yield shared | known | {"value": float(values[place])}

    def _summary(self) -> Iterator[Row]:
        identity = self.identity | self.of.settings.ball
        subsets = {"all": torch.ones_like(self.right), "correct": self.right, "wrong": ~self.right}
        subsets = {subset: inside for subset, inside in subsets.items() if inside.any()}
        for name, values in self.compared.items():
            for subset, inside in subsets.items():
                defined = values[inside & ~values.isnan()]
                count = len(defined)
                mean = float(defined.mean()) if count else math.nan
                interval = mean_interval(mean, float(defined.std()), count) if count > 1 else None
                if name.startswith("beyond"):  # shares: a mean of eight yes/no values varies at most as much as one
                    interval = wilson_interval(round(float(defined.sum())), count)
                yield summary_row(identity, name, f"around/{subset}", mean, interval, count)

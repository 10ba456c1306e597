"""Measure spectra of the loss's curvature: eigenvalues, traces and densities, in the weights or in the images."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.attacks.transfer import make_examples
from gradscope.distributed.units import Unit, Values, is_out_of_memory
from gradscope.errors import GradscopeError
from gradscope.limits import memory
from gradscope.measure.inputs import Chosen, Entry
from gradscope.measure.options.spectrum import SpectrumOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.inspection import laid_out, measuring, one_line
from gradscope.models.loading import LoadedModel
from gradscope.probes.lanczos import Eigenpairs, Product, Quadrature
from gradscope.probes.spectrum import (
    densities,
    density_grid,
    find_eigenpairs,
    input_matrix,
    is_cut_off,
    layers_of,
    loss_slope,
    masses,
    probe,
    random_signs,
    random_unit,
    weight_matrix,
)
from gradscope.progress import Advance, progress_bar
from gradscope.results.metrics import SPECTRUM_METRICS
from gradscope.results.schemas import DENSITY, EIGENVALUES, SAMPLES, SPECTRUM
from gradscope.results.stats import UNDEFINED, Interval, jackknife_interval, mean_interval, wilson_interval
from gradscope.seeding import generator, seeded

#: The default number of images per batch of second derivatives, whose graph must fit in memory.
_BATCH = 64
#: The block of all parameters together, without a name.
_WHOLE = ("", slice(None))

#: The fields of a quadrature that pieces hold.
_QUADRATURE = tuple(field.name for field in fields(Quadrature))

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one matrix in weight space (N = 1), or of N matrices in input space.

    ``values``, ``residuals`` ``(N, k)``; ``quadratures``: one for each random vector; ``traces`` ``(V, N, P)``: by
    random vector, matrix and part of the diagonal.
    """

    values: Tensor
    residuals: Tensor
    quadratures: Sequence[Quadrature]
    traces: Tensor


class SpectrumMeasurement(Measurement[SpectrumOptions]):
    """``gradscope spectrum``: the spectrum of every model and matrix, in the weights or in the image."""

    subjects: list[LoadedModel]
    images: Chosen

    def read(self) -> Sequence[Entry]:
        """Load all models on the same images."""
        references = self.inputs.references()
        test = self.inputs.one_data_set(references, "spectrum").test
        self.subjects = [self.inputs.load(reference, test) for reference in references]
        self.images = self.inputs.choose(test, self.options.images, "images")
        for subject in self.subjects:
            self._require_second_derivatives(subject)
        return [Entry(reference, self.images) for reference in references]

    @property
    def batch_size(self) -> int:
        """The number of images per batch of second derivatives."""
        return self.options.batch_size or _BATCH

    def _require_second_derivatives(self, subject: LoadedModel) -> None:
        """Raise :class:`GradscopeError` if the matrices have no products, or their vectors do not fit in memory."""
        model, options = subject.model, self.options
        images, labels = self.images.images.batch(torch.arange(1), self.device)
        images, size = laid_out(images), images.numel()
        if options.space == "weights":
            size = sum(parameter.numel() for parameter in model.parameters())
            if not size:
                raise GradscopeError(
                    f"space must be input for a model without parameters, got weights of {subject.label}"
                )
            self._require_memory(size, subject.label)
        why = None
        try:
            with measuring(model):
                if is_cut_off(loss_slope(model, images, labels, of_weights=options.space == "weights")):
                    why = "a function of it can be differentiated only once"
                for matrix in options.matrices:
                    product = (
                        weight_matrix(model, [(images, labels)], matrix=matrix)
                        if options.space == "weights"
                        else input_matrix(model, images, labels, matrix=matrix)
                    )
                    product(torch.zeros(1, size, device=self.device))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            why = one_line(error)
        if why is not None:
            raise GradscopeError(f"model must have second derivatives, got {subject.label}: {why}")

    def _require_memory(self, size: int, label: str) -> None:
        """Raise :class:`GradscopeError` if the vectors of one Lanczos run do not fit in memory."""
        vectors = min(self.options.iterations, size) + self.options.eigenvalues + 4
        there = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else memory()
        if there is not None and 4 * vectors * size > there:
            most = there // (4 * size) - self.options.eigenvalues - 4
            raise GradscopeError(
                f"iterations must be at most {max(0, most)} for {label}, as each keeps a vector of its {size:,} "
                f"parameters ({4 * size / 2**30:.2g} GiB), got {self.options.iterations}"
            )

    def described(self) -> Row:
        """Describe space, matrices, and the numbers of images, random vectors and products for the manifest."""
        options = self.options
        return options.resolved() | {
            "spectrum": {
                "space": options.space,
                "images": len(self.images.images),
                "probes": options.probes,
                "iterations": options.iterations,
                "eigenvalues": options.eigenvalues,
                "layers": options.layers,
            },
            "batch_size": self.batch_size,
        }

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model."""
        find = self._of_weights if self.options.space == "weights" else self._of_images
        with progress_bar("spectrum", self._products, "products", visible=self.team.is_first) as advance:
            for position, subject in enumerate(self.subjects):
                started = time.perf_counter()
                batches = self._batches(subject, kept, f"{position}")
                spectra = {
                    key: spectrum
                    for number, matrix in enumerate(self.options.matrices)
                    for key, spectrum in find(subject, batches, matrix, kept, f"{position}-{number}", advance)
                }
                rows = _Rows(self, subject, spectra)
                tables = {SPECTRUM: rows.numbers, EIGENVALUES: rows.eigenvalues, DENSITY: rows.densities}
                if self.options.space == "input":
                    tables[SAMPLES] = rows.samples
                facts: Row = {"seconds": time.perf_counter() - started}
                if self.options.space == "weights":
                    frozen = (value.numel() for value in subject.model.parameters() if not value.requires_grad)
                    facts["frozen_parameters"] = sum(frozen)
                yield Part(position, tables, facts)

    @property
    def _products(self) -> int:
        """The maximum number of products with a vector: of each block in weight space, of each image in input space."""
        options = self.options
        blocks = sum(1 + len(layers_of(subject.model)) * options.layers for subject in self.subjects)
        count = blocks if options.space == "weights" else len(self.subjects) * len(self.images.images)
        return len(options.matrices) * count * (1 + options.probes) * options.iterations

    def _batches(self, subject: LoadedModel, kept: PartialResults, name: str) -> Batches:
        """Load the images, or make their adversarial examples; with labels, on the device."""
        chosen, settings = self.images, self.options.settings
        parts = torch.arange(len(chosen.images)).split(self.batch_size)
        batches = [chosen.images.batch(part, self.device) for part in parts]
        if settings is not None:
            work = self.work(kept.each, lambda done, note: None).prefixed(name)
            examples = make_examples(subject.model, chosen.images, settings, numbers=chosen.numbers, work=work)
            batches = [
                (examples[part].to(images), labels) for part, (images, labels) in zip(parts, batches, strict=True)
            ]
        return [(laid_out(images), labels) for images, labels in batches]

    def _of_weights(
        self, subject: LoadedModel, batches: Batches, matrix: str, kept: PartialResults, name: str, advance: Advance
    ) -> Iterator[tuple[tuple[str, str], Spectrum]]:
        """Yield the spectrum of all parameters together, then of each layer's block if requested."""
        options, model = self.options, subject.model
        layers = layers_of(model)
        blocks = [_WHOLE, *(layers.items() if options.layers else ())]
        for number, (layer, part) in enumerate(blocks):
            note = f"{subject.label} {matrix} {layer}".rstrip()
            counter = _ProductCounter(advance, note, (1 + options.probes) * options.iterations)
            product = weight_matrix(model, batches, matrix=matrix, part=part, advanced=counter.one)
            size = sum(parameter.numel() for parameter in model.parameters()) if not layer else part.stop - part.start
            parts = [slice(None)] if layer else list(layers.values())
            yield (matrix, layer), self._weight_spectrum(model, product, size, layer, parts, kept, f"{name}-{number}")
            counter.all()

    def _weight_spectrum(
        self,
        model: nn.Module,
        product: Product,
        size: int,
        layer: str,
        parts: list[slice],
        kept: PartialResults,
        name: str,
    ) -> Spectrum:
        """Compute the spectrum of one block: eigenvalues, then random vector by random vector, as pieces ``name``."""
        options, seed = self.options, self.options.seed

        def search() -> Values:
            start = random_unit((1, size), seed, "eigenvalues", layer).to(self.device)
            with measuring(model):
                pairs, _ = find_eigenpairs(
                    *(product, start, generator(seed, "beyond eigenvalues", layer)),
                    count=options.eigenvalues,
                    most=options.iterations,
                )
            return {"values": pairs.values, "residuals": pairs.residuals, "vectors": pairs.vectors}

        (piece,) = self._each(kept, [(f"{name}-eigenvalues", search)])
        known = Eigenpairs(piece["values"], piece["residuals"], piece["vectors"].to(self.device))

        def probe_once(number: int) -> Values:
            signs = random_signs((1, size), seed, "probe", layer, number).to(self.device)
            with measuring(model):
                probed = probe(
                    *(product, signs, generator(seed, "beyond probe", layer, number)),
                    most=options.iterations,
                    parts=parts,
                    known=known,
                )
            return {**vars(probed.quadrature), "traces": probed.traces}

        units: list[Unit] = [
            (f"{name}-probe-{number:04d}", partial(probe_once, number)) for number in range(options.probes)
        ]
        pieces = list(self._each(kept, units))
        quadratures = [Quadrature(*(values[name] for name in _QUADRATURE)) for values in pieces]
        traces = torch.stack([values["traces"] for values in pieces])
        return Spectrum(known.values, known.residuals, quadratures, traces)

    def _of_images(
        self, subject: LoadedModel, batches: Batches, matrix: str, kept: PartialResults, name: str, advance: Advance
    ) -> Iterator[tuple[tuple[str, str], Spectrum]]:
        """Yield the spectra of all images' own matrices; a batch of images is a unit of work."""
        numbers = self.images.numbers.split(self.batch_size)
        units = [
            (f"{name}-{place}", partial(self._image_spectra, subject.model, *batch, matrix, named))
            for place, (batch, named) in enumerate(zip(batches, numbers, strict=True))
        ]
        options, pieces = self.options, []
        for (images, _), unit in zip(batches, self._each(kept, units), strict=True):
            pieces.append(unit)
            advance(len(images) * (1 + options.probes) * options.iterations, f"{subject.label} {matrix}")
        quadratures = []
        for number in range(options.probes):
            # Batches may stop after fewer products; padding with nodes of weight 0 changes nothing.
            parts = (
                nn.utils.rnn.pad_sequence([row for one in pieces for row in one[f"{name}-{number}"]], batch_first=True)
                for name in _QUADRATURE
            )
            quadratures.append(Quadrature(*parts))
        values, residuals = (torch.cat([unit[field] for unit in pieces]) for field in ("values", "residuals"))
        traces = torch.cat([unit["traces"] for unit in pieces], dim=1)
        yield (matrix, ""), Spectrum(values, residuals, quadratures, traces)

    def _image_spectra(self, model: nn.Module, images: Tensor, labels: Tensor, matrix: str, numbers: Tensor) -> Values:
        options, seed = self.options, self.options.seed
        size = images[0].numel()
        streams = [generator(seed, "image", number) for number in numbers.tolist()]

        def drawn(draw: Callable[[torch.Generator], Tensor]) -> Tensor:
            return torch.stack([draw(stream) for stream in streams]).to(images)

        with measuring(model):
            product = input_matrix(model, images, labels, matrix=matrix)
            start = drawn(lambda stream: torch.randn(size, generator=stream))
            count = min(options.eigenvalues, size)
            pairs, _ = find_eigenpairs(
                *(product, start / start.norm(dim=1, keepdim=True), generator(seed, "beyond", int(numbers[0]))),
                count=count,
                most=options.iterations,
            )
            values: Values = {"values": pairs.values, "residuals": pairs.residuals}
            traces = []
            for number in range(options.probes):
                signs = drawn(lambda stream: torch.randint(0, 2, (size,), generator=stream).float() * 2 - 1)
                stream = generator(seed, "beyond probe", number, int(numbers[0]))
                probed = probe(product, signs, stream, most=options.iterations, known=pairs)
                values |= {f"{name}-{number}": part for name, part in vars(probed.quadrature).items()}
                traces.append(probed.traces)
        return values | {"traces": torch.stack(traces)}

    def _each(self, kept: PartialResults, units: Sequence[Unit]) -> Iterator[Values]:
        """Yield the units through the saved pieces; each unit has its own random stream, whichever rank computes it."""

        def drawing(name: str, make: Callable[[], Values]) -> Values:
            with seeded(self.options.seed, name):
                return make()

        return kept.each([(name, partial(drawing, name, make)) for name, make in units])


class _ProductCounter:
    """Advances a progress bar by products; at the end also by those that were not needed or came from a file."""

    def __init__(self, advance: Advance, note: str, most: int) -> None:
        self._advance, self._note, self._left = advance, note, most

    def one(self) -> None:
        """Count one product."""
        self._left -= 1
        self._advance(1, self._note)

    def all(self) -> None:
        """Count all remaining products, which will not run."""
        self._advance(max(0, self._left), self._note)


class _Rows:
    """The spectra of one model, as rows of the tables."""

    def __init__(
        self, of: SpectrumMeasurement, subject: LoadedModel, found: Mapping[tuple[str, str], Spectrum]
    ) -> None:
        self.of, self.found = of, found
        self.identity = subject.identity(of.images.images.name, of.options.attacked_with)
        settings = of.options.settings
        self.ball = {} if settings is None else settings.ball
        self.layers = list(layers_of(subject.model))

    def _matrices(self) -> Iterator[tuple[Row, Spectrum]]:
        for (matrix, layer), spectrum in self.found.items():
            yield self.identity | {"space": self.of.options.space, "matrix": matrix, "layer": layer}, spectrum

    def numbers(self) -> Iterator[Row]:
        """Yield the rows of SPECTRUM."""
        by_image = self.of.options.space == "input"
        own = {layer for _, layer in self.found}
        for identity, spectrum in self._matrices():
            identity = identity | self.ball
            if by_image:
                yield from self._of_images(identity, spectrum)
                continue
            for metric, values in (("eigenvalue", spectrum.values), ("residual", spectrum.residuals)):
                yield _row(identity, metric, float(values[0, 0]), math.nan, UNDEFINED, 1)
            traces = spectrum.traces[:, 0]
            yield _mean_row(identity, "trace", traces.sum(dim=1))
            yield _negative_mass(identity, torch.cat([masses(one) for one in spectrum.quadratures]))
            if traces.shape[1] > 1:
                for layer, shares in zip(self.layers, traces.T, strict=True):
                    if layer not in own:
                        yield _mean_row(identity | {"layer": layer}, "trace", shares)

    def _of_images(self, identity: Row, spectrum: Spectrum) -> Iterator[Row]:
        flat = (spectrum.values.abs() <= spectrum.residuals).all(dim=1)
        for metric, values in (("eigenvalue", spectrum.values.abs()), ("residual", spectrum.residuals)):
            yield _mean_row(identity, metric, values[:, 0])
        yield _mean_row(identity, "trace", spectrum.traces.sum(dim=2).mean(dim=0))
        yield _negative_mass(identity, torch.stack([masses(one) for one in spectrum.quadratures]).mean(dim=0))
        n = len(flat)
        yield _row(identity, "flat", int(flat.sum()) / n, math.nan, wilson_interval(int(flat.sum()), n), n)

    def eigenvalues(self) -> Iterator[Row]:
        """Yield the rows of EIGENVALUES."""
        by_image = self.of.options.space == "input"
        for identity, spectrum in self._matrices():
            for place, (values, residuals) in enumerate(
                zip(spectrum.values.tolist(), spectrum.residuals.tolist(), strict=True)
            ):
                index = {"index": int(self.of.images.numbers[place])} if by_image else {}
                for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), start=1):
                    yield identity | index | {"rank": rank, "value": value, "residual": residual}

    def samples(self) -> Iterator[Row]:
        """Yield the rows of SAMPLES: each image's largest absolute eigenvalue (0 if it is rounding error) and trace."""
        labels = self.of.images.images.labels.tolist()
        point = "final" if self.of.options.adversarial else "clean"
        for identity, spectrum in self._matrices():
            known = {key: value for key, value in identity.items() if key in self.identity}
            traces = spectrum.traces.sum(dim=2).mean(dim=0)
            largest = spectrum.values[:, 0].abs()
            largest = torch.where(largest > spectrum.residuals[:, 0], largest, 0.0)
            for metric, values in (("eigenvalue", largest), ("trace", traces)):
                of = {"metric": f"{identity['matrix']}-{metric}", "unit": SPECTRUM_METRICS[metric].unit, "point": point}
                for index, label, value in zip(self.of.images.numbers.tolist(), labels, values.tolist(), strict=True):
                    yield known | of | {"index": index, "label": label, "value": value}

    def densities(self) -> Iterator[Row]:
        """Yield the rows of DENSITY."""
        for identity, spectrum in self._matrices():
            grid, width = density_grid(spectrum.quadratures)
            each = np.stack([densities(one, grid, width) for one in spectrum.quadratures])
            each = each.mean(axis=0) if self.of.options.space == "input" else each[:, 0]
            mean = each.mean(axis=0)
            half = mean_interval(0.0, 1.0, len(each)).high * (each.std(axis=0, ddof=1) if len(each) > 1 else math.nan)
            low, high = np.maximum(mean - half, 0.0), mean + half
            columns = zip(*(column.tolist() for column in (grid, mean, low, high)), strict=True)
            for values in columns:
                yield identity | dict(zip(("eigenvalue", "density", "ci_low", "ci_high"), values, strict=True))


def _mean_row(identity: Row, metric: str, values: Tensor) -> Row:
    """Make the row of the mean of ``values`` ``(n,)``, with standard error and Student t interval."""
    n = len(values)
    mean = float(values.double().mean()) if n else math.nan
    std = float(values.double().std()) if n > 1 else math.nan
    return _row(identity, metric, mean, std / math.sqrt(n) if n > 1 else math.nan, mean_interval(mean, std, n), n)


def _negative_mass(identity: Row, found: Tensor) -> Row:
    """Make the row of the negative mass from ``found`` ``(n, 2)`` of all vectors or images; jackknife interval."""
    total = found.sum(dim=0)
    value = float(total[0] / total[1])
    others = total - found
    interval = jackknife_interval(value, (others[:, 0] / others[:, 1]).tolist())
    return _row(identity, "negative-mass", value, math.nan, interval, len(found))


def _row(identity: Row, metric: str, value: float, error: float, interval: Interval, n: int) -> Row:
    known = SPECTRUM_METRICS[metric]
    interval = interval.within(known.low, known.high)
    columns = {"metric": metric, "unit": known.unit, "value": value, "error": error}
    return identity | columns | {"ci_low": interval.low, "ci_high": interval.high, "n": n}

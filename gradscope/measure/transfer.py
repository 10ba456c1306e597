"""Measure transfer: make examples on each model, and evaluate them on every model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import nan

import numpy as np
import torch
from torch import Tensor

from gradscope.attacks.outcome import count_blind
from gradscope.attacks.pgd import Blindness, threat_model, usual_batch_size
from gradscope.attacks.transfer import Transfer, make_examples, transfer
from gradscope.distributed.units import Values, prefixed
from gradscope.measure.inputs import Entry, largest_image
from gradscope.measure.options import TransferOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.probes.similarity import gradient_cosines, relative_curvature
from gradscope.progress import Advance, progress_bar
from gradscope.results.metrics import SIMILARITY_METRICS
from gradscope.results.schemas import SIMILARITY, TRANSFER, TRANSFER_SAMPLES
from gradscope.results.stats import Interval, mean_interval, median_interval, wilson_interval
from gradscope.seeding import seeded

#: The maximum number of images for the curvature; an image takes about as long as forty steps of PGD.
CURVED = 100


class TransferMeasurement(Measurement[TransferOptions]):
    """``gradscope transfer``."""

    subjects: list[LoadedModel]

    def read(self) -> Sequence[Entry]:
        """Load all models on one data set."""
        references = self.inputs.references()
        test = self.inputs.one_data_set(references, "transfer").test
        self.subjects = [self.inputs.load(reference, test) for reference in references]
        chosen = self.inputs.choose(test, self.options.samples, "samples")
        return [Entry(reference, chosen) for reference in references]

    def described(self) -> Row:
        """Describe the attack and the batch size for the manifest."""
        return self.options.resolved() | {"batch_size": self.batch_size}

    @property
    def batch_size(self) -> int:
        """The number of images attacked at once."""
        return self.options.batch_size or usual_batch_size(
            self.options.settings, self.device, largest_image(self.entries)
        )

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part with the whole matrix, then one part for each model."""
        images = self.entries[0].chosen.images
        curved = torch.arange(min(CURVED, len(images)))
        wanted = len(self.subjects) * (3 * len(images) + len(curved))
        with progress_bar("transfer", wanted, visible=self.team.is_first) as advance:
            blindness = {subject.label: Blindness(len(images)) for subject in self.subjects}
            result = self._judge(kept, advance, blindness)
            cosines = self._cosines(kept, advance)
            curvatures = [
                self._curvatures(kept, advance, curved, place, subject) for place, subject in enumerate(self.subjects)
            ]
        rows = {
            TRANSFER: partial(self._rows, result),
            TRANSFER_SAMPLES: partial(self._sample_rows, result),
            SIMILARITY: partial(self._similarity_rows, cosines, curvatures),
        }
        yield Part(None, rows)

        for place, noted in enumerate(blindness.values()):
            assert noted.worst is not None
            yield Part(place, facts={"gradients": {self.options.attack: count_blind(noted.worst)}})

    def _judge(self, kept: PartialResults, advance: Advance, blindness: Mapping[str, Blindness]) -> Transfer:
        """Make or load the examples of each model, and evaluate them on every model.

        ``blindness`` records the gradients on each.
        """
        chosen = self.entries[0].chosen

        def examples_of(place: int, subject: LoadedModel) -> Tensor:
            return make_examples(
                subject.model,
                chosen.images,
                self.options.settings,
                numbers=chosen.numbers,
                seen=blindness[subject.label],
                work=self.work(
                    prefixed(kept.each, str(place)), lambda done, note: advance(done, f"attacking {subject.label}")
                ),
            )

        examples = {subject.label: examples_of(place, subject) for place, subject in enumerate(self.subjects)}
        models = {subject.label: subject.model for subject in self.subjects}
        return transfer(
            models,
            chosen.images,
            examples,
            threat_model(self.options.settings),
            numbers=chosen.numbers,
            work=self.work(self.team.each, lambda done, target: advance(done, f"judging on {target}")),
        )

    def _cosines(self, kept: PartialResults, advance: Advance) -> Tensor:
        """Compute the cosines of the gradients of every two of M models at N images, ``(M, M, N)``."""
        chosen, models = self.entries[0].chosen, [subject.model for subject in self.subjects]

        def compare(indices: Tensor) -> Values:
            images, labels = chosen.images.batch(indices, self.device)
            with seeded(self.options.seed, "similarity", *chosen.numbers[indices].tolist()):
                return {"cosines": gradient_cosines(models, images, labels)}

        everyone = torch.arange(len(chosen.images))
        parts = self._in_batches(kept, "similarity", everyone, compare, lambda done: advance(len(models) * done, ""))
        return torch.cat([part["cosines"] for part in parts], dim=2)

    def _curvatures(
        self, kept: PartialResults, advance: Advance, curved: Tensor, place: int, subject: LoadedModel
    ) -> Tensor:
        """Compute the curvature ``(N,)`` of a model's loss in the images at ``curved`` ``(N,)``."""
        chosen = self.entries[0].chosen

        def measure(indices: Tensor) -> Values:
            images, labels = chosen.images.batch(indices, self.device)
            numbers = chosen.numbers[indices]
            with seeded(self.options.seed, "curvature", *numbers.tolist()):
                curvatures = relative_curvature(subject.model, images, labels, numbers=numbers, seed=self.options.seed)
                return {"curvatures": curvatures}

        parts = self._in_batches(
            kept, f"{place}-curvature", curved, measure, lambda done: advance(done, f"curvature of {subject.label}")
        )
        return torch.cat([part["curvatures"] for part in parts])

    def _in_batches(
        self,
        kept: PartialResults,
        name: str,
        wanted: Tensor,
        make: Callable[[Tensor], Values],
        done: Callable[[int], None],
    ) -> Iterator[Values]:
        """Yield ``make`` of each batch of the images at ``wanted``, as a unit of work; ``done`` counts images."""
        batches = wanted.split(self.batch_size)
        units = [(f"{name}-{int(indices[0]):06d}", partial(make, indices)) for indices in batches]
        for indices, values in zip(batches, kept.each(units), strict=True):
            yield values
            done(len(indices))

    def _similarity_rows(self, cosines: Tensor, curvatures: Sequence[Tensor]) -> Iterator[Row]:
        """Yield the cosines of every two models, including a model with itself; then each model's curvature."""
        for place, other in enumerate(self.subjects):
            for at, subject in enumerate(self.subjects):
                values = cosines[place, at]
                finite = values[values.isfinite()]
                n, mean = len(finite), float(finite.mean()) if len(finite) else nan
                std = float(finite.std()) if n > 1 else nan
                interval = mean_interval(mean, std, n).within(-1, 1)
                yield self._similarity_row(other.label, subject, "gradient-cosine", mean, interval, values)
        for subject, values in zip(self.subjects, curvatures, strict=True):
            finite_values = values[values.isfinite()].double().numpy()
            median = float(np.median(finite_values)) if len(finite_values) else nan
            interval = median_interval(finite_values.tolist())
            yield self._similarity_row("", subject, "relative-curvature", median, interval, values)

    def _similarity_row(
        self, other: str, subject: LoadedModel, metric: str, value: float, interval: Interval, values: Tensor
    ) -> Row:
        n = int(values.isfinite().sum())
        return {
            "other": other,
            **subject.identity(self.entries[0].chosen.images.name, "none"),
            "metric": metric,
            "unit": SIMILARITY_METRICS[metric].unit,
            "value": value,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "n": n,
            "undefined": len(values) - n,
        }

    def _rows(self, result: Transfer) -> Iterator[Row]:
        """Yield the rows of TRANSFER: the clean images of every target first, then source by source."""
        ball = self.options.settings.ball
        for identity, right in self._cells(result):
            count, n = int(right.sum()), len(right)
            low, high = wilson_interval(count, n)
            yield {**identity, **ball, "accuracy": count / n, "ci_low": low, "ci_high": high, "n": n}

    def _sample_rows(self, result: Transfer) -> Iterator[Row]:
        for identity, right in self._cells(result):
            of_point = {"metric": "accuracy", "point": "final" if identity["source"] else "clean", "unit": "-"}
            columns = result.numbers.tolist(), result.labels.tolist(), right.tolist()
            for index, label, value in zip(*columns, strict=True):
                yield identity | of_point | {"index": index, "label": label, "value": float(value)}

    def _cells(self, result: Transfer) -> Iterator[tuple[Row, Tensor]]:
        """Yield source and target, and which images the target gets right; the clean images have no source."""
        data = self.entries[0].chosen.images.name
        for place, target in enumerate(self.subjects):
            yield {"source": "", **target.identity(data, "none")}, result.clean[place]
        for source in result.sources:
            for target in self.subjects:
                identity = target.identity(data, self.options.attack)
                yield {"source": source, **identity}, result.of(source, target.label)

"""Transfer: examples made on each model, judged on every other and on itself."""

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

#: Of how many images the curvature is taken, at most: an image takes about as long as forty steps of PGD.
CURVED = 100


class TransferMeasurement(Measurement[TransferOptions]):
    """``gradscope transfer``."""

    subjects: list[LoadedModel]

    def read(self) -> Sequence[Entry]:
        """All models on one data set."""
        references = self.inputs.references()
        test = self.inputs.one_data_set(references, "transfer").test
        self.subjects = [self.inputs.load(reference, test) for reference in references]
        chosen = self.inputs.choose(test, self.options.samples, "samples")
        return [Entry(reference, chosen) for reference in references]

    def described(self) -> Row:
        """The attack and how many images are attacked at once."""
        return self.options.resolved() | {"batch_size": self.batch_size}

    @property
    def batch_size(self) -> int:
        """Images attacked at once."""
        return self.options.batch_size or usual_batch_size(
            self.options.settings, self.device, largest_image(self.entries)
        )

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Everything at once: a cell of the matrix is nothing without the others."""
        images = self.entries[0].chosen.images
        curved = torch.arange(min(CURVED, len(images)))
        wanted = len(self.subjects) * (3 * len(images) + len(curved))
        with progress_bar("transfer", wanted, visible=self.team.is_first) as advance:
            seen = {subject.label: Blindness(len(images)) for subject in self.subjects}
            found = self._judge(kept, advance, seen)
            cosines = self._cosines(kept, advance)
            curvatures = [
                self._curvatures(kept, advance, curved, place, one) for place, one in enumerate(self.subjects)
            ]
        rows = {
            TRANSFER: partial(self._rows, found),
            TRANSFER_SAMPLES: partial(self._sample_rows, found),
            SIMILARITY: partial(self._similarity_rows, cosines, curvatures),
        }
        yield Part(None, rows)

        for place, noted in enumerate(seen.values()):
            assert noted.worst is not None
            yield Part(place, facts={"gradients": {self.options.attack: count_blind(noted.worst)}})

    def _judge(self, kept: PartialResults, advance: Advance, seen: Mapping[str, Blindness]) -> Transfer:
        """The examples of each model, from their files or made, and what every model makes of them.

        ``seen`` notes the gradients of each.
        """
        chosen = self.entries[0].chosen

        def examples_of(place: int, subject: LoadedModel) -> Tensor:
            return make_examples(
                subject.model,
                chosen.images,
                self.options.settings,
                numbers=chosen.numbers,
                seen=seen[subject.label],
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
        """Cosines of the gradients of every two of M models at N images, ``(M, M, N)``."""
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
        """Curvatures of a model's loss in the images at ``curved`` ``(N,)``, ``(N,)``."""
        chosen = self.entries[0].chosen

        def bend(indices: Tensor) -> Values:
            images, labels = chosen.images.batch(indices, self.device)
            numbers = chosen.numbers[indices]
            with seeded(self.options.seed, "curvature", *numbers.tolist()):
                found = relative_curvature(subject.model, images, labels, numbers=numbers, seed=self.options.seed)
                return {"curvatures": found}

        parts = self._in_batches(
            kept, f"{place}-curvature", curved, bend, lambda done: advance(done, f"curvature of {subject.label}")
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
        """What is made of each batch of the images at ``wanted``, which is a unit of work; ``done`` counts images."""
        batches = wanted.split(self.batch_size)
        units = [(f"{name}-{int(indices[0]):06d}", partial(make, indices)) for indices in batches]
        for indices, values in zip(batches, kept.each(units), strict=True):
            yield values
            done(len(indices))

    def _similarity_rows(self, cosines: Tensor, curvatures: Sequence[Tensor]) -> Iterator[Row]:
        """The cosines of every two models, each with itself too; then each model's curvature."""
        for place, other in enumerate(self.subjects):
            for at, subject in enumerate(self.subjects):
                values = cosines[place, at]
                kept = values[values.isfinite()]
                n, mean = len(kept), float(kept.mean()) if len(kept) else nan
                std = float(kept.std()) if n > 1 else nan
                interval = mean_interval(mean, std, n).within(-1, 1)
                yield self._similarity_row(other.label, subject, "gradient-cosine", mean, interval, values)
        for subject, values in zip(self.subjects, curvatures, strict=True):
            known = values[values.isfinite()].double().numpy()
            median = float(np.median(known)) if len(known) else nan
            interval = median_interval(known.tolist())
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

    def _rows(self, found: Transfer) -> Iterator[Row]:
        """The clean images of every target first, then source by source."""
        ball = self.options.settings.ball
        for identity, right in self._cells(found):
            count, n = int(right.sum()), len(right)
            low, high = wilson_interval(count, n)
            yield {**identity, **ball, "accuracy": count / n, "ci_low": low, "ci_high": high, "n": n}

    def _sample_rows(self, found: Transfer) -> Iterator[Row]:
        for identity, right in self._cells(found):
            of_point = {"metric": "accuracy", "point": "final" if identity["source"] else "clean", "unit": "-"}
            columns = found.numbers.tolist(), found.labels.tolist(), right.tolist()
            for index, label, value in zip(*columns, strict=True):
                yield identity | of_point | {"index": index, "label": label, "value": float(value)}

    def _cells(self, found: Transfer) -> Iterator[tuple[Row, Tensor]]:
        """Whose examples on which model, and which images it gets right; the clean images have no source."""
        data = self.entries[0].chosen.images.name
        for place, target in enumerate(self.subjects):
            yield {"source": "", **target.identity(data, "none")}, found.clean[place]
        for source in found.sources:
            for target in self.subjects:
                identity = target.identity(data, self.options.attack)
                yield {"source": source, **identity}, found.of(source, target.label)

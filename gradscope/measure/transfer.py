"""Transfer: examples made on each model, judged on every other and on itself."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from gradscope.attacks.outcome import count_blind
from gradscope.attacks.pgd import Blindness, threat_model, usual_batch_size
from gradscope.attacks.transfer import Transfer, make_examples, transfer
from gradscope.distributed.units import prefixed
from gradscope.measure.inputs import Entry, largest_image
from gradscope.measure.options import TransferOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.progress import Advance, progress_bar
from gradscope.results.schemas import TRANSFER, TRANSFER_SAMPLES
from gradscope.results.stats import wilson_interval


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
        wanted = 2 * len(self.subjects) * len(images)
        with progress_bar("transfer", wanted, visible=self.team.is_first) as advance:
            seen = {subject.label: Blindness(len(images)) for subject in self.subjects}
            found = self._judge(kept, advance, seen)
        yield Part(None, {TRANSFER: partial(self._rows, found), TRANSFER_SAMPLES: partial(self._sample_rows, found)})

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

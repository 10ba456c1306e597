"""Measure attacks: a set of attacks on each model, at one radius or several, saved by attack and batch."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from gradscope.attacks.distances import Distances, measure_distances
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.pgd import usual_batch_size
from gradscope.attacks.threat import ThreatModel
from gradscope.measure.adversarial_images import Arrays, felled_images, rescore, write_images
from gradscope.measure.directory import IMAGES
from gradscope.measure.inputs import Entry, largest_image
from gradscope.measure.models import (
    describe_surrogates,
    read_entries,
    require_one_shape,
    surrogate_examples,
    unit_prefix,
)
from gradscope.measure.options import AttackOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.progress import Advance, progress_bar
from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS, CURVE, Table


class AttackMeasurement(Measurement[AttackOptions]):
    """``gradscope attack``."""

    def read(self) -> Sequence[Entry]:
        """Load every model on its own data set, with its surrogates."""
        entries = read_entries(self.inputs, self.options.surrogate, self.options.samples)
        if self.options.save_images:
            require_one_shape(entries, "save_images")
        return entries

    def described(self) -> Row:
        """Describe attacks, radii, budget and surrogates for the manifest."""
        shared = {"batch_size": self.batch_size, "surrogates": describe_surrogates(self.entries)}
        return self.options.resolved() | shared

    @property
    def batch_size(self) -> int:
        """The number of images attacked at once."""
        return self.options.batch_size or usual_batch_size(None, self.device, largest_image(self.entries))

    def depends(self) -> Row:
        """Record whether the pieces hold the adversarial images."""
        return {"save_images": self.options.save_images}

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model, and one with the check of its saved images."""
        saved: list[Arrays] = []
        for position, entry in enumerate(self.entries):
            started = time.perf_counter()
            subject = self.inputs.attacked(entry.reference, entry.chosen.images)
            outcomes = [self._at(subject, entry, epsilon, kept) for epsilon in self.options.balls.radii]
            distances = self._distances(subject, entry, kept) if self.options.curve else None
            files = {}
            if self.options.save_images:
                saved += [felled_images(subject.label, outcome, entry.chosen) for outcome in outcomes]
                files[IMAGES] = partial(write_images, parts=saved)
            identity = subject.identity(entry.chosen.images.name, "")
            rows: dict[Table, Callable[[], Iterable[Row]]] = {
                ATTACKS: partial(_attack_rows, outcomes, identity),
                ATTACK_SAMPLES: partial(_sample_rows, outcomes, identity),
            }
            facts: Row = {
                "seconds": time.perf_counter() - started,
                "skipped": dict(outcomes[0].skipped),
                "gradients": _gradients(outcomes),
            }
            if distances is not None:
                facts |= {"skipped": facts["skipped"] | distances.outcome.skipped, "not_fooled": distances.not_fooled}
            if distances is not None and distances.found:
                rows[CURVE] = partial(distances.curve_rows, identity)
                rows[ATTACK_SAMPLES] = partial(_sample_rows, [*outcomes, distances], identity)
            yield Part(position, rows, facts, files)
            if self.options.save_images and self.team.is_first:
                rescored = rescore(self.out / IMAGES, entry, self.inputs, self.batch_size // 2 + 1)
                yield Part(position, facts={"rescored": rescored})

    def _distances(self, subject: LoadedModel, entry: Entry, kept: PartialResults) -> Distances:
        """Measure the distance of each image's nearest fooling point."""
        options, images = self.options, entry.chosen.images
        with progress_bar(f"{subject.label} distances", len(images), "images", visible=self.team.is_first) as advance:
            prefix = f"{unit_prefix(entry, subject.label, ThreatModel(options.norm, 0.0))}-distances"
            work = self.work(kept.each, advance).prefixed(prefix)
            return measure_distances(
                subject.model, images, options.norm, options.budget, numbers=entry.chosen.numbers, work=work
            )

    def _at(self, subject: LoadedModel, entry: Entry, epsilon: float, kept: PartialResults) -> Outcome:
        """Evaluate the attacks at one radius."""
        options = self.options
        wanted = len(entry.chosen.images) * (len(options.names) + len(entry.surrogates))
        title = f"{subject.label} {options.norm} {epsilon:.4g}"
        with progress_bar(title, wanted, visible=self.team.is_first) as advance:
            outcome = self._run(subject, entry, ThreatModel(options.norm, epsilon), kept, advance)
        return outcome if options.save_images else _without_images(outcome)

    def _run(
        self, subject: LoadedModel, entry: Entry, threat: ThreatModel, kept: PartialResults, advance: Advance
    ) -> Outcome:
        options, work = self.options, self.work(kept.each, advance)
        return evaluate(
            subject.model,
            entry.chosen.images,
            options.names,
            threat,
            options.budget,
            numbers=entry.chosen.numbers,
            examples=surrogate_examples(entry, self.inputs, threat, options.budget, work),
            cascade=options.cascade,
            keep_images=options.save_images,
            loss=self.inputs.loss(entry.chosen.images),
            work=work.prefixed(unit_prefix(entry, subject.label, threat)),
        )


def _attack_rows(outcomes: Iterable[Outcome], identity: Row) -> Iterator[Row]:
    for outcome in outcomes:
        yield from outcome.attack_rows(identity)


def _sample_rows(outcomes: Iterable[Outcome | Distances], identity: Row) -> Iterator[Row]:
    for outcome in outcomes:
        yield from outcome.sample_rows(identity)


def _gradients(outcomes: Sequence[Outcome]) -> Row:
    """Collect each attack's counts of zero and not finite gradients, per radius if there are several."""
    if len(outcomes) == 1:
        return outcomes[0].blind
    return {
        f"{name} at {outcome.threat.epsilon:.4g}": seen for outcome in outcomes for name, seen in outcome.blind.items()
    }


def _without_images(outcome: Outcome) -> Outcome:
    """Drop the adversarial images, which would fill the memory."""
    attacks = {name: replace(attack, adversarial=None) for name, attack in outcome.attacks.items()}
    return replace(outcome, attacks=attacks)

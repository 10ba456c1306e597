"""Measure trajectories: attack every model with every attack, and follow the gradients along the path."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gradscope.attacks.pgd import usual_batch_size
from gradscope.measure.inputs import Entry
from gradscope.measure.options import AnalyzeOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.probes.trajectory import Trajectory, measure_trajectory
from gradscope.progress import progress_bar
from gradscope.results.schemas import SAMPLES, STEPS, SUMMARY

#: Seconds between two saves of an analysis's progress, because the sums of gradient directions may be large.
KEEP_EVERY = 5.0


class TrajectoryMeasurement(Measurement[AnalyzeOptions]):
    """``gradscope analyze``."""

    def read(self) -> Sequence[Entry]:
        """Load every model on its own data set."""
        entries = []
        for reference in self.inputs.references():
            chosen = self.inputs.choose(self.inputs.splits(reference).test, self.options.samples, "samples")
            self.inputs.load(reference, chosen.images)
            entries.append(Entry(reference, chosen))
        return entries

    def described(self) -> Row:
        """Describe attacks, metrics and batch sizes for the manifest."""
        options = self.options
        sizes = {
            name: options.batch_size or usual_batch_size(settings, self.device)
            for name, settings in options.attacks.items()
        }
        return options.resolved() | {"batch_sizes": sizes}

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model and attack."""
        for position, entry in enumerate(self.entries):
            subject = self.inputs.load(entry.reference, entry.chosen.images)
            for name in self.options.attacks:
                started = time.perf_counter()
                trajectory = self._measure(subject, entry, name, kept, f"{position}-{name}")
                identity = subject.identity(entry.chosen.images.name, name)
                rows = {
                    STEPS: partial(trajectory.step_rows, identity),
                    SAMPLES: partial(trajectory.sample_rows, identity),
                    SUMMARY: partial(trajectory.summary_rows, identity),
                }
                seconds = {name: time.perf_counter() - started}
                yield Part(position, rows, {"seconds": seconds, "gradients": {name: trajectory.blind}})

    def _measure(self, subject: LoadedModel, entry: Entry, attack: str, kept: PartialResults, piece: str) -> Trajectory:
        """Measure the trajectory of an attack; continue an interrupted one from the saved ``piece``."""
        options, team, chosen = self.options, self.team, entry.chosen
        with progress_bar(f"{subject.label} {attack}", len(chosen.images), "images", visible=team.is_first) as advance:
            return measure_trajectory(
                subject.model,
                chosen.images,
                options.attacks[attack],
                options.measured,
                numbers=chosen.numbers,
                work=self.work(team.each, advance),
                begun=team.of_first(kept.read(piece) if team.is_first else None),
                keep=_keeping(kept, piece) if team.is_first else lambda so_far: None,
            )


def _keeping(kept: PartialResults, name: str) -> Callable[[Trajectory], None]:
    """Return a function that saves a trajectory's progress every KEEP_EVERY seconds, and at its end."""
    last = time.perf_counter()

    def keep(so_far: Trajectory) -> None:
        nonlocal last
        if so_far.is_complete or time.perf_counter() - last >= KEEP_EVERY:
            kept.write(name, so_far.state())
            last = time.perf_counter()

    return keep

"""Judge an attack on each model: compare it with gradscope's attacks, and repair it part by part."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BUDGETS
from gradscope.judging.attacks import attack_on_trial
from gradscope.judging.judgement import Judgement
from gradscope.judging.trial import judge, stages
from gradscope.measure.inputs import Entry
from gradscope.measure.models import read_entries, unit_prefix
from gradscope.measure.options.judge import JudgeOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.progress import progress_bar
from gradscope.results.schemas import JUDGE


class JudgeMeasurement(Measurement[JudgeOptions]):
    """``gradscope judge``."""

    def read(self) -> Sequence[Entry]:
        """Load every model on its own data set, and the attack."""
        options = self.options
        trusted = self.inputs.request.foreign.trust_code
        self.attack = attack_on_trial(options.attack, BUDGETS[options.budget].attacks, trusted)
        return read_entries(self.inputs, (), options.samples)

    def described(self) -> Row:
        """Describe attack, ball and budget for the manifest."""
        return self.options.resolved()

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model."""
        for position, entry in enumerate(self.entries):
            started = time.perf_counter()
            subject = self.inputs.attacked(entry.reference, entry.chosen.images)
            judgement = self._judge(subject, entry, kept)
            identity = subject.identity(entry.chosen.images.name, self.attack.name)
            facts = {"seconds": time.perf_counter() - started, "judgement": judgement.to_json()}
            yield Part(position, {JUDGE: partial(judgement.rows, identity)}, facts)

    def _judge(self, subject: LoadedModel, entry: Entry, kept: PartialResults) -> Judgement:
        options, images = self.options, entry.chosen.images
        threat = ThreatModel(options.norm, options.radius)
        title = f"judging {self.attack.name} on {subject.label}"
        with progress_bar(title, stages(len(images)), visible=self.team.is_first) as advance:
            work = self.work(kept.each, advance).prefixed(unit_prefix(entry, subject.label, threat))
            numbers, available = entry.chosen.numbers, entry.chosen.available
            return judge(
                self.attack, subject.model, images, numbers, threat, options.budget, available=available, work=work
            )

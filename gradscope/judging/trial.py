"""Trial of an attack: compare it with ours on the same images by paired tests, and repair it part by part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate, lacks_gradient
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.registry import PAPER_BATCH
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import AuditBudget, budget_of
from gradscope.auditing.checks.outcomes import FEWEST, more_images
from gradscope.auditing.outputs import are_random, depend_on_the_batch, look_at_outputs
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Values, Work
from gradscope.errors import GradscopeError
from gradscope.functional import ZERO
from gradscope.judging.attacks import Attack, Batch
from gradscope.judging.finding import concluded
from gradscope.judging.judgement import Compared, Judgement
from gradscope.judging.recording import NOTHING, Change, Watch
from gradscope.judging.repairs import (
    Part,
    Reading,
    Repair,
    inside,
    judged,
    read,
    repairs_of,
    run_as_it_is,
    run_repaired,
    stretched,
)
from gradscope.models.adaptive import draws_of
from gradscope.models.inspection import copied, measuring
from gradscope.results.stats import holm, mcnemar, paired_rates_interval
from gradscope.seeding import derive, seeded

#: Most images that the attack gets one by one.
_ALONE = 60
#: Our attacks to compare with, in every budget; and the additional ones beyond `quick`.
_OURS, _MORE = ("pgd", "pgd-log-odds", "pgd-margin", "apgd-ce", "square"), ("apgd-t",)


def judge(
    attack: Attack,
    model: nn.Module,
    image_set: ImageSet,
    numbers: Tensor | None,
    threat: ThreatModel,
    budget_name: str,
    *,
    available: int | None = None,
    work: Work = PLAIN,
) -> Judgement:
    """Judge ``attack``: run it on correctly classified images, compare it with our attacks, and try repairs.

    ``numbers`` are the images' indices in the set they were taken from (0 .. N-1 if None), which has ``available``
    images (N if None). The attack gets batches of ``work.batch_size``, by default 128. torch's random numbers are
    seeded for each batch, in the same way for every repair. Repairs run only if one of our attacks is significantly
    better. Raises :class:`GradscopeError` for an unknown budget, a radius of 0, a model that cannot be copied, and an
    attack that fails.
    """
    if threat.epsilon <= 0:
        raise GradscopeError(f"epsilon must be above 0 in a judgement, got {threat.epsilon:g}")
    budget = budget_of(budget_name, threat.norm, with_examples=False)
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    available = len(image_set) if available is None else available
    return _Trial(attack, model, image_set, numbers, available, threat, budget, budget_name, work).judgement()


def stages(images: int) -> int:
    """Estimate how many images :func:`judge` reports to ``work``: those of our attacks and of a dozen repairs."""
    return images * (len(_OURS) + len(_MORE) + 12)


@dataclass(frozen=True)
class _Trial:
    attack: Attack
    model: nn.Module
    image_set: ImageSet
    numbers: Tensor
    available: int
    threat: ThreatModel
    budget: AuditBudget
    budget_name: str
    work: Work

    def judgement(self) -> Judgement:
        """Run the trial and return the verdict with its evidence."""
        clean = self._evaluate([], self.image_set, self.numbers)
        right = clean.right
        why = self._hindrance(right)
        if why:
            return Judgement(
                "inconclusive", (), why, self.attack.name, self.threat, self.budget_name, right, None, None
            )
        places = right.nonzero().squeeze(1)
        values = self._over("as-it-is", places, self._as_it_is)
        reading = read(values, min(self.batch_size, len(places)), self.threat, self.attack)
        wrong = self._on_all(places, values["fooled"])
        subset = self.image_set.subset(places)
        names = [*_OURS, *(_MORE if self.budget_name != "quick" else ())]
        outcome = self._evaluate(names, subset, self.numbers[places])
        ours = self._compared(
            [(name, None, self._on_all(places, outcome.fooled_by(name))) for name in outcome.attacks], right, wrong
        )
        better = any(compared.significant for compared in ours)
        repairs = self._repairs(reading, places, values, right, wrong) if better else ()
        lowest = right & ~wrong
        for compared in (*ours, *repairs):
            if compared.standing is not None:
                lowest[: len(compared.standing)] &= compared.standing
        judgement = Judgement(
            "inconclusive", (), "", self.attack.name, self.threat, self.budget_name, right, right & ~wrong, lowest,
            ours, repairs, reading,
        )  # fmt: skip
        values["flat"] = self._flat(outcome)
        return concluded(judgement, values, self.attack)

    @property
    def batch_size(self) -> int:
        """Number of images that the attack gets at once."""
        return self.work.batch_size or PAPER_BATCH

    def _flat(self, outcome: Outcome) -> Tensor:
        """Mark images ``(M,)`` with a zero gradient at some step, of both log-odds and margin, which never saturate."""
        flat = torch.ones(len(outcome), dtype=torch.bool)
        if lacks_gradient(self.model, self.image_set.batch(torch.zeros(1, dtype=torch.int64), self.work.device)[0]):
            return flat
        for name in ("pgd-log-odds", "pgd-margin"):
            ours = outcome.attacks.get(name)
            flat &= ours.blindness == ZERO if ours is not None and ours.blindness is not None else False
        return flat

    def _hindrance(self, right: Tensor) -> str:
        """Explain why no verdict is possible; empty if one is."""
        if int(right.sum()) < FEWEST:
            more = more_images(int(right.sum()), len(right), self.available)
            return f"{int(right.sum())} of {len(right)} images are right when clean, {FEWEST} are needed: {more}"
        places = torch.arange(min(len(self.image_set), self.budget.probed))

        def look(part: Tensor) -> Values:
            images, labels = self.image_set.batch(part, self.work.device)
            return look_at_outputs(self.model, images, labels, self.numbers[part], self.work.seed, self.batch_size)

        outputs = self._over("outputs", places, look)
        if are_random(outputs) and draws_of(self.model) is None:
            return "the model's output is random, so one pass cannot judge an example; draws judges the mean of several"
        if depend_on_the_batch(outputs):
            return "an image's output depends on the other images of its batch"
        return ""

    def _evaluate(self, names: Sequence[str], image_set: ImageSet, numbers: Tensor) -> Outcome:
        work = replace(
            self.work.prefixed("ours"), batch_size=None if self.work.device.type == "cpu" else self.batch_size
        )
        return evaluate(
            self.model, image_set, names, self.threat, self.budget.attacks, numbers=numbers, cascade=False, work=work
        )

    def _over(self, stage: str, places: Tensor, make: Any) -> Values:
        """Apply ``make`` to the images at ``places`` in batches, each a unit of work; concatenate the results."""
        parts = places.split(self.batch_size)
        units = [(self._unit(stage, part), partial(make, part)) for part in parts]
        results = []
        for part, unit in zip(parts, self.work.each(units), strict=True):
            results.append(unit)
            self.work.advance(len(part), stage)
        return {key: torch.cat([unit[key] for unit in results]) for key in results[0]}

    def _unit(self, stage: str, part: Tensor) -> str:
        return f"{stage.replace(' ', '-')}-{derive(self.work.seed, stage, *self.numbers[part].tolist()):016x}"

    def _batch(self, part: Tensor) -> Batch:
        images, labels = self.image_set.batch(part, self.work.device)
        classes = len(self.image_set.classes)
        return Batch(images, labels, self.numbers[part], classes, self.threat, self.work.seed)

    def _watch(self, batch: Batch, change: Change = NOTHING) -> Watch:
        try:
            return Watch(copied(self.model), batch, change)
        except (TypeError, RuntimeError) as error:
            raise GradscopeError(f"model must be one that copy.deepcopy copies, got {error}") from error

    def _as_it_is(self, part: Tensor) -> Values:
        batch = self._batch(part)
        with measuring(self.model), seeded(self.work.seed, "judge", *batch.numbers.tolist()):
            watch = self._watch(batch)
            try:
                examples, values = run_as_it_is(self.attack, watch, batch)
            except GradscopeError as error:
                if not lacks_gradient(self.model, batch.images[:1]):
                    raise
                raise GradscopeError(f"{error}; the model gives no gradient: give `backward`") from error
            points = {"fooled": examples, "best": watch.best, "stretched": stretched(examples, batch)}
            fools = {name: judged(self.model, point, batch) for name, point in points.items()}
            values["mislabelled"] = torch.zeros_like(values["broken"])
            if bool((values["labelled"] >= 0).any()):
                with torch.no_grad():
                    values["mislabelled"] = self.model(inside(examples, batch)).argmax(dim=1) != values["labelled"]
        fools["best"] = (fools["best"] & watch.has_best) | fools["fooled"]
        return {**values, **fools}

    def _repaired(self, part: Tensor, repair: Repair) -> Values:
        """Run the repaired attack; return which images it fools, or why it failed."""
        wrong, reason = torch.zeros(len(part), dtype=torch.bool, device=self.work.device), ""
        try:
            for rows in torch.arange(len(part)).split(1 if repair.alone else len(part)):
                batch = self._batch(part[rows])
                with measuring(self.model), seeded(self.work.seed, "judge", *batch.numbers.tolist()):
                    watch = self._watch(batch, repair.change)
                    examples = run_repaired(self.attack, self.model, watch, batch, repair)
                    wrong[rows.to(wrong.device)] = judged(self.model, examples, batch)
        except GradscopeError as error:
            reason = str(error)
        return {"fooled": wrong, "reason": _as_bytes(reason).expand(len(part), -1)}

    def _on_all(self, places: Tensor, fooled: Tensor) -> Tensor:
        on_all = torch.zeros(len(self.image_set), dtype=torch.bool)
        on_all[places] = fooled.cpu()
        return on_all

    def _repairs(
        self, reading: Reading, places: Tensor, as_it_is: Values, right: Tensor, wrong: Tensor
    ) -> tuple[Compared, ...]:
        tried: list[tuple[str, Part | None, Tensor | None]] = []
        reasons: dict[str, str] = {}
        batch_size = min(self.batch_size, len(places))
        for repair in repairs_of(reading, self.attack, self.threat, self.budget.attacks.steps, batch_size):
            if repair.of:
                fools: Tensor | None = self._on_all(places, as_it_is[repair.of])
            else:
                stage = f"{repair.part} {repair.change.loss}".strip()
                chosen = places[:_ALONE] if repair.alone else places
                values = self._over(stage, chosen, partial(self._repaired, repair=repair))
                failed = (values["reason"] != 0).any(dim=1)
                fools = None if bool(failed.any()) else self._on_all(chosen, values["fooled"])
                if fools is not None and len(chosen) < len(places):
                    fools = fools[: int(places[len(chosen)])]
                reasons[repair.words] = _as_text(values["reason"][failed][0]) if fools is None else ""
            tried.append((repair.words, repair.part, fools))
        return tuple(
            replace(compared, reason=reasons.get(compared.name, "")) for compared in self._compared(tried, right, wrong)
        )

    def _compared(
        self, tried: Sequence[tuple[str, Part | None, Tensor | None]], right: Tensor, wrong: Tensor
    ) -> tuple[Compared, ...]:
        """Compare each result with the attack, which fools ``wrong`` ``(N,)``, by paired tests adjusted together.

        A result on the first images only is compared on these.
        """
        results = []
        for name, part, fools in tried:
            if fools is None:
                results.append(Compared(name, part, None))
                continue
            count = len(fools)
            only, missed = int((fools & ~wrong[:count]).sum()), int((wrong[:count] & ~fools).sum())
            results.append(
                Compared(
                    name,
                    part,
                    right[:count] & ~fools,
                    (only - missed) / count,
                    paired_rates_interval(only, missed, count),
                    mcnemar(only, missed, greater=True),
                )
            )
        tested = [compared for compared in results if compared.p_value is not None]
        adjusted = iter(holm([compared.p_value or 0.0 for compared in tested]))
        return tuple(
            replace(compared, p_value=next(adjusted)) if compared.p_value is not None else compared
            for compared in results
        )


#: Number of bytes of a reason that are kept.
_REASON = 300


def _as_bytes(text: str) -> Tensor:
    """Encode ``text`` for a unit of work, ``(1, 300)`` in UTF-8, cut or padded with zeros."""
    return torch.tensor([list(text.encode()[:_REASON].ljust(_REASON, b"\0"))], dtype=torch.uint8)


def _as_text(values: Tensor) -> str:
    return bytes(values.tolist()).rstrip(b"\0").decode(errors="ignore")

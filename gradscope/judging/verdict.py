"""An attack on trial: beside ours on the same images, by paired tests, and what makes it blind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.registry import PAPER_BATCH
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import AuditBudget, budget_of
from gradscope.auditing.checks.base import ALPHA
from gradscope.auditing.checks.outcomes import FEWEST
from gradscope.auditing.outputs import are_random, depend_on_the_batch, look_at_outputs
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Values, Work
from gradscope.errors import GradscopeError
from gradscope.judging.attacks import Attack, Batch
from gradscope.judging.recording import NOTHING, Change, Watch
from gradscope.judging.repairs import (
    Part,
    Reading,
    Repair,
    judged,
    read,
    repairs_of,
    run_as_it_is,
    run_repaired,
    stretched,
)
from gradscope.models.adaptive import draws_of
from gradscope.models.inspection import copied, measuring
from gradscope.results.stats import UNDEFINED, Interval, holm, mcnemar, paired_rates_interval, wilson_interval
from gradscope.seeding import derive, seeded

Row = dict[str, Any]
Verdict = Literal[
    "the attack is blind", "the attack is weaker", "the attack is sound", "invalid examples", "inconclusive"
]

#: Robust accuracy that the best of ours takes away at least where an attack is blind, not only weaker.
BLIND_GAIN = 0.10
#: Parts that are named at most.
MOST_NAMED = 3
#: Ours that an attack is set beside, in every budget, and beyond `quick`.
_OURS, _MORE = ("pgd", "pgd-log-odds", "pgd-margin", "apgd-ce", "square"), ("apgd-t",)


@dataclass(frozen=True)
class Compared:
    """What one of ours, or a repair, leaves of the images, beside the attack on trial.

    ``standing`` ``(N,)``; None where it could not be run, for the ``reason``. ``gain``: what the attack leaves, less
    what this leaves, with Tango's interval; ``p_value``: McNemar's, one-sided, adjusted over all of its kind (Holm).
    """

    name: str
    part: Part | None
    standing: Tensor | None
    gain: float = float("nan")
    interval: Interval = UNDEFINED
    p_value: float | None = None
    named: bool = False
    reason: str = ""

    @property
    def significant(self) -> bool:
        """Whether it leaves significantly less than the attack."""
        return self.p_value is not None and self.p_value < ALPHA and self.gain > 0


@dataclass(frozen=True)
class Judgement:
    """What an attack on trial is worth.

    ``parts``: what makes it blind, the largest gain first. ``finding``: why the verdict is so, in a sentence or more.
    ``right``, ``standing`` ``(N,)``: images that are right when clean, and under the attack too. ``lowest`` ``(N,)``:
    under it, all of ours and all repairs. ``reading``: how it works; None where it was not run.
    """

    verdict: Verdict
    parts: tuple[Part, ...]
    finding: str
    attack: str
    threat: ThreatModel
    budget: str
    right: Tensor
    standing: Tensor
    lowest: Tensor
    ours: tuple[Compared, ...] = ()
    repairs: tuple[Compared, ...] = ()
    reading: Reading | None = None

    @property
    def left(self) -> float:
        """Share of all images that are right when clean and under the attack, its examples judged anew."""
        return _share(self.standing)

    @property
    def bound(self) -> float:
        """Share of all images that are right when clean and under everything that was tried: an upper bound."""
        return _share(self.lowest)

    def rows(self, identity: Row) -> Iterator[Row]:
        """Rows of ``judge.csv``: the clean images, the attack, ours, the repairs, and all together."""
        whole = {
            **identity,
            "attack": self.attack,
            "norm": self.threat.norm,
            "epsilon": self.threat.epsilon,
            "budget": self.budget,
            "verdict": self.verdict,
        }
        yield whole | _row("clean", "none", self.right)
        yield whole | _row("attack", self.attack, self.standing) | {"finding": self.finding}
        for role, compared in (("ours", self.ours), ("repair", self.repairs)):
            for one in compared:
                gain = {"gain": one.gain, "gain_low": one.interval.low, "gain_high": one.interval.high}
                more = {
                    "part": one.part or "",
                    "p_value": one.p_value,
                    "named": int(one.named),
                    "finding": one.reason,
                    **gain,
                }
                yield whole | _row(role, one.name, one.standing) | more
        yield whole | _row("all", "all together", self.lowest)

    def to_json(self) -> dict[str, Any]:
        """Verdict, parts and what is known of how the attack works, for the manifest."""
        known = {} if self.reading is None else self.reading.to_json()
        return {"attack": self.attack, "verdict": self.verdict, "parts": list(self.parts), "reading": known}


def _share(holds: Tensor) -> float:
    return float(holds.double().mean())


def _row(role: str, name: str, standing: Tensor | None) -> Row:
    empty = {"part": "", "gain": None, "gain_low": None, "gain_high": None, "p_value": None, "named": 0, "finding": ""}
    if standing is None:
        return {"role": role, "name": name, "left": None, "ci_low": None, "ci_high": None, "n": 0, **empty}
    interval = wilson_interval(int(standing.sum()), len(standing))
    numbers = {"left": _share(standing), "ci_low": interval.low, "ci_high": interval.high, "n": len(standing)}
    return {"role": role, "name": name, **numbers, **empty}


def judge(
    attack: Attack,
    model: nn.Module,
    image_set: ImageSet,
    numbers: Tensor | None,
    threat: ThreatModel,
    budget_name: str,
    *,
    work: Work = PLAIN,
) -> Judgement:
    """Run ``attack`` on the images that ``model`` gets right, set it beside ours, and repair it part by part.

    ``numbers`` are the images' indices in the set they were taken from, 0 .. N-1 where None. The attack gets batches of
    ``work.batch_size``, 128 where None, and torch's random numbers are seeded for each, alike for every repair. Repairs
    are tried where one of ours is significantly better. Raises :class:`GradscopeError` for a budget it does not know, a
    radius of 0, a model that cannot be copied, and an attack that fails.
    """
    if threat.epsilon <= 0:
        raise GradscopeError(f"epsilon must be above 0 in a judgement, got {threat.epsilon:g}")
    budget = budget_of(budget_name, threat.norm, with_examples=False)
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    return _Trial(attack, model, image_set, numbers, threat, budget, budget_name, work).judgement()


def stages(images: int) -> int:
    """How many images ``work`` is told of in :func:`judge`, about: ours, and a dozen repairs."""
    return images * (len(_OURS) + len(_MORE) + 12)


@dataclass(frozen=True)
class _Trial:
    attack: Attack
    model: nn.Module
    image_set: ImageSet
    numbers: Tensor
    threat: ThreatModel
    budget: AuditBudget
    budget_name: str
    work: Work

    def judgement(self) -> Judgement:
        """The verdict and what it rests on."""
        clean = self._evaluate([], self.image_set, self.numbers)
        right = clean.right
        why = self._hindrance(right)
        if why:
            parts = (self.attack.name, self.threat, self.budget_name, right, right, right)
            return Judgement("inconclusive", (), why, *parts)
        places = right.nonzero().squeeze(1)
        found = self._over("as-it-is", places, self._as_it_is)
        reading = read(found, min(self.batch_size, len(places)), self.threat, self.attack)
        wrong = self._on_all(places, found["fooled"])
        subset = self.image_set.subset(places)
        names = [*_OURS, *(_MORE if self.budget_name != "quick" else ())]
        outcome = self._evaluate(names, subset, self.numbers[places])
        ours = self._compared(
            [(name, None, self._on_all(places, outcome.fooled_by(name))) for name in outcome.attacks], right, wrong
        )
        better = any(one.significant for one in ours)
        repairs = self._repairs(reading, places, found, right, wrong) if better else ()
        lowest = right & ~wrong
        for one in (*ours, *repairs):
            lowest = lowest & one.standing if one.standing is not None else lowest
        made = Judgement(
            "inconclusive", (), "", self.attack.name, self.threat, self.budget_name, right, right & ~wrong, lowest,
            ours, repairs, reading,
        )  # fmt: skip
        return _concluded(made, found)

    @property
    def batch_size(self) -> int:
        """Images that the attack gets at once."""
        return self.work.batch_size or PAPER_BATCH

    def _hindrance(self, right: Tensor) -> str:
        """Why nothing can be said; empty where it can."""
        if int(right.sum()) < FEWEST:
            return f"{int(right.sum())} images are right when clean, {FEWEST} are needed"
        places = torch.arange(min(len(self.image_set), self.budget.probed))

        def look(part: Tensor) -> Values:
            images, labels = self.image_set.batch(part, self.work.device)
            return look_at_outputs(self.model, images, labels, self.numbers[part], self.work.seed, self.batch_size)

        outputs = self._over("outputs", places, look)
        if are_random(outputs) and draws_of(self.model) is None:
            return "the model's output is random: one pass judges no example (draws judges the mean of several)"
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
        """``make`` of the images at ``places`` in batches, each a unit of work."""
        parts = places.split(self.batch_size)
        units = [(self._unit(stage, part), partial(make, part)) for part in parts]
        found = []
        for part, unit in zip(parts, self.work.each(units), strict=True):
            found.append(unit)
            self.work.advance(len(part), stage)
        return {key: torch.cat([unit[key] for unit in found]) for key in found[0]}

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
            examples, values = run_as_it_is(self.attack, watch, batch)
            points = {"fooled": examples, "best": watch.best, "stretched": stretched(examples, batch)}
            fools = {name: judged(self.model, point, batch) for name, point in points.items()}
        fools["best"] = (fools["best"] & watch.has_best) | fools["fooled"]
        return {**values, **fools}

    def _repaired(self, part: Tensor, repair: Repair) -> Values:
        """Which images any call of the repaired attack fools; where it fails, why."""
        batch = self._batch(part)
        wrong, reason = torch.zeros(len(part), dtype=torch.bool, device=batch.labels.device), ""
        try:
            with measuring(self.model), seeded(self.work.seed, "judge", *batch.numbers.tolist()):
                for examples in run_repaired(self.attack, self._watch(batch, repair.change), batch, repair):
                    wrong |= judged(self.model, examples, batch)
        except GradscopeError as error:
            reason = str(error)
        return {"fooled": wrong, "reason": _as_bytes(reason).expand(len(part), -1)}

    def _on_all(self, places: Tensor, fooled: Tensor) -> Tensor:
        found = torch.zeros(len(self.image_set), dtype=torch.bool)
        found[places] = fooled.cpu()
        return found

    def _repairs(
        self, reading: Reading, places: Tensor, found: Values, right: Tensor, wrong: Tensor
    ) -> tuple[Compared, ...]:
        tried: list[tuple[str, Part | None, Tensor | None]] = []
        reasons: dict[str, str] = {}
        for repair in repairs_of(reading, self.attack, self.threat, self.budget.attacks.steps):
            if repair.of:
                fools: Tensor | None = self._on_all(places, found[repair.of])
            else:
                stage = f"{repair.part} {repair.change.loss}".strip()
                values = self._over(stage, places, partial(self._repaired, repair=repair))
                failed = (values["reason"] != 0).any(dim=1)
                fools = None if bool(failed.any()) else self._on_all(places, values["fooled"])
                reasons[repair.words] = _as_text(values["reason"][failed][0]) if fools is None else ""
            tried.append((repair.words, repair.part, fools))
        return tuple(replace(one, reason=reasons.get(one.name, "")) for one in self._compared(tried, right, wrong))

    def _compared(
        self, tried: Sequence[tuple[str, Part | None, Tensor | None]], right: Tensor, wrong: Tensor
    ) -> tuple[Compared, ...]:
        """Each beside the attack, which fools ``wrong`` ``(N,)``, by paired tests adjusted together."""
        made = []
        for name, part, fools in tried:
            if fools is None:
                made.append(Compared(name, part, None))
                continue
            only, missed = int((fools & ~wrong).sum()), int((wrong & ~fools).sum())
            made.append(
                Compared(
                    name,
                    part,
                    right & ~fools,
                    (only - missed) / len(wrong),
                    paired_rates_interval(only, missed, len(wrong)),
                    mcnemar(only, missed, greater=True),
                )
            )
        run = [one for one in made if one.p_value is not None]
        adjusted = iter(holm([one.p_value or 0.0 for one in run]))
        return tuple(replace(one, p_value=next(adjusted)) if one.p_value is not None else one for one in made)


def _concluded(made: Judgement, found: Values) -> Judgement:
    """The verdict, the parts that are named and the finding, from what was compared."""
    leaving = {"projection": found["leaves_ball"], "box": found["leaves_box"]}
    out = {part: _share(leaves) for part, leaves in leaving.items() if bool(leaves.any())}
    inside = _compared_with_ours(made, found)
    return _invalid(inside, out) if out else inside


def _compared_with_ours(made: Judgement, found: Values) -> Judgement:
    """The same where all examples count, put back into ball and box."""
    significant = [one for one in made.ours if one.significant]
    if not significant:
        left = f"Your attack leaves {_percent(made.left)}; none of ours leaves significantly less."
        return replace(made, verdict="the attack is sound", finding=_with_remarks(left, made, found))
    best = max(significant, key=lambda one: one.gain)
    verdict: Verdict = "the attack is blind" if best.gain >= BLIND_GAIN else "the attack is weaker"
    by_gain = sorted((one for one in made.repairs if one.significant), key=lambda one: -one.gain)
    parts = tuple(dict.fromkeys(one.part for one in by_gain if one.part is not None))[:MOST_NAMED]
    first = {part: next(one for one in by_gain if one.part == part) for part in parts}
    repairs = tuple(replace(one, named=one in first.values()) for one in made.repairs)
    return replace(
        made,
        verdict=verdict,
        parts=parts,
        repairs=repairs,
        finding=_with_remarks(_finding(made, best, list(first.values())), made, found),
    )


def _invalid(made: Judgement, out: dict[str, float]) -> Judgement:
    """A judgement on examples that were put back, of an attack of which the shares ``out`` leave ball or box."""
    reading = made.reading
    outside = reading is not None and reading.scale is not None
    parts: tuple[Any, ...] = ("normalisation",) if outside else tuple(sorted(out, key=lambda part: -out[part]))
    where = {"projection": "the ball", "box": "[0, 1]"}
    said = " and ".join(f"{_percent(share)} leave {where[part]}" for part, share in out.items())
    why = ", for it feeds the model normalised images" if outside else ""
    finding = f"Of its examples {said}{why}. Put back into ball and box: {made.finding[:1].lower()}{made.finding[1:]}"
    named = tuple(dict.fromkeys((*parts, *made.parts)))[:MOST_NAMED]
    return replace(made, verdict="invalid examples", parts=named, finding=finding)


def _finding(made: Judgement, best: Compared, named: Sequence[Compared]) -> str:
    said = [f"Your attack leaves {_percent(made.left)}"]
    for one in named:
        assert one.standing is not None
        assert one.p_value is not None
        same = "it leaves" if one.part in ("best iterate", "steps") else "the same steps leave"
        said.append(f"{one.name} {same} {_percent(_share(one.standing))} (p = {one.p_value:.2g})")
    assert best.standing is not None
    said.append(f"the best attack, {best.name}, leaves {_percent(_share(best.standing))}")
    if not named:
        said.append("no single repair explains it")
    return "; ".join(said) + "."


def _with_remarks(finding: str, made: Judgement, found: Values) -> str:
    """``finding`` with what was seen of the attack that a user should know."""
    reading, remarks = made.reading, []
    assert reading is not None
    if "norm floor" in made.parts or any(one.part == "norm floor" and one.significant for one in made.repairs):
        floor = "" if reading.floor is None else f", about {reading.floor:.1g}"
        remarks.append(
            f"On {_percent(reading.short)} of images its steps are short, for the gradient is below the floor{floor}."
        )
    if reading.loss is not None and not reading.ascends:
        remarks.append(f"It goes down the {reading.loss} loss.")
    if reading.zero_gradient > 0:
        remarks.append(f"On {_percent(reading.zero_gradient)} of images its gradient was 0 at some step.")
    if bool(found["broken"].any()):
        remarks.append(f"{_percent(_share(found['broken']))} of its examples are not finite.")
    says = found["says"]
    false = (says >= 0) & ((says == 1) != found["fooled"])
    if bool(false.any()):
        remarks.append(f"What it reports is wrong of {int(false.sum())} of {len(false)} examples.")
    return " ".join([finding, *remarks])


#: Bytes of a reason that are kept.
_REASON = 300


def _as_bytes(text: str) -> Tensor:
    """``text`` ``(1, 300)`` as units of work hold it: in UTF-8, cut or filled up with zeros."""
    return torch.tensor([list(text.encode()[:_REASON].ljust(_REASON, b"\0"))], dtype=torch.uint8)


def _as_text(values: Tensor) -> str:
    return bytes(values.tolist()).rstrip(b"\0").decode(errors="ignore")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""Gathers the evidence of an audit: attacks on all images, further attacks on the rest, and a study of gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from gradscope.attacks.distances import ATTACK, Distances, measure_distances
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.outcome import AttackOutcome, Outcome
from gradscope.attacks.pgd import Streams, pgd, settings_inside, usual_batch_size
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing import gradients
from gradscope.auditing.budgets import AuditBudget
from gradscope.auditing.checks.base import FEWEST_PROBED
from gradscope.auditing.evidence import LAST, Evidence, Expected
from gradscope.auditing.known_points import look_for_known_points
from gradscope.auditing.outputs import LogProbabilities, look_at_outputs
from gradscope.auditing.scale import ScaleCurve, Tempered, attacks_at, scale_curve
from gradscope.config import PGD, Budget
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Values, Work
from gradscope.functional import fooled
from gradscope.losses import Loss
from gradscope.models.adaptive import Averaged, draws_of, stands_in
from gradscope.models.inspection import laid_out, measuring
from gradscope.seeding import derive, seeded

#: PGD on two losses that the scale of the logits affects in different ways.
_PAIR = ("pgd", "pgd-margin")


def stages(budget: AuditBudget, images: int) -> int:
    """Compute the most images that :func:`gather` reports to ``work``.

    They come from the main attacks, two with twice the steps, two unbounded, two at other radii, three on logarithms,
    and those at other temperatures on a few images.
    """
    return images * (len(budget.names) + 9) + min(images, budget.scale.images) * budget.scale.runs


@dataclass(frozen=True)
class _Gathering:
    model: nn.Module
    image_set: ImageSet
    numbers: Tensor
    threat: ThreatModel
    budget: AuditBudget
    examples: tuple[Tensor, ...]
    loss: Loss | None
    work: Work

    @property
    def batch_size(self) -> int:
        """Number of images attacked at once."""
        return self.work.batch_size or usual_batch_size(None, self.work.device, self.image_set.images[0].numel())

    def unit(self, stage: str, places: Tensor) -> str:
        """Name the unit of work of ``stage`` on the images at ``places``."""
        return f"{stage}-{derive(self.work.seed, stage, *self.numbers[places].tolist()):016x}"

    def evaluate(
        self,
        stage: str,
        names: Sequence[str],
        *,
        model: nn.Module | None = None,
        threat: ThreatModel | None = None,
        budget: Budget | None = None,
        places: Tensor | None = None,
        cascade: bool = True,
        keep_images: bool = False,
    ) -> Outcome:
        """Run attacks as a stage of the audit; arguments left out are the audit's own."""
        image_set = self.image_set if places is None else self.image_set.subset(places)
        examples = self.examples if places is None else [example[places] for example in self.examples]
        return evaluate(
            self.model if model is None else model,
            image_set,
            names,
            threat or self.threat,
            budget or self.budget.attacks,
            numbers=self.numbers if places is None else self.numbers[places],
            examples=examples,
            cascade=cascade,
            keep_images=keep_images,
            loss=self.loss,
            work=replace(
                self.work.prefixed(stage), advance=lambda images, note: self.work.advance(images, f"{stage} {note}")
            ),
        )

    def distances(self) -> Distances:
        """Measure each image's distance to the nearest point that fools the model, without a bound on the radius."""
        given = (self.model, self.image_set, self.threat.norm, self.budget.for_distances)
        return measure_distances(*given, numbers=self.numbers, work=self.work.prefixed("distances"))

    def then(self, first: Outcome, names: Sequence[str]) -> Outcome:
        """Add the attacks ``names`` to ``first``; each runs only on images that ``first`` did not fool."""
        places = first.standing().nonzero().squeeze(1)
        attacks, skipped = dict(first.attacks), dict(first.skipped)
        for name in names:
            if len(places):
                last = self.evaluate("last", [name], places=places)
                skipped |= last.skipped
                if name in last.attacks:
                    attacks[name] = _elsewhere(last.attacks[name], places)
            else:
                attacks[name] = AttackOutcome(places, places.bool(), places.double(), 0, 0, 0.0)
            self.work.advance(int((~first.standing()).sum()), name)
        return replace(first, attacks=attacks, skipped=skipped, cascade=frozenset(names))

    def settings(self, names: Sequence[str]) -> PGD:
        """Resolve the audit's PGD settings, in float64 if the model supports it."""
        precision = "float64" if "pgd-float64" in names else "float32"
        return settings_inside(self.threat, self.budget.attacks, precision=precision)

    def over(
        self,
        stage: str,
        places: Tensor,
        look: Callable[[Tensor, Tensor, Tensor], Values],
    ) -> Values:
        """Apply ``look`` to the images at ``places`` in batches, each a unit of work; concatenate the results."""

        def look_at(part: Tensor) -> Values:
            return look(*self.image_set.batch(part, self.work.device), self.numbers[part])

        results = []
        parts = places.split(self.batch_size)
        for unit in self.work.each([(self.unit(stage, part), partial(look_at, part)) for part in parts]):
            results.append(unit)
            self.work.advance(0, stage)
        return {key: torch.cat([unit[key] for unit in results]) for key in results[0]}

    def expected(self, places: Tensor) -> Expected:
        """Run PGD on single draws and on the mean of many draws, and judge both by the mean.

        The first stops as soon as one draw is fooled, as in an evaluation, which may be luck. The second returns its
        last iterate.
        """
        averaged = Averaged(self.model, self.budget.draws)
        settings = self.settings(())
        plain = self.evaluate("one-draw", ["pgd"], places=places, keep_images=True)

        def judge(images: Tensor, labels: Tensor, numbers: Tensor) -> Values:
            rows = torch.isin(self.numbers[places], numbers).nonzero().squeeze(1)
            with measuring(averaged), seeded(self.work.seed, "judge", *numbers.tolist()):
                reached = pgd(averaged, images, labels, settings, streams=Streams(self.work.seed, numbers)).points
                seen = {"clean": images, "plain": _points(plain, images, rows), "averaged": reached}
                with torch.no_grad():
                    return {key: ~fooled(averaged(points), labels).cpu() for key, points in seen.items()}

        return Expected(places, **self.over("judge", places, judge))


def _elsewhere(attack: AttackOutcome, places: Tensor) -> AttackOutcome:
    """Convert the indices of an attack on the images at ``places`` to indices among all images."""
    return replace(attack, attacked=places[attack.attacked])


def _points(outcome: Outcome, images: Tensor, rows: Tensor) -> Tensor:
    """Return the points that PGD reached for the images at ``rows`` of ``outcome``; the image if not attacked."""
    points = images.clone()
    attack = outcome.attacks["pgd"]
    if attack.adversarial is None:
        return points
    where = {place: position for position, place in enumerate(attack.attacked.tolist())}
    for row, place in enumerate(rows.tolist()):
        if place in where:
            points[row] = attack.adversarial[where[place]].to(points)
    return points


def gather(
    model: nn.Module,
    image_set: ImageSet,
    numbers: Tensor,
    threat: ThreatModel,
    budget: AuditBudget,
    *,
    examples: Sequence[Tensor],
    loss: Loss | None = None,
    work: Work,
) -> Evidence:
    """Gather all evidence of ``budget``; evidence that the model does not allow (no gradient, random output) is None.

    The names of the units of ``work`` depend on stage, attack, seed and images.
    """
    gathering = _Gathering(model, image_set, numbers, threat, budget, tuple(examples), loss, work)

    def look(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return look_at_outputs(model, images, labels, who, work.seed, gathering.batch_size)

    outputs = gathering.over("outputs", torch.arange(min(len(image_set), budget.probed)), look)
    main = gathering.evaluate("main", [name for name in budget.names if name not in (*LAST, ATTACK)], cascade=False)
    distances = gathering.distances() if ATTACK in budget.names else None
    if distances is not None:
        main = distances.joined(main)
    main = gathering.then(main, [name for name in LAST if name in budget.names])
    places = main.right.nonzero().squeeze(1)[: budget.probed]
    evidence = Evidence(threat, budget, numbers, len(image_set.classes), outputs, main, places, distances=distances)
    evidence = replace(evidence, stands_in=stands_in(model), draws=draws_of(model))
    if not evidence.differentiable or not len(places):
        return evidence
    evidence = _with_gradients(evidence, gathering)
    if evidence.probabilities and not evidence.random:
        names = [name for name in (*_PAIR, "pgd-float64") if name in main.attacks]
        evidence = replace(evidence, repaired=gathering.evaluate("logarithm", names, model=LogProbabilities(model)))
    if evidence.random:
        return replace(evidence, expected=gathering.expected(main.right.nonzero().squeeze(1)))
    evidence = _with_other_radii(evidence, gathering)
    if budget.unit_test and not evidence.wanders:
        evidence = replace(evidence, known_points=_known_points(gathering, places))
    return evidence if evidence.probabilities else replace(evidence, scale=_scale(gathering, main.right))


def _known_points(gathering: _Gathering, places: Tensor) -> Values:
    """Test the audit's PGD, on the two losses of :data:`_PAIR`, against known adversarial points."""
    threat, seed = gathering.threat, gathering.work.seed
    attacks = {name: settings_inside(threat, gathering.budget.attacks, name) for name in _PAIR}

    def look(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return look_for_known_points(gathering.model, images, labels, who, threat, attacks, seed)

    return gathering.over("unit-test", places, look)


def _scale(gathering: _Gathering, right: Tensor) -> ScaleCurve | None:
    """Attack the first images with the logits at other temperatures, and calibrate on all images.

    The number of images is the budget's, or as many as contain :data:`FEWEST_PROBED` that are ``right`` ``(N,)``.
    """
    model, image_set, attacks = gathering.model, gathering.image_set, gathering.budget.attacks
    scale = gathering.budget.scale
    count = max(scale.images, int((right.cumsum(dim=0) < FEWEST_PROBED).sum()) + 1)
    places = torch.arange(min(len(image_set), count))
    work, share = (
        gathering.work,
        min(1.0, scale.images / len(places)),
    )  # progress is scaled to the length that the budget announced
    gathering = replace(gathering, work=replace(work, advance=lambda n, note: work.advance(int(n * share), note)))
    few = attacks.model_copy(update={"steps": min(scale.steps, attacks.steps)})

    def logits(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        with measuring(model), torch.no_grad(), seeded(gathering.work.seed, "logits", *who.tolist()):
            return {"logits": model(laid_out(images)).double()}

    outcomes = {
        temperature: gathering.evaluate(
            f"temperature-{temperature:.3g}",
            names,
            model=Tempered(model, temperature),
            budget=few,
            places=places,
            cascade=False,
        )
        for temperature, names in attacks_at(scale).items()
    }
    clean = gathering.over("logits", torch.arange(len(image_set)), logits)
    return scale_curve(outcomes, few.steps, clean["logits"], image_set.labels.cpu())


def _with_other_radii(evidence: Evidence, gathering: _Gathering) -> Evidence:
    threat, attacks = gathering.threat, gathering.budget.attacks
    whole = threat.unbounded(gathering.image_set.images[0].numel())
    twice = {"steps": 2 * attacks.steps, "restarts": 2 * attacks.restarts}
    sizes = {"step_size": attacks.step_size, "relative_step_size": attacks.relative_step_size}
    halved = {key: None if size is None else size / 2 for key, size in sizes.items()}
    longer = attacks.model_copy(update={**twice, **halved})
    free = attacks.model_copy(update=dict.fromkeys(sizes))
    return replace(
        evidence,
        doubled=gathering.evaluate("doubled", _PAIR, budget=longer),
        smaller=gathering.evaluate("half-radius", ["pgd"], threat=replace(threat, epsilon=threat.epsilon / 2)),
        larger=gathering.evaluate(
            "twice-radius", ["pgd"], threat=replace(threat, epsilon=2 * threat.epsilon), budget=free
        ),
        unbounded=gathering.evaluate("unbounded", _PAIR, threat=whole, budget=free),
    )


def _with_gradients(evidence: Evidence, gathering: _Gathering) -> Evidence:
    model, seed, directions = gathering.model, gathering.work.seed, gathering.budget.directions
    finest = gathering.settings(list(evidence.main.attacks))
    plain = finest.model_copy(update={"precision": "float32"})
    places = evidence.places
    precise = finest.precision == "float64" and not evidence.wanders

    def start(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return gradients.at_the_image(model, images, labels, who, plain, seed)

    def precision(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return gradients.in_float64(model, images, labels, who, plain, seed)

    def slopes(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return gradients.against_differences(model, images, labels, who, finest, directions, seed)

    def path(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return gradients.along_the_path(model, images, labels, who, plain, seed)

    def curvature(images: Tensor, labels: Tensor, who: Tensor) -> Values:
        return gradients.curvature(model, images, labels, who, seed)

    return replace(
        evidence,
        curvature=None if evidence.wanders else gathering.over("curvature", places[::4], curvature),
        start=gathering.over("gradient", places, start),
        precision=gathering.over("precision", places, precision) if precise else None,
        slopes=gathering.over("slopes", places, slopes),
        path=gathering.over("path", places, path),
    )

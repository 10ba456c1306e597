"""Evaluation of a model under many attacks. Fooled images are not attacked again; every claimed success is checked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradscope.attacks.dispatch import turns
from gradscope.attacks.outcome import AttackOutcome, Outcome
from gradscope.attacks.pgd import Blindness, prepared, usual_batch_size
from gradscope.attacks.problem import Counted, Problem, Run, Tally
from gradscope.attacks.registry import ATTACKS, Attack
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Budget
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Values, Work, is_out_of_memory
from gradscope.errors import GradscopeError, lookup
from gradscope.functional import fooled
from gradscope.losses import Loss
from gradscope.models.inspection import laid_out, measuring, one_line
from gradscope.seeding import derive, seeded


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    names: Sequence[str],
    threat: ThreatModel,
    budget: Budget,
    *,
    numbers: Tensor | None = None,
    examples: Sequence[Tensor] = (),
    cascade: bool = True,
    keep_images: bool = False,
    loss: Loss | None = None,
    work: Work = PLAIN,
) -> Outcome:
    """Run the attacks ``names`` on ``image_set`` in order; returns robust accuracy, fooled images, distances and cost.

    With ``cascade`` each attack gets only the images that no earlier attack fooled. Without it each attack gets all
    correctly classified images, as a paired test needs. ``numbers`` are the images' indices in the set they were taken
    from (0 .. N-1 if None); they name the images' random streams. ``examples`` are adversarial images ``(N, C, H, W)``
    of ``image_set`` made on other models. ``loss`` is the user's own, for the attack that needs one. With
    ``keep_images`` the outcome contains the points that the attacks reached.

    An attack's own claim of success does not count: its points are projected into ball and box, and a separate forward
    pass judges them. An image whose clean logits are not finite is undefined: it is counted, is not attacked and is not
    correct. An attack's point with such logits fools the model. Attacks that cannot run on the model are skipped, and
    the outcome gives the reason.

    An attack with several :func:`turns`, such as one per target class, is a cascade too: the images that a turn does
    not fool are put into full batches for the next turn.

    Each unit of ``work`` is one turn of an attack on one batch; the clean images come first. The name of a unit depends
    only on the turn, the seed and the images in the batch. Progress counts images, out of images times attacks.

    Results do not depend on the batch size, to rounding. There are two exceptions. Counts of passes depend on it below
    :data:`gradscope.attacks.dispatch.RANKS_AT_ONCE`. On a model that draws random numbers the results depend on the
    batches: torch's global state is seeded once per unit, from its images, so equal batches give equal results.
    """
    attacks = {name: lookup(ATTACKS, name, "attacks") for name in names}
    usual = work.batch_size or usual_batch_size(None, work.device, image_set.images[0].numel())
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    bench = _Bench(model, image_set, numbers, threat, budget, tuple(examples), work, keep_images, loss)
    bench.check_examples()
    outcomes: dict[str, AttackOutcome] = {}
    skipped: dict[str, str] = {}
    with measuring(model):
        parts = torch.arange(len(image_set)).split(usual)
        clean = list(work.each([(bench.unit("clean", part), partial(bench.look_at_clean, part)) for part in parts]))
        right, undefined = (torch.cat([unit[key] for unit in clean]) for key in ("right", "undefined"))
        classes = int(clean[0]["classes"])
        stands = right.clone()
        for name, attack in attacks.items():
            reason = bench.hindrance(attack, classes)
            if reason:
                skipped[name] = reason
                work.advance(len(image_set), name)
                continue
            attacked = (stands if cascade else right).nonzero().squeeze(1)
            work.advance(len(image_set) - len(attacked), name)
            outcomes[name] = bench.attack(name, attack, attacked, classes, attack.batch_size or usual)
            stands[attacked] &= ~outcomes[name].fooled
    cascaded = frozenset(names if cascade else ())
    return Outcome(threat, numbers, image_set.labels.cpu(), right, undefined, cascaded, outcomes, skipped)


@dataclass(frozen=True)
class _Bench:
    """The model, images and settings of an evaluation. Each method works on the images at the indices ``part``."""

    model: nn.Module
    image_set: ImageSet
    numbers: Tensor
    threat: ThreatModel
    budget: Budget
    examples: tuple[Tensor, ...]
    work: Work
    keep_images: bool
    loss: Loss | None

    def unit(self, name: str, part: Tensor) -> str:
        """Name a unit of work; other images give another name."""
        digest = derive(self.work.seed, name, *self.numbers[part].tolist())
        return f"{name}-{int(part[0]):06d}-{digest:016x}"

    def check_examples(self) -> None:
        """Raise :class:`GradscopeError` unless each tensor of examples has the shape of the images."""
        shape = tuple(self.image_set.images.shape)
        for example in self.examples:
            if tuple(example.shape) != shape:
                raise GradscopeError(f"examples must have the shape of the images, {shape}, got {tuple(example.shape)}")

    def look_at_clean(self, part: Tensor) -> Values:
        """Classify the clean images: which are right, which are undefined, and how many classes there are."""
        images, labels = self.image_set.batch(part, self.work.device)
        with seeded(self.work.seed, "clean", *self.numbers[part].tolist()), torch.no_grad():
            logits = self.model(laid_out(images))
        undefined = ~logits.isfinite().all(dim=1)
        return {
            "right": ~fooled(logits, labels).cpu(),
            "undefined": undefined.cpu(),
            "classes": torch.tensor(logits.shape[1]),
        }

    def attack(self, name: str, attack: Attack, attacked: Tensor, classes: int, batch_size: int) -> AttackOutcome:
        """Run an attack turn by turn, in batches; each turn gets the images that earlier turns did not fool."""
        all_turns = list(turns(attack, self.budget, classes, len(self.examples), batch_size))
        looks = bool(attack.each or attack.parts)
        left, reported = attacked, 0
        results: list[tuple[Tensor, Values]] = []
        for number, turn in enumerate(all_turns):
            title = name if len(all_turns) == 1 else f"{name}-{number + 1}-of-{len(all_turns)}"
            parts = left.split(batch_size // turn.copies) if len(left) else ()
            units = [
                (self.unit(title, part), partial(self.run, title, turn.run, part, classes, looks)) for part in parts
            ]
            stands = []
            for place, (part, unit) in enumerate(zip(parts, self.work.each(units), strict=True), start=1):
                results.append((part, unit))
                stands.append(part[~unit["fooled"]])
                share = len(attacked) * (number * len(parts) + place) // (len(all_turns) * len(parts))
                self.work.advance(share - reported, name)
                reported = share
            left = torch.cat(stands) if stands else left
        self.work.advance(len(attacked) - reported, name)
        return _combined(attacked, results)

    def run(self, turn: str, run: Run, part: Tensor, classes: int, looks: bool) -> Values:
        """Run one turn on a batch, count its passes and judge the points it reaches.

        The judging pass does not count as the attack's cost, unless the attack ``looks``: then it needs the pass
        itself, to choose the images of its next turn.
        """
        images, labels = self.image_set.batch(part, self.work.device)
        numbers, tally, seed = self.numbers[part], Tally(), self.work.seed
        counted = Counted(self.model, tally)
        seen = Blindness(len(part))
        problem = Problem(
            counted,
            images,
            labels,
            numbers,
            classes,
            self.threat,
            self.budget,
            [example[part].to(images) for example in self.examples],
            seed,
            seen,
            self.loss,
        )
        began = time.perf_counter()
        with seeded(seed, turn, *numbers.tolist()):
            reached = run(problem)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            seconds = time.perf_counter() - began
            points = self.threat.project(torch.where(reached.isfinite(), reached, images), images)
            with torch.no_grad():
                wrong = fooled(counted(points) if looks else self.model(laid_out(points)), labels)
        distance = self.threat.distance(points, images).double()
        kept = {"adversarial": points.cpu()} if self.keep_images else {}
        if seen.worst is not None:
            kept["blindness"] = seen.worst.cpu()
        return {
            "fooled": wrong.cpu(),
            "distance": torch.where(wrong, distance, torch.nan).cpu(),
            "passes": torch.tensor([tally.forward, tally.backward]),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            **kept,
        }

    def hindrance(self, attack: Attack, classes: int) -> str:
        """Explain why ``attack`` cannot run on this model; empty if it can."""
        if self.threat.norm not in attack.norms:
            return f"is not defined in {self.threat.norm}"
        if classes < attack.classes:
            return f"needs at least {attack.classes} classes, the model has {classes}"
        if "examples" in attack.needs and not self.examples:
            return "needs adversarial examples made on another model"
        if "loss" in attack.needs and self.loss is None:
            return "needs a loss of your own"
        image, _ = self.image_set.batch(torch.zeros(1, dtype=torch.int64), self.work.device)
        if "gradient" in attack.needs:
            return (
                lacks_gradient(self.model, image)
                or ("float64" in attack.needs and lacks_float64(self.model, image))
                or ""
            )
        return ""


def lacks_gradient(model: nn.Module, image: Tensor) -> str:
    """Explain why autograd finds no gradient of the logits in the image; empty if it finds one, even a zero one."""
    point = image.clone().requires_grad_()
    slope = None
    try:
        with torch.enable_grad(), seeded(0, "gradient"):
            logits = model(point)
            if logits.requires_grad:
                (slope,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return f"needs a gradient, the model has none: {one_line(error)}"
    return "needs a gradient, the model has none: its logits are cut off from the image" if slope is None else ""


def lacks_float64(model: nn.Module, image: Tensor) -> str:
    """Explain why the model does not run in float64; empty if it does."""
    try:
        with prepared(model, PGD(precision="float64")) as double, torch.no_grad(), seeded(0, "float64"):
            double(image.double())
    except (RuntimeError, TypeError) as error:  # TypeError: a model that cannot be copied
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"needs a model that runs in float64: {one_line(error)}"
    return ""


def _combined(attacked: Tensor, batches: Sequence[tuple[Tensor, Values]]) -> AttackOutcome:
    """Combine the results of an attack's batches, given with their indices; an image in several has the last result."""
    wrong = torch.zeros(len(attacked), dtype=torch.bool)
    distance = torch.full((len(attacked),), torch.nan, dtype=torch.float64)
    adversarial: Tensor | None = None
    blind = torch.zeros(len(attacked), dtype=torch.uint8)
    for part, unit in batches:
        at = torch.searchsorted(attacked, part)
        wrong[at], distance[at] = unit["fooled"], unit["distance"]
        if "blindness" in unit:
            blind[at] = torch.maximum(blind[at], unit["blindness"])
        if "adversarial" in unit:
            points = unit["adversarial"]
            adversarial = points.new_empty(len(attacked), *points.shape[1:]) if adversarial is None else adversarial
            adversarial[at] = points
    forward, backward = (sum(int(unit["passes"][kind]) for _, unit in batches) for kind in (0, 1))
    seconds = float(sum(unit["seconds"] for _, unit in batches))
    blindness = blind if any("blindness" in unit for _, unit in batches) else None
    return AttackOutcome(attacked, wrong, distance, forward, backward, seconds, adversarial, blindness)

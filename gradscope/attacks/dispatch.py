"""How to run an attack of the registry: as turns. Each turn attacks the images that earlier turns did not fool."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from gradscope.attacks.problem import Problem, Run
from gradscope.attacks.registry import Attack
from gradscope.config import Budget

#: Number of wrong classes aimed at together, after the likeliest class alone, which fools most images. Eight points per
#: image fill the batch when few images are left.
RANKS_AT_ONCE = 8


@dataclass(frozen=True)
class Turn:
    """One run on a batch of images; it moves ``copies`` points per image at once."""

    run: Run
    copies: int = 1


def turns(attack: Attack, budget: Budget, classes: int, examples: int, batch_size: int) -> Iterator[Turn]:
    """Yield the turns of ``attack`` in order: its restarts, target classes, ``examples`` or parts (AutoAttack).

    Each turn should get only images that no earlier turn fooled. No turn moves more than ``batch_size`` points per
    image.
    """
    if attack.parts:
        for part in attack.parts:
            yield from turns(part, budget, classes, examples, batch_size)
    elif attack.code:
        module, _, function = attack.code.partition(":")
        run: Callable[..., Tensor] = partial(getattr(import_module(module), function), **attack.arguments)
        if attack.each == "rank":
            ranks = range(min(budget.targets, classes - 1))
            yield from (Turn(partial(run, ranks=group), len(group)) for group in _rank_groups(ranks, batch_size))
        elif attack.each == "example":
            yield from (Turn(partial(run, example=number)) for number in range(examples))
        else:
            yield Turn(run)
    elif "examples" in attack.needs:
        climb = partial(_climb, attack=attack, from_example=True)
        yield from (Turn(partial(climb, restart=number)) for number in range(examples))
    else:
        restarts = budget.restarts if "restarts" in attack.takes else 1
        yield from (Turn(partial(_climb, attack=attack, restart=number)) for number in range(restarts))


def _rank_groups(ranks: range, batch_size: int) -> Iterator[range]:
    """Split ``ranks`` into the groups that are aimed at together: first the likeliest alone, then several at once."""
    yield ranks[:1]
    at_once = min(RANKS_AT_ONCE, batch_size)
    yield from (ranks[first : first + at_once] for first in range(1, len(ranks), at_once))


def _climb(problem: Problem, attack: Attack, restart: int, *, from_example: bool = False) -> Tensor:
    """Run PGD from its random start number ``restart``, or from the other models' example of that number."""
    taken: dict[str, Any] = {}
    if "smoothing" in attack.takes:
        radius = problem.threat.radius_of_a_coordinate(problem.images[0].numel())
        taken = {"smoothing": problem.budget.smoothing, "smoothing_radius": radius}
    start = try_example(problem, restart) if from_example else None
    loss = problem.loss if "loss" in attack.needs else None
    return problem.climb(problem.settings(attack.pgd, **taken), restart, start, loss).points


def try_example(problem: Problem, example: int) -> Tensor:
    """Return the other models' example of that number, projected into the ball."""
    return problem.threat.project(problem.examples[example], problem.images)

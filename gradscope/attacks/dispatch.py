"""How an attack of the registry is run: in turns, each a run on a batch of the images that those before it left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from gradscope.attacks.problem import Problem, Run
from gradscope.attacks.registry import Attack
from gradscope.config import Budget

#: Wrong classes that an attack aims at side by side, once it has aimed at the likeliest, which most images fall to.
#: Eight points of an image fill a batch of which few images are left.
RANKS_AT_ONCE = 8


@dataclass(frozen=True)
class Turn:
    """A run on a batch of images; ``copies``: the points that it moves at once for each of them."""

    run: Run
    copies: int = 1


def turns(attack: Attack, budget: Budget, classes: int, examples: int, batch_size: int) -> Iterator[Turn]:
    """The turns that ``attack`` consists of, in order: restarts, classes aimed at, ``examples``, parts of AutoAttack.

    Each is to have the images that no turn before it fooled the model with. None moves more than ``batch_size`` points
    of an image.
    """
    if attack.parts:
        for part in attack.parts:
            yield from turns(part, budget, classes, examples, batch_size)
    elif attack.code:
        module, _, function = attack.code.partition(":")
        run: Callable[..., Tensor] = partial(getattr(import_module(module), function), **attack.arguments)
        if attack.each == "rank":
            ranks = range(min(budget.targets, classes - 1))
            yield from (Turn(partial(run, ranks=some), len(some)) for some in _together(ranks, batch_size))
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


def _together(ranks: range, batch_size: int) -> Iterator[range]:
    """``ranks`` as they are aimed at: the first alone, then several at once."""
    yield ranks[:1]
    at_once = min(RANKS_AT_ONCE, batch_size)
    yield from (ranks[first : first + at_once] for first in range(1, len(ranks), at_once))


def _climb(problem: Problem, attack: Attack, restart: int, *, from_example: bool = False) -> Tensor:
    """PGD from its start number ``restart``, or from the example of that number."""
    taken: dict[str, Any] = {}
    if "smoothing" in attack.takes:
        radius = problem.threat.radius_of_a_coordinate(problem.images[0].numel())
        taken = {"smoothing": problem.budget.smoothing, "smoothing_radius": radius}
    start = try_example(problem, restart) if from_example else None
    loss = problem.loss if "loss" in attack.needs else None
    return problem.climb(problem.settings(attack.pgd, **taken), restart, start, loss).points


def try_example(problem: Problem, example: int) -> Tensor:
    """The other models' example of that number, projected into the ball."""
    return problem.threat.project(problem.examples[example], problem.images)

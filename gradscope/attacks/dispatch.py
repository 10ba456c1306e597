"""How an attack of the registry is run: in turns, each a run on a batch of the images that those before it left."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from gradscope.attacks.problem import Problem, Run
from gradscope.attacks.registry import Attack
from gradscope.config import Budget


def turns(attack: Attack, budget: Budget, classes: int, examples: int) -> Iterator[Run]:
    """The runs that ``attack`` consists of, in order: restarts, classes aimed at, ``examples``, parts of AutoAttack.

    Each is to have the images that no run before it fooled the model with.
    """
    if attack.parts:
        for part in attack.parts:
            yield from turns(part, budget, classes, examples)
    elif attack.code:
        module, _, function = attack.code.partition(":")
        run: Callable[..., Tensor] = partial(getattr(import_module(module), function), **attack.arguments)
        if not attack.each:
            yield run
            return
        times = {"rank": min(budget.targets, classes - 1), "example": examples}[attack.each]
        yield from (partial(run, **{attack.each: number}) for number in range(times))
    elif "examples" in attack.needs:
        yield from (partial(_climb, attack=attack, restart=number, from_example=True) for number in range(examples))
    else:
        restarts = budget.restarts if "restarts" in attack.takes else 1
        yield from (partial(_climb, attack=attack, restart=number) for number in range(restarts))


def _climb(problem: Problem, attack: Attack, restart: int, *, from_example: bool = False) -> Tensor:
    """PGD from its start number ``restart``, or from the example of that number."""
    taken: dict[str, Any] = {}
    if "smoothing" in attack.takes:
        radius = problem.threat.radius_of_a_coordinate(problem.images[0].numel())
        taken = {"smoothing": problem.budget.smoothing, "smoothing_radius": radius}
    start = try_example(problem, restart) if from_example else None
    return problem.climb(problem.settings(attack.pgd, **taken), restart, start).points


def try_example(problem: Problem, example: int) -> Tensor:
    """The other models' example of that number, projected into the ball."""
    return problem.threat.project(problem.examples[example], problem.images)

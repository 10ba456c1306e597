"""How an attack of the registry is run on a batch of images."""

from functools import partial
from importlib import import_module

from torch import Tensor

from gradscope.attacks.black_box import square
from gradscope.attacks.problem import Problem, in_turn
from gradscope.attacks.registry import ATTACKS, Attack


def run_attack(attack: Attack, problem: Problem) -> Tensor:
    """Attack ``problem``: for each image the point ``(N, C, H, W)`` that it holds to fool the model, else any."""
    if attack.code:
        module, _, function = attack.code.partition(":")
        points: Tensor = getattr(import_module(module), function)(problem, **attack.arguments)
        return points
    if "examples" in attack.needs:
        settings = problem.settings(attack.pgd, restarts=len(problem.examples))
        return problem.climb(settings, partial(_example, problem)).points
    taken = {name: getattr(problem.budget, name) for name in attack.takes}
    if "smoothing" in taken:
        taken["smoothing_radius"] = problem.threat.radius_of_a_coordinate(problem.images[0].numel())
    return problem.climb(problem.settings(attack.pgd, **taken)).points


def try_examples(problem: Problem) -> Tensor:
    """The first of the other models' examples that fools the model, projected into the ball; else the last."""
    return in_turn(problem, [partial(_example, place=place) for place in range(len(problem.examples))])


def autoattack(problem: Problem) -> Tensor:
    """AutoAttack's standard version (Croce and Hein 2020): each part on what the parts before it left."""
    parts = [partial(run_attack, ATTACKS[name]) for name in ("apgd-ce", "apgd-t", "fab-t")]
    return in_turn(problem, [*parts, partial(square, stretched=False)])


def _example(problem: Problem, place: int) -> Tensor:
    return problem.threat.project(problem.examples[place], problem.images)

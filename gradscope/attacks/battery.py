"""The attacks by name: what each is, what it needs of a model, and how it is run."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from gradscope.attacks.apgd import apgd, apgd_targeted
from gradscope.attacks.climbing import climb
from gradscope.attacks.queries import noise, square
from gradscope.attacks.victims import Run, Victims, in_turn
from gradscope.attacks.wrapped import fab
from gradscope.config import Norm

Need = Literal["gradient", "float64", "examples"]


@dataclass(frozen=True)
class Attack:
    """One attack of the battery: in a line what it is, what it needs, and how it is run.

    Without the need "gradient" it asks for logits only. ``classes`` is the fewest it is defined for. ``batch_size`` is
    set where the batch is part of the attack.
    """

    meaning: str
    run: Run
    needs: frozenset[Need] = frozenset({"gradient"})
    classes: int = 2
    norms: frozenset[Norm] = frozenset({"linf", "l2"})
    batch_size: int | None = None


def _pgd(**changes: object) -> Run:
    return lambda victims: climb(victims, victims.settings(**changes))


def _fgsm(victims: Victims) -> Tensor:
    return climb(victims, victims.settings(start="none", steps=1, step_size=victims.threat.epsilon))


def _paper(victims: Victims) -> Tensor:
    """The paper's step is a tenth of its radius."""
    changes = {"start": "cube", "box": False, "reduction": "mean", "norm_floor": 1e-6}
    return climb(victims, victims.settings(**changes, step_size=victims.threat.epsilon / 10))


def _smooth(victims: Victims) -> Tensor:
    """Noise as long as the ball's radius: in each coordinate (L-infinity), on average as a whole (L2)."""
    coordinates = victims.images[0].numel()
    radius = victims.threat.epsilon / (1 if victims.threat.norm == "linf" else coordinates**0.5)
    return climb(victims, victims.settings(smoothing=victims.budget.smoothing, smoothing_radius=radius))


def _large_steps(victims: Victims) -> Tensor:
    """Ten times the usual step, at most across the ball."""
    usual = victims.settings().step_size
    return climb(victims, victims.settings(step_size=min(10 * usual, 2 * victims.threat.epsilon)))


def _restarts(victims: Victims) -> Tensor:
    return climb(victims, victims.settings(restarts=victims.budget.restarts))


def _example(victims: Victims, place: int) -> Tensor:
    return victims.threat.project(victims.examples[place], victims.images)


def _from_examples(victims: Victims) -> Tensor:
    return climb(victims, victims.settings(restarts=len(victims.examples)), begin=_example)


def _transfer(victims: Victims) -> Tensor:
    return in_turn(victims, [partial(_example, place=place) for place in range(len(victims.examples))])


def _autoattack(victims: Victims) -> Tensor:
    parts = (partial(apgd, loss="cross-entropy"), apgd_targeted, partial(fab, targeted=True))
    return in_turn(victims, [*parts, partial(square, stretched=False)])


_QUERIES: frozenset[Need] = frozenset()

BATTERY: dict[str, Attack] = {
    "fgsm": Attack("one step of epsilon along the gradient, from the image", _fgsm),
    "pgd": Attack("PGD on cross-entropy, start uniform in the ball", _pgd()),
    "pgd-paper": Attack(
        "PGD as the paper writes it: batch-mean loss, norm floored at 1e-6, cube start, cut to the box when judged",
        _paper,
        batch_size=128,
    ),
    "pgd-log-odds": Attack("PGD on the log-odds: cross-entropy's path, without its rounding", _pgd(loss="log-odds")),
    "pgd-margin": Attack("PGD on the margin of the logits", _pgd(loss="margin")),
    "pgd-dlr": Attack("PGD on the difference of logits ratio", _pgd(loss="dlr"), classes=3),
    "pgd-rescaled": Attack("PGD on cross-entropy of rescaled logits", _pgd(loss="rescaled-cross-entropy")),
    "pgd-float64": Attack(
        "PGD with model and image in float64", _pgd(precision="float64"), frozenset({"gradient", "float64"})
    ),
    "pgd-smooth": Attack("PGD on gradients averaged over input noise", _smooth),
    "pgd-large-steps": Attack("PGD with steps ten times as long", _large_steps),
    "pgd-restarts": Attack("PGD from many random starts", _restarts),
    "pgd-from": Attack(
        "PGD from other models' adversarial examples", _from_examples, frozenset({"gradient", "examples"})
    ),
    "apgd-ce": Attack("auto-PGD on cross-entropy", partial(apgd, loss="cross-entropy")),
    "apgd-dlr": Attack("auto-PGD on the difference of logits ratio", partial(apgd, loss="dlr"), classes=3),
    "apgd-t": Attack("auto-PGD aimed at the likeliest wrong classes, one after another", apgd_targeted),
    "fab": Attack("fast adaptive boundary: the nearest point over any boundary", partial(fab, targeted=False)),
    "fab-t": Attack("fast adaptive boundary, aimed at one wrong class after another", partial(fab, targeted=True)),
    "square": Attack("random search with squares, by logits alone", square, _QUERIES),
    "autoattack": Attack("AutoAttack standard: apgd-ce, apgd-t, fab-t, square in a cascade", _autoattack),
    "noise": Attack("random points of the ball, by logits alone", noise, _QUERIES),
    "transfer": Attack("adversarial examples made on other models", _transfer, frozenset({"examples"})),
}

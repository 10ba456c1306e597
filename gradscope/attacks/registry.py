"""Table of the attacks: the meaning of each, what it needs from a model, and the place of its code. Imports no torch.

The command line and recipes check names against this table; the code of an attack is imported when it runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gradscope.config import Norm

Need = Literal["gradient", "float64", "examples", "loss"]

#: The attack on the user's own loss.
OWN = "pgd-own"

#: The paper's batch size, for attacks whose result depends on the batch.
PAPER_BATCH = 128


@dataclass(frozen=True)
class Attack:
    """One attack: its meaning in one line, what it needs from a model, and how to run it.

    With ``pgd`` it is PGD with the settings of that name in :data:`gradscope.config.PGD_ATTACKS` and the budget fields
    that it ``takes``. With ``code``, "module:function", it is that function, called with a problem and ``arguments``.
    ``each`` says what ``code`` is called for once: an example (argument ``example``, its number) or a group of wrong
    classes (argument ``ranks``). ``parts`` are the attacks that it consists of. Without the need "gradient" it uses
    logits only. ``classes`` is the smallest number of classes it works with. ``batch_size`` is set if the batch is part
    of the attack.
    """

    meaning: str
    pgd: str = ""
    takes: tuple[str, ...] = ()
    code: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    each: Literal["", "rank", "example"] = ""
    parts: tuple["Attack", ...] = ()
    needs: frozenset[Need] = frozenset({"gradient"})
    classes: int = 2
    norms: frozenset[Norm] = frozenset({"linf", "l2"})
    batch_size: int | None = None


_LOGITS: frozenset[Need] = frozenset()

_APGD_CE = Attack("auto-PGD on cross-entropy", code="gradscope.attacks.apgd:apgd", arguments={"loss": "cross-entropy"})
_APGD_T = Attack(
    "auto-PGD aimed at each of the likeliest wrong classes",
    code="gradscope.attacks.apgd:apgd_targeted",
    each="rank",
)
_FAB_T = Attack(
    "fast adaptive boundary, aimed at each of the likeliest wrong classes",
    code="gradscope.attacks.fab:fab_targeted",
    each="rank",
)
_SQUARE = Attack(
    "random search with squares, by logits alone", code="gradscope.attacks.black_box:square", needs=_LOGITS
)

ATTACKS: dict[str, Attack] = {
    "fgsm": Attack("one step of epsilon along the gradient, from the image", "fgsm"),
    "pgd": Attack("PGD on cross-entropy, start uniform in the ball", "pgd"),
    "pgd-paper": Attack(
        "PGD as the paper writes it: batch-mean loss, norm floored at 1e-6, cube start, cut to the box when judged",
        "pgd-paper",
        batch_size=PAPER_BATCH,
    ),
    "pgd-log-odds": Attack("PGD on the log-odds: cross-entropy's path, without its rounding", "pgd-log-odds"),
    "pgd-margin": Attack("PGD on the margin of the logits", "pgd-margin"),
    "pgd-dlr": Attack("PGD on the difference of logits ratio", "pgd-dlr", classes=3),
    "pgd-rescaled": Attack("PGD on cross-entropy of rescaled logits", "pgd-rescaled"),
    "pgd-float64": Attack(
        "PGD with model and image in float64", "pgd-float64", needs=frozenset({"gradient", "float64"})
    ),
    "pgd-smooth": Attack("PGD on gradients averaged over input noise", "pgd", takes=("smoothing",)),
    "pgd-large-steps": Attack("PGD with steps ten times as long", "pgd-large-steps"),
    OWN: Attack("PGD on a loss of your own (option loss)", "pgd", needs=frozenset({"gradient", "loss"})),
    "pgd-restarts": Attack("PGD from many random starts", "pgd", takes=("restarts",)),
    "pgd-from": Attack("PGD from other models' adversarial examples", "pgd", needs=frozenset({"gradient", "examples"})),
    "apgd-ce": _APGD_CE,
    "apgd-dlr": Attack(
        "auto-PGD on the difference of logits ratio",
        code="gradscope.attacks.apgd:apgd",
        arguments={"loss": "dlr"},
        classes=3,
    ),
    "apgd-t": _APGD_T,
    "fab": Attack(
        "fast adaptive boundary: the nearest point over any boundary",
        code="gradscope.attacks.wrapped:fab",
    ),
    "fab-t": _FAB_T,
    "fmn": Attack(
        "fast minimum-norm: the nearest point over any boundary, whatever epsilon is",
        code="gradscope.attacks.minimal_norm:fmn",
    ),
    "square": _SQUARE,
    "autoattack": Attack(
        "AutoAttack standard: apgd-ce, apgd-t, fab-t, square in a cascade",
        parts=(_APGD_CE, _APGD_T, _FAB_T, replace(_SQUARE, arguments={"stretched": False})),
    ),
    "noise": Attack(
        "random points of the ball, by logits alone", code="gradscope.attacks.black_box:noise", needs=_LOGITS
    ),
    "rays": Attack(
        "RayS: the direction of signs in which another class is nearest, by labels alone",
        code="gradscope.attacks.decision:rays",
        needs=_LOGITS,
    ),
    "hop-skip-jump": Attack(
        "HopSkipJump: along the boundary towards the image, by labels alone",
        code="gradscope.attacks.decision:hop_skip_jump",
        needs=_LOGITS,
    ),
    "transfer": Attack(
        "adversarial examples made on other models",
        code="gradscope.attacks.dispatch:try_example",
        each="example",
        needs=frozenset({"examples"}),
    ),
}

"""Checks of the gradient: is it dead, rounded away, steady along the attack, and that of the output?

None accuses, but dead gradients of every loss on most of what stands.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from gradscope.auditing.checks.base import (
    ALPHA,
    FEWEST_PROBED,
    FEWEST_STANDING,
    Cause,
    Check,
    abstained,
    known_median,
    no_gradient,
    numbers_at,
    would_be_claimed,
)
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.gradients import is_dead, kinds_of_slope
from gradscope.auditing.outputs import flattened_by
from gradscope.results.stats import Interval, mcnemar, wilson_interval

#: DESIGN: share of samples with a dead gradient, and of those whose gradient float32 bends.
DEAD_SHARE = 0.01
#: Share of the images that stand on which no loss has a gradient, above which nothing was tried on them.
UNSEEN_SHARE = 0.5
BENT_SHARE = 0.05
BENT_COSINE = 0.99
#: Share of images whose slopes are not autograd's. Honest networks have none of them beside a rare kink.
FALSE_SHARE = 0.05
#: Median cosine of consecutive gradients below which they are called erratic: honest classifiers of digits have 0.97
#: to 1, a backward pass of noise -0.01.
ERRATIC = 0.1


#: What to do about a gradient that does not show the way, by cause.
NEXT_STEPS: dict[Cause, str] = {
    "saturation": "attack a margin or rescaled loss, or in float64",
    "missing gradient": "give a stand-in for the backward pass (option backward, BPDA), or attack by query",
    "false gradient": "give a stand-in for the backward pass (option backward, BPDA)",
    "shattering": "let the identity stand in for the step (option backward, BPDA)",
    "bounded output": "attack what goes into the bound in place of the output, or in float64",
    "stand-in": "give another stand-in (backward), or attack by query",
    "clipped output": "attack what goes into the clip in place of the output, or let its backward pass be the identity",
}


def unseen(evidence: Evidence) -> float:
    """Share of the images that stand, of those looked at, at which no loss has a gradient to follow.

    The cross-entropy is dead there or on PGD's path, and the margin has no slope, in float64 where the model runs in
    it. 0 where fewer than :data:`FEWEST_STANDING` stand.
    """
    if evidence.start is None or evidence.path is None or evidence.slopes is None:
        return 0.0
    standing = evidence.standing()[evidence.places]
    if int(standing.sum()) < FEWEST_STANDING:
        return 0.0
    without = _dead(evidence) & (evidence.slopes["autograd"] == 0).all(dim=1)
    return float(without[standing].double().mean())


def _dead(evidence: Evidence) -> Tensor:
    assert evidence.start is not None
    assert evidence.path is not None
    return is_dead(evidence.start["loss"], evidence.start["norm"]) | evidence.path["dead"]


def dead_gradients(evidence: Evidence) -> Check:
    """N1: a loss of zero, no gradient or one below the usual floors, at the image or along PGD.

    It accuses where no loss has a gradient on at least :data:`UNSEEN_SHARE` of what stands: no attack along a gradient
    was tried there, whatever its loss.
    """
    name = "dead gradients"
    if evidence.start is None or evidence.path is None:
        return no_gradient(evidence, "N1", name, DEAD_SHARE)
    kind = _kind_of_death(evidence)
    missed = blind_with_floors(evidence)
    made = _share(
        evidence,
        ("N1", name, DEAD_SHARE),
        _dead(evidence),
        "the cross-entropy or its gradient is zero, or too small for the floors that attacks put under it"
        + (f"; {missed}" if missed else ""),
        NEXT_STEPS[kind],
        (kind,),
    )
    share = unseen(evidence)
    if not made.fired or share < UNSEEN_SHARE:
        return made
    left = float(evidence.standing().double().mean())
    accuses = would_be_claimed(left, left * (1 - share), float(evidence.main.right.double().mean()))
    beside = f"; on {100 * share:.0f} % of the images that stand no loss has a gradient to follow"
    return replace(made, accuses=accuses, left=left, lowest=left * (1 - share), beside=beside)


def _kind_of_death(evidence: Evidence) -> Cause:
    """What keeps the outputs within bounds, where they are; else what is wrong with the slopes.

    Where nothing is: saturated where the loss is next to nothing; where it is that of a guess, the gradient was scaled
    away.
    """
    assert evidence.start is not None
    if standin_is_zero(evidence):
        return "stand-in"
    if (flattened := flattened_by(evidence.outputs)) is not None:
        return flattened
    if evidence.slopes is not None and not evidence.stands_in and (kind := slopes_of(evidence)[1]) is not None:
        return kind
    dead = is_dead(evidence.start["loss"], evidence.start["norm"])
    losses = evidence.start["loss"][dead]
    scaled_away = len(losses) > 0 and float(losses.median()) > math.log(evidence.classes) / 2
    return "missing gradient" if scaled_away else "saturation"


def blind_with_floors(evidence: Evidence) -> str:
    """What stands under PGD with such floors and under exact PGD, in words; empty unless a paired test parts them."""
    attacks = evidence.main.attacks.keys()
    if not {"pgd", "pgd-paper"} <= attacks or mcnemar(*evidence.main.only("pgd", "pgd-paper"), greater=True) > ALPHA:
        return ""
    floored, exact = (100 * float(evidence.main.standing(name).double().mean()) for name in ("pgd-paper", "pgd"))
    return f"{floored:.1f} % stand under PGD with floors (pgd-paper), {exact:.1f} % under exact PGD"


def rounding(evidence: Evidence) -> Check:
    """N2: the gradient in float32 points elsewhere than in float64."""
    name = "rounding"
    if not len(evidence.places):
        return no_gradient(evidence, "N2", name, BENT_SHARE)
    if evidence.precision is None:
        why = "the output is random" if evidence.wanders else "the model has no gradient in float64"
        return abstained("N2", name, why, "compare in float64 by hand", BENT_SHARE)
    bent = evidence.precision["cosine"] < BENT_COSINE
    return _share(
        evidence,
        ("N2", name, BENT_SHARE),
        bent,
        "the gradient of cross-entropy in float32 and in float64 point in different directions",
        "attack in float64, or on the margin",
        ("saturation",),
    )


def slopes_of(evidence: Evidence) -> tuple[Tensor, Cause | None]:
    """Which of the looked-at images have slopes that are not autograd's, and the commonest reason if they are many.

    Outputs that are flat since they lie at a bound are no steps.
    """
    assert evidence.slopes is not None
    kinds = kinds_of_slope(evidence.slopes)
    names: dict[str, Cause] = {"stepped": "shattering", "missing": "missing gradient", "false": "false gradient"}
    wrong = torch.stack(list(kinds.values())).any(dim=0)
    if len(wrong) < FEWEST_PROBED or float(wrong.double().mean()) <= FALSE_SHARE:
        return wrong, None
    kind = names[max(kinds, key=lambda kind: int(kinds[kind].sum()))]
    return wrong, (flattened_by(evidence.outputs) or kind) if kind != "false gradient" else kind


def standin_is_zero(evidence: Evidence) -> bool:
    """Whether a stand-in leaves the margin no gradient on many of the looked-at images."""
    if not evidence.stands_in or evidence.slopes is None:
        return False
    return float((evidence.slopes["autograd"] == 0).all(dim=1).double().mean()) > FALSE_SHARE


def geometry(evidence: Evidence) -> Check:
    """G1: how steady the gradients are along PGD; supporting evidence, never alone."""
    name = "geometry"
    if evidence.path is None or evidence.start is None:
        return no_gradient(evidence, "G1", name, ERRATIC)
    known = evidence.path["cosine"][~evidence.path["cosine"].isnan()]
    if len(known) < FEWEST_PROBED:
        why = f"{len(known)} images have a gradient at two iterates, {FEWEST_PROBED} are needed"
        return abstained("G1", name, why, "see N1", ERRATIC)
    value = float(known.median())
    sign, norm = (float(evidence.path[key].nanmedian()) for key in ("sign", "norm"))
    bends = "" if evidence.curvature is None else f", the median curvature {_median(evidence.curvature['curvature'])}"
    aligned = known_median(evidence.path["alignment"], ", the median alignment of image and random start {:.2f}")
    fired = value < ERRATIC
    return Check(
        "G1",
        name,
        "fired" if fired else "passed",
        value,
        ERRATIC,
        "consecutive gradients turn",
        "look at S1 and at the landscape: this alone says nothing",
        n=len(known),
        beside=f": median cosine; {sign:.2f} of the signs agree, the median norm is {norm:.2g}{aligned}{bends}",
    )


def _median(values: Tensor) -> str:
    known = values[values.isfinite()]
    return f"{float(known.median()):.2g} nats per squared unit" if len(known) else "is not defined"


def _share(
    evidence: Evidence,
    what: tuple[str, str, float],
    holds: Tensor,
    cause: str,
    next_step: str,
    points_to: tuple[Cause, ...],
) -> Check:
    """A check of the share of looked-at images for which ``holds`` ``(M,)``; fires above its threshold."""
    identifier, name, threshold = what
    count, n = int(holds.sum()), len(holds)
    if n < FEWEST_PROBED:
        why = f"{n} images are right when clean, {FEWEST_PROBED} are needed"
        return abstained(identifier, name, why, "give more images", threshold)
    fired = count / n > threshold
    interval: Interval = wilson_interval(count, n)
    return Check(
        identifier,
        name,
        "fired" if fired else "passed",
        count / n,
        threshold,
        cause,
        next_step,
        interval,
        n,
        images=numbers_at(evidence.numbers[evidence.places], holds),
        points_to=points_to,
    )

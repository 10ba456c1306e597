"""Checks of the gradient: is it dead, rounded away, steady along the attack, and the output's true gradient?

These checks do not accuse, with one exception: dead gradients of every loss on most images that no attack fooled.
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

#: N1 fires above this share of images with a dead gradient.
DEAD_SHARE = 0.01
#: N1 accuses if no loss has a gradient on at least this share of the images that no attack fooled.
UNSEEN_SHARE = 0.5
#: N2 fires if the gradients in float32 and float64 have a cosine below ``BENT_COSINE`` on more than this share of
#: images.
BENT_SHARE = 0.05
BENT_COSINE = 0.99
#: Slopes count as wrong if autograd's differ from measured ones on more than this share of images. Honest networks have
#: none, apart from a rare kink.
FALSE_SHARE = 0.05
#: G1 fires if the median cosine of consecutive gradients is below this. Honest classifiers of digits have 0.97 to 1, a
#: backward pass of noise has -0.01.
ERRATIC = 0.1


#: Next step by cause, for a gradient that does not lead to adversarial examples.
NEXT_STEPS: dict[Cause, str] = {
    "saturation": "attack with a margin or rescaled loss, or in float64",
    "missing gradient": "give a stand-in for the backward pass (option backward, BPDA), or attack by query",
    "false gradient": "give a stand-in for the backward pass (option backward, BPDA)",
    "shattering": "use the identity as backward pass of the step function (option backward, BPDA)",
    "bounded output": "attack the input of the bounding function, not its output, or attack in float64",
    "stand-in": "give another stand-in (option backward), or attack by query",
    "clipped output": "attack the input of the clipping, not its output, or use the identity as its backward pass",
}


def unseen(evidence: Evidence) -> float:
    """Compute the share of probed images, among those no attack fooled, where no loss has a gradient to follow.

    There the gradient of cross-entropy is dead at the image or on PGD's path, and the margin has slope 0, in float64 if
    the model runs in it. 0 if fewer than :data:`FEWEST_STANDING` images are left.
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
    """Check N1: the loss is zero, or its gradient is zero or below the usual floors, at the image or along PGD.

    It accuses if no loss has a gradient on at least :data:`UNSEEN_SHARE` of the images that no attack fooled: there no
    gradient attack could work, whatever its loss.
    """
    name = "dead gradients"
    if evidence.start is None or evidence.path is None:
        return no_gradient(evidence, "N1", name, DEAD_SHARE)
    kind = _kind_of_death(evidence)
    missed = blind_with_floors(evidence)
    check = _share(
        evidence,
        ("N1", name, DEAD_SHARE),
        _dead(evidence),
        "cross-entropy or its gradient is zero, or below the norm floors that attacks use"
        + (f"; {missed}" if missed else ""),
        NEXT_STEPS[kind],
        (kind,),
    )
    share = unseen(evidence)
    if not check.fired or share < UNSEEN_SHARE:
        return check
    left = float(evidence.standing().double().mean())
    accuses = would_be_claimed(left, left * (1 - share), float(evidence.main.right.double().mean()))
    beside = f"; on {100 * share:.0f} % of the images that no attack fooled, no loss has a gradient to follow"
    return replace(check, accuses=accuses, left=left, lowest=left * (1 - share), beside=beside)


def _kind_of_death(evidence: Evidence) -> Cause:
    """Find the cause of dead gradients: bounded outputs, else wrong slopes, else saturation or a missing gradient.

    If outputs and slopes are fine, the model is saturated where the loss is almost zero. Where the loss is that of a
    guess, the gradient was scaled away.
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
    """Compare robust accuracy under PGD with norm floors and under exact PGD, in words; empty if not significant."""
    attacks = evidence.main.attacks.keys()
    if not {"pgd", "pgd-paper"} <= attacks or mcnemar(*evidence.main.only("pgd", "pgd-paper"), greater=True) > ALPHA:
        return ""
    floored, exact = (100 * float(evidence.main.standing(name).double().mean()) for name in ("pgd-paper", "pgd"))
    return f"robust accuracy is {floored:.1f} % under PGD with norm floors (pgd-paper), {exact:.1f} % under exact PGD"


def rounding(evidence: Evidence) -> Check:
    """Check N2: the gradients in float32 and in float64 point in different directions."""
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
        "the gradients of cross-entropy in float32 and in float64 point in different directions",
        "attack in float64, or on the margin",
        ("saturation",),
    )


def slopes_of(evidence: Evidence) -> tuple[Tensor, Cause | None]:
    """Mark the probed images whose slopes differ from autograd's; if there are many, name the commonest cause.

    Outputs that are flat because they lie at a bound do not count as steps.
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
    """Tell whether a stand-in gives the margin a zero gradient on many of the probed images."""
    if not evidence.stands_in or evidence.slopes is None:
        return False
    return float((evidence.slopes["autograd"] == 0).all(dim=1).double().mean()) > FALSE_SHARE


def geometry(evidence: Evidence) -> Check:
    """Check G1: do gradients along PGD keep their direction? Supporting evidence only."""
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
        "look at S1 and at the landscape; this check alone proves nothing",
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
    """Build a check on the share of probed images for which ``holds`` ``(M,)``; it fires above the threshold."""
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

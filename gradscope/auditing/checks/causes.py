"""Checks of what can blind an attack: the set-up, dead, rounded or false gradients, too little work.

None accuses, but dead gradients of every loss on most of what stands.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from gradscope.attacks.pgd import settings_inside
from gradscope.auditing.checks.base import ALPHA, Cause, Check, State, abstained, numbers_at, would_be_claimed
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.gradients import is_dead, kinds_of_slope
from gradscope.auditing.outputs import PASSES, SAME_LOGITS, depend_on_the_batch, flattened_by
from gradscope.results.stats import Interval, mcnemar, paired_rates_interval, wilson_interval

#: Fewer images than this say nothing about a share of 1 to 5 %.
FEWEST_PROBED = 20
#: DESIGN: share of samples with a dead gradient, and of those whose gradient float32 bends.
DEAD_SHARE = 0.01
#: Share of the images that stand on which no loss has a gradient, above which nothing was tried on them.
UNSEEN_SHARE = 0.5
BENT_SHARE = 0.05
BENT_COSINE = 0.99
#: Share of images whose slopes are not autograd's. Honest networks have none of them beside a rare kink.
FALSE_SHARE = 0.05
#: A point of robust accuracy gained by twice the steps is what users take for settled (Carlini et al. 2019 ask for
#: none); two leave room for the few images at the boundary among 100 to 200.
STILL_FALLING = 0.02
#: I4 of Pintor et al. 2022: what the last ten steps may still move, in their code, and on how many of the images.
STILL_MOVING = 0.05
MOVING_SHARE = 0.5
#: Share of images whose class the mean of the draws changes between passes: outcomes above it are by luck, and those of
#: several attacks together fall by it.
FLIPPING_SHARE = 0.05
#: Fewer images that stand at the end of PGD say nothing about convergence.
FEWEST_STANDING = 10
#: Steps that are shorter together, in multiples of epsilon, cannot cross their ball.
ACROSS = 2.0
#: Known adversarial points that attacks may miss: no honest network hides one in twenty (Zimmermann et al. 2022 ask for
#: about all).
MISSED_SHARE = 0.05
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


def set_up(evidence: Evidence) -> Check:
    """D1: what makes every number after it mean something else; ``value`` counts what was found."""
    outputs = evidence.outputs
    found: list[str] = []
    causes: list[Cause] = []
    images = torch.zeros(len(evidence), dtype=torch.bool)
    looked, flips = len(outputs["flips"]), int(outputs["flips"].sum())
    flipping = []
    if evidence.draws and flips > FLIPPING_SHARE * looked:
        flipping = [f"on {flips} of {looked} images passes of {evidence.draws} draws each differ in the class"]
    if evidence.random:
        found.append("two passes over one image differ")
        causes.append("randomness")
        images[:looked] |= outputs["flips"] | (outputs["wander"] > SAME_LOGITS)
    elif evidence.wanders:
        images[:looked] |= outputs["flips"]
        found += flipping
    elif depend_on_the_batch(outputs):
        found.append("the output depends on the other images of the batch")
        images[:looked] |= outputs["alone"].nan_to_num(0.0) > SAME_LOGITS
    if evidence.probabilities:
        found.append("the outputs are probabilities, where attacks take logits")
        causes.append("probabilities")
    if bool(outputs["outside"].any()):
        found.append("images leave [0, 1]")
        images[:looked] |= outputs["outside"]
    if not evidence.threat.box:
        found.append("attacks may leave [0, 1]")
    if bool(evidence.main.undefined.any()):
        found.append("the output is not finite on some images")
        images |= evidence.main.undefined
    if near_chance(evidence):
        found.append("clean accuracy is not above chance")
    elif not len(evidence.places):
        found.append("no image is right")
    if predicts_one_class(evidence):
        found.append("one class is predicted for every image")
    if not evidence.differentiable:
        found.append("there is no gradient, so only attacks by query were run")
        causes.append("missing gradient")
    of_one_class = (
        f"the mean of {evidence.draws} draws, of one class in {PASSES} passes but on {flips} of {looked} images,"
    )
    fixed = of_one_class if evidence.wanders else "fixed, alone or in a batch,"
    said = "; ".join(found) or f"outputs are {fixed} and are logits; images lie in [0, 1]"
    step = "mend the set-up first, then audit again" if found else "nothing to do"
    if flipping and found == flipping:
        step = "average over more draws (draws)"
    if causes == ["randomness"] and len(found) == 1:
        step = "judge the mean over many draws (draws): see S1"
    if causes == ["missing gradient"] and len(found) == 1:
        step = "give a stand-in for the backward pass (backward), or try examples of other models (surrogate)"
    state: State = "fired" if found else "passed"
    return Check(
        "D1",
        "set-up",
        state,
        len(found),
        0,
        said,
        step,
        n=looked,
        images=numbers_at(evidence.numbers, images),
        points_to=tuple(causes),
    )


def near_chance(evidence: Evidence) -> bool:
    """Whether the clean accuracy's interval reaches down to a guess; not known of few images."""
    accuracy = wilson_interval(int(evidence.main.right.sum()), len(evidence))
    return len(evidence) >= FEWEST_PROBED and accuracy.low <= 1 / evidence.classes


def predicts_one_class(evidence: Evidence) -> bool:
    """Whether one class is predicted for every image, attacked or not; not known of few images."""
    return len(evidence.outputs["predicted"]) >= FEWEST_PROBED and evidence.constant


def _no_gradient(evidence: Evidence, identifier: str, name: str, threshold: float) -> Check:
    """A check of gradients, which nobody looked at: there is none, or no image for it."""
    if not len(evidence.places):
        return abstained(identifier, name, "no image is right, so no gradient was looked at", "see D1", threshold)
    return abstained(identifier, name, "no gradient was taken", "see D1", threshold)


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
        return _no_gradient(evidence, "N1", name, DEAD_SHARE)
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
        return _no_gradient(evidence, "N2", name, BENT_SHARE)
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


def step_length(evidence: Evidence) -> float:
    """How far all steps of PGD lead together, in multiples of epsilon."""
    settings = settings_inside(evidence.threat, evidence.budget.attacks)
    return settings.steps * settings.step_size / settings.epsilon


def convergence(evidence: Evidence) -> Check:
    """C2: PGD was stopped while its margin still fell, or could not cross its ball; on images that stand."""
    name = "convergence"
    if evidence.path is None:
        return _no_gradient(evidence, "C2", name, MOVING_SHARE)
    length = step_length(evidence)
    if length < ACROSS:
        cause = f"{evidence.budget.attacks.steps} steps reach {length:g} epsilon, the ball is 2 epsilon wide"
        return Check("C2", name, "fired", 1.0, MOVING_SHARE, cause, "longer or more steps", points_to=("weak attack",))
    standing = evidence.path["standing"]
    if int(standing.sum()) < FEWEST_STANDING:
        why = f"{int(standing.sum())} images stand at the end of PGD, {FEWEST_STANDING} are needed"
        return abstained("C2", name, why, "nothing to do: what has fallen needs no more steps", MOVING_SHARE)
    moving = evidence.path["moved"][standing] > STILL_MOVING
    count = int(moving.sum())
    interval = wilson_interval(count, len(moving))
    return Check(
        "C2",
        name,
        "fired" if interval.low > MOVING_SHARE else "passed",
        count / len(moving),
        MOVING_SHARE,
        "the lowest margin still falls in the last steps of PGD on images that it leaves standing",
        "audit with a larger budget: more steps",
        interval,
        len(moving),
        images=numbers_at(evidence.numbers[evidence.places[standing]], moving),
        beside=_known_median(evidence.path["fosc"][standing], "; the median FOSC there is {:.2f}, 0 being converged"),
        points_to=("weak attack",),
    )


def budget(evidence: Evidence) -> Check:
    """C1: twice the steps fell more images than the same two attacks did."""
    name = "budget"
    if evidence.doubled is None or len(evidence.main.right.nonzero()) < FEWEST_PROBED:
        return abstained("C1", name, "no attack was doubled, or too few images are right", "see D1", STILL_FALLING)
    names = [attack for attack in evidence.doubled.attacks if attack in evidence.main.attacks]
    once, twice = evidence.main.standing(*names), evidence.doubled.standing(*names)
    value = float(once.double().mean() - twice.double().mean())
    fired = value > STILL_FALLING
    new = once & ~twice
    return Check(
        "C1",
        name,
        "fired" if fired else "passed",
        value,
        STILL_FALLING,
        "robust accuracy that twice the steps of PGD take away",
        "audit with a larger budget: these attacks are too weak to tell",
        paired_rates_interval(int(new.sum()), int((twice & ~once).sum()), len(new)),
        len(new),
        images=numbers_at(evidence.numbers, new),
        points_to=("weak attack",),
    )


def unit_test(evidence: Evidence) -> Check:
    """T1: attacks miss adversarial points that are known to be there, in the network with its last layer replaced.

    ``value`` is what PGD on cross-entropy misses. It does not accuse: these are points of another network. What the
    margin misses too, no attack along the gradient can be trusted to find.
    """
    name = "unit test"
    found = evidence.known_points
    if found is None and evidence.start is not None:
        why = "the output is random" if evidence.wanders else "this budget does not test its attacks"
        return abstained("T1", name, why, "audit with a larger budget", MISSED_SHARE)
    if found is None:
        return _no_gradient(evidence, "T1", name, MISSED_SHARE)
    known = found["known"]
    n = int(known.sum())
    if n < FEWEST_PROBED:
        why = f"on {n} of {len(known)} images a readout hides a point, {FEWEST_PROBED} are needed"
        return abstained("T1", name, why, "give more images", MISSED_SHARE)
    missed = {attack: known & ~found[attack] for attack in ("pgd", "pgd-margin")}
    intervals = {attack: wilson_interval(int(those.sum()), n) for attack, those in missed.items()}
    blind = intervals["pgd-margin"].low > MISSED_SHARE
    shares = [100 * int((known & these).sum()) / n for these in (missed["pgd-margin"], found["random"])]
    behind = "last layer replaced" if bool(found["last-layer"].all()) else "readout put behind its outputs"
    return Check(
        "T1",
        name,
        "fired" if intervals["pgd"].low > MISSED_SHARE else "passed",
        int(missed["pgd"].sum()) / n,
        MISSED_SHARE,
        f"adversarial points, known to be there in this network with its {behind}, that PGD on cross-entropy misses",
        "mend the attack before trusting it: see N1, N2 and S1" if blind else "attack a margin or rescaled loss",
        intervals["pgd"],
        n,
        images=numbers_at(evidence.numbers[evidence.places], missed["pgd"]),
        beside=f"; on the margin it misses {shares[0]:.1f} %, random points find {shares[1]:.1f} %",
        points_to=("weak attack",) if blind else ("saturation",),
    )


def geometry(evidence: Evidence) -> Check:
    """G1: how steady the gradients are along PGD; supporting evidence, never alone."""
    name = "geometry"
    if evidence.path is None or evidence.start is None:
        return _no_gradient(evidence, "G1", name, ERRATIC)
    known = evidence.path["cosine"][~evidence.path["cosine"].isnan()]
    if len(known) < FEWEST_PROBED:
        why = f"{len(known)} images have a gradient at two iterates, {FEWEST_PROBED} are needed"
        return abstained("G1", name, why, "see N1", ERRATIC)
    value = float(known.median())
    sign, norm = (float(evidence.path[key].nanmedian()) for key in ("sign", "norm"))
    bends = "" if evidence.curvature is None else f", the median curvature {_median(evidence.curvature['curvature'])}"
    aligned = _known_median(evidence.path["alignment"], ", the median alignment of image and random start {:.2f}")
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


def _known_median(values: Tensor, words: str) -> str:
    """``words`` with the median of the ``values`` that are defined; empty where none is."""
    known = values[~values.isnan()]
    return words.format(float(known.median())) if len(known) else ""


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

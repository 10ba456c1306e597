"""Checks of outcomes: an attack that should be weaker, or differs only in numerics, fools images that PGD missed."""

from itertools import pairwise

import torch
from torch import Tensor

from gradscope.attacks.outcome import Outcome
from gradscope.attacks.registry import OWN
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BY_LABEL
from gradscope.auditing.checks.base import ALPHA, Cause, Check, abstained, numbers_at
from gradscope.auditing.checks.gradients import FALSE_SHARE, NEXT_STEPS, slopes_of
from gradscope.auditing.evidence import Evidence
from gradscope.results.stats import mcnemar, paired_rates_interval, wilson_interval

#: Fewest correctly classified images. A paired test among several needs eight or nine that differ in order to reject.
FEWEST = 30
#: Thresholds: half a point for attacks that differ only in rounding; ten points for another loss, because on honest
#: models too one loss beats another.
ROUNDING_GAIN = 0.005
LOSS_GAIN = 0.10
_RIVALS = {
    "pgd-log-odds": ROUNDING_GAIN,
    "pgd-float64": ROUNDING_GAIN,
    "pgd-margin": LOSS_GAIN,
    "pgd-dlr": LOSS_GAIN,
    "pgd-rescaled": LOSS_GAIN,
    OWN: LOSS_GAIN,
}
#: Threshold of AutoAttack's check_square_sr: 0.2 points. On few images the paired test requires more, because honest
#: models too lose some images to Square alone if PGD has few steps.
QUERY_GAIN = 0.002
#: S1 fires if gradients averaged over noise fool more than this share of images in addition.
SMOOTH_GAIN = 0.02
#: M2 tolerates this share of images that an unbounded attack does not fool, for a start in a far corner; 0 is expected.
SURVIVORS = 0.01

#: Causes that distort the logits. They blind cross-entropy, and every loss where the logits become flat.
BENT: tuple[Cause, ...] = ("bounded output", "clipped output", "missing gradient")


def more_images(right: int, shown: int, available: int) -> str:
    """Advise how many of the ``available`` images to ask for if fewer than FEWEST of ``shown`` are ``right``."""
    if shown == available:
        return "the data set has no more"
    wanted = -(-FEWEST * shown * 11 // (10 * max(right, 1)))
    return (
        f"ask for {wanted} or more"
        if wanted <= available
        else f"all {available} images of the data set would be too few"
    )


#: Causes that blind every loss at once. Saturation does not: margin and rescaled loss keep their gradient.
_ALL_LOSSES: tuple[Cause, ...] = (
    "false gradient",
    "shattering",
    "randomness",
    "probabilities",
    "stand-in",
    *BENT,
)
_ANY: tuple[Cause, ...] = (*_ALL_LOSSES, "saturation")
_WHY_RANDOM = "the output is random, so one pass cannot judge an image; S1 compares means over many passes"


def hindrance(evidence: Evidence, outcome: Outcome | None, *names: str) -> str:
    """Explain why the attacks cannot be compared; empty if they can."""
    if not len(evidence.places):
        return "no image is classified correctly, so there is nothing to attack"
    if evidence.random:
        return _WHY_RANDOM
    if not evidence.differentiable:
        return "the model has no gradient, so there is no gradient attack to compare with"
    right = int(evidence.main.right.sum())
    if right < FEWEST:
        return f"{right} images are right when clean, {FEWEST} are needed"
    if outcome is None:
        return "the attacks did not run: the model has no gradient"
    for name in names:
        if name not in outcome.attacks:
            usual = "no examples of another model were given" if name == "transfer" else "this budget leaves it out"
            return f"{name} did not run: {outcome.skipped.get(name, usual)}"
    return ""


def _compared(
    evidence: Evidence,
    what: tuple[str, str, float],
    weaker: Tensor,
    stronger: Tensor,
    texts: tuple[str, str],
    points_to: tuple[Cause, ...],
    attack: str = "",
    threat: ThreatModel | None = None,
    left: Tensor | None = None,
    lowest: Tensor | None = None,
) -> Check:
    """Build a check that fires if ``weaker`` fools more of all images ``(N,)`` than ``stronger`` does.

    ``value`` is the difference of the two rates, with Tango's interval. The p-value is McNemar's, one-sided, because
    the other direction accuses nobody. ``attack`` is the weaker one. ``left`` ``(N,)`` marks the images that the
    blinded attack does not fool; by default those of PGD on cross-entropy. ``lowest`` ``(N,)`` marks the images that no
    attack in that ball fools; by default those of the whole audit.
    """
    identifier, name, threshold = what
    only, missed = weaker & ~stronger, stronger & ~weaker
    value = (int(only.sum()) - int(missed.sum())) / len(evidence)
    p_value = mcnemar(int(only.sum()), int(missed.sum()), greater=True)
    fired = value > threshold and p_value <= ALPHA
    return Check(
        identifier,
        name,
        "fired" if fired else "passed",
        value,
        threshold,
        texts[0],
        texts[1],
        paired_rates_interval(int(only.sum()), int(missed.sum()), len(only)),
        len(only),
        p_value,
        numbers_at(evidence.numbers, only),
        accuses=True,
        left=_rate(evidence.main.standing("pgd") if left is None else left),
        lowest=_rate(evidence.standing() if lowest is None else lowest),
        points_to=points_to,
        attack=attack,
        threat=threat,
    )


def _rate(holds: Tensor) -> float:
    return float(holds.double().mean())


def loss(evidence: Evidence) -> list[Check]:
    """Check N3: another loss or precision fools images that cross-entropy in float32 does not; one test for each.

    Log-odds and float64 change only the numerics, so rounding had hidden what they gain.
    """
    why = hindrance(evidence, evidence.main, "pgd")
    if why:
        return [abstained("N3", "loss", why, "give more images, or see D1", ROUNDING_GAIN)]
    plain = evidence.main.fooled_by("pgd")
    rivals = [
        (name, evidence.main.fooled_by(name), threshold)
        for name, threshold in _RIVALS.items()
        if name in evidence.main.attacks
    ]
    if evidence.repaired is not None:
        on_logarithm = evidence.main.right & ~evidence.repaired.standing()
        rivals.append(("PGD on the logarithm of the outputs", on_logarithm, LOSS_GAIN))
    causes: tuple[Cause, ...] = ("saturation", *BENT, *(("probabilities",) if evidence.probabilities else ()))
    return [
        _compared(
            evidence,
            ("N3", "loss", threshold),
            fooled,
            plain,
            (
                f"images that only {name} fools, minus images that only PGD on cross-entropy in float32 fools",
                f"report robust accuracy under {name}, not under cross-entropy in float32",
            ),
            causes,
            name if name in _RIVALS else "",
        )
        for name, fooled, threshold in rivals
    ]


def _black_box(evidence: Evidence, identifier: str, name: str, attack: str, texts: tuple[str, str]) -> Check:
    """Check X1 to X4: an attack that does not use the model's gradient fools images that every gradient attack missed.

    The paired test compares all white-box attacks together, without and with this attack.
    """
    why = hindrance(evidence, evidence.main, "pgd", attack)
    if why:
        step = "see D1" if attack in evidence.budget.names else "audit with a larger budget"
        step = "give examples of another model (option surrogate)" if attack == "transfer" else step
        return abstained(identifier, name, why, step, QUERY_GAIN)
    missed = evidence.main.standing(*evidence.white_box)
    fooled = evidence.main.right & ~missed
    both = fooled | evidence.main.fooled_by(attack)
    return _compared(evidence, (identifier, name, QUERY_GAIN), both, fooled, texts, _ALL_LOSSES, attack)


def query(evidence: Evidence) -> Check:
    """Check X1: Square."""
    texts = (
        "images that only Square fools, which uses no gradient",
        "attack by query, or replace the backward pass (BPDA)",
    )
    return _black_box(evidence, "X1", "query", "square", texts)


def transferred(evidence: Evidence) -> Check:
    """Check X2: adversarial examples made on other models."""
    texts = (
        "images that only examples made on another model fool",
        "attack another model and transfer, or attack by query",
    )
    return _black_box(evidence, "X2", "transfer", "transfer", texts)


def random_points(evidence: Evidence) -> Check:
    """Check X3: random points of the ball."""
    texts = ("images that only random points of the ball fool", "try random points, then replace the backward pass")
    return _black_box(evidence, "X3", "noise", "noise", texts)


def decision(evidence: Evidence) -> Check:
    """Check X4: the attack that uses labels only."""
    attack = BY_LABEL[evidence.threat.norm]
    texts = (
        f"images that only {attack} fools, which uses labels only",
        "attack by query, or replace the backward pass",
    )
    return _black_box(evidence, "X4", "decision", attack, texts)


def radius(evidence: Evidence) -> list[Check]:
    """Check M1: a radius fools images that twice the radius does not; a test for epsilon / 2 and one for epsilon."""
    why = hindrance(evidence, evidence.main, "pgd")
    if why or evidence.smaller is None or evidence.larger is None:
        return [abstained("M1", "radius", why or "other radii were not tried", "see D1", 0.0)]
    radii = (evidence.smaller, evidence.main, evidence.larger)
    return [
        _compared(
            evidence,
            ("M1", "radius", 0.0),
            inner.fooled_by("pgd"),
            outer.fooled_by("pgd"),
            (
                "images fooled only at a radius, minus images fooled only at twice that radius",
                "the attack fails at the larger radius; see the other checks",
            ),
            _ANY,
            "pgd",
            outer.threat,
            left=outer.standing("pgd"),
            lowest=outer.standing("pgd") & inner.standing("pgd"),
        )
        for inner, outer in pairwise(radii)
    ]


def unbounded(evidence: Evidence) -> Check:
    """Check M2: PGD on cross-entropy and margin fails on images although the ball covers the whole box."""
    why = hindrance(evidence, evidence.unbounded, "pgd", "pgd-margin")
    if why or evidence.unbounded is None:
        return abstained("M2", "unbounded", why, "see D1", SURVIVORS)
    stands = evidence.unbounded.standing()
    right = int(evidence.unbounded.right.sum())
    interval = wilson_interval(int(stands.sum()), right)
    fired = interval.low > SURVIVORS
    return Check(
        "M2",
        "unbounded",
        "fired" if fired else "passed",
        int(stands.sum()) / right,
        SURVIVORS,
        "images that PGD does not fool although its ball covers every possible image",
        "the gradient does not lead to other classes; replace the backward pass, or attack by query",
        interval,
        right,
        images=numbers_at(evidence.numbers, stands),
        accuses=True,
        left=_rate(stands),
        lowest=0.0,
        points_to=_ALL_LOSSES,
        attack="pgd",
        threat=evidence.unbounded.threat,
    )


def one_step(evidence: Evidence) -> Check:
    """Check M3: FGSM fools more images than PGD."""
    why = hindrance(evidence, evidence.main, "fgsm", "pgd")
    if why:
        return abstained("M3", "one step", why, "see D1", 0.0)
    texts = (
        "images that only one step fools, minus images that only PGD fools",
        "use more starts, larger steps or other losses",
    )
    first, many = evidence.main.fooled_by("fgsm"), evidence.main.fooled_by("pgd")
    return _compared(evidence, ("M3", "one step", 0.0), first, many, texts, _ANY, "fgsm")


def shattering(evidence: Evidence) -> Check:
    """Check S1: averaged gradients attack better than plain ones, or autograd's slopes are not those of the output.

    A random output is averaged over its own draws; otherwise gradients are averaged over noise in the image. Wrong
    slopes do not accuse, because an honest stand-in for a backward pass has them too, and attacks well. Slopes of a
    stand-in that the user gave are not tested.
    """
    by_outcome = _averaged(evidence)
    if by_outcome.fired or evidence.slopes is None or evidence.stands_in:
        return by_outcome
    wrong, kind = slopes_of(evidence)
    if kind is None:
        return by_outcome
    count = int(wrong.sum())
    texts: dict[Cause, str] = {
        "shattering": "the output changes in steps: it is flat close to the image and changes farther away",
        "missing gradient": "the output changes with the image, but its gradient is zero",
        "false gradient": "autograd's slopes are not those of the output",
        "bounded output": "the outputs lie at a bound, where they hardly change",
        "clipped output": "the outputs are clipped, so they do not change",
    }
    return Check(
        "S1",
        "shattering",
        "fired",
        count / len(wrong),
        FALSE_SHARE,
        texts[kind],
        NEXT_STEPS[kind],
        wilson_interval(count, len(wrong)),
        len(wrong),
        images=numbers_at(evidence.numbers[evidence.places], wrong),
        points_to=(kind,),
    )


def _averaged(evidence: Evidence) -> Check:
    what = ("S1", "shattering", SMOOTH_GAIN)
    if evidence.expected is not None:
        places = evidence.expected.places
        if len(places) < FEWEST:
            why = f"{len(places)} images are right when clean, {FEWEST} are needed"
            return abstained(*what[:2], why, "give more images", SMOOTH_GAIN)
        plain, averaged = (torch.zeros(len(evidence), dtype=torch.bool) for _ in range(2))
        plain[places] = evidence.expected.clean & ~evidence.expected.plain
        averaged[places] = evidence.expected.clean & ~evidence.expected.averaged
        texts = (
            "images that only PGD on the mean output fools, minus images that only PGD on single draws fools, judged "
            "by the mean",
            "attack and judge the mean over many draws (EoT): give draws",
        )
        left = torch.zeros_like(plain)
        left[places] = evidence.expected.clean & evidence.expected.plain
        return _compared(evidence, what, averaged, plain, texts, ("randomness",), left=left)
    why = hindrance(evidence, evidence.main, "pgd", "pgd-smooth")
    if why:
        return abstained(*what[:2], why, "see D1", SMOOTH_GAIN)
    texts = (
        "images that only PGD with averaged gradients fools, minus images that only plain PGD fools",
        "attack with gradients averaged over noise in the image",
    )
    smooth, plain = evidence.main.fooled_by("pgd-smooth"), evidence.main.fooled_by("pgd")
    return _compared(evidence, what, smooth, plain, texts, _ANY, "pgd-smooth")

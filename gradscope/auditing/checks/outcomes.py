"""Checks of outcomes: an attack that ought to be weaker, or differs in numerics only, fools what exact PGD missed."""

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

#: Of fewer images that are right, eight or nine may not differ: what a paired test of several needs to reject.
FEWEST = 30
#: DESIGN: half a point for what differs in rounding only; ten for another loss, since on honest models, too, one loss
#: beats another.
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
#: AutoAttack's check_square_sr: 0.2 points. The paired test asks for more on few images: honest models, too, lose some
#: to Square alone where PGD has few steps.
QUERY_GAIN = 0.002
#: Gain of gradients averaged over noise from which on S1 fires.
SMOOTH_GAIN = 0.02
#: Share that survives a ball that covers the box: nobody should; the rest is a margin for a start in a far corner.
SURVIVORS = 0.01

#: What bends the logits: it blinds cross-entropy, and where it makes them flat every loss.
BENT: tuple[Cause, ...] = ("bounded output", "clipped output", "missing gradient")


def more_images(right: int, shown: int, available: int) -> str:
    """How many of the ``available`` images to ask for where fewer than FEWEST of the ``shown`` are ``right``."""
    if shown == available:
        return "these are all that there are"
    wanted = -(-FEWEST * shown * 11 // (10 * max(right, 1)))
    return f"ask for {wanted} or more" if wanted <= available else f"all {available} of the data would be too few"


#: What blinds every loss at once, as saturation does not: it leaves the margin and the rescaled loss their gradient.
_ALL_LOSSES: tuple[Cause, ...] = (
    "false gradient",
    "shattering",
    "randomness",
    "probabilities",
    "stand-in",
    *BENT,
)
_ANY: tuple[Cause, ...] = (*_ALL_LOSSES, "saturation")
_WHY_RANDOM = "the output is random: one pass judges nothing, S1 compares means over many"


def hindrance(evidence: Evidence, outcome: Outcome | None, *names: str) -> str:
    """Why the attacks cannot be compared; empty where they can."""
    if not len(evidence.places):
        return "no image is right, so there is nothing to attack"
    if evidence.random:
        return _WHY_RANDOM
    if not evidence.differentiable:
        return "the model has no gradient, so there is no attack along it to compare with"
    right = int(evidence.main.right.sum())
    if right < FEWEST:
        return f"{right} images are right when clean, {FEWEST} are needed"
    if outcome is None:
        return "it was not gathered: the model has no gradient"
    for name in names:
        if name not in outcome.attacks:
            usual = "no examples of another model were given" if name == "transfer" else "this budget leaves it out"
            return f"{name} was not run: {outcome.skipped.get(name, usual)}"
    return ""


def _compared(
    evidence: Evidence,
    what: tuple[str, str, float],
    weaker: Tensor,
    stronger: Tensor,
    said: tuple[str, str],
    points_to: tuple[Cause, ...],
    attack: str = "",
    threat: ThreatModel | None = None,
    left: Tensor | None = None,
    lowest: Tensor | None = None,
) -> Check:
    """A check that fires where ``weaker`` fools more of all images ``(N,)`` than ``stronger`` does.

    ``value`` is the difference of the two rates with Tango's interval, the p-value McNemar's, one-sided: the other
    direction accuses nobody. ``attack`` is the weaker one. ``left`` ``(N,)`` is what the blinded attack leaves
    standing, and ``lowest`` ``(N,)`` what everything tried in that ball leaves; where None PGD on cross-entropy, and
    the audit's bound.
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
        said[0],
        said[1],
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
    """N3: cross-entropy without its rounding, or another loss, fells what cross-entropy in float32 does not.

    One test for each of them. Log-odds and float64 change the numerics only: what they gain, rounding had hidden.
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
        together = evidence.main.right & ~evidence.repaired.standing()
        rivals.append(("PGD on the logarithm of the outputs", together, LOSS_GAIN))
    causes: tuple[Cause, ...] = ("saturation", *BENT, *(("probabilities",) if evidence.probabilities else ()))
    return [
        _compared(
            evidence,
            ("N3", "loss", threshold),
            fooled,
            plain,
            (
                f"images that {name} fools and PGD on cross-entropy in float32 does not, less the reverse",
                f"trust {name}, not cross-entropy in float32",
            ),
            causes,
            name if name in _RIVALS else "",
        )
        for name, fooled, threshold in rivals
    ]


def _black_box(evidence: Evidence, identifier: str, name: str, attack: str, said: tuple[str, str]) -> Check:
    """X1 to X4: an attack without the model's gradient fools images that every attack with it missed.

    The pair is the white-box attacks together, without and with this one.
    """
    why = hindrance(evidence, evidence.main, "pgd", attack)
    if why:
        step = "see D1" if attack in evidence.budget.names else "audit with a larger budget"
        step = "give examples of another model (surrogate)" if attack == "transfer" else step
        return abstained(identifier, name, why, step, QUERY_GAIN)
    missed = evidence.main.standing(*evidence.white_box)
    fooled = evidence.main.right & ~missed
    both = fooled | evidence.main.fooled_by(attack)
    return _compared(evidence, (identifier, name, QUERY_GAIN), both, fooled, said, _ALL_LOSSES, attack)


def query(evidence: Evidence) -> Check:
    """X1: Square."""
    said = (
        "images that only Square fools, which sees no gradient",
        "attack by query, or replace the backward pass (BPDA)",
    )
    return _black_box(evidence, "X1", "query", "square", said)


def transferred(evidence: Evidence) -> Check:
    """X2: examples of other models."""
    said = ("images that only examples made on another model fool", "attack the other model and transfer, or by query")
    return _black_box(evidence, "X2", "transfer", "transfer", said)


def random_points(evidence: Evidence) -> Check:
    """X3: random points of the ball."""
    said = ("images that only random points of the ball fool", "search at random, then replace the backward pass")
    return _black_box(evidence, "X3", "noise", "noise", said)


def decision(evidence: Evidence) -> Check:
    """X4: the attack that sees labels alone."""
    attack = BY_LABEL[evidence.threat.norm]
    said = (
        f"images that only {attack} fools, which sees labels alone",
        "attack by query, or replace the backward pass",
    )
    return _black_box(evidence, "X4", "decision", attack, said)


def radius(evidence: Evidence) -> list[Check]:
    """M1: images that fall at half the radius stand at the radius, or those at the radius at twice; a test each."""
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
                "images that fall in a ball and stand in one twice as wide, less the reverse",
                "the attack is broken at the wider radius: see the other checks",
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
    """M2: images that stand in a ball that covers the box, against PGD on cross-entropy and on the margin."""
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
        "images that survive PGD in a ball that covers every possible image",
        "the gradient does not lead out of a class: replace the backward pass, or attack by query",
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
    """M3: FGSM fells more than PGD."""
    why = hindrance(evidence, evidence.main, "fgsm", "pgd")
    if why:
        return abstained("M3", "one step", why, "see D1", 0.0)
    said = ("images that one step fools and PGD does not, less the reverse", "more starts, larger steps, other losses")
    first, many = evidence.main.fooled_by("fgsm"), evidence.main.fooled_by("pgd")
    return _compared(evidence, ("M3", "one step", 0.0), first, many, said, _ANY, "fgsm")


def shattering(evidence: Evidence) -> Check:
    """S1: averaged gradients attack better than plain ones, or autograd's slopes are not those of the output.

    A random output is averaged over its own draws, else gradients over noise in the image. Slopes that disagree do not
    accuse: an honest stand-in for a backward pass disagrees too, and attacks well. One that was given is not looked at.
    """
    compared = _averaged(evidence)
    if compared.fired or evidence.slopes is None or evidence.stands_in:
        return compared
    wrong, kind = slopes_of(evidence)
    if kind is None:
        return compared
    count = int(wrong.sum())
    saying: dict[Cause, str] = {
        "shattering": "the output moves in steps: flat close by, not farther off",
        "missing gradient": "the output changes with the image, its gradient is zero",
        "false gradient": "autograd's slopes are not those of the output",
        "bounded output": "the outputs lie at a bound, where they hardly move",
        "clipped output": "the outputs are clipped, and so do not move",
    }
    return Check(
        "S1",
        "shattering",
        "fired",
        count / len(wrong),
        FALSE_SHARE,
        saying[kind],
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
        plain, meant = (torch.zeros(len(evidence), dtype=torch.bool) for _ in range(2))
        plain[places] = evidence.expected.clean & ~evidence.expected.plain
        meant[places] = evidence.expected.clean & ~evidence.expected.averaged
        said = (
            "images that PGD on the mean output fools and PGD on single draws does not, less the reverse, judged by "
            "the mean",
            "attack and judge the mean over many draws (EoT): give draws",
        )
        left = torch.zeros_like(plain)
        left[places] = evidence.expected.clean & evidence.expected.plain
        return _compared(evidence, what, meant, plain, said, ("randomness",), left=left)
    why = hindrance(evidence, evidence.main, "pgd", "pgd-smooth")
    if why:
        return abstained(*what[:2], why, "see D1", SMOOTH_GAIN)
    said = (
        "images that gradients averaged over noise fool and plain ones do not, less the reverse",
        "attack with gradients averaged over noise in the image",
    )
    smooth, plain = evidence.main.fooled_by("pgd-smooth"), evidence.main.fooled_by("pgd")
    return _compared(evidence, what, smooth, plain, said, _ANY, "pgd-smooth")

"""Checks of the attack's own strength: has it settled, would more steps do more, does it find what is known to exist?

None accuses.
"""

from gradscope.attacks.pgd import settings_inside
from gradscope.auditing.checks.base import (
    FEWEST_PROBED,
    FEWEST_STANDING,
    Check,
    abstained,
    known_median,
    no_gradient,
    numbers_at,
)
from gradscope.auditing.evidence import Evidence
from gradscope.results.stats import paired_rates_interval, wilson_interval

#: A point of robust accuracy gained by twice the steps is what users take for settled (Carlini et al. 2019 ask for
#: none); two leave room for the few images at the boundary among 100 to 200.
STILL_FALLING = 0.02
#: I4 of Pintor et al. 2022: what the last ten steps may still move, in their code, and on how many of the images.
STILL_MOVING = 0.05
MOVING_SHARE = 0.5
#: Steps that are shorter together, in multiples of epsilon, cannot cross their ball.
ACROSS = 2.0
#: Known adversarial points that attacks may miss: no honest network hides one in twenty (Zimmermann et al. 2022 ask for
#: about all).
MISSED_SHARE = 0.05


def step_length(evidence: Evidence) -> float:
    """How far all steps of PGD lead together, in multiples of epsilon."""
    settings = settings_inside(evidence.threat, evidence.budget.attacks)
    return settings.steps * settings.step_size / settings.epsilon


def convergence(evidence: Evidence) -> Check:
    """C2: PGD was stopped while its margin still fell, or could not cross its ball; on images that stand."""
    name = "convergence"
    if evidence.path is None:
        return no_gradient(evidence, "C2", name, MOVING_SHARE)
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
        beside=known_median(evidence.path["fosc"][standing], "; the median FOSC there is {:.2f}, 0 being converged"),
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
        return no_gradient(evidence, "T1", name, MISSED_SHARE)
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

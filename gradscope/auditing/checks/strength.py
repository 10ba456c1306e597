"""Checks of the attack's strength: has it converged, would more steps help, does it find points known to exist?

These checks do not accuse.
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

#: C1 fires if twice the steps lower robust accuracy by more than this. Users accept one point as converged (Carlini et
#: al. 2019 ask for none); two points allow for the few images at the boundary among 100 to 200.
STILL_FALLING = 0.02
#: From I4 of Pintor et al. 2022, as in their code: the progress that the last ten steps may still make, and the share
#: of images that may exceed it.
STILL_MOVING = 0.05
MOVING_SHARE = 0.5
#: Steps whose total length, in multiples of epsilon, is below this cannot cross their ball.
ACROSS = 2.0
#: T1 fires if attacks miss more than this share of known adversarial points. No honest network hides one in twenty
#: (Zimmermann et al. 2022 ask for about all).
MISSED_SHARE = 0.05


def step_length(evidence: Evidence) -> float:
    """Compute the total length of PGD's steps, in multiples of epsilon."""
    settings = settings_inside(evidence.threat, evidence.budget.attacks)
    return settings.steps * settings.step_size / settings.epsilon


def convergence(evidence: Evidence) -> Check:
    """Check C2: PGD stopped while the margin still fell, or could not cross its ball; on images it did not fool."""
    name = "convergence"
    if evidence.path is None:
        return no_gradient(evidence, "C2", name, MOVING_SHARE)
    length = step_length(evidence)
    if length < ACROSS:
        cause = f"{evidence.budget.attacks.steps} steps reach {length:g} epsilon, but the ball is 2 epsilon wide"
        return Check(
            "C2", name, "fired", 1.0, MOVING_SHARE, cause, "use longer or more steps", points_to=("weak attack",)
        )
    standing = evidence.path["standing"]
    if int(standing.sum()) < FEWEST_STANDING:
        why = f"PGD does not fool {int(standing.sum())} images, {FEWEST_STANDING} are needed"
        return abstained("C2", name, why, "nothing to do: fooled images need no more steps", MOVING_SHARE)
    moving = evidence.path["moved"][standing] > STILL_MOVING
    count = int(moving.sum())
    interval = wilson_interval(count, len(moving))
    return Check(
        "C2",
        name,
        "fired" if interval.low > MOVING_SHARE else "passed",
        count / len(moving),
        MOVING_SHARE,
        "the lowest margin still falls in the last steps of PGD, on images that PGD does not fool",
        "audit with a larger budget: more steps",
        interval,
        len(moving),
        images=numbers_at(evidence.numbers[evidence.places[standing]], moving),
        beside=known_median(evidence.path["fosc"][standing], "; the median FOSC is {:.2f} (0 is converged)"),
        points_to=("weak attack",),
    )


def budget(evidence: Evidence) -> Check:
    """Check C1: twice the steps fool more images than the same two attacks with the usual steps."""
    name = "budget"
    if evidence.doubled is None or len(evidence.main.right.nonzero()) < FEWEST_PROBED:
        return abstained(
            "C1",
            name,
            "no attack ran with twice the steps, or too few images are classified correctly",
            "see D1",
            STILL_FALLING,
        )
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
        "decrease of robust accuracy under PGD with twice the steps",
        "audit with a larger budget: these attacks are too weak for a verdict",
        paired_rates_interval(int(new.sum()), int((twice & ~once).sum()), len(new)),
        len(new),
        images=numbers_at(evidence.numbers, new),
        points_to=("weak attack",),
    )


def unit_test(evidence: Evidence) -> Check:
    """Check T1: attacks miss adversarial points known to exist, in the network with its last layer replaced.

    ``value`` is the share that PGD on cross-entropy misses. It does not accuse, because the points belong to another
    network. If PGD on the margin misses them too, no gradient attack can be trusted.
    """
    name = "unit test"
    results = evidence.known_points
    if results is None and evidence.start is not None:
        why = "the output is random" if evidence.wanders else "this budget does not test its attacks"
        return abstained("T1", name, why, "audit with a larger budget", MISSED_SHARE)
    if results is None:
        return no_gradient(evidence, "T1", name, MISSED_SHARE)
    known = results["known"]
    n = int(known.sum())
    if n < FEWEST_PROBED:
        why = f"{n} of {len(known)} images have a known adversarial point, {FEWEST_PROBED} are needed"
        return abstained("T1", name, why, "give more images", MISSED_SHARE)
    missed = {attack: known & ~results[attack] for attack in ("pgd", "pgd-margin")}
    intervals = {attack: wilson_interval(int(points.sum()), n) for attack, points in missed.items()}
    blind = intervals["pgd-margin"].low > MISSED_SHARE
    shares = [100 * int((known & points).sum()) / n for points in (missed["pgd-margin"], results["random"])]
    change = "its last layer replaced" if bool(results["last-layer"].all()) else "a readout added after its outputs"
    return Check(
        "T1",
        name,
        "fired" if intervals["pgd"].low > MISSED_SHARE else "passed",
        int(missed["pgd"].sum()) / n,
        MISSED_SHARE,
        f"adversarial points, known to exist in this network with {change}, that PGD on cross-entropy misses",
        "fix the attack before trusting it: see N1, N2 and S1" if blind else "attack with a margin or rescaled loss",
        intervals["pgd"],
        n,
        images=numbers_at(evidence.numbers[evidence.places], missed["pgd"]),
        beside=f"; PGD on the margin misses {shares[0]:.1f} %, random points find {shares[1]:.1f} %",
        points_to=("weak attack",) if blind else ("saturation",),
    )

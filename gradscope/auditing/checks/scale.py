"""The check of the scale of the logits: one attack, the same decisions, another temperature."""

from gradscope.auditing.checks.base import ALPHA, Check, abstained, numbers_at
from gradscope.auditing.checks.causes import FEWEST_PROBED
from gradscope.auditing.checks.outcomes import LOSS_GAIN, hindrance
from gradscope.auditing.evidence import Evidence
from gradscope.results.stats import mcnemar, paired_rates_interval

_NAME = "scale"


def temperature(evidence: Evidence) -> Check:
    """K1: PGD on cross-entropy fools more images where it sees the same logits at another temperature.

    The p-value is McNemar's between temperature 1 and the one at which the attack is strongest, times the number of
    temperatures that this was chosen from. Another temperature weighs the wrong classes differently, as another loss
    does, so the threshold is that of other losses. A higher one undoes saturation, and accuses; a lower one undoes
    logits too small to tell the wrong classes apart, which blinds nobody.
    """
    curve = evidence.scale
    why = "the outputs are probabilities, which no temperature rescales" if evidence.probabilities else ""
    why = why or hindrance(evidence, evidence.main, "pgd")
    if why or curve is None:
        return abstained("K1", _NAME, why or "no attack was run at other temperatures", "see D1", LOSS_GAIN)
    right = int(curve.right.sum())
    if right < FEWEST_PROBED:
        why = f"{right} of the first {len(curve.right)} images are right when clean, {FEWEST_PROBED} are needed"
        return abstained("K1", _NAME, why, "give more images", LOSS_GAIN)
    strongest = curve.strongest("pgd")
    given, there = curve.standing["pgd"][1.0], curve.standing["pgd"][strongest]
    only, missed = given & ~there, there & ~given
    n, tried = len(given), len(curve.standing["pgd"]) - 1
    value = (int(only.sum()) - int(missed.sum())) / n
    p_value = min(1.0, tried * mcnemar(int(only.sum()), int(missed.sum()), greater=True))
    fired = value > LOSS_GAIN and p_value <= ALPHA
    hotter = strongest > 1
    step = "report attacks that no scale of the logits changes: a margin, a rescaled loss, or cross-entropy there"
    return Check(
        "K1",
        _NAME,
        "fired" if fired else "passed",
        value,
        LOSS_GAIN,
        f"images that PGD on cross-entropy fools with the logits at temperature {strongest:.3g} "
        f"and not as they are, less the reverse{_calibrated(evidence)}",
        step if fired else "nothing to do",
        paired_rates_interval(int(only.sum()), int(missed.sum()), n),
        n,
        p_value,
        numbers_at(evidence.numbers[:n], only),
        accuses=hotter,
        points_to=("saturation",) if hotter else (),
    )


def _calibrated(evidence: Evidence) -> str:
    """The temperature that calibrates the model, in words; empty where none does."""
    if evidence.scale is None or evidence.scale.fitted is None:
        return ""
    given, fitted = evidence.scale.given, evidence.scale.fitted
    return (
        f"; temperature {fitted.temperature:.3g} calibrates it (calibration error {given.error:.3f} as it is, "
        f"{fitted.error:.3f} there)"
    )

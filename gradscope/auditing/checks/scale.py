"""Check of the logits' scale: the same attack and predictions at another temperature."""

from gradscope.auditing.checks.base import ALPHA, FEWEST_PROBED, Check, abstained, numbers_at
from gradscope.auditing.checks.outcomes import BENT, LOSS_GAIN, hindrance
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.scale import ScaleCurve
from gradscope.results.stats import mcnemar, paired_rates_interval

_NAME = "scale"


def temperature(evidence: Evidence) -> Check:
    """Check K1: PGD on cross-entropy fools more images if it sees the same logits at a higher temperature.

    A higher temperature undoes saturation. Otherwise it changes only the weights of the wrong classes, as another loss
    does, so the threshold is that of other losses. A lower temperature helps if the logits are too small to distinguish
    the wrong classes. It is reported but does not make the check fire, because honest models gain from it too. The
    p-value is McNemar's between temperature 1 and the strongest higher one, times the number of higher ones.
    """
    curve = evidence.scale
    why = "the outputs are probabilities, which a temperature cannot rescale" if evidence.probabilities else ""
    why = why or hindrance(evidence, evidence.main, "pgd")
    if why or curve is None or not any(at > 1 for at in curve.standing["pgd"]):
        return abstained("K1", _NAME, why or "no attack ran at other temperatures", "see D1", LOSS_GAIN)
    right = int(curve.right.sum())
    if right < FEWEST_PROBED:
        why = f"{right} of the first {len(curve.right)} images are right when clean, {FEWEST_PROBED} are needed"
        return abstained("K1", _NAME, why, "give more images", LOSS_GAIN)
    standing = curve.standing["pgd"]
    higher = [at for at in standing if at > 1]
    strongest = curve.strongest("pgd", higher)
    only, missed = standing[1.0] & ~standing[strongest], standing[strongest] & ~standing[1.0]
    n = len(only)
    value = (int(only.sum()) - int(missed.sum())) / n
    p_value = min(1.0, len(higher) * mcnemar(int(only.sum()), int(missed.sum()), greater=True))
    fired = value > LOSS_GAIN and p_value <= ALPHA
    return Check(
        "K1",
        _NAME,
        "fired" if fired else "passed",
        value,
        LOSS_GAIN,
        f"images that PGD on cross-entropy fools only with the logits at temperature {strongest:.3g}, minus images "
        "that it fools only at temperature 1",
        "report attacks that the scale of the logits does not change: a margin or rescaled loss",
        paired_rates_interval(int(only.sum()), int(missed.sum()), n),
        n,
        p_value,
        numbers_at(evidence.numbers[:n], only),
        accuses=True,
        left=float(standing[1.0].double().mean()),
        lowest=float(curve.stands.double().mean()),
        beside=f"{_lower(curve)}{_calibrated(curve)}",
        points_to=("saturation", *BENT),
    )


def _lower(curve: ScaleCurve) -> str:
    """Say how many more images a lower temperature fools; empty if none."""
    standing = curve.standing["pgd"]
    strongest = curve.strongest("pgd", standing)
    gain = float(standing[1.0].double().mean() - standing[strongest].double().mean())
    return f"; temperature {strongest:.3g} fools {100 * gain:.1f} points more" if strongest < 1 else ""


def _calibrated(curve: ScaleCurve) -> str:
    """Say which temperature calibrates the model."""
    if curve.fitted is None:
        return "; no temperature calibrates it, because cross-entropy has no minimum on these images"
    return (
        f"; temperature {curve.fitted.temperature:.3g} calibrates it (calibration error {curve.fitted.error:.3f}, "
        f"{curve.given.error:.3f} at temperature 1)"
    )

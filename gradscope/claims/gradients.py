"""C3 to C6: gradients at the image and along the attack, entropy, and the loss landscape around an image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gradscope.claims.group import Group, Pick, Question
from gradscope.claims.measured import Measured, MeasuredModel
from gradscope.claims.verdicts import ABOVE, BELOW, EITHER, Finding
from gradscope.results.metrics import LANDSCAPE_METRICS, METRICS, SPECTRUM_METRICS

_MODES = ("rl", "sl")
_PATHS = ("pgd-paper", "pgd")
_ANALYZE = "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1 --metrics"
_NORM_UNIT = METRICS["norm"].unit


def logarithm(pick: Pick) -> Pick:
    """Wrap ``pick`` to take the natural logarithm of its values; the logarithm of 0 is -inf."""

    def logged(model: MeasuredModel) -> Sequence[Measured]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [replace(entry, of_images=entry.of_images.map(np.log)) for entry in pick(model)]

    return logged


def c3(group: Group) -> Iterator[Finding]:
    """Compare gradient norms: the median log(norm RL / norm SL), robust to outliers and zeros; and the paper's mean."""
    norm = group.at_image("norm")
    statistic = "L2 norm of the gradient at the clean image, median of log(rl / sl)"
    asked = Question("C3", statistic, BELOW, scale="median", unit="in natural logarithms")
    picks = (logarithm(norm), logarithm(norm))
    names = ("median log norm rl", "sl")
    test = group.compare(asked, _MODES, picks, _unmeasured("norm"), names)
    yield replace(test, remarks=(*test.remarks, *group.zeros(norm, _MODES)))
    asked = Question("C3", "the same, difference of the means, rl - sl", BELOW, scale="mean", unit=_NORM_UNIT)
    yield group.compare(asked, _MODES, (norm, norm), _unmeasured("norm"), ("mean rl", "sl"))
    for attack in _PATHS:
        pick = logarithm(group.along(attack, "norm", "path"))
        statistic = f"mean norm along {attack}, median of log(rl / sl) ({group.ball})"
        asked = Question("C3", statistic, BELOW, scale="median", unit="in natural logarithms")
        yield group.compare(asked, _MODES, (pick, pick), _unmeasured("norm"), names)


def c4(group: Group) -> Iterator[Finding]:
    """Compare cosine and sign consistency of consecutive gradients, each image's mean over the path; and curvature."""
    words = {"cosine": "cosine of consecutive gradients", "sign": "share of coordinates that keep their sign"}
    for metric, of in words.items():
        for attack in _PATHS:
            statistic = f"{of} along {attack}, rl - sl ({group.ball})"
            asked = Question("C4", statistic, BELOW, "mean", METRICS[metric].unit, points=False)
            pick = group.along(attack, metric, "path")
            yield group.compare(asked, _MODES, (pick, pick), _unmeasured(metric))
    statistic = "largest Hessian eigenvalue of the loss in the clean image, median of log(rl / sl)"
    asked = Question("C4", statistic, ABOVE, scale="median", unit="in natural logarithms")
    pick = logarithm(_curvature(group))
    yield group.compare(asked, _MODES, (pick, pick), _UNCURVED, ("median log eigenvalue rl", "sl"))


def _curvature(group: Group) -> Pick:
    """Pick the largest Hessian eigenvalue of each clean image's loss; high curvature turns the gradient's direction."""

    def pick(model: MeasuredModel) -> list[Measured]:
        wanted = ("spectrum", "hessian-eigenvalue", "clean")
        return [entry for entry in group.of(model) if (entry.kind, entry.metric, entry.point) == wanted]

    return pick


def c5(group: Group) -> Iterator[Finding]:
    """Compare the entropy of the softmax at the clean image and at the attack's last iterate."""
    unit = METRICS["entropy"].unit
    pick = group.at_image("entropy")
    asked = Question("C5", "entropy at the clean image, rl - sl", EITHER, "mean", unit)
    yield group.compare(asked, _MODES, (pick, pick), _unmeasured("entropy"))
    for attack in _PATHS:
        pick = group.along(attack, "entropy", "final")
        asked = Question("C5", f"entropy at the end of {attack}, rl - sl ({group.ball})", EITHER, "mean", unit)
        yield group.compare(asked, _MODES, (pick, pick), _unmeasured("entropy"))


def c6(group: Group) -> Iterator[Finding]:
    """Compare roughness, sharpness and radius on each model's own planes around images; and curvature at the images."""
    for metric in ("roughness", "sharpness", "radius-adversarial"):

        def pick(model: MeasuredModel, metric: str = metric) -> list[Measured]:
            return [entry for entry in group.of(model) if (entry.kind, entry.metric) == ("landscape", metric)]

        known = LANDSCAPE_METRICS[metric]
        statistic = f"{metric}, rl - sl: {known.meaning}"
        asked = Question("C6", statistic, EITHER, "mean", known.unit, paper="pictures only")
        lacking = "no landscapes of the same images; `gradscope landscape CKPT... --right --images 100 --points 11`"
        yield group.compare(asked, _MODES, (pick, pick), lacking)

    unit = SPECTRUM_METRICS["eigenvalue"].unit
    asked = Question("C6", "largest Hessian eigenvalue of the loss in the clean image, rl - sl", EITHER, "mean", unit)
    curved = _curvature(group)
    yield group.compare(asked, _MODES, (curved, curved), _UNCURVED)


_UNCURVED = "no spectra of the same images; `gradscope spectrum CKPT... --space input --images 100`"


def _unmeasured(metric: str) -> str:
    return f"{metric} was not measured on the same images of both; {_ANALYZE} {metric}`"

"""Cautions about models, from the first look that a manifest records: read them before the numbers."""

import math
from collections.abc import Iterator

import scipy

from gradscope.results.manifest import FirstLook, Manifest
from gradscope.results.stats import wilson_interval

#: An accuracy with a p-value of at least this counts as chance.
_SIGNIFICANT = 0.05
#: This many images of one class are not a coincidence.
_SEVERAL = 10
#: Images with fewer values are toy problems with closed forms, which get no caution about L2 radii.
_TOY = 48
#: Smallest share of zero gradients that is worth a sentence.
_DEAD_SHARE = 0.1


def cautions(manifest: Manifest) -> Iterator[str]:
    """Yield one sentence per caution, beginning with the model's name. An audit's verdict covers its outputs."""
    for entry in manifest.checkpoints:
        run = entry.training
        if run is not None and run.done < run.planned:
            yield f"{entry.label}: its training is unfinished, {run.done} of {run.planned} epochs are done"
        if entry.first_look is not None:
            look = entry.first_look
            sentences = [
                *_of_labels(look),
                *_of_planes(look, manifest),
                *_of_gradients(look),
                *_of_draws(look, manifest.draws),
                *(_of_outputs(look, manifest.draws) if manifest.kind != "audit" else ()),
            ]
            yield from (f"{entry.label}: {sentence}" for sentence in sentences)
    yield from _of_radii(manifest)
    yield from blind_attacks(manifest)


def _of_radii(manifest: Manifest) -> Iterator[str]:
    """Yield one sentence for the largest radius of each norm, judged on the smallest images."""
    pixels = [entry.first_look.pixels for entry in manifest.checkpoints if entry.first_look is not None]
    counts = [count for count in pixels if count is not None]
    for norm in sorted({norm for norm, _ in manifest.balls}):
        largest = max(radius for other, radius in manifest.balls if other == norm)
        if sentence := past_grey(norm, largest, min(counts, default=None)):
            yield sentence


def past_grey(norm: str, epsilon: float, pixels: int | None) -> str | None:
    """Say that a ball of this radius around any image of ``pixels`` values in [0, 1] contains the plain grey image.

    Each value of an image is at most 1/2 from grey, so grey lies within 1/2 in L-infinity and sqrt(pixels) / 2 in L2.
    Returns None if the radius is smaller, or in L2 if ``pixels`` is unknown.
    """
    diameter = math.inf
    if norm == "linf":
        diameter = 1.0
    elif norm == "l2" and pixels is not None and pixels >= _TOY:
        diameter = math.sqrt(pixels)
    if epsilon < diameter / 2:
        return None
    if epsilon < diameter:
        return (
            f"epsilon {epsilon:g} in {norm} reaches plain grey from every image, so any model can be robust on images "
            "of one class at most; usual radii are far smaller"
        )
    meant = f'; did you mean "{epsilon:g}/255"?' if epsilon <= 255 else ""
    return f"epsilon {epsilon:g} in {norm} reaches every image in [0, 1] from any other: no model is robust{meant}"


def blind_attacks(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence if attacks had no usable gradient on several images, as counted during the measurement.

    Attacks with the same counts share one sentence.
    """
    for entry in manifest.checkpoints:
        said: dict[str, list[str]] = {}
        for attack, seen in entry.gradients.items():
            kinds = {"NaN or infinite": seen.not_finite_gradient, "exactly 0": seen.zero_gradient}
            found = [f"{kind} on {count}" for kind, count in kinds.items() if count]
            if seen.not_finite_gradient or seen.zero_gradient >= max(1, _DEAD_SHARE * seen.images):
                said.setdefault(f"{' and '.join(found)} of {seen.images} images", []).append(attack)
        for count, attacks in said.items():
            subject = "the attack" if len(attacks) == 1 else "these attacks"
            under = "it" if len(attacks) == 1 else "them"
            yield (
                f"{entry.label}: at some step of {', '.join(attacks)} the gradient was {count}: {subject} cannot be "
                f"trusted there, and accuracy under {under} says nothing about these images"
            )


def _of_labels(look: FirstLook) -> Iterator[str]:
    if chance := at_chance(look.right, look.images, look.classes):
        yield chance
    if look.images >= _SEVERAL and look.classes_labelled == 1:
        yield f"all {look.images} labels are one class; if the data is sorted, draw samples from all of it"
    elif look.images >= _SEVERAL and look.classes_predicted == 1:
        yield "the model predicts one class for every image"


def _of_planes(look: FirstLook, manifest: Manifest) -> Iterator[str]:
    if manifest.landscape.get("space") == "input" and 2 * look.right < look.images:
        wrong = look.images - look.right
        yield f"{wrong} of {look.images} clean images are wrong and have radius 0; the option right omits them"


def _of_draws(look: FirstLook, draws: int | None) -> Iterator[str]:
    if draws and not look.random:
        yield f"the output is not random: each of the {draws} draws gives the same result"
    if draws and look.flips:
        yield (
            f"the class predicted by the mean of {draws} draws changes between passes on {look.flips} of {look.probed} "
            "images; more draws give a more reliable result"
        )


def _of_outputs(look: FirstLook, draws: int | None) -> Iterator[str]:
    if look.random and not draws:
        yield "two passes over one image differ, so one pass proves nothing; the option draws uses the mean of many"
    if look.depends_on_batch:
        yield "the output of an image depends on the other images in its batch"
    if look.probabilities:
        yield (
            "the outputs are probabilities, but the losses expect logits and apply softmax again, which shrinks the "
            "gradient; return the logits"
        )
    if look.zero_gradients is not None and look.zero_gradients >= max(1, _DEAD_SHARE * look.probed):
        yield (
            f"the gradient of the cross-entropy is exactly 0 on {look.zero_gradients} of {look.probed} images: an "
            "attack that follows it cannot move there, and accuracy under such an attack says nothing; an audit looks "
            "for the cause"
        )


def _of_gradients(look: FirstLook) -> Iterator[str]:
    if look.not_finite_gradients:
        yield (
            f"the gradient of the cross-entropy is NaN or infinite on {look.not_finite_gradients} of {look.probed} "
            "images: an attack that follows it does not work there, and accuracy under such an attack says nothing"
        )


#: Advice for a model that is no better than guessing: a foreign model, and one that was just trained.
_CHECK_SET_UP = "check the labels and the normalisation (mean, std)"
CHECK_TRAINING = "check the labels, train for longer, or lower the learning rate"


def at_chance(right: int, images: int, classes: int, check: str = _CHECK_SET_UP) -> str | None:
    """Say that ``right`` of ``images`` is no better than guessing (binomial test), and what to ``check``; else None.

    Returns None also if there are too few images to tell a perfect model from chance, or if the accuracy may be
    halfway between chance and perfect (Wilson interval).
    """
    chance, right = 1 / classes, min(right, images)
    if chance**images > _SIGNIFICANT or wilson_interval(right, images).high > (1 + chance) / 2:
        return None
    p_value = float(scipy.stats.binomtest(right, images, chance, alternative="greater").pvalue)
    if p_value < _SIGNIFICANT:
        return None
    return (
        f"{right} of {images} images are right, no more than guessing among {classes} classes gives "
        f"(binomial test, p = {p_value:.2g}): gradients of a model that has learned nothing say nothing; "
        f"{check}"
    )

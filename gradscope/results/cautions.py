"""What to know of a model before its numbers are read: sentences from the first look that a manifest records."""

import math
from collections.abc import Iterator

import scipy

from gradscope.results.manifest import FirstLook, Manifest
from gradscope.results.stats import wilson_interval

#: A p-value from which on an accuracy is called chance.
_SIGNIFICANT = 0.05
#: So many images, or more, are not of one class by chance.
_SEVERAL = 10
#: Images of fewer values are toys with closed forms, of whose radii nothing is said in L2.
_TOY = 48
#: A share of zero gradients from which on they are worth a sentence.
_DEAD_SHARE = 0.1


def cautions(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each caution, the model's name first. An audit's verdict says what its outputs are like."""
    for entry in manifest.checkpoints:
        run = entry.training
        if run is not None and run.done < run.planned:
            yield f"{entry.label}: its training is unfinished, {run.done} of {run.planned} epochs are done"
        if entry.first_look is not None:
            look = entry.first_look
            found = [
                *_of_labels(look),
                *_of_planes(look, manifest),
                *_of_gradients(look),
                *_of_draws(look, manifest.draws),
                *(_of_outputs(look, manifest.draws) if manifest.kind != "audit" else ()),
            ]
            yield from (f"{entry.label}: {sentence}" for sentence in found)
    yield from _of_radii(manifest)
    yield from blind_attacks(manifest)


def _of_radii(manifest: Manifest) -> Iterator[str]:
    """One sentence for the largest radius of each norm, of the smallest images."""
    pixels = [entry.first_look.pixels for entry in manifest.checkpoints if entry.first_look is not None]
    known = [count for count in pixels if count is not None]
    for norm in sorted({norm for norm, _ in manifest.balls}):
        largest = max(radius for other, radius in manifest.balls if other == norm)
        if said := past_grey(norm, largest, min(known, default=None)):
            yield said


def past_grey(norm: str, epsilon: float, pixels: int | None) -> str | None:
    """Say that a ball of this radius around any image of ``pixels`` values in [0, 1] holds the plain grey image.

    Each value of an image is at most 1/2 from grey: grey lies within 1/2 in L-infinity, sqrt(pixels) / 2 in L2. None
    where the radius is smaller, or in L2 where ``pixels`` is not known.
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
            f"epsilon {epsilon:g} in {norm} reaches plain grey from every image, so at most the images of one class "
            "can stand, whatever the model; usual radii are far smaller"
        )
    meant = f'; did you mean "{epsilon:g}/255"?' if epsilon <= 255 else ""
    return f"epsilon {epsilon:g} in {norm} reaches every image in [0, 1] from any other: no model is robust{meant}"


def blind_attacks(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence where attacks had no gradient on several images: what a measurement itself finds.

    One for all attacks of which the same is to be said.
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
                f"trusted there, and accuracy under {under} says nothing of them"
            )


def _of_labels(look: FirstLook) -> Iterator[str]:
    if chance := at_chance(look.right, look.images, look.classes):
        yield chance
    if look.images >= _SEVERAL and look.classes_labelled == 1:
        yield f"all {look.images} labels are one class; where the data is sorted, draw from all of it"
    elif look.images >= _SEVERAL and look.classes_predicted == 1:
        yield "one class is predicted for every image"


def _of_planes(look: FirstLook, manifest: Manifest) -> Iterator[str]:
    if manifest.landscape.get("space") == "input" and 2 * look.right < look.images:
        wrong = look.images - look.right
        yield f"{wrong} of {look.images} images are wrong as they are, with a radius of 0; the option right omits them"


def _of_draws(look: FirstLook, draws: int | None) -> Iterator[str]:
    if draws and not look.random:
        yield f"the output is not random: the mean of {draws} draws is one pass {draws} times over"
    if draws and look.flips:
        yield (
            f"the class that the mean of {draws} draws gives changes between passes on {look.flips} of {look.probed} "
            "images: more draws judge them more surely"
        )


def _of_outputs(look: FirstLook, draws: int | None) -> Iterator[str]:
    if look.random and not draws:
        yield "two passes over one image differ: one pass judges nothing; draws attacks and judges the mean over many"
    if look.depends_on_batch:
        yield "the output of an image depends on the other images of its batch"
    if look.probabilities:
        yield (
            "the outputs are probabilities, but the losses take logits and apply softmax again, which shrinks the "
            "gradient; return the logits"
        )
    if look.zero_gradients is not None and look.zero_gradients >= max(1, _DEAD_SHARE * look.probed):
        yield (
            f"the gradient of the cross-entropy is exactly 0 on {look.zero_gradients} of {look.probed} images: an "
            "attack along it cannot move there, and accuracy under it says nothing; an audit looks for the cause"
        )


def _of_gradients(look: FirstLook) -> Iterator[str]:
    if look.not_finite_gradients:
        yield (
            f"the gradient of the cross-entropy is NaN or infinite on {look.not_finite_gradients} of {look.probed} "
            "images: an attack along it does not work there, and accuracy under it says nothing"
        )


#: What to do about a foreign model, and about one that was just trained, that is no better than guessing.
_CHECK_SET_UP = "check the labels and the normalisation (mean, std)"
CHECK_TRAINING = "check the labels, train for longer, or lower the learning rate"


def at_chance(right: int, images: int, classes: int, check: str = _CHECK_SET_UP) -> str | None:
    """Say that ``right`` of ``images`` are no more than guessing gives (binomial test), and what to ``check``; or None.

    Where so few images were shown that even a perfect model could not be told from chance, or that the accuracy may
    well be halfway from chance to perfect (Wilson interval), nothing is said.
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

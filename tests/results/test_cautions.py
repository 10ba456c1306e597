"""What is said of a model before its numbers: from the facts of the first look alone."""

from typing import Any

import pytest

from gradscope.results.cautions import CHECK_TRAINING, at_chance, cautions, past_grey
from gradscope.results.manifest import Manifest

HONEST: dict[str, Any] = {
    "images": 100,
    "classes": 10,
    "right": 90,
    "classes_labelled": 10,
    "classes_predicted": 10,
    "probed": 32,
    "random": False,
    "depends_on_batch": False,
    "probabilities": False,
    "zero_gradients": 0,
}


def said_of(kind: str = "analysis", **facts: Any) -> list[str]:
    entry = {"label": "m", "first_look": HONEST | facts}
    return list(cautions(Manifest.model_validate({"kind": kind, "checkpoints": [entry]})))


@pytest.mark.parametrize(
    ("right", "images", "classes"), [(10, 100, 10), (14, 100, 10), (0, 20, 2), (9, 20, 2), (0, 6, 10)]
)
def test_a_model_at_chance_is_warned_of(right: int, images: int, classes: int) -> None:
    """Of 100 images and 10 classes, 14 or more come by chance with a probability of 0.12."""
    warning = at_chance(right, images, classes)
    assert warning is not None
    assert warning.startswith(f"{right} of {images} images are right, no more than guessing among {classes}")


@pytest.mark.parametrize(
    ("right", "images", "classes"), [(16, 100, 10), (15, 20, 2), (0, 1, 10), (0, 4, 2), (0, 2, 10)]
)
def test_better_models_and_few_images_are_not(right: int, images: int, classes: int) -> None:
    """16 or more of 100 come by chance with a probability of 0.04; all of 4 of two classes with 0.06.

    With 0 of 2 right, the accuracy may be 66 %, above 55 %: halfway to perfect among ten classes.
    """
    assert at_chance(right, images, classes) is None


def test_an_honest_model_is_read_without_caution() -> None:
    assert said_of() == []
    assert said_of(zero_gradients=None) == []
    assert said_of(zero_gradients=3) == []  # below a tenth of 32
    assert list(cautions(Manifest.model_validate({"checkpoints": [{"label": "old"}]}))) == []


def test_an_unfinished_training_is_named() -> None:
    def said(done: int) -> list[str]:
        entry = {"label": "m", "epochs": {"done": done, "planned": 3}}
        return list(cautions(Manifest.model_validate({"checkpoints": [entry]})))

    assert said(1) == ["m: its training is unfinished, 1 of 3 epochs are done"]
    assert said(3) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"random": True}, "two passes over one image differ"),
        ({"depends_on_batch": True}, "depends on the other images"),
        ({"probabilities": True}, "the outputs are probabilities"),
        ({"zero_gradients": 4}, "exactly 0 on 4 of 32 images"),
    ],
)
def test_what_is_seen_of_outputs_is_said(facts: dict[str, Any], words: str) -> None:
    (sentence,) = said_of(**facts)
    assert sentence.startswith("m: ")
    assert words in sentence
    assert said_of("audit", **facts) == []  # its verdict rests on the same facts, on more images


@pytest.mark.parametrize("kind", ["analysis", "attack", "audit"])
def test_gradients_that_are_no_numbers_are_said_of_every_measurement(kind: str) -> None:
    (sentence,) = said_of(kind, not_finite_gradients=1)
    assert "NaN or infinite on 1 of 32 images" in sentence


@pytest.mark.parametrize(("space", "right", "count"), [("input", 40, 1), ("input", 50, 0), ("weights", 40, 0)])
def test_planes_around_images_that_are_mostly_wrong(space: str, right: int, count: int) -> None:
    entry = {"label": "m", "first_look": HONEST | {"right": right}}
    manifest = {"kind": "landscape", "landscape": {"space": space}, "checkpoints": [entry]}
    found = list(cautions(Manifest.model_validate(manifest)))
    assert len(found) == count
    assert all("60 of 100 clean images are wrong" in sentence for sentence in found)


@pytest.mark.parametrize("kind", ["analysis", "audit"])
def test_one_class_is_said_of_labels_first_then_of_predictions(kind: str) -> None:
    (sentence,) = said_of(kind, classes_labelled=1, classes_predicted=1)
    assert "all 100 labels are one class" in sentence
    (sentence,) = said_of(kind, classes_predicted=1)
    assert "predicts one class for every image" in sentence
    assert said_of(kind, images=9, right=9, classes_labelled=1) == []


def test_a_guess_is_said_of_an_audit_too() -> None:
    assert len(said_of("audit", right=8)) == len(said_of(right=8)) == 1


def test_what_to_check_depends_on_who_is_told() -> None:
    told, of_training = at_chance(10, 100, 10), at_chance(10, 100, 10, CHECK_TRAINING)
    assert told is not None
    assert told.endswith("check the labels and the normalisation (mean, std)")
    assert of_training is not None
    assert of_training.endswith("check the labels, train for longer, or lower the learning rate")


@pytest.mark.parametrize(
    ("norm", "epsilon", "pixels", "words"),
    [
        ("linf", 8.0, None, 'reaches every image in [0, 1] from any other: no model is robust; did you mean "8/255"?'),
        ("linf", 0.5, 64, "reaches plain grey from every image"),
        ("linf", 0.49, 64, None),
        ("l2", 8.0, 64, 'no model is robust; did you mean "8/255"?'),
        ("l2", 4.0, 64, "robust on images of one class at most"),
        ("l2", 3.99, 64, None),
        ("l2", 400.0, None, None),
        ("l2", 1.0, 4, None),
    ],
)
def test_a_ball_that_reaches_grey_is_warned_of(
    norm: str, epsilon: float, pixels: int | None, words: str | None
) -> None:
    """An image of 64 values is at most 1/2 from grey in L-infinity and sqrt(64) / 2 = 4 in L2."""
    said = past_grey(norm, epsilon, pixels)
    assert said is None if words is None else said is not None and words in said


@pytest.mark.parametrize(
    "radii",
    [
        {"norm": "l2", "epsilon": 5.0},
        {"norm": "l2", "epsilons": [0.5, 4.5, 5.0]},
        {"attacks": {"pgd": {"norm": "l2", "epsilon": 5.0}, "fgsm": {"meaning": "one step"}}},
    ],
)
def test_the_largest_radius_is_warned_of_once(radii: dict[str, Any]) -> None:
    looks = [{"label": name, "first_look": HONEST | {"pixels": 64}} for name in ("m", "n")]
    (said,) = cautions(Manifest.model_validate({"checkpoints": looks, **radii}))
    assert said.startswith("epsilon 5 in l2 reaches plain grey from every image")

"""The checks of an audit in words: names, and when each fires."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """The name of a check, and the condition on which it fires."""

    name: str
    fires: str


#: Each check of an audit by its code.
MEANINGS: dict[str, Meaning] = {
    "D1": Meaning(
        "set-up",
        "the output is random, depends on the batch, is not finite or consists of probabilities; an image leaves "
        "[0, 1]; or the clean accuracy is no better than guessing",
    ),
    "N1": Meaning(
        "dead gradients",
        "on more than 1 % of the images the cross-entropy or its gradient is 0, or the gradient's norm is below the "
        "floor that common attacks apply",
    ),
    "N2": Meaning("rounding", "on more than 5 % of the images the gradients in float32 and in float64 disagree"),
    "N3": Meaning("loss", "PGD on another loss, or in float64, fools more images than PGD on cross-entropy"),
    "X1": Meaning("query", "Square, which needs no gradient, fools images that every gradient attack missed"),
    "X2": Meaning("transfer", "examples made on another model fool images that every gradient attack missed"),
    "X3": Meaning("noise", "random points fool images that every gradient attack missed"),
    "X4": Meaning("decision", "an attack that sees labels alone fools images that every gradient attack missed"),
    "M1": Meaning("radius", "a larger radius fools fewer images"),
    "M2": Meaning("unbounded", "some images survive in a ball that holds every image"),
    "M3": Meaning("one step", "one step fools more images than many steps"),
    "S1": Meaning(
        "shattering",
        "gradients averaged over noise attack better, or the gradients are not the slopes of the output",
    ),
    "C1": Meaning("budget", "twice the steps fool at least 2 points more: the attack was too short"),
    "C2": Meaning("convergence", "the margin still falls in the last steps: the attack was too short"),
    "T1": Meaning("unit test", "PGD misses more than 5 % of adversarial points that are known to exist"),
    "K1": Meaning("scale", "PGD fools 10 points more when it sees the same logits at a higher temperature"),
    "G1": Meaning("geometry", "consecutive gradients are unrelated (median cosine below 0.1); it never accuses alone"),
}

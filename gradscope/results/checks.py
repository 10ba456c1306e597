"""The checks of an audit in words: what each is called, and when it fires."""

from typing import NamedTuple


class CheckMeaning(NamedTuple):
    """A check: its name, and what makes it fire, as it goes on after "fires when"."""

    name: str
    fires: str


#: Every check by its short name, in the order of a report.
CHECK_MEANINGS: dict[str, CheckMeaning] = {
    "D1": CheckMeaning(
        "set-up",
        "the output is random, depends on the batch, is made of probabilities or is not finite; images leave [0, 1]; "
        "or the clean accuracy is no better than a guess",
    ),
    "N1": CheckMeaning(
        "dead gradients",
        "on more than 1 % of the images the cross-entropy or its gradient is 0, or below the floors of usual attacks",
    ),
    "N2": CheckMeaning(
        "rounding",
        "on more than 5 % of the images the gradients in float32 and in float64 differ (cosine below 0.99)",
    ),
    "N3": CheckMeaning(
        "loss",
        "PGD on the log-odds or in float64 fools half a point more images than PGD on cross-entropy, or PGD on another "
        "loss fools 10 points more",
    ),
    "X1": CheckMeaning(
        "query",
        "Square, which sees no gradient, fools images that every attack along the gradient missed",
    ),
    "X2": CheckMeaning(
        "transfer",
        "adversarial examples of another model fool images that every attack along the gradient missed",
    ),
    "X3": CheckMeaning(
        "noise",
        "random points of the ball fool images that every attack along the gradient missed",
    ),
    "X4": CheckMeaning(
        "decision",
        "an attack that sees labels alone fools images that every attack along the gradient missed",
    ),
    "M1": CheckMeaning(
        "radius",
        "fewer images fall in a wider ball than in a narrower one",
    ),
    "M2": CheckMeaning(
        "unbounded",
        "some images survive PGD in a ball that holds every possible image",
    ),
    "M3": CheckMeaning(
        "one step",
        "one step fools more images than many steps do",
    ),
    "S1": CheckMeaning(
        "shattering",
        "gradients averaged over noise attack better, or autograd's slopes are not those of the output",
    ),
    "C1": CheckMeaning(
        "budget",
        "twice the steps of PGD take away 2 more points of robust accuracy",
    ),
    "C2": CheckMeaning(
        "convergence",
        "the margin still falls in the last steps of PGD, or its steps cannot cross the ball",
    ),
    "T1": CheckMeaning(
        "unit test",
        "PGD on cross-entropy misses more than 5 % of adversarial points that are known to be there (Zimmermann et al. "
        "2022)",
    ),
    "K1": CheckMeaning(
        "scale",
        "PGD on cross-entropy fools 10 points more where it sees the same logits at a higher temperature",
    ),
    "G1": CheckMeaning(
        "geometry",
        "consecutive gradients are unrelated (median cosine below 0.1): supporting evidence, which never accuses alone",
    ),
}

"""Check of the set-up: is the output deterministic, independent of the batch, logits, finite and better than chance?"""

import torch

from gradscope.auditing.checks.base import FEWEST_PROBED, Cause, Check, State, numbers_at
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.outputs import PASSES, SAME_LOGITS, depend_on_the_batch
from gradscope.results.stats import wilson_interval

#: Tolerated share of images on which the mean of the draws changes the predicted class between passes. Above it images
#: are fooled by luck, especially under several attacks together.
FLIPPING_SHARE = 0.05


def set_up(evidence: Evidence) -> Check:
    """Check D1: problems of the set-up that change the meaning of all other numbers; ``value`` counts them."""
    outputs = evidence.outputs
    problems: list[str] = []
    causes: list[Cause] = []
    images = torch.zeros(len(evidence), dtype=torch.bool)
    probed, flips = len(outputs["flips"]), int(outputs["flips"].sum())
    flipping = []
    if evidence.draws and flips > FLIPPING_SHARE * probed:
        flipping = [
            f"on {flips} of {probed} images the mean of {evidence.draws} draws changes its class between passes"
        ]
    if evidence.random:
        problems.append("two passes over the same image differ")
        causes.append("randomness")
        images[:probed] |= outputs["flips"] | (outputs["wander"] > SAME_LOGITS)
    elif evidence.wanders:
        images[:probed] |= outputs["flips"]
        problems += flipping
    elif depend_on_the_batch(outputs):
        problems.append("the output depends on the other images of the batch")
        images[:probed] |= outputs["alone"].nan_to_num(0.0) > SAME_LOGITS
    if evidence.probabilities:
        problems.append("the outputs are probabilities, but attacks expect logits")
        causes.append("probabilities")
    if bool(outputs["outside"].any()):
        problems.append("images leave [0, 1]")
        images[:probed] |= outputs["outside"]
    if not evidence.threat.box:
        problems.append("attacks may leave [0, 1]")
    if bool(evidence.main.undefined.any()):
        problems.append("the output is not finite on some images")
        images |= evidence.main.undefined
    if near_chance(evidence):
        problems.append("clean accuracy is not above chance")
    elif not len(evidence.places):
        problems.append("no image is classified correctly")
    if predicts_one_class(evidence):
        problems.append("the model predicts one class for every image")
    if not evidence.differentiable:
        problems.append("there is no gradient, so only attacks by query ran")
        causes.append("missing gradient")
    changes = f"changes over {PASSES} passes on {flips} of {probed} images"
    averaged = f"outputs are the mean of {evidence.draws} draws, whose class {changes}"
    fixed = averaged if evidence.wanders else "outputs are deterministic and do not depend on the batch"
    cause = "; ".join(problems) or f"{fixed}; they are logits; images lie in [0, 1]"
    step = "fix the set-up first, then audit again" if problems else "nothing to do"
    if flipping and problems == flipping:
        step = "average over more draws (option draws)"
    if causes == ["randomness"] and len(problems) == 1:
        step = "judge the mean over many draws (option draws); see S1"
    if causes == ["missing gradient"] and len(problems) == 1:
        step = "give a stand-in for the backward pass (option backward), or examples of other models (option surrogate)"
    state: State = "fired" if problems else "passed"
    return Check(
        "D1",
        "set-up",
        state,
        len(problems),
        0,
        cause,
        step,
        n=probed,
        images=numbers_at(evidence.numbers, images),
        points_to=tuple(causes),
    )


def near_chance(evidence: Evidence) -> bool:
    """Tell whether the interval of clean accuracy includes chance; False if there are too few images."""
    accuracy = wilson_interval(int(evidence.main.right.sum()), len(evidence))
    return len(evidence) >= FEWEST_PROBED and accuracy.low <= 1 / evidence.classes


def predicts_one_class(evidence: Evidence) -> bool:
    """Tell whether the model predicts one class for every image, attacked or not; False for too few images."""
    return len(evidence.outputs["predicted"]) >= FEWEST_PROBED and evidence.constant

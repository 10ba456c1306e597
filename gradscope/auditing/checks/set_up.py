"""The check of what is attacked: is the output fixed, alone or in a batch, logits, finite, and better than a guess?"""

import torch

from gradscope.auditing.checks.base import FEWEST_PROBED, Cause, Check, State, numbers_at
from gradscope.auditing.evidence import Evidence
from gradscope.auditing.outputs import PASSES, SAME_LOGITS, depend_on_the_batch
from gradscope.results.stats import wilson_interval

#: Share of images whose class the mean of the draws changes between passes: outcomes above it are by luck, and those of
#: several attacks together fall by it.
FLIPPING_SHARE = 0.05


def set_up(evidence: Evidence) -> Check:
    """D1: what makes every number after it mean something else; ``value`` counts what was found."""
    outputs = evidence.outputs
    found: list[str] = []
    causes: list[Cause] = []
    images = torch.zeros(len(evidence), dtype=torch.bool)
    looked, flips = len(outputs["flips"]), int(outputs["flips"].sum())
    flipping = []
    if evidence.draws and flips > FLIPPING_SHARE * looked:
        flipping = [f"on {flips} of {looked} images passes of {evidence.draws} draws each differ in the class"]
    if evidence.random:
        found.append("two passes over one image differ")
        causes.append("randomness")
        images[:looked] |= outputs["flips"] | (outputs["wander"] > SAME_LOGITS)
    elif evidence.wanders:
        images[:looked] |= outputs["flips"]
        found += flipping
    elif depend_on_the_batch(outputs):
        found.append("the output depends on the other images of the batch")
        images[:looked] |= outputs["alone"].nan_to_num(0.0) > SAME_LOGITS
    if evidence.probabilities:
        found.append("the outputs are probabilities, where attacks take logits")
        causes.append("probabilities")
    if bool(outputs["outside"].any()):
        found.append("images leave [0, 1]")
        images[:looked] |= outputs["outside"]
    if not evidence.threat.box:
        found.append("attacks may leave [0, 1]")
    if bool(evidence.main.undefined.any()):
        found.append("the output is not finite on some images")
        images |= evidence.main.undefined
    if near_chance(evidence):
        found.append("clean accuracy is not above chance")
    elif not len(evidence.places):
        found.append("no image is right")
    if predicts_one_class(evidence):
        found.append("one class is predicted for every image")
    if not evidence.differentiable:
        found.append("there is no gradient, so only attacks by query were run")
        causes.append("missing gradient")
    of_one_class = (
        f"the mean of {evidence.draws} draws, of one class in {PASSES} passes but on {flips} of {looked} images,"
    )
    fixed = of_one_class if evidence.wanders else "fixed, alone or in a batch,"
    said = "; ".join(found) or f"outputs are {fixed} and are logits; images lie in [0, 1]"
    step = "mend the set-up first, then audit again" if found else "nothing to do"
    if flipping and found == flipping:
        step = "average over more draws (draws)"
    if causes == ["randomness"] and len(found) == 1:
        step = "judge the mean over many draws (draws): see S1"
    if causes == ["missing gradient"] and len(found) == 1:
        step = "give a stand-in for the backward pass (backward), or try examples of other models (surrogate)"
    state: State = "fired" if found else "passed"
    return Check(
        "D1",
        "set-up",
        state,
        len(found),
        0,
        said,
        step,
        n=looked,
        images=numbers_at(evidence.numbers, images),
        points_to=tuple(causes),
    )


def near_chance(evidence: Evidence) -> bool:
    """Whether the clean accuracy's interval reaches down to a guess; not known of few images."""
    accuracy = wilson_interval(int(evidence.main.right.sum()), len(evidence))
    return len(evidence) >= FEWEST_PROBED and accuracy.low <= 1 / evidence.classes


def predicts_one_class(evidence: Evidence) -> bool:
    """Whether one class is predicted for every image, attacked or not; not known of few images."""
    return len(evidence.outputs["predicted"]) >= FEWEST_PROBED and evidence.constant

"""The verdict on an attack, the parts that are named and the sentences that say why, from what was compared."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradscope.distributed.units import Values
from gradscope.judging.attacks import Attack
from gradscope.judging.judgement import Compared, Judgement, Verdict, share
from gradscope.judging.repairs import follows_others

#: Robust accuracy that the best of ours takes away at least where an attack is blind, not only weaker; of which less
#: is fooled by everything together, no such difference could be found.
BLIND_GAIN = 0.10
#: Share of images without a gradient from which on it is the model that gives none.
_FLAT = 0.1
#: Parts that are named at most.
MOST_NAMED = 3


def concluded(made: Judgement, found: Values, attack: Attack) -> Judgement:
    """The verdict, the parts that are named and the finding, from what was compared."""
    made = _judged(made, found)
    if ball := attack.other_ball(made.threat):
        trial = f"{made.threat.norm} {made.threat.epsilon:.3g}"
        made = replace(made, finding=f"{made.finding} Your attack works at {ball}; the trial is {trial}.")
    return made


def _judged(made: Judgement, found: Values) -> Judgement:
    leaving = {"projection": found["leaves_ball"], "box": found["leaves_box"]}
    out = {part: share(leaves) for part, leaves in leaving.items() if bool(leaves.any())}
    broken = share(found["broken"])
    inside = _compared_with_ours(made, found)
    return _invalid(inside, out, broken) if out or broken else inside


def _compared_with_ours(made: Judgement, found: Values) -> Judgement:
    """The same where all examples count, put back into ball and box."""
    significant = [one for one in made.ours if one.significant]
    if not significant:
        left = f"Your attack leaves {_percent(_left(made))}; none of ours leaves significantly less."
        if share(made.right) - share(_run(made.lowest)) >= BLIND_GAIN:
            return replace(made, verdict="the attack is sound", finding=_with_remarks(left, made, found))
        left += (
            " Nothing here fools enough images at this radius to tell a sound attack from one that does nothing: ask "
            "for a larger epsilon."
        )
        return replace(made, verdict="inconclusive", finding=_with_remarks(left, made, found))
    best = max(significant, key=lambda one: one.gain)
    verdict: Verdict = "the attack is blind" if best.gain >= BLIND_GAIN else "the attack is weaker"
    broken = bool(found["broken"].any())  # what stands for these is the image itself: any repair fools more
    by_gain = sorted((one for one in made.repairs if one.significant and not broken), key=lambda one: -one.gain)
    parts = tuple(dict.fromkeys(one.part for one in by_gain if one.part is not None))[:MOST_NAMED]
    first = {part: next(one for one in by_gain if one.part == part) for part in parts}
    repairs = tuple(replace(one, named=one in first.values()) for one in made.repairs)
    return replace(
        made,
        verdict=verdict,
        parts=parts,
        repairs=repairs,
        finding=_with_remarks(_finding(made, best, list(first.values()), broken), made, found),
    )


def _invalid(made: Judgement, out: dict[str, float], broken: float) -> Judgement:
    """A judgement on examples put back, of which shares ``out`` leave ball or box and ``broken`` is not finite."""
    reading = made.reading
    outside = reading is not None and reading.scale is not None
    parts: tuple[Any, ...] = ("normalisation",) if outside else tuple(sorted(out, key=lambda part: -out[part]))
    where = {"projection": "the ball", "box": "[0, 1]"}
    said = " and ".join(
        [
            *([f"{_percent(broken)} are NaN or infinite"] if broken else []),
            *(f"{_percent(share)} leave {where[part]}" for part, share in out.items()),
        ]
    )
    why = ", for it feeds the model normalised images" if outside else ""
    back = "Put back into ball and box" + (", the image itself for what is not finite" if broken else "")
    finding = f"Of its examples {said}{why}. {back}: {made.finding[:1].lower()}{made.finding[1:]}"
    named = tuple(dict.fromkeys((*parts, *made.parts)))[:MOST_NAMED]
    return replace(made, verdict="invalid examples", parts=named, finding=finding)


def _finding(made: Judgement, best: Compared, named: Sequence[Compared], broken: bool) -> str:
    said = [f"Your attack leaves {_percent(_left(made))}"]
    for one in named:
        assert one.standing is not None
        assert one.p_value is not None
        same = "it leaves" if one.part in ("best iterate", "steps", "batch") else "the same steps leave"
        count, whole = len(one.standing), _run(made.standing)
        of = f" of the first {count}, not {_percent(share(whole[:count]))}" if count < len(whole) else ""
        why = ", for it mixes the images of a batch" if one.part == "batch" else ""
        said.append(f"{one.name} {same} {_percent(share(one.standing))}{of} (p = {one.p_value:.2g}){why}")
    assert best.standing is not None
    said.append(f"the best attack, {best.name}, leaves {_percent(share(best.standing))}")
    if not named and not broken:
        said.append("no single repair explains it")
    return "; ".join(said) + "."


def _with_remarks(finding: str, made: Judgement, found: Values) -> str:
    """``finding`` with what was seen of the attack that a user should know."""
    reading, remarks = made.reading, []
    assert reading is not None
    if "norm floor" in made.parts or any(one.part == "norm floor" and one.significant for one in made.repairs):
        floor = "" if reading.floor is None else f", about {reading.floor:.1g}"
        why = "they are as long as the gradient" if reading.proportional else f"the gradient is below the floor{floor}"
        remarks.append(f"On {_percent(reading.short)} of images its steps are short, for {why}.")
    if reading.still:
        remarks.append(f"All {reading.steps} gradients were taken at one point: it never moves.")
    flat = share(found["flat"])
    if flat >= _FLAT:
        on = f"{_percent(flat)} of these images"
        remarks.append(f"The model gives no gradient on {on}: give `backward=` (see docs/judge.md).")
    if follows_others(found) and any(one.significant for one in made.ours):
        remarks.append("It follows the loss of other labels or another loss: are its labels those of the images?")
    if reading.loss is not None and not reading.ascends:
        remarks.append(f"It goes down the {reading.loss} loss.")
    if reading.zero_gradient > 0 and flat < _FLAT:
        remarks.append(f"On {_percent(reading.zero_gradient)} of images its gradient was 0 at some step.")
    says = found["says"]
    false = (says >= 0) & ((says == 1) != found["fooled"])
    if bool(false.any()):
        remarks.append(f"What it reports is wrong of {int(false.sum())} of {len(false)} examples.")
    if bool(found["mislabelled"].any()):
        wrong = f"{int(found['mislabelled'].sum())} of {len(false)} examples"
        remarks.append(f"The labels that it returned are not what the model predicts on {wrong}.")
    return " ".join([finding, *remarks])


def _run(standing: Tensor | None) -> Tensor:
    """``standing`` of an attack that was run."""
    assert standing is not None
    return standing


def _left(made: Judgement) -> float:
    return share(_run(made.standing))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

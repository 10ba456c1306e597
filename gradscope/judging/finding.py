"""Verdict on an attack: which parts to name, and sentences that explain why, from the comparisons."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradscope.distributed.units import Values
from gradscope.judging.attacks import Attack
from gradscope.judging.judgement import Compared, Judgement, Verdict, share
from gradscope.judging.repairs import follows_others

#: Smallest gain in robust accuracy of our best attack that makes an attack blind instead of weaker. If all attacks
#: together fool less than this, such a difference cannot be found.
BLIND_GAIN = 0.10
#: Share of images without a gradient from which the model, not the attack, is to blame.
_FLAT = 0.1
#: The most parts that are named.
MOST_NAMED = 3


def concluded(judgement: Judgement, values: Values, attack: Attack) -> Judgement:
    """Complete a judgement with its verdict, the named parts and the finding, from the comparisons."""
    judgement = _judged(judgement, values)
    if ball := attack.other_ball(judgement.threat):
        trial = f"{judgement.threat.norm} {judgement.threat.epsilon:.3g}"
        judgement = replace(
            judgement, finding=f"{judgement.finding} Your attack is set to {ball}; the trial uses {trial}."
        )
    return judgement


def _judged(judgement: Judgement, values: Values) -> Judgement:
    leaving = {"projection": values["leaves_ball"], "box": values["leaves_box"]}
    out = {part: share(leaves) for part, leaves in leaving.items() if bool(leaves.any())}
    broken = share(values["broken"])
    inside = _compared_with_ours(judgement, values)
    return _invalid(inside, out, broken) if out or broken else inside


def _compared_with_ours(judgement: Judgement, values: Values) -> Judgement:
    """Judge the attack against ours, with all examples put back into ball and box."""
    significant = [compared for compared in judgement.ours if compared.significant]
    if not significant:
        left = f"Your attack leaves a robust accuracy of {_percent(_left(judgement))}; "
        left += "none of ours leaves significantly less."
        if share(judgement.right) - share(_run(judgement.lowest)) >= BLIND_GAIN:
            return replace(judgement, verdict="the attack is sound", finding=_with_remarks(left, judgement, values))
        left += (
            " No attack fools enough images at this radius to tell a sound attack from one that does nothing: use "
            "a larger epsilon."
        )
        return replace(judgement, verdict="inconclusive", finding=_with_remarks(left, judgement, values))
    best = max(significant, key=lambda compared: compared.gain)
    verdict: Verdict = "the attack is blind" if best.gain >= BLIND_GAIN else "the attack is weaker"
    broken = bool(values["broken"].any())  # the clean image replaces these, so any repair fools more
    by_gain = sorted(
        (compared for compared in judgement.repairs if compared.significant and not broken),
        key=lambda compared: -compared.gain,
    )
    parts = tuple(dict.fromkeys(compared.part for compared in by_gain if compared.part is not None))[:MOST_NAMED]
    first = {part: next(compared for compared in by_gain if compared.part == part) for part in parts}
    repairs = tuple(replace(compared, named=compared in first.values()) for compared in judgement.repairs)
    return replace(
        judgement,
        verdict=verdict,
        parts=parts,
        repairs=repairs,
        finding=_with_remarks(_finding(judgement, best, list(first.values()), broken), judgement, values),
    )


def _invalid(judgement: Judgement, out: dict[str, float], broken: float) -> Judgement:
    """Judge invalid examples: shares ``out`` leave ball or box, and the share ``broken`` is not finite."""
    reading = judgement.reading
    outside = reading is not None and reading.scale is not None
    parts: tuple[Any, ...] = ("normalisation",) if outside else tuple(sorted(out, key=lambda part: -out[part]))
    where = {"projection": "the ball", "box": "[0, 1]"}
    clauses = " and ".join(
        [
            *([f"{_percent(broken)} are NaN or infinite"] if broken else []),
            *(f"{_percent(share)} leave {where[part]}" for part, share in out.items()),
        ]
    )
    why = ", because it feeds the model normalised images" if outside else ""
    back = "Put back into ball and box" + (", with the clean image for those not finite" if broken else "")
    finding = f"Of its examples {clauses}{why}. {back}: {judgement.finding[:1].lower()}{judgement.finding[1:]}"
    named = tuple(dict.fromkeys((*parts, *judgement.parts)))[:MOST_NAMED]
    return replace(judgement, verdict="invalid examples", parts=named, finding=finding)


def _finding(judgement: Judgement, best: Compared, named: Sequence[Compared], broken: bool) -> str:
    clauses = [f"Your attack leaves a robust accuracy of {_percent(_left(judgement))}"]
    for compared in named:
        assert compared.standing is not None
        assert compared.p_value is not None
        same = "it leaves" if compared.part in ("best iterate", "steps", "batch") else "the same steps leave"
        count, whole = len(compared.standing), _run(judgement.standing)
        of = f" of the first {count}, not {_percent(share(whole[:count]))}" if count < len(whole) else ""
        why = ", because it mixes the images of a batch" if compared.part == "batch" else ""
        clauses.append(
            f"{compared.name} {same} {_percent(share(compared.standing))}{of} (p = {compared.p_value:.2g}){why}"
        )
    assert best.standing is not None
    clauses.append(f"the best attack, {best.name}, leaves {_percent(share(best.standing))}")
    if not named and not broken:
        clauses.append("no single repair explains it")
    return "; ".join(clauses) + "."


def _with_remarks(finding: str, judgement: Judgement, values: Values) -> str:
    """Append to ``finding`` remarks on the attack that the user should know."""
    reading, remarks = judgement.reading, []
    assert reading is not None
    if "norm floor" in judgement.parts or any(
        compared.part == "norm floor" and compared.significant for compared in judgement.repairs
    ):
        floor = "" if reading.floor is None else f", about {reading.floor:.1g}"
        why = (
            "they are proportional to the gradient"
            if reading.proportional
            else f"the gradient is below the floor{floor}"
        )
        remarks.append(f"On {_percent(reading.short)} of images its steps are short, because {why}.")
    if reading.still:
        remarks.append(f"All {reading.steps} gradients were taken at one point: it never moves.")
    flat = share(values["flat"])
    if flat >= _FLAT:
        on = f"{_percent(flat)} of these images"
        remarks.append(f"The model gives no gradient on {on}: give `backward=` (see docs/judge.md).")
    if follows_others(values) and any(compared.significant for compared in judgement.ours):
        remarks.append(
            "It follows another loss or the loss of other labels: check that its labels are those of the images."
        )
    if reading.loss is not None and not reading.ascends:
        remarks.append(f"It minimises the {reading.loss} loss instead of maximising it.")
    if reading.zero_gradient > 0 and flat < _FLAT:
        remarks.append(f"On {_percent(reading.zero_gradient)} of images its gradient was 0 at some step.")
    says = values["says"]
    false = (says >= 0) & ((says == 1) != values["fooled"])
    if bool(false.any()):
        remarks.append(f"Its own report of success is wrong for {int(false.sum())} of {len(false)} examples.")
    if bool(values["mislabelled"].any()):
        wrong = f"{int(values['mislabelled'].sum())} of {len(false)} examples"
        remarks.append(f"The labels that it returned differ from the model's predictions on {wrong}.")
    return " ".join([finding, *remarks])


def _run(standing: Tensor | None) -> Tensor:
    """Return ``standing`` of an attack that ran."""
    assert standing is not None
    return standing


def _left(judgement: Judgement) -> float:
    return share(_run(judgement.standing))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

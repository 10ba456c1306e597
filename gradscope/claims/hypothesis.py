"""H1 to H6: the hypothesis that inflated margins and the attack's arithmetic, not robustness, make the headline."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from gradscope.claims.effects import Array, between_groups, matched, paired, shared
from gradscope.claims.group import Group, Pick, Question, how, unequal_steps
from gradscope.claims.measured import Measured, MeasuredModel
from gradscope.claims.robustness import named
from gradscope.claims.verdicts import ABOVE, BELOW, Finding, levels

#: Logit margin past which p_y is 1 in float32: log(2^24), half the distance to the next number below 1.
SATURATED = 24 * math.log(2)
#: The floor that the paper's attack puts under the norm of its gradient.
FLOOR = 1e-6
_MODES = ("rl", "sl")
_WITHOUT = ("pgd", "pgd-log-odds", "pgd-margin", "pgd-float64")
_ANALYZE = "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`"
_AUDIT = "`gradscope audit CKPT...`"
Below = Callable[[pd.Series], pd.Series]


def shares(pick: Pick, holds: Below) -> Pick:
    """Whether ``holds`` is true of each value that ``pick`` finds; undefined where the value is."""

    def marked(model: MeasuredModel) -> list[Measured]:
        found = pick(model)
        return [
            replace(one, of_images=holds(one.of_images).astype(float).where(one.of_images.notna())) for one in found
        ]

    return marked


def h1(group: Group) -> Iterator[Finding]:
    """RL against SL: share of saturated images, and the margin itself."""
    margin = group.at_image("margin")
    lacking = f"margin was not measured on the same images of both; {_ANALYZE}"
    asked = Question("H1", f"share of images with a clean logit margin above {SATURATED:.1f}, rl - sl", ABOVE)
    saturated = shares(margin, lambda values: values > SATURATED)
    yield group.compare(asked, _MODES, (saturated, saturated), lacking)
    asked = Question("H1", "logit margin at the clean image, absolute value, rl - sl", ABOVE, "mean", "logits")

    def size(model: MeasuredModel) -> list[Measured]:
        return [replace(one, of_images=one.of_images.abs()) for one in margin(model)]

    yield group.compare(asked, _MODES, (size, size), lacking, ("mean rl", "sl"))


def h2(group: Group) -> Iterator[Finding]:
    """RL against SL: share of images whose gradient is below the floor itself, and below what the batch makes of it."""
    norm = group.at_image("norm")
    lacking = f"norm was not measured on the same images of both; {_ANALYZE}"
    floors = {FLOOR: "the floor of the paper's attack"}
    batch = shrinking(group)
    if batch > FLOOR:
        floors[batch] = f"that floor times the batch of {batch / FLOOR:.0f}, whose mean loss it attacks"
    for floor, words in floors.items():
        statistic = f"share of images with a gradient norm below {floor:.3g} at the clean image ({words}), rl - sl"
        below = shares(norm, partial(operator.gt, floor))
        yield group.compare(Question("H2", statistic, ABOVE), _MODES, (below, below), lacking)


def shrinking(group: Group) -> float:
    """Gradient norm below which pgd-paper's steps shrink: its floor times its batch; the bare floor if not known."""
    attacks = [one for model in group.models.get("rl", {}).values() for one in group.along_paper(model)]
    return max((one.floor for one in attacks), default=FLOOR) or FLOOR


def h3(group: Group) -> Iterator[Finding]:
    """Of RL's images that are right when clean: survivors of the paper's attack against the fallen."""
    floor = shrinking(group)
    conditions: dict[str, tuple[str, Below, str]] = {
        "norm": ("norm", lambda values: values < floor, f"a clean gradient norm below {floor:.3g}"),
        "margin": ("margin", lambda values: values > SATURATED, f"a clean logit margin above {SATURATED:.1f}"),
    }
    for metric, holds, words in conditions.values():
        of = "among rl's images that survive pgd-paper - among those that fall"
        asked = Question("H3", f"share with {words}, {of} ({group.ball})", ABOVE)
        absent = group.absent("rl")
        seeds = [] if absent else _survivors(group, shares(group.at_image(metric), holds))
        if not seeds:
            yield group.untested(asked, absent or f"pgd-paper and {metric} were not measured on rl; {_ANALYZE}")
            continue
        effect = between_groups(seeds)
        if math.isnan(effect.value):
            yield group.untested(
                asked, "none of rl's images survived pgd-paper, or none fell: there is nothing to compare"
            )
            continue
        survivors = int(sum((member == 1).sum() for _, member in seeds))
        said = f"{survivors} survivors, {levels(effect, ('of them', 'of the fallen'), '-')}"
        yield group.judged(asked, effect, said, ("rl",))


def _survivors(group: Group, holds: Pick) -> list[tuple[Array, Array]]:
    """For each RL seed whether ``holds``, and who survived: 1 or 0, NaN where wrong when clean; on shared images."""
    found: list[tuple[Measured, Measured, Measured]] = []
    for model in group.models["rl"].values():
        parts = [group.under("pgd-paper")(model), group.at_image("accuracy")(model), holds(model)]
        if all(parts):
            survived, clean, held = (part[0] for part in parts)
            found.append((survived, clean, held))
    if not found:
        return []
    images = shared([one for part in found for one in part])
    undefined = pd.concat([held.of_images.reindex(images) for _, _, held in found], axis=1).isna().any(axis=1)
    images = images[~undefined.to_numpy()]
    made = []
    for survived, clean, held in found:
        right = clean.of_images.reindex(images) == 1
        member = survived.of_images.reindex(images).where(right)
        made.append((held.of_images.reindex(images).to_numpy(dtype=float), member.to_numpy(dtype=float)))
    return made if len(images) else []


def h4(group: Group) -> Iterator[Finding]:
    """What stands of RL under the paper's attack, minus what stands under each that lacks its arithmetic."""
    absent = group.absent("rl")
    paper = group.picked("rl", group.under("pgd-paper"))
    for attack in _WITHOUT:
        asked = Question("H4", f"accuracy of rl, under pgd-paper - under {named(attack)} ({group.ball})", ABOVE)
        other = group.picked("rl", group.under(attack))
        yield _less(
            group, asked, paper, other, absent or f"pgd-paper and {attack} were not both run on rl; {_AUDIT}", attack
        )
    asked = Question("H4", f"accuracy of rl, under pgd-paper - under every attack measured ({group.ball})", ABOVE)
    standing: dict[int, Sequence[Measured]] = {}
    for seed, model in group.models.get("rl", {}).items():
        standing[seed] = group.everything(model)[0]
    lacking = absent or f"no attack that stays in the box was run on rl; {_AUDIT}"
    yield _less(group, asked, paper, standing, lacking, "everything")


def _less(
    group: Group,
    asked: Question,
    paper: dict[int, Sequence[Measured]],
    other: dict[int, Sequence[Measured]],
    lacking: str,
    attack: str,
) -> Finding:
    """The paper's attack against another on the same model; however each was run."""
    pairs = []
    for seed in sorted(paper.keys() & other.keys()):
        both = [(one, another) for one in paper[seed] for another in other[seed] if len(shared([one, another]))]
        if both:
            pairs.append(min(both, key=_comparable))
    values = paired(pairs) if pairs else []
    if not values or values[0][0].empty:
        return group.untested(asked, lacking)
    if unequal := unequal_steps(pairs):
        return group.untested(asked, unequal)
    return group.tested(asked, values, ("under pgd-paper", f"under {attack}"), ("rl",), how(pairs))


def _comparable(pair: tuple[Measured, Measured]) -> tuple[bool, bool, bool]:
    """Order pairs by how well they compare: of equal steps first, then of one kind, then of an analysis."""
    one, other = pair
    return bool(unequal_steps([pair])), one.kind != other.kind, one.kind != "analysis"


def h5(group: Group) -> Iterator[Finding]:
    """How much of RL - SL under the paper's attack is missing from RL - SL under exact PGD, image by image."""
    statistic = f"accuracy, (rl - sl under pgd-paper) - (rl - sl under exact PGD) ({group.ball})"
    asked = Question("H5", statistic, ABOVE, "mean", "-")
    absent = group.absent(*_MODES)
    picked = {
        attack: matched(*(group.picked(mode, group.under(attack)) for mode in _MODES))
        for attack in ("pgd-paper", "pgd")
    }
    seeds = sorted(picked["pgd-paper"].keys() & picked["pgd"].keys())
    if absent or not seeds:
        yield group.untested(asked, absent or f"pgd-paper and pgd were not both run on both; {_ANALYZE}")
        return
    alike = [pair for seed in seeds for pair in zip(picked["pgd-paper"][seed], picked["pgd"][seed], strict=True)]
    if unequal := unequal_steps(alike):
        yield group.untested(asked, unequal)
        return
    images = shared([one for pairs in picked.values() for seed in seeds for one in pairs[seed]])
    values = []
    for seed in seeds:
        advantage = [
            one.of_images.reindex(images) - other.of_images.reindex(images)
            for one, other in (picked["pgd-paper"][seed], picked["pgd"][seed])
        ]
        values.append((advantage[0], advantage[1]))
    if not len(images):
        yield group.untested(asked, f"pgd-paper and pgd were run on different images; {_ANALYZE}")
        return
    yield group.tested(asked, values, ("rl - sl under pgd-paper", "under pgd"), _MODES)


def h6(group: Group) -> Iterator[Finding]:
    """Copies with larger logits against SL itself, with smaller ones against RL itself, under the paper's attack."""
    copies = {mode: list(group.courses(mode).values()) for mode in group.models}
    found = False
    for mode, courses in copies.items():
        of = {course.mode for course in courses}
        larger = all(course.logit_factor > 1 for course in courses)
        smaller = all(course.logit_factor < 1 for course in courses)
        if not courses or not ((of == {"sl"} and larger) or (of == {"rl"} and smaller)):
            continue
        found = True
        original, side = ("sl", ABOVE) if larger else ("rl", BELOW)
        factors = ", ".join(dict.fromkeys(f"{course.logit_factor:.4g}" for course in courses))
        statistic = f"accuracy under pgd-paper, {original} with its logits times {factors} - {original} ({group.ball})"
        pick = group.under("pgd-paper")
        lacking = f"pgd-paper was not run on both; {_ANALYZE}"
        yield group.compare(Question("H6", statistic, side), (mode, original), (pick, pick), lacking)
    if not found:
        asked = Question("H6", f"accuracy under pgd-paper, sl with its logits multiplied - sl ({group.ball})", ABOVE)
        lacking = (
            "no copy of sl with larger logits, or of rl with smaller ones, was measured; a recipe's `scale` makes them "
            'and a measurement with models = ["*"] takes them in'
        )
        yield group.untested(asked, group.absent("sl") or lacking)

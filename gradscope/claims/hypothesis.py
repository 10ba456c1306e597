"""H1 to H6: the hypothesis that inflated margins and the attack's arithmetic explain the headline, not robustness."""

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

#: The logit margin above which p_y rounds to 1 in float32: log(2^24), as 1 + 2^-24 rounds to 1.
SATURATED = 24 * math.log(2)
#: The lower bound that the paper's attack applies to the norm of its gradient.
FLOOR = 1e-6
_MODES = ("rl", "sl")
_WITHOUT = ("pgd", "pgd-log-odds", "pgd-margin", "pgd-float64")
_ANALYZE = "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`"
_AUDIT = "`gradscope audit CKPT...`"
Below = Callable[[pd.Series], pd.Series]


def shares(pick: Pick, holds: Below) -> Pick:
    """Wrap ``pick`` to say whether ``holds`` is true of each value; undefined if the value is."""

    def marked(model: MeasuredModel) -> list[Measured]:
        measured = pick(model)
        return [
            replace(entry, of_images=holds(entry.of_images).astype(float).where(entry.of_images.notna()))
            for entry in measured
        ]

    return marked


def h1(group: Group) -> Iterator[Finding]:
    """Compare RL with SL: the share of saturated images, and the margin itself."""
    margin = group.at_image("margin")
    lacking = f"margin was not measured on the same images of both; {_ANALYZE}"
    asked = Question("H1", f"share of images with a clean logit margin above {SATURATED:.1f}, rl - sl", ABOVE)
    saturated = shares(margin, lambda values: values > SATURATED)
    yield group.compare(asked, _MODES, (saturated, saturated), lacking)
    asked = Question("H1", "logit margin at the clean image, absolute value, rl - sl", ABOVE, "mean", "logits")

    def size(model: MeasuredModel) -> list[Measured]:
        return [replace(entry, of_images=entry.of_images.abs()) for entry in margin(model)]

    yield group.compare(asked, _MODES, (size, size), lacking, ("mean rl", "sl"))


def h2(group: Group) -> Iterator[Finding]:
    """Compare RL with SL: the share of images with a gradient below the floor, and below the floor times the batch."""
    norm = group.at_image("norm")
    lacking = f"norm was not measured on the same images of both; {_ANALYZE}"
    floors = {FLOOR: "the floor of the paper's attack"}
    batch = shrinking(group)
    if batch > FLOOR:
        floors[batch] = f"that floor times the batch of {batch / FLOOR:.0f}, as it attacks the batch's mean loss"
    for floor, words in floors.items():
        statistic = f"share of images with a gradient norm below {floor:.3g} at the clean image ({words}), rl - sl"
        below = shares(norm, partial(operator.gt, floor))
        yield group.compare(Question("H2", statistic, ABOVE), _MODES, (below, below), lacking)


def shrinking(group: Group) -> float:
    """Return the gradient norm below which pgd-paper's steps shrink: its floor times its batch, or the bare floor."""
    attacks = [entry for model in group.models.get("rl", {}).values() for entry in group.along_paper(model)]
    return max((entry.floor for entry in attacks), default=FLOOR) or FLOOR


def h3(group: Group) -> Iterator[Finding]:
    """Compare RL's images, right when clean, that survive the paper's attack with those that fall."""
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
                asked, "none of rl's images survived pgd-paper, or all did, so there is nothing to compare"
            )
            continue
        survivors = int(sum((member == 1).sum() for _, member in seeds))
        said = f"{survivors} survivors, {levels(effect, ('of them', 'of the fallen'), '-')}"
        yield group.judged(asked, effect, said, ("rl",))


def _survivors(group: Group, holds: Pick) -> list[tuple[Array, Array]]:
    """Collect, for each RL seed, ``holds`` and survival of the shared images: 1 or 0, NaN if wrong when clean."""
    measured: list[tuple[Measured, Measured, Measured]] = []
    for model in group.models["rl"].values():
        parts = [group.under("pgd-paper")(model), group.at_image("accuracy")(model), holds(model)]
        if all(parts):
            survived, clean, held = (part[0] for part in parts)
            measured.append((survived, clean, held))
    if not measured:
        return []
    images = shared([entry for part in measured for entry in part])
    undefined = pd.concat([held.of_images.reindex(images) for _, _, held in measured], axis=1).isna().any(axis=1)
    images = images[~undefined.to_numpy()]
    arrays = []
    for survived, clean, held in measured:
        right = clean.of_images.reindex(images) == 1
        member = survived.of_images.reindex(images).where(right)
        arrays.append((held.of_images.reindex(images).to_numpy(dtype=float), member.to_numpy(dtype=float)))
    return arrays if len(images) else []


def h4(group: Group) -> Iterator[Finding]:
    """Compare RL's accuracy under the paper's attack with that under attacks without its arithmetic."""
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
    lacking = absent or f"no attack that respects the box was run on rl; {_AUDIT}"
    yield _less(group, asked, paper, standing, lacking, "everything")


def _less(
    group: Group,
    asked: Question,
    paper: dict[int, Sequence[Measured]],
    other: dict[int, Sequence[Measured]],
    lacking: str,
    attack: str,
) -> Finding:
    """Compare the paper's attack with another on the same model, of whatever kind of run."""
    pairs = []
    for seed in sorted(paper.keys() & other.keys()):
        both = [(first, second) for first in paper[seed] for second in other[seed] if len(shared([first, second]))]
        if both:
            pairs.append(min(both, key=_comparable))
    values = paired(pairs) if pairs else []
    if not values or values[0][0].empty:
        return group.untested(asked, lacking)
    if unequal := unequal_steps(pairs):
        return group.untested(asked, unequal)
    return group.tested(asked, values, ("under pgd-paper", f"under {attack}"), ("rl",), how(pairs))


def _comparable(pair: tuple[Measured, Measured]) -> tuple[bool, bool, bool]:
    """Order pairs by how well they compare: equal steps first, then the same kind, then an analysis."""
    first, second = pair
    return bool(unequal_steps([pair])), first.kind != second.kind, first.kind != "analysis"


def h5(group: Group) -> Iterator[Finding]:
    """Compare RL - SL under the paper's attack with RL - SL under exact PGD, image by image."""
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
    images = shared([entry for pairs in picked.values() for seed in seeds for entry in pairs[seed]])
    values = []
    for seed in seeds:
        advantage = [
            entry.of_images.reindex(images) - other.of_images.reindex(images)
            for entry, other in (picked["pgd-paper"][seed], picked["pgd"][seed])
        ]
        values.append((advantage[0], advantage[1]))
    if not len(images):
        yield group.untested(asked, f"pgd-paper and pgd were run on different images; {_ANALYZE}")
        return
    yield group.tested(asked, values, ("rl - sl under pgd-paper", "under pgd"), _MODES)


def h6(group: Group) -> Iterator[Finding]:
    """Compare SL with copies of larger logits, and RL with copies of smaller ones, under the paper's attack."""
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
            "no copy of sl with larger logits, or of rl with smaller ones, was measured; `scale` in a recipe makes "
            'them and a measurement with models = ["*"] includes them'
        )
        yield group.untested(asked, group.absent("sl") or lacking)

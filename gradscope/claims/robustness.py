"""C1, C2, C7, C8: accuracy clean, under attack, and on other models' examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from gradscope.claims.effects import matched, paired, shared
from gradscope.claims.group import Group, Pick, Question, how
from gradscope.claims.measured import Measured, MeasuredModel
from gradscope.claims.similarity import explained
from gradscope.claims.verdicts import ABOVE, BELOW, Direction, Finding
from gradscope.results.metrics import ATTACK_METRICS

#: The paper's numbers for C1, by the beginning of a data set's name.
_C1 = {"cifar100": "2 % -> 25 % (cnn6)", "cifar10": "about 5 % -> 55 % (cnn6)", "imagenet100": "5 % -> 18 % (cnn6)"}
_EVERYWHERE = "CIFAR-10 about 5 % -> 55 %, CIFAR-100 2 % -> 25 %, ImageNet-100 5 % -> 18 % (cnn6)"
#: The paper's attacks: each gets a row, measured or not.
_ASKED = {
    "pgd-paper": "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`",
    "pgd": "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`",
    "autoattack": "`gradscope attack CKPT... --attacks autoattack`",
    "square": "`gradscope attack CKPT... --attacks square`",
}
#: The name for being right on the examples of every attack that made some.
ANY = "every attack"
_WORDS = {"pgd-paper": "the paper's attack (pgd-paper)", "pgd": "exact PGD (pgd)", ANY: "every attack that made any"}
_TRANSFER = "`gradscope transfer CKPT..."
_ALL = "`gradscope audit CKPT...`"


def named(attack: str) -> str:
    """Name an attack in words."""
    return _WORDS.get(attack, attack)


def c1(group: Group) -> Iterator[Finding]:
    """Compare RL with SL under the paper's attack, under exact PGD, and under every attack measured on both."""
    paper = next((figure for name, figure in _C1.items() if group.dataset.startswith(name)), _EVERYWHERE)
    for attack in ("pgd-paper", "pgd"):
        yield _under(group, "C1", ("rl", "sl"), attack, paper)
    yield from under_everything(group, "C1", ("rl", "sl"), paper)
    yield from _distances(group)


def _distances(group: Group) -> Iterator[Finding]:
    """Compare RL with SL at any radius: the distance to the nearest fooling point, if an analysis measured it."""
    norm = group.ball.norm

    def pick(model: MeasuredModel) -> list[Measured]:
        distances = [
            entry
            for entry in group.of(model)
            if (entry.metric, entry.point, entry.ball.norm) == ("distance", "clean", norm)
        ]
        return [replace(entry, attack="fmn") for entry in distances]

    statistic = f"distance of the nearest point that fools the model, rl - sl ({norm}, any radius)"
    asked = Question("C1", statistic, ABOVE, "mean", ATTACK_METRICS["distance"].unit)
    test = group.compare(asked, ("rl", "sl"), (pick, pick), "", ("mean rl", "sl"))
    if test.effect is not None:
        yield test


def c2(group: Group) -> Iterator[Finding]:
    """Compare clean accuracy: RL minus SL, at most five points lost."""
    asked = Question("C2", "clean accuracy, rl - sl", Direction("above", -0.05), paper="3 to 5 points below SL")
    pick = group.at_image("accuracy")
    lacking = "clean accuracy was not measured on the same images; `gradscope analyze CKPT...`"
    yield group.compare(asked, ("rl", "sl"), (pick, pick), lacking)


def c7(group: Group) -> Iterator[Finding]:
    """Compare transfer in both directions, over all images and over those that both models have right.

    Also compare RL on SL's examples with RL on its own, and test whether examples transfer between models with similar
    gradients.
    """
    for attack in _attacks_with_examples(group):
        yield from _both_ways(group, attack)
        yield _on_own(group, attack)
        if attack != ANY:
            yield explained(group, attack, named(attack), _not_transferred(attack))


def c8(group: Group) -> Iterator[Finding]:
    """Compare RL-adv with SL-adv under each measured attack, the paper's attacks first."""
    modes = ("rl-adv", "sl-adv")
    others = dict.fromkeys(
        entry.attack
        for mode in modes
        for model in group.models.get(mode, {}).values()
        for entry in group.white_box(model)
    )
    for attack in _ASKED:
        yield _under(group, "C8", modes, attack, "")
    for attack in others:
        test = _under(group, "C8", modes, attack, "")
        if attack not in _ASKED and test.effect is not None:
            yield test
    for attack in _attacks_with_examples(group):
        yield _on_examples(group, modes, attack)
    yield from under_everything(group, "C8", modes, "")


def _attacks_with_examples(group: Group) -> list[str]:
    """List the attacks whose examples are compared; with several attacks, also all of them together."""
    models = [model for seeds in group.models.values() for model in seeds.values()]
    measured = [entry for model in models for entry in group.of(model)]
    attacks = {entry.attack for entry in measured if entry.kind == "transfer" and entry.source}
    return ["pgd-paper", "pgd", *([ANY] if attacks - {"pgd-paper", "pgd"} or len(attacks) > 1 else [])]


def _under(group: Group, claim: str, modes: tuple[str, str], attack: str, paper: str) -> Finding:
    """Compare the two modes' accuracy under an attack on each model itself."""
    first, second = modes
    statistic = f"accuracy under {named(attack)}, {first} - {second} ({group.ball})"
    pick = group.under(attack)
    lacking = f"{attack} was not run on all images of both; {_ASKED.get(attack, _ALL)}"
    return group.compare(Question(claim, statistic, ABOVE, paper=paper), modes, (pick, pick), lacking)


def under_everything(group: Group, claim: str, modes: tuple[str, str], paper: str) -> Iterator[Finding]:
    """Compare the two modes' share of images that are right clean and under every attack measured on both.

    First on the images on which all attacks were tried; then, if that gives more images, on most images with fewer
    attacks.
    """
    first, second = modes
    asked = Question(
        claim, f"accuracy under every attack measured on both, {first} - {second} ({group.ball})", ABOVE, paper=paper
    )
    absent = group.absent(*modes)
    if absent:
        yield group.untested(asked, absent)
        return
    pairs = _standing(group, modes, widest=False)
    if not pairs:
        yield group.untested(asked, f"no attack that respects the box was run on both; {_ALL}")
        return
    yield _stand(group, asked, modes, pairs)
    widest = _standing(group, modes, widest=True)
    if _attacks(widest) != _attacks(pairs):
        statistic = f"the same, under the attacks that were tried on most images, {first} - {second} ({group.ball})"
        yield _stand(group, replace(asked, statistic=statistic), modes, widest)


def _standing(group: Group, modes: tuple[str, str], *, widest: bool) -> dict[int, tuple[Measured, Measured]]:
    first, second = modes
    standing: tuple[dict[int, list[Measured]], dict[int, list[Measured]]] = ({}, {})
    for seed in set(group.models[first]) & set(group.models[second]):
        results, _ = group.everything(group.models[first][seed], group.models[second][seed], widest=widest)
        for side, measured in zip(standing, results, strict=False):
            side[seed] = [measured]
    return matched(*standing)


def _attacks(pairs: Mapping[int, tuple[Measured, Measured]]) -> list[str]:
    return next(iter(pairs.values()))[0].settings.split("; ")


def _stand(
    group: Group, asked: Question, modes: tuple[str, str], pairs: Mapping[int, tuple[Measured, Measured]]
) -> Finding:
    attacks = _attacks(pairs)
    test = group.tested(asked, paired(list(pairs.values())), modes, modes)
    remarks = [f"{len(attacks)} attack{'s' * (len(attacks) > 1)}: {', '.join(attacks)}", *_audits(group, modes)]
    return replace(test, remarks=(*remarks, *test.remarks))


def _audits(group: Group, modes: Sequence[str]) -> Iterator[str]:
    for mode in modes:
        known = group.study.verdicts
        verdicts = dict.fromkeys(known[model] for model in group.models[mode].values() if model in known)
        if verdicts:
            yield f"the audit of {mode} says: {', '.join(verdicts)}"


def examples_of(group: Group, attack: str, source: Mapping[int, MeasuredModel]) -> Pick:
    """Pick whether a model is right on the examples that ``attack``, or each attack for ANY, made on ``source``."""
    if attack != ANY:
        return group.examples_of(attack, source)

    def pick(model: MeasuredModel) -> list[Measured]:
        examples_on = [entry for entry in group.of(model) if (entry.kind, entry.point) == ("transfer", "final")]
        attacks = sorted({entry.attack for entry in examples_on})
        examples = [picked[0] for picked in (group.examples_of(attack, source)(model) for attack in attacks) if picked]
        return [worst(examples, ANY)] if examples else []

    return pick


def worst(measured: Sequence[Measured], attack: str) -> Measured:
    """Combine ``measured``: whether each image that all of them have is right in every one."""
    images = shared(measured)
    values = pd.concat([entry.of_images.reindex(images) for entry in measured], axis=1).min(axis=1)
    labels = measured[0].labels.reindex(images)
    settings = "; ".join(entry.settings for entry in measured)
    ways = ", ".join(dict.fromkeys(entry.how for entry in measured))
    attacks = dict.fromkeys(entry.attack for entry in measured)
    how_made = ways if attack in attacks else f"{ways} of {' and '.join(attacks)}"
    combined = replace(measured[0], attack=attack, of_images=values, labels=labels, source=None)
    return replace(combined, how=how_made, settings=settings)


def _both_ways(group: Group, attack: str) -> Iterator[Finding]:
    """Compare SL on RL's examples with RL on SL's: on all images, and on those that both have right when clean."""
    modes, names = ("sl", "rl"), ("sl on rl's examples", "rl on sl's")
    picks = (
        examples_of(group, attack, group.models.get("rl", {})),
        examples_of(group, attack, group.models.get("sl", {})),
    )
    statistic = f"accuracy on the other's examples by {named(attack)}, sl on rl's - rl on sl's ({group.ball})"
    paper = "sl about 43 % on RL's examples, rl about 8 % on SL's"
    asked = Question("C7", statistic, ABOVE, paper=paper)
    yield group.compare(asked, modes, picks, _not_transferred(attack), names)
    asked = replace(asked, statistic=f"the same, of images both have right when clean, by {named(attack)}")
    absent = group.absent(*modes)
    pairs = matched(*(group.picked(mode, pick) for mode, pick in zip(modes, picks, strict=True)))
    if absent or not pairs:
        yield group.untested(asked, absent or _not_transferred(attack))
        return
    clean = [group.at_image("accuracy")(entry.model) for pair in pairs.values() for entry in pair]
    right = _all_right([picked[0] for picked in clean]) if all(clean) else pd.Index([])
    values = [
        tuple(entry.reindex(entry.index.intersection(right)) for entry in pair) for pair in paired(list(pairs.values()))
    ]
    if values[0][0].empty:
        yield group.untested(asked, "no image is known to be right when clean for both; `gradscope analyze CKPT...`")
        return
    yield group.tested(asked, [(entry, other) for entry, other in values], names, modes, how(pairs.values()))


def _all_right(clean: Sequence[Measured]) -> "pd.Index[int]":
    """Find the images that are right in every one of ``clean``."""
    index = shared(clean)
    together = pd.concat([entry.of_images.reindex(index) for entry in clean], axis=1)
    return index[(together == 1).all(axis=1)]


def _on_own(group: Group, attack: str) -> Finding:
    """Compare RL on SL's examples with RL on its own; in the paper SL's examples break it and its own do not."""
    own = examples_of(group, attack, group.models.get("rl", {}))
    others = examples_of(group, attack, group.models.get("sl", {}))
    statistic = f"accuracy of rl on examples by {named(attack)}, on sl's - on its own ({group.ball})"
    asked = Question("C7", statistic, BELOW, paper="rl about 8 % on SL's examples, about 43 % on its own")
    names = ("on sl's", "on its own")
    absent = group.absent("rl", "sl")
    if absent:
        return group.untested(asked, absent)
    return group.compare(asked, ("rl", "rl"), (others, own), _not_transferred(attack), names)


def _not_transferred(attack: str) -> str:
    if attack == ANY:
        return f"no examples were tried on the other model; {_TRANSFER}`"
    return f"no examples of {attack} were tried on the other model; {_TRANSFER} --attack {attack}`"


def _on_examples(group: Group, modes: tuple[str, str], attack: str) -> Finding:
    """Compare the two modes' accuracy on both examples of each image, made on SL and on RL: both must be right."""

    def pick(model: MeasuredModel) -> list[Measured]:
        examples = [examples_of(group, attack, group.models.get(mode, {}))(model) for mode in ("sl", "rl")]
        pairs = [pair for pair in product(*examples) if pair[0].settings == pair[1].settings and len(shared(pair))]
        return [worst(pair, attack) for pair in pairs]

    first, second = modes
    statistic = f"accuracy on sl's and on rl's examples by {named(attack)}, {first} - {second} ({group.ball})"
    asked = Question("C8", statistic, ABOVE, paper="rl-adv about 30 % against transfer")
    return group.compare(asked, modes, (pick, pick), _not_transferred(attack).replace("the other model", "both"))

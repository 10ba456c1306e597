"""C1, C2, C7, C8: accuracy clean, under attack and on other models' examples."""

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

#: The paper's figures of C1, by how a data set's name begins.
_C1 = {"cifar100": "2 % -> 25 % (cnn6)", "cifar10": "about 5 % -> 55 % (cnn6)", "imagenet100": "5 % -> 18 % (cnn6)"}
_EVERYWHERE = "CIFAR-10 about 5 % -> 55 %, CIFAR-100 2 % -> 25 %, ImageNet-100 5 % -> 18 % (cnn6)"
#: What the paper attacked with: a row each, whether measured or not.
_ASKED = {
    "pgd-paper": "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`",
    "pgd": "`gradscope analyze CKPT... --attack pgd,pgd-paper --relative-step-size 0.1`",
    "autoattack": "`gradscope attack CKPT... --attacks autoattack`",
    "square": "`gradscope attack CKPT... --attacks square`",
}
#: Right on the examples of every attack that made any.
ANY = "every attack"
_WORDS = {"pgd-paper": "the paper's attack (pgd-paper)", "pgd": "exact PGD (pgd)", ANY: "every attack that made any"}
_TRANSFER = "`gradscope transfer CKPT..."
_ALL = "`gradscope audit CKPT...`"


def named(attack: str) -> str:
    """An attack in words."""
    return _WORDS.get(attack, attack)


def c1(group: Group) -> Iterator[Finding]:
    """RL against SL under the paper's attack, the exact one, and every attack measured on both."""
    paper = next((figure for name, figure in _C1.items() if group.dataset.startswith(name)), _EVERYWHERE)
    for attack in ("pgd-paper", "pgd"):
        yield _under(group, "C1", ("rl", "sl"), attack, paper)
    yield from under_everything(group, "C1", ("rl", "sl"), paper)
    yield from _distances(group)


def _distances(group: Group) -> Iterator[Finding]:
    """RL against SL without any radius: the distance of the nearest fooling point, where an analysis measured it."""
    norm = group.ball.norm

    def pick(model: MeasuredModel) -> list[Measured]:
        found = [
            one for one in group.of(model) if (one.metric, one.point, one.ball.norm) == ("distance", "clean", norm)
        ]
        return [replace(one, attack="fmn") for one in found]

    statistic = f"distance of the nearest point that fools the model, rl - sl ({norm}, any radius)"
    asked = Question("C1", statistic, ABOVE, "mean", ATTACK_METRICS["distance"].unit)
    test = group.compare(asked, ("rl", "sl"), (pick, pick), "", ("mean rl", "sl"))
    if test.effect is not None:
        yield test


def c2(group: Group) -> Iterator[Finding]:
    """Clean accuracy, RL minus SL: not more than five points lost."""
    asked = Question("C2", "clean accuracy, rl - sl", Direction("above", -0.05), paper="3 to 5 points below SL")
    pick = group.at_image("accuracy")
    lacking = "clean accuracy was not measured on the same images; `gradscope analyze CKPT...`"
    yield group.compare(asked, ("rl", "sl"), (pick, pick), lacking)


def c7(group: Group) -> Iterator[Finding]:
    """Transfer both ways, over all images and over those both models have right, and the other's against the own.

    And whether models between which examples transfer have like gradients.
    """
    for attack in _that_made_examples(group):
        yield from _both_ways(group, attack)
        yield _on_own(group, attack)
        if attack != ANY:
            yield explained(group, attack, named(attack), _not_transferred(attack))


def c8(group: Group) -> Iterator[Finding]:
    """RL-adv against SL-adv under each attack measured, what the paper attacked with first."""
    modes = ("rl-adv", "sl-adv")
    others = dict.fromkeys(
        one.attack for mode in modes for model in group.models.get(mode, {}).values() for one in group.white_box(model)
    )
    for attack in _ASKED:
        yield _under(group, "C8", modes, attack, "")
    for attack in others:
        test = _under(group, "C8", modes, attack, "")
        if attack not in _ASKED and test.effect is not None:
            yield test
    for attack in _that_made_examples(group):
        yield _on_examples(group, modes, attack)
    yield from under_everything(group, "C8", modes, "")


def _that_made_examples(group: Group) -> list[str]:
    """Of which attacks' examples is asked; of all together where there are more than one, else it is the same test."""
    models = [model for seeds in group.models.values() for model in seeds.values()]
    made = {one.attack for model in models for one in group.of(model) if one.kind == "transfer" and one.source}
    return ["pgd-paper", "pgd", *([ANY] if made - {"pgd-paper", "pgd"} or len(made) > 1 else [])]


def _under(group: Group, claim: str, modes: tuple[str, str], attack: str, paper: str) -> Finding:
    """The two modes' accuracy under an attack on each itself."""
    one, other = modes
    statistic = f"accuracy under {named(attack)}, {one} - {other} ({group.ball})"
    pick = group.under(attack)
    lacking = f"{attack} was not run on all images of both; {_ASKED.get(attack, _ALL)}"
    return group.compare(Question(claim, statistic, ABOVE, paper=paper), modes, (pick, pick), lacking)


def under_everything(group: Group, claim: str, modes: tuple[str, str], paper: str) -> Iterator[Finding]:
    """The two modes' share of images that stand clean and under every attack measured on both.

    Once on the images that all attacks were tried on, and, where there are more, on most images with fewer attacks.
    """
    one, other = modes
    asked = Question(
        claim, f"accuracy under every attack measured on both, {one} - {other} ({group.ball})", ABOVE, paper=paper
    )
    absent = group.absent(*modes)
    if absent:
        yield group.untested(asked, absent)
        return
    pairs = _standing(group, modes, widest=False)
    if not pairs:
        yield group.untested(asked, f"no attack that stays in the box was run on both; {_ALL}")
        return
    yield _stand(group, asked, modes, pairs)
    widest = _standing(group, modes, widest=True)
    if _attacks(widest) != _attacks(pairs):
        statistic = f"the same, under the attacks that were tried on most images, {one} - {other} ({group.ball})"
        yield _stand(group, replace(asked, statistic=statistic), modes, widest)


def _standing(group: Group, modes: tuple[str, str], *, widest: bool) -> dict[int, tuple[Measured, Measured]]:
    one, other = modes
    standing: tuple[dict[int, list[Measured]], dict[int, list[Measured]]] = ({}, {})
    for seed in set(group.models[one]) & set(group.models[other]):
        found, _ = group.everything(group.models[one][seed], group.models[other][seed], widest=widest)
        for side, measured in zip(standing, found, strict=False):
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
        said = dict.fromkeys(known[model] for model in group.models[mode].values() if model in known)
        if said:
            yield f"the audit of {mode} says: {', '.join(said)}"


def examples_of(group: Group, attack: str, source: Mapping[int, MeasuredModel]) -> Pick:
    """Whether a model is right on the examples that ``attack``, or each of them, made on ``source``."""
    if attack != ANY:
        return group.examples_of(attack, source)

    def pick(model: MeasuredModel) -> list[Measured]:
        attacks = sorted({one.attack for one in group.of(model) if one.kind == "transfer" and one.point == "final"})
        made = [found[0] for found in (group.examples_of(attack, source)(model) for attack in attacks) if found]
        return [worst(made, ANY)] if made else []

    return pick


def worst(made: Sequence[Measured], attack: str) -> Measured:
    """Whether each image that all of ``made`` are of is right in every one of them."""
    images = shared(made)
    values = pd.concat([one.of_images.reindex(images) for one in made], axis=1).min(axis=1)
    labels = made[0].labels.reindex(images)
    settings = "; ".join(one.settings for one in made)
    ways = ", ".join(dict.fromkeys(one.how for one in made))
    attacks = dict.fromkeys(one.attack for one in made)
    made_by = ways if attack in attacks else f"{ways} of {' and '.join(attacks)}"
    return replace(made[0], attack=attack, of_images=values, labels=labels, source=None, how=made_by, settings=settings)


def _both_ways(group: Group, attack: str) -> Iterator[Finding]:
    """SL on RL's examples minus RL on SL's: of all images, and of those that both have right when clean."""
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
    clean = [group.at_image("accuracy")(one.model) for pair in pairs.values() for one in pair]
    right = _all_right([found[0] for found in clean]) if all(clean) else pd.Index([])
    values = [
        tuple(one.reindex(one.index.intersection(right)) for one in pair) for pair in paired(list(pairs.values()))
    ]
    if values[0][0].empty:
        yield group.untested(asked, "no image is known that both have right when clean; `gradscope analyze CKPT...`")
        return
    yield group.tested(asked, [(one, other) for one, other in values], names, modes, how(pairs.values()))


def _all_right(clean: Sequence[Measured]) -> "pd.Index[int]":
    """The images that every one of ``clean`` is right about."""
    index = shared(clean)
    together = pd.concat([one.of_images.reindex(index) for one in clean], axis=1)
    return index[(together == 1).all(axis=1)]


def _on_own(group: Group, attack: str) -> Finding:
    """RL on SL's examples minus RL on its own: in the paper others' break it and its own do not."""
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
    """The two modes' accuracy on the examples made on SL and on RL, those that fool it with either left out."""

    def pick(model: MeasuredModel) -> list[Measured]:
        made = [examples_of(group, attack, group.models.get(mode, {}))(model) for mode in ("sl", "rl")]
        alike = [pair for pair in product(*made) if pair[0].settings == pair[1].settings and len(shared(pair))]
        return [worst(pair, attack) for pair in alike]

    one, other = modes
    statistic = f"accuracy on sl's and on rl's examples by {named(attack)}, {one} - {other} ({group.ball})"
    asked = Question("C8", statistic, ABOVE, paper="rl-adv about 30 % against transfer")
    return group.compare(asked, modes, (pick, pick), _not_transferred(attack).replace("the other model", "both"))

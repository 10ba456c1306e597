"""The models of one data set and architecture, what was measured of them, and how two modes are compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import pandas as pd

from gradscope.claims.effects import Effect, Pair, Scale, difference, matched, paired, shared
from gradscope.claims.measured import CLEAN, KINDS, Ball, Course, Findings, Measured, MeasuredModel
from gradscope.claims.verdicts import Direction, Finding, levels

#: The paper's threat model.
PAPER_BALL = Ball("l2", 1.0)
Pick = Callable[[MeasuredModel], Sequence[Measured]]


@dataclass(frozen=True)
class Question:
    """What a test asks: which claim, what is measured in words, what is predicted, and how the answer is scaled."""

    claim: str
    statistic: str
    direction: Direction
    scale: Scale = "rate"
    unit: str = "-"
    paper: str = ""
    points: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """A study's part of one data set and architecture."""

    study: Findings
    dataset: str
    arch: str

    @cached_property
    def models(self) -> dict[str, dict[int, MeasuredModel]]:
        """Mode to seed to model; of several alike the first."""
        found: dict[str, dict[int, MeasuredModel]] = {}
        for model in self._mine:
            if model.seed is not None:
                found.setdefault(model.mode, {}).setdefault(model.seed, model)
        return found

    @cached_property
    def ball(self) -> Ball:
        """The threat model that attacks are compared in: the paper's where it was measured, else the commonest."""
        balls = [one.ball for one in self._attacked]
        if not balls or PAPER_BALL in balls:
            return PAPER_BALL
        return max(sorted(set(balls)), key=balls.count)

    @property
    def _mine(self) -> list[MeasuredModel]:
        return [one for one in self.study.models if (one.dataset, one.arch) == (self.dataset, self.arch)]

    @cached_property
    def _attacked(self) -> list[Measured]:
        mine = set(self._mine)
        attacks = [one for one in self.study.measured if one.metric == "accuracy" and one.point != "clean"]
        return [one for one in attacks if one.model in mine]

    @cached_property
    def _by_model(self) -> dict[MeasuredModel, list[Measured]]:
        found: dict[MeasuredModel, list[Measured]] = {}
        for one in self.study.measured:
            found.setdefault(one.model, []).append(one)
        return found

    def of(self, model: MeasuredModel) -> list[Measured]:
        """Everything that was measured of a model."""
        return self._by_model.get(model, [])

    def courses(self, mode: str) -> dict[int, Course]:
        """How each seed of a mode was trained, where that is known."""
        known = self.study.courses
        return {seed: known[model] for seed, model in self.models.get(mode, {}).items() if model in known}

    # What is picked of a model

    def at_image(self, metric: str) -> Pick:
        """``metric`` at the clean image: no attack has a part in it, so whichever it was measured beside.

        But for the gradient's norm: that is of the attack's own loss, so only where it is cross-entropy in float32.
        """

        def pick(model: MeasuredModel) -> list[Measured]:
            found = [one for one in self.of(model) if (one.metric, one.point) == (metric, "clean")]
            if metric == "norm":
                found = [one for one in found if one.attack in ("pgd", "pgd-paper")]
            found = sorted(found, key=lambda one: -len(one.of_images))
            return [replace(one, attack=CLEAN, ball=Ball("", 0.0), settings="") for one in found]

        return pick

    def along(self, attack: str, metric: str, point: str) -> Pick:
        """``metric`` of an analysis at ``point`` of the attack's path."""

        def pick(model: MeasuredModel) -> list[Measured]:
            return [
                one
                for one in self.of(model)
                if one.kind == "analysis"
                and (one.attack, one.ball, one.metric, one.point) == (attack, self.ball, metric, point)
            ]

        return pick

    def under(self, attack: str) -> Pick:
        """Whether each image is right under an attack on the model itself: of an analysis the last iterate."""

        def pick(model: MeasuredModel) -> list[Measured]:
            return [one for one in self.white_box(model) if one.attack == attack and one.whole]

        return pick

    def white_box(self, model: MeasuredModel) -> list[Measured]:
        """Every attack on the model itself in the group's ball, those of analyses first.

        Also a transfer has some: its examples, tried on their own source.
        """
        found = [
            one
            for one in self.of(model)
            if (one.kind in ("analysis", "battery") or one.source == model)
            and (one.metric, one.point, one.ball) == ("accuracy", "final", self.ball)
        ]
        return sorted(found, key=lambda one: KINDS.index(one.kind))

    def along_paper(self, model: MeasuredModel) -> list[Measured]:
        """The paper's attack on a model, as an analysis or a transfer ran it: they know its floor."""
        return [one for one in self.of(model) if one.attack == "pgd-paper" and one.floor > 0]

    def examples_of(self, attack: str, source: Mapping[int, MeasuredModel]) -> Pick:
        """Whether a model is right on the examples that ``attack`` made on ``source``, by the model's own seed."""

        def pick(model: MeasuredModel) -> list[Measured]:
            made_on = source.get(-1 if model.seed is None else model.seed)
            return [
                one
                for one in self.of(model)
                if one.kind == "transfer"
                and (one.attack, one.ball, one.point) == (attack, self.ball, "final")
                and one.source == made_on
                and made_on is not None
            ]

        return pick

    def zeros(self, pick: Pick, modes: Iterable[str]) -> list[str]:
        """On how many images a value is exactly 0, where it is on any."""
        counts = {
            mode: sum(int((found[0].of_images == 0).sum()) for found in self.picked(mode, pick).values() if found)
            for mode in modes
        }
        said = " and ".join(f"{count} images of {mode}" for mode, count in counts.items() if count)
        return [f"exactly 0 on {said}"] if said else []

    # How two are compared

    def compare(
        self,
        question: Question,
        modes: tuple[str, str],
        picks: tuple[Pick, Pick],
        lacking: str,
        names: Sequence[str] = (),
    ) -> Finding:
        """The first mode's value minus the second's, paired by image and seed; ``lacking`` says what to measure."""
        one, other = modes
        absent = self.absent(*modes)
        if absent:
            return self.untested(question, absent)
        pairs = matched(*(self.picked(mode, pick) for mode, pick in zip(modes, picks, strict=True)))
        values = paired(list(pairs.values())) if pairs else []
        if not values or values[0][0].empty:
            return self.untested(question, lacking)
        return self.tested(question, values, names or (one, other), modes, how(pairs.values()))

    def picked(self, mode: str, pick: Pick) -> dict[int, Sequence[Measured]]:
        """What ``pick`` finds of each seed of a mode."""
        return {seed: pick(model) for seed, model in self.models.get(mode, {}).items()}

    def tested(
        self,
        question: Question,
        values: Sequence[Pair],
        names: Sequence[str],
        modes: Iterable[str],
        remarks: Iterable[str] = (),
    ) -> Finding:
        """The test of ``question`` on the ``values`` of each seed."""
        effect = difference(values, question.scale, question.direction.bound)
        return self.judged(
            question, effect, levels(effect, names, question.unit if question.points else ""), modes, remarks
        )

    def judged(
        self, question: Question, effect: Effect, said: str, modes: Iterable[str], remarks: Iterable[str] = ()
    ) -> Finding:
        """The test of ``question`` whose effect is known."""
        said_beside = (*remarks, *self.remarks(modes))
        return replace(self.untested(question, ""), effect=effect, said=said, remarks=said_beside)

    def untested(self, question: Question, lacking: str) -> Finding:
        """A test that was not made; why, and what else was left out of the study."""
        asked = (question.claim, question.statistic, question.direction, question.unit, question.points)
        remarks = tuple(self.study.notes) if lacking else ()
        return Finding(*asked, lacking=lacking, paper=question.paper, remarks=remarks)

    def absent(self, *modes: str) -> str:
        """Why two modes cannot be compared at all; empty where they can."""
        without = [mode for mode in dict.fromkeys(modes) if mode not in self.models]
        if without:
            trained = " and ".join(f"`gradscope train --mode {mode}`" for mode in without)
            return f"no {' and no '.join(without)} checkpoint in the study; train one with {trained}"
        if not set.intersection(*(set(self.models[mode]) for mode in modes)):
            return f"{' and '.join(modes)} have no training seed in common; train both with the same --seed"
        return ""

    def remarks(self, modes: Iterable[str]) -> list[str]:
        """Which checkpoints were passed over because another has their mode and seed."""
        said = []
        for mode in dict.fromkeys(modes):
            kept = set(self.models.get(mode, {}).values())
            passed = [one.name for one in self._mine if one.mode == mode and one not in kept and one.seed is not None]
            if passed:
                taken = ", ".join(one.name for one in kept)
                said.append(f"of several {mode} checkpoints {taken} was taken, not {', '.join(passed)}")
        return said

    def everything(self, *models: MeasuredModel, widest: bool = False) -> tuple[list[Measured], list[str]]:
        """For each of ``models`` whether an image stands clean and under every attack measured on all of them alike.

        The attacks stay in the box and in the group's ball: those of analyses at the last iterate and at the worst, of
        batteries (also those in a cascade), and examples made on other models. The images are those that every one of
        them was tried on; with ``widest``, or where there are none, the largest set that one attack was tried on, and
        the attacks those that were tried on all of it. The second list names the attacks.
        """
        tried = [self._tried(model) for model in models]
        alike = [key for key in tried[0] if all(key in one for one in tried)]
        images = {key: shared([one[key] for one in tried]) for key in alike}
        attacks = [images[key] for key in alike if key[1] != CLEAN]
        largest = max((images[key] for key in alike if key[0] != "examples" and key[1] != CLEAN), key=len, default=())
        common = reduce(pd.Index.intersection, attacks) if attacks else pd.Index([])
        base = largest if widest or not len(common) or not len(largest) else common.sort_values()
        alike = [key for key in alike if len(base) and images[key].isin(base).sum() == len(base)]
        names = list(dict.fromkeys(key[1] for key in alike if key[1] != CLEAN))
        standing = []
        for one in tried if names else []:
            together = pd.concat([one[key].of_images.reindex(base) for key in alike], axis=1)
            stands = (together.fillna(1.0) == 1).all(axis=1).astype(float)
            known = replace(
                one[alike[0]], kind="battery", attack="everything", point="final", settings="; ".join(names), steps=None
            )
            standing.append(replace(known, ball=self.ball, of_images=stands))
        return standing, names

    def _tried(self, model: MeasuredModel) -> dict[tuple[str, str, str], Measured]:
        """By kind, attack and settings what was tried on a model; CLEAN is the clean images."""
        found: dict[tuple[str, str, str], Measured] = {}
        transfers: dict[str, list[Measured]] = {}
        for one in self.of(model):
            if one.metric != "accuracy" or not one.boxed:
                continue
            if one.point == "clean":
                found.setdefault((one.kind, CLEAN, ""), one)
            elif one.ball != self.ball:
                continue
            elif one.kind == "transfer" and one.source != model:
                transfers.setdefault(one.settings, []).append(one)
            else:
                found.setdefault((one.kind, one.attack, one.settings + one.point), one)
        for settings, made in transfers.items():
            images = shared(made)
            right = pd.concat([one.of_images.reindex(images) for one in made], axis=1).min(axis=1)
            name = f"examples of {len(made)} other models"
            found["examples", name, settings] = replace(made[0], of_images=right, labels=made[0].labels.reindex(images))
        return found


def unequal_steps(pairs: Iterable[tuple[Measured, Measured]]) -> str:
    """Say why two attacks that walk differently are not compared; empty where their steps are equal or not known."""
    for one, other in pairs:
        if one.steps and other.steps and not one.steps.equal(other.steps):
            unequal = f"{one.attack} takes {one.steps}, {other.attack} {other.steps}"
            return (
                f"{unequal}; give both relative_step_size = 0.1 and the same steps, so that only the arithmetic differs"
            )
    return ""


def how(pairs: Iterable[Sequence[Measured]]) -> list[str]:
    """How the compared values came about, where an attack made them."""
    ways = dict.fromkeys(one.how for pair in pairs for one in pair if one.attack != CLEAN and one.how)
    return [f"of {' and '.join(ways)}"] if ways else []

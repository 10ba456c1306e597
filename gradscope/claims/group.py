"""The models of one data set and architecture, their measured values, and the comparison of two modes."""

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
    """The question of a test: its claim, the statistic in words, the predicted direction, and the effect's scale."""

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
        """The models by mode and seed; the first of several with the same mode and seed."""
        models: dict[str, dict[int, MeasuredModel]] = {}
        for model in self._members:
            if model.seed is not None:
                models.setdefault(model.mode, {}).setdefault(model.seed, model)
        return models

    @cached_property
    def ball(self) -> Ball:
        """The threat model in which attacks are compared: the paper's if measured, else the most frequent one."""
        balls = [entry.ball for entry in self._attacked]
        if not balls or PAPER_BALL in balls:
            return PAPER_BALL
        return max(sorted(set(balls)), key=balls.count)

    @property
    def _members(self) -> list[MeasuredModel]:
        return [model for model in self.study.models if (model.dataset, model.arch) == (self.dataset, self.arch)]

    @cached_property
    def _attacked(self) -> list[Measured]:
        members = set(self._members)
        attacks = [entry for entry in self.study.measured if entry.metric == "accuracy" and entry.point != "clean"]
        return [entry for entry in attacks if entry.model in members]

    @cached_property
    def _by_model(self) -> dict[MeasuredModel, list[Measured]]:
        by_model: dict[MeasuredModel, list[Measured]] = {}
        for measured in self.study.measured:
            by_model.setdefault(measured.model, []).append(measured)
        return by_model

    def of(self, model: MeasuredModel) -> list[Measured]:
        """Return everything that was measured of a model."""
        return self._by_model.get(model, [])

    def courses(self, mode: str) -> dict[int, Course]:
        """Return the training of each seed of a mode, if known."""
        known = self.study.courses
        return {seed: known[model] for seed, model in self.models.get(mode, {}).items() if model in known}

    # Picks: selections of a model's measured values

    def at_image(self, metric: str) -> Pick:
        """Pick ``metric`` at the clean image, from rows of any attack, because the value does not depend on the attack.

        The gradient's norm is an exception: it is that of the attack's own loss, so only attacks with cross-entropy in
        float32 count.
        """

        def pick(model: MeasuredModel) -> list[Measured]:
            measured = [entry for entry in self.of(model) if (entry.metric, entry.point) == (metric, "clean")]
            if metric == "norm":
                measured = [entry for entry in measured if entry.attack in ("pgd", "pgd-paper")]
            measured = sorted(measured, key=lambda entry: -len(entry.of_images))
            return [replace(entry, attack=CLEAN, ball=Ball("", 0.0), settings="") for entry in measured]

        return pick

    def along(self, attack: str, metric: str, point: str) -> Pick:
        """Pick ``metric`` of an analysis at ``point`` of the attack's path."""

        def pick(model: MeasuredModel) -> list[Measured]:
            return [
                entry
                for entry in self.of(model)
                if entry.kind == "analysis"
                and (entry.attack, entry.ball, entry.metric, entry.point) == (attack, self.ball, metric, point)
            ]

        return pick

    def under(self, attack: str) -> Pick:
        """Pick whether each image is right under an attack on the model itself; of an analysis, at the last iterate."""

        def pick(model: MeasuredModel) -> list[Measured]:
            return [entry for entry in self.white_box(model) if entry.attack == attack and entry.whole]

        return pick

    def white_box(self, model: MeasuredModel) -> list[Measured]:
        """Find every attack on the model itself in the group's ball, those of analyses first.

        They include transferred examples that were evaluated on their own source.
        """
        attacks = [
            entry
            for entry in self.of(model)
            if (entry.kind in ("analysis", "battery") or entry.source == model)
            and (entry.metric, entry.point, entry.ball) == ("accuracy", "final", self.ball)
        ]
        return sorted(attacks, key=lambda entry: KINDS.index(entry.kind))

    def along_paper(self, model: MeasuredModel) -> list[Measured]:
        """Find the paper's attack on a model by an analysis or a transfer, which record its floor."""
        return [entry for entry in self.of(model) if entry.attack == "pgd-paper" and entry.floor > 0]

    def examples_of(self, attack: str, source: Mapping[int, MeasuredModel]) -> Pick:
        """Pick whether a model is right on the examples of ``attack`` on ``source``, the one with the model's seed."""

        def pick(model: MeasuredModel) -> list[Measured]:
            made_on = source.get(-1 if model.seed is None else model.seed)
            return [
                entry
                for entry in self.of(model)
                if entry.kind == "transfer"
                and (entry.attack, entry.ball, entry.point) == (attack, self.ball, "final")
                and entry.source == made_on
                and made_on is not None
            ]

        return pick

    def zeros(self, pick: Pick, modes: Iterable[str]) -> list[str]:
        """Say on how many images a value is exactly 0; empty if on none."""
        counts = {
            mode: sum(int((picked[0].of_images == 0).sum()) for picked in self.picked(mode, pick).values() if picked)
            for mode in modes
        }
        said = " and ".join(f"{count} images of {mode}" for mode, count in counts.items() if count)
        return [f"exactly 0 on {said}"] if said else []

    # Comparisons of two modes

    def compare(
        self,
        question: Question,
        modes: tuple[str, str],
        picks: tuple[Pick, Pick],
        lacking: str,
        names: Sequence[str] = (),
    ) -> Finding:
        """Test the first mode's value minus the second's, paired by image and seed.

        If values are missing, the finding is untested, with the reason ``lacking``.
        """
        absent = self.absent(*modes)
        if absent:
            return self.untested(question, absent)
        pairs = matched(*(self.picked(mode, pick) for mode, pick in zip(modes, picks, strict=True)))
        values = paired(list(pairs.values())) if pairs else []
        if not values or values[0][0].empty:
            return self.untested(question, lacking)
        return self.tested(question, values, names or modes, modes, how(pairs.values()))

    def picked(self, mode: str, pick: Pick) -> dict[int, Sequence[Measured]]:
        """Apply ``pick`` to each seed of a mode."""
        return {seed: pick(model) for seed, model in self.models.get(mode, {}).items()}

    def tested(
        self,
        question: Question,
        values: Sequence[Pair],
        names: Sequence[str],
        modes: Iterable[str],
        remarks: Iterable[str] = (),
    ) -> Finding:
        """Test ``question`` on the ``values`` of each seed."""
        effect = difference(values, question.scale, question.direction.bound)
        return self.judged(
            question, effect, levels(effect, names, question.unit if question.points else ""), modes, remarks
        )

    def judged(
        self, question: Question, effect: Effect, said: str, modes: Iterable[str], remarks: Iterable[str] = ()
    ) -> Finding:
        """Make the finding for ``question`` from a known effect."""
        all_remarks = (*remarks, *self.remarks(modes))
        return replace(self.untested(question, ""), effect=effect, said=said, remarks=all_remarks)

    def untested(self, question: Question, lacking: str) -> Finding:
        """Make the finding for a test that could not be made: the reason, and the notes of the study."""
        asked = (question.claim, question.statistic, question.direction, question.unit, question.points)
        remarks = tuple(self.study.notes) if lacking else ()
        return Finding(*asked, lacking=lacking, paper=question.paper, remarks=remarks)

    def absent(self, *modes: str) -> str:
        """Say why two modes cannot be compared; empty if they can."""
        without = [mode for mode in dict.fromkeys(modes) if mode not in self.models]
        if without:
            trained = " and ".join(f"`gradscope train --mode {mode}`" for mode in without)
            return f"the study has no {' and no '.join(without)} checkpoint; train one with {trained}"
        if not set.intersection(*(set(self.models[mode]) for mode in modes)):
            return f"{' and '.join(modes)} have no training seed in common; train both with the same --seed"
        return ""

    def remarks(self, modes: Iterable[str]) -> list[str]:
        """Say which checkpoints were ignored because another has the same mode and seed."""
        remarks = []
        for mode in dict.fromkeys(modes):
            kept = set(self.models.get(mode, {}).values())
            seeded = [model for model in self._members if model.mode == mode and model.seed is not None]
            ignored = [model.name for model in seeded if model not in kept]
            if ignored:
                used = ", ".join(model.name for model in kept)
                remarks.append(f"of several {mode} checkpoints {used} was used, not {', '.join(ignored)}")
        return remarks

    def everything(self, *models: MeasuredModel, widest: bool = False) -> tuple[list[Measured], list[str]]:
        """Find, for each of ``models``, whether an image is right clean and under every attack measured on all models.

        The attacks respect the box and the group's ball: those of analyses at the last and at the worst iterate, those
        of batteries (also in a cascade), and examples made on other models. The images are those on which every attack
        was tried. With ``widest``, or if there are none, they are the largest set of a single attack, and only attacks
        tried on all of it count. The second list names the attacks.
        """
        tried = [self._tried(model) for model in models]
        on_all = [key for key in tried[0] if all(key in attacks for attacks in tried)]
        images = {key: shared([attacks[key] for attacks in tried]) for key in on_all}
        attacks = [images[key] for key in on_all if key[1] != CLEAN]
        largest = max((images[key] for key in on_all if key[0] != "examples" and key[1] != CLEAN), key=len, default=())
        common = reduce(pd.Index.intersection, attacks) if attacks else pd.Index([])
        base = largest if widest or not len(common) or not len(largest) else common.sort_values()
        on_all = [key for key in on_all if len(base) and images[key].isin(base).sum() == len(base)]
        names = list(dict.fromkeys(key[1] for key in on_all if key[1] != CLEAN))
        results = []
        for measured in tried if names else []:
            together = pd.concat([measured[key].of_images.reindex(base) for key in on_all], axis=1)
            right = (together.fillna(1.0) == 1).all(axis=1).astype(float)
            known = replace(
                measured[on_all[0]],
                kind="battery",
                attack="everything",
                point="final",
                settings="; ".join(names),
                steps=None,
            )
            results.append(replace(known, ball=self.ball, of_images=right))
        return results, names

    def _tried(self, model: MeasuredModel) -> dict[tuple[str, str, str], Measured]:
        """Collect the attacks tried on a model by kind, attack and settings; CLEAN is the clean images."""
        tried: dict[tuple[str, str, str], Measured] = {}
        transfers: dict[str, list[Measured]] = {}
        for entry in self.of(model):
            if entry.metric != "accuracy" or not entry.boxed:
                continue
            if entry.point == "clean":
                tried.setdefault((entry.kind, CLEAN, ""), entry)
            elif entry.ball != self.ball:
                continue
            elif entry.kind == "transfer" and entry.source != model:
                transfers.setdefault(entry.settings, []).append(entry)
            else:
                tried.setdefault((entry.kind, entry.attack, entry.settings + entry.point), entry)
        for settings, examples in transfers.items():
            images = shared(examples)
            right = pd.concat([entry.of_images.reindex(images) for entry in examples], axis=1).min(axis=1)
            labels = examples[0].labels.reindex(images)
            name = f"examples of {len(examples)} other models"
            tried["examples", name, settings] = replace(examples[0], of_images=right, labels=labels)
        return tried


def unequal_steps(pairs: Iterable[tuple[Measured, Measured]]) -> str:
    """Say why two attacks with different steps are not compared; empty if their steps are equal or unknown."""
    for first, second in pairs:
        if first.steps and second.steps and not first.steps.equal(second.steps):
            unequal = f"{first.attack} takes {first.steps}, {second.attack} {second.steps}"
            return (
                f"{unequal}; give both relative_step_size = 0.1 and the same steps, so that only the arithmetic differs"
            )
    return ""


def how(pairs: Iterable[Sequence[Measured]]) -> list[str]:
    """Say how the compared values were measured, if by an attack."""
    ways = dict.fromkeys(entry.how for pair in pairs for entry in pair if entry.attack != CLEAN and entry.how)
    return [f"of {' and '.join(ways)}"] if ways else []

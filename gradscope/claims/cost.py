"""C9: the cost of training, from the configurations and histories of the checkpoints. No value is sampled."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from operator import attrgetter

from gradscope.claims.effects import Effect
from gradscope.claims.group import Group, Question
from gradscope.claims.measured import Course
from gradscope.claims.verdicts import Direction, Finding
from gradscope.results.stats import UNDEFINED

_MODES = ("rl", "sl")
_MORE = Direction("above", 1.0)
Cost = Callable[[Course], float]


def c9(group: Group) -> Iterator[Finding]:
    """Compare epochs, images and seconds, RL's divided by SL's at each seed; and when RL validates as well as SL."""
    absent = group.absent(*_MODES)
    unknown = "the manifests must have the training configurations of both, as checkpoints of `gradscope train` do"
    asked = Question("C9", "epochs of training, rl / sl", _MORE, unit="times", paper="600 against 100 in their scripts")
    yield _ratio(group, asked, lambda course: course.epochs, absent or unknown, "epochs", "by the configurations")
    asked = Question("C9", "training images seen, including adversarial copies, rl / sl", _MORE, unit="times")
    yield _ratio(group, asked, _seen, absent or unknown, "training sets", "by the configurations")
    unknown = "the directories must have NAME.history.csv of both; `gradscope train` writes it beside the checkpoint"
    asked = Question("C9", "seconds of training, rl / sl", _MORE, unit="times")
    if not absent and not _one_machine(group):
        yield group.untested(asked, "rl and sl were trained on different machines; train both on the same one")
    elif not absent and _side_by_side(group):
        yield group.untested(asked, "models were trained at the same time on one machine; train one after the other")
    elif not absent and (jobs := _most_jobs(group)) > 1:
        yield group.untested(
            asked, f"the study trained with {jobs} stages at a time; train the models again, one after the other"
        )
    else:
        of_course = attrgetter("seconds")
        yield _ratio(group, asked, of_course, absent or unknown, "s", "wall time, including other load")
    asked = Question(
        "C9", "epochs until rl's validation accuracy is sl's best, divided by those sl took", _MORE, unit="times"
    )
    yield _catching_up(group, asked, absent or unknown)


def _ratio(group: Group, asked: Question, cost: Cost, lacking: str, unit: str, remark: str) -> Finding:
    costs = {mode: {seed: cost(course) for seed, course in group.courses(mode).items()} for mode in _MODES}
    rl, sl = (
        {seed: value for seed, value in costs[mode].items() if math.isfinite(value) and value > 0} for mode in _MODES
    )
    seeds = sorted(rl.keys() & sl.keys())
    if not seeds:
        return group.untested(asked, lacking)
    ratios = tuple(rl[seed] / sl[seed] for seed in seeds)
    means = [_geometric_mean([values[seed] for seed in seeds]) for values in (rl, sl)]
    said = f"rl {means[0]:.6g}, sl {means[1]:.6g} {unit} ({remark})"
    return _counted(group, asked, ratios, said)


def _geometric_mean(values: Sequence[float]) -> float:
    """Compute the geometric mean of positive values; for ratios it is the ratio of the two geometric means."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _counted(group: Group, asked: Question, ratios: Sequence[float], said: str) -> Finding:
    effect = Effect(_geometric_mean(ratios), UNDEFINED, tuple(ratios), None, 0, scale="ratio")
    return replace(group.judged(asked, effect, said, _MODES), exact=True)


def _seen(course: Course) -> float:
    """Count the images seen, in units of the training set's size before validation images are held out."""
    return (course.epochs + course.adversarial) * course.share


def _one_machine(group: Group) -> bool:
    return len({course.machine for course in _courses(group)}) <= 1


def _side_by_side(group: Group) -> bool:
    return any(first.overlaps(second) for first, second in combinations(_courses(group), 2))


def _most_jobs(group: Group) -> int:
    return max((course.jobs for course in _courses(group)), default=1)


def _courses(group: Group) -> list[Course]:
    return [course for mode in _MODES for course in group.courses(mode).values()]


def _catching_up(group: Group, asked: Question, lacking: str) -> Finding:
    """Divide, at each seed, the first epoch at which RL validates as well as SL's best by the epoch of SL's best.

    If RL never does, its number of epochs gives a lower bound, which decides nothing unless it is above 1.
    """
    ratios, said, too_short = [], [], []
    for seed in sorted(group.courses("rl").keys() & group.courses("sl").keys()):
        rl, sl = (group.courses(mode)[seed].history for mode in _MODES)
        if rl is None or sl is None or rl.empty or sl.empty:
            continue
        best = float(sl["validation_accuracy"].max())
        took = int(sl["epoch"][sl["validation_accuracy"] >= best].iloc[0])
        reached = rl["epoch"][rl["validation_accuracy"] >= best]
        if reached.empty:
            said.append(f"sl {100 * best:.1f} % after {took}, rl not within {len(rl)} epochs, a lower bound")
            too_short += [seed] if len(rl) <= took else []
        else:
            said.append(f"sl {100 * best:.1f} % after {took}, rl after {int(reached.iloc[0])}")
        ratios.append((len(rl) if reached.empty else int(reached.iloc[0])) / took)
    if not ratios:
        return group.untested(asked, lacking)
    if too_short:
        return group.untested(asked, f"{'; '.join(said)}: train rl for longer")
    return _counted(group, asked, ratios, "; ".join(said))

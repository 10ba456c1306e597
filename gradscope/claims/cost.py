"""C9: what training took, from the configurations and histories of the checkpoints. Nothing of it is sampled."""

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
    """Epochs, images and seconds, RL's divided by SL's at each seed; and whether RL ever validated as SL did."""
    absent = group.absent(*_MODES)
    unknown = "the manifests have no training configuration of both; they must be checkpoints of `gradscope train`"
    asked = Question("C9", "epochs of training, rl / sl", _MORE, unit="times", paper="600 against 100 in their scripts")
    yield _ratio(group, asked, lambda course: course.epochs, absent or unknown, "epochs", "as the configurations ask")
    asked = Question("C9", "training images seen, adversarial copies among them, rl / sl", _MORE, unit="times")
    yield _ratio(group, asked, _seen, absent or unknown, "training sets", "as the configurations ask")
    unknown = "no NAME.history.csv of both among the directories; `gradscope train` writes it beside the checkpoint"
    asked = Question("C9", "seconds of training, rl / sl", _MORE, unit="times")
    if not absent and not _one_machine(group):
        yield group.untested(asked, "rl and sl were trained on different machines; train both on one")
    elif not absent and _side_by_side(group):
        yield group.untested(asked, "models were trained side by side on one machine; train one after the other")
    elif not absent and (jobs := _most_jobs(group)) > 1:
        yield group.untested(
            asked, f"models were trained in a study of {jobs} stages side by side; train them anew, one after the other"
        )
    else:
        of_course = attrgetter("seconds")
        yield _ratio(group, asked, of_course, absent or unknown, "s", "wall time, whatever else the machine did")
    asked = Question(
        "C9", "epochs until rl's validation accuracy is sl's best, divided by those sl took", _MORE, unit="times"
    )
    yield _catching_up(group, asked, absent or unknown)


def _ratio(group: Group, asked: Question, cost: Cost, lacking: str, unit: str, remark: str) -> Finding:
    found = {mode: {seed: cost(one) for seed, one in group.courses(mode).items()} for mode in _MODES}
    one, other = (
        {seed: value for seed, value in found[mode].items() if math.isfinite(value) and value > 0} for mode in _MODES
    )
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return group.untested(asked, lacking)
    ratios = tuple(one[seed] / other[seed] for seed in seeds)
    means = [_geometric_mean([of[seed] for seed in seeds]) for of in (one, other)]
    said = f"rl {means[0]:.6g}, sl {means[1]:.6g} {unit} ({remark})"
    return _counted(group, asked, ratios, said)


def _geometric_mean(values: Sequence[float]) -> float:
    """Of positive values; that of ratios is the ratio of those of their parts."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _counted(group: Group, asked: Question, ratios: Sequence[float], said: str) -> Finding:
    effect = Effect(_geometric_mean(ratios), UNDEFINED, tuple(ratios), None, 0, scale="ratio")
    return replace(group.judged(asked, effect, said, _MODES), exact=True)


def _seen(course: Course) -> float:
    """In sizes of the training set before validation images are taken from it."""
    return (course.epochs + course.adversarial) * course.share


def _one_machine(group: Group) -> bool:
    return len({one.machine for one in _courses(group)}) <= 1


def _side_by_side(group: Group) -> bool:
    return any(one.overlaps(other) for one, other in combinations(_courses(group), 2))


def _most_jobs(group: Group) -> int:
    return max((one.jobs for one in _courses(group)), default=1)


def _courses(group: Group) -> list[Course]:
    return [one for mode in _MODES for one in group.courses(mode).values()]


def _catching_up(group: Group, asked: Question, lacking: str) -> Finding:
    """At each seed the first epoch at which RL validates at least as well as SL ever did, over SL's own.

    Where RL never does, its own length stands for it: a lower bound, which says nothing where it is not above 1.
    """
    ratios, said, too_short = [], [], []
    for seed in sorted(group.courses("rl").keys() & group.courses("sl").keys()):
        one, other = (group.courses(mode)[seed].history for mode in _MODES)
        if one is None or other is None or one.empty or other.empty:
            continue
        best = float(other["validation_accuracy"].max())
        took = int(other["epoch"][other["validation_accuracy"] >= best].iloc[0])
        reached = one["epoch"][one["validation_accuracy"] >= best]
        if reached.empty:
            said.append(f"sl {100 * best:.1f} % after {took}, rl not in its {len(one)}, a lower bound")
            too_short += [seed] if len(one) <= took else []
        else:
            said.append(f"sl {100 * best:.1f} % after {took}, rl after {int(reached.iloc[0])}")
        ratios.append((len(one) if reached.empty else int(reached.iloc[0])) / took)
    if not ratios:
        return group.untested(asked, lacking)
    if too_short:
        return group.untested(asked, f"{'; '.join(said)}: train rl for longer")
    return _counted(group, asked, ratios, "; ".join(said))

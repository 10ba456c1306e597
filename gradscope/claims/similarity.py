"""C7, its cause: whether examples transfer between models with similar input gradients."""

import math
from dataclasses import replace

import numpy as np

from gradscope.claims.effects import Array, Effect
from gradscope.claims.group import Group, Question
from gradscope.claims.measured import Measured, MeasuredModel
from gradscope.claims.verdicts import ABOVE, Finding
from gradscope.results.stats import UNDEFINED, mantel

#: The fewest models of a seed; with fewer, a permutation test cannot reject.
_FEWEST = 3


def explained(group: Group, attack: str, words: str, lacking: str) -> Finding:
    """Test the rank correlation of two models' gradient cosine with the error that ``attack`` transfers between them.

    The error is the target's share of wrong images on the source's examples, among the images that the target has right
    when clean. The correlation is over all ordered pairs of models of a seed; the effect is its mean over the seeds,
    with a permutation test. In TRS (Yang et al. 2021, 2104.00671) and Chen et al. (2023, 2307.07873) examples transfer
    between smooth models with similar gradients.
    """
    statistic = f"rank correlation over pairs of models: cosine of gradients, error transferred by {words}"
    asked = Question("C7", f"{statistic} ({group.ball})", ABOVE, unit="", points=False)
    pairs, images = [], 0
    for seed in sorted({seed for seeds in group.models.values() for seed in seeds}):
        models = [seeds[seed] for seeds in group.models.values() if seed in seeds]
        matrices = _of_seed(group, attack, models)
        if matrices is not None:
            pairs.append(matrices[:2])
            images = max(images, matrices[2])
    if not pairs:
        return group.untested(asked, f"it needs {_FEWEST} models of a seed, compared and transferred; {lacking}")
    correlations, p_value = mantel(pairs)
    value = float(np.mean(correlations))
    effect = Effect(value, UNDEFINED, correlations, None if math.isnan(value) else p_value, images)
    counts = " and ".join(str(len(cosines)) for cosines, _ in pairs)
    said = f"{counts} models of {len(pairs)} seed{'s' * (len(pairs) > 1)}"
    return replace(group.judged(asked, effect, said, group.models), exact=True)


def _of_seed(group: Group, attack: str, models: list[MeasuredModel]) -> tuple[Array, Array, int] | None:
    """Collect cosines and transferred errors ``(M, M)`` of the ``models`` that have both, and the number of images."""
    similar = group.study.similarities
    compared = [model for model in models if sum((model, other) in similar for other in models) > 1]
    if len(compared) < _FEWEST:
        return None
    cosines, errors = (np.full((len(compared), len(compared)), np.nan) for _ in range(2))
    images = 0
    for row, source in enumerate(compared):
        for column, target in enumerate(compared):
            carried = _carried(group, attack, source, target)
            cosines[row, column] = similar.get((source, target), math.nan)
            if carried is not None:
                errors[row, column], count = carried
                images = max(images, count)
    off_diagonal = ~np.eye(len(compared), dtype=bool)
    known = np.isfinite(cosines[off_diagonal]).all() and np.isfinite(errors[off_diagonal]).all()
    return (cosines, errors, images) if known else None


def _carried(group: Group, attack: str, source: MeasuredModel, target: MeasuredModel) -> tuple[float, int] | None:
    """Compute the error that examples transfer from ``source`` to ``target``, and the number of images."""
    examples = [entry for entry in group.of(target) if _is_of(entry, group, attack, source)]
    clean = group.at_image("accuracy")(target)
    if not examples or not clean:
        return None
    right = clean[0].of_images.reindex(examples[0].of_images.index) == 1
    values = examples[0].of_images[right]
    return (1 - float(values.mean()), len(values)) if len(values) else None


def _is_of(entry: Measured, group: Group, attack: str, source: MeasuredModel) -> bool:
    of_attack = (entry.kind, entry.attack, entry.ball, entry.point) == ("transfer", attack, group.ball, "final")
    return of_attack and entry.source == source

"""Choose the epoch to keep from a run's history, and warn of signs of trouble. Without torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradscope.config import Selection

Row = Mapping[str, Any]

#: The column by which an epoch is selected.
_SELECTED_BY: dict[Selection, str] = {"best": "validation_accuracy", "robust": "pgd_accuracy"}
#: A network is overfitted to FGSM if its accuracy under FGSM exceeds the one under PGD by more than this ...
_GAP = 0.2
#: ... and its accuracy under PGD is below this share of that under FGSM, or of the phase's best under PGD.
_OF_FGSM, _OF_BEST = 0.25, 0.5
#: A network does not distinguish the classes if one class gets more than this share of its predictions, for this many
#: epochs in a row, after at least this many updates.
_NEARLY_ALL, _RUNNING, _BEGUN = 0.95, 2, 100


def kept_epoch(history: Sequence[Row], selection: Selection) -> int:
    """Choose the epoch, from 1, whose weights are kept: one of the current phase; ties go to the later epoch.

    An earlier phase does not count, because an "-adv" run that kept its best would not be adversarial. With ``robust``,
    a phase without adversary has no accuracy under attack; its best clean accuracy is kept until a later phase.

    >>> rows = [{"epoch": n, "phase": 0, "validation_accuracy": accuracy} for n, accuracy in ((1, 0.9), (2, 0.8))]
    >>> kept_epoch(rows, "best"), kept_epoch(rows, "last")
    (1, 2)
    """
    of_phase = [row for row in history if row["phase"] == history[-1]["phase"]]
    column = _SELECTED_BY.get(selection)
    if column is not None and of_phase[-1][column] is None:
        column = "validation_accuracy"
    kept = of_phase[-1] if column is None else max(of_phase, key=lambda row: (row[column], row["epoch"]))
    return int(kept["epoch"])


def warnings_of(history: Sequence[Row], updates: int) -> Iterator[str]:
    """Yield a sentence for each sign of trouble that the last epoch shows first; ``updates`` are those of an epoch."""
    for signs in (_overfitting_to_fgsm(history), _one_class(history, updates)):
        first, sentence = next(signs, (None, ""))
        if first is history[-1]:
            yield sentence


def _overfitting_to_fgsm(history: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Yield epochs of catastrophic overfitting (Wong et al. 2020): PGD fools the network far more than FGSM does."""
    best = {row["phase"]: 0.0 for row in history}
    for row in history:
        fgsm, strong = row.get("fgsm_accuracy"), row.get("pgd_accuracy")
        if fgsm is None or strong is None:
            continue
        highest = best[row["phase"]] = max(best[row["phase"]], strong)
        if fgsm - strong > _GAP and strong < max(_OF_FGSM * fgsm, _OF_BEST * highest):
            yield (
                row,
                f"epoch {row['epoch']}: accuracy on validation images is {100 * fgsm:.0f} % under FGSM but "
                f"{100 * strong:.0f} % under PGD (at best {100 * highest:.0f} %): the network overfits to a single "
                "step (catastrophic overfitting); train against PGD (adversary.method), use a smaller epsilon, or keep "
                "another epoch (`selection` robust)",
            )


def _one_class(history: Sequence[Row], updates: int) -> Iterator[tuple[Row, str]]:
    """Yield the epochs after which one class got nearly all predictions for several epochs in a row."""
    running = 0
    for row in history:
        share = row.get("most_predicted") or 0.0  # rows of older versions have none
        running = running + 1 if share > _NEARLY_ALL else 0
        if running >= _RUNNING and row["epoch"] * updates >= _BEGUN:
            yield (
                row,
                f"epoch {row['epoch']}: one class gets {100 * share:.0f} % of the predictions on validation images, "
                f"for {_RUNNING} epochs in a row: it does not distinguish the classes; lower the learning rate",
            )

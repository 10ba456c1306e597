"""What the history of a run says: which epoch is kept, and what to warn of. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradscope.config import Selection

Row = Mapping[str, Any]

#: By what an epoch is chosen.
_SELECTED_BY: dict[Selection, str] = {"best": "validation_accuracy", "robust": "pgd_accuracy"}
#: A network is overfitted to FGSM where its accuracy under FGSM is higher than under PGD by more than this ...
_GAP = 0.2
#: ... and its accuracy under PGD is below this share of that under FGSM, or of the phase's best under PGD.
_OF_FGSM, _OF_BEST = 0.25, 0.5
#: A network tells no classes apart where one class takes more than this share of its predictions, so many epochs
#: running; and one that has begun, after so many updates.
_NEARLY_ALL, _RUNNING, _BEGUN = 0.95, 2, 100


def kept_epoch(history: Sequence[Row], selection: Selection) -> int:
    """The epoch, from 1, whose weights are kept: of the phase that has been reached, ties go to the later one.

    An earlier phase's best is no checkpoint of this one: an "-adv" run that kept it would be none. Where ``robust`` is
    asked for, a phase without adversary has no accuracy under attack, and its best when clean is kept meanwhile.
    """
    of_phase = [row for row in history if row["phase"] == history[-1]["phase"]]
    column = _SELECTED_BY.get(selection)
    if column is not None and of_phase[-1][column] is None:
        column = "validation_accuracy"
    kept = of_phase[-1] if column is None else max(of_phase, key=lambda row: (row[column], row["epoch"]))
    return int(kept["epoch"])


def warnings_of(history: Sequence[Row], updates: int) -> Iterator[str]:
    """Yield a sentence for each sign of trouble that the last epoch is the first of the run to show.

    An epoch has so many ``updates``.
    """
    for signs in (_overfitting_to_fgsm(history), _one_class(history, updates)):
        first, sentence = next(signs, (None, ""))
        if first is history[-1]:
            yield sentence


def _overfitting_to_fgsm(history: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Catastrophic overfitting (Wong et al. 2020): FGSM no longer fools the network, and PGD fools it far more."""
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
    """One class takes nearly all predictions, several epochs running."""
    running = 0
    for row in history:
        share = row.get("most_predicted") or 0.0  # rows of older versions have none
        running = running + 1 if share > _NEARLY_ALL else 0
        if running >= _RUNNING and row["epoch"] * updates >= _BEGUN:
            yield (
                row,
                f"epoch {row['epoch']}: one class takes {100 * share:.0f} % of the predictions on validation images, "
                f"{_RUNNING} epochs running: the network does not tell the classes apart; lower the learning rate",
            )

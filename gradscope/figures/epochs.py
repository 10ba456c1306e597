"""Draw sharpness and accuracy after each epoch of a training run, from ``epochs.csv``."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradscope.figures import style
from gradscope.figures.style import Drawing

#: Metrics with a panel of their own, and their axis labels.
_SHARPNESS = {"eigenvalue": "largest\neigenvalue", "trace": "trace"}
#: Line styles of the accuracies: clean, under the attack.
_ACCURACY: tuple[dict[str, Any], ...] = (
    {"color": "#009E73", "marker": "o"},
    {"color": "#D55E00", "marker": "s", "linestyle": (0, (4, 1.5))},
)


def draw_epochs(rows: pd.DataFrame) -> Drawing:
    """Draw ``weights-epochs`` from rows of the table EPOCHS: sharpness above, accuracies below.

    Call it inside :func:`gradscope.figures.style.paper`.
    """
    attacks = [str(name) for name in rows["attack"].unique() if name != "none"]
    labels = ["clean", *(f"under {name}" for name in attacks)]
    figure, grid = style.panels((3, 1), style.COLUMN, 1.1, labels, sharex=True)
    *above, below = grid[:, 0]
    for axes, (metric, name) in zip(above, _SHARPNESS.items(), strict=True):
        _draw(axes, rows[rows["metric"] == metric].sort_values("epoch"), {"color": "black", "marker": "o"})
        axes.set_ylabel(name)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    accuracy = rows[rows["metric"] == "accuracy"]
    handles = []
    for name, label, look in zip(["none", *attacks], labels, _ACCURACY, strict=False):
        _draw(below, accuracy[accuracy["attack"] == name].sort_values("epoch"), look)
        handles.append(Line2D([], [], label=label, **look))
    below.set_ylim(-0.02, 1.02)
    below.set_ylabel("accuracy")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    style.place_legend(figure, handles, 2)
    return Drawing("weights-epochs", figure, _caption(rows), tuple(attacks))


def _draw(axes: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> None:
    low, high = (rows[end].fillna(rows["value"]).to_numpy(dtype=np.float64) for end in ("ci_low", "ci_high"))
    epochs = rows["epoch"].to_numpy(dtype=np.float64)
    axes.fill_between(epochs, low, high, color=look["color"], alpha=0.2, linewidth=0, zorder=1.5)
    axes.plot(epochs, rows["value"], linewidth=1.1, markersize=3, **look)


def _caption(rows: pd.DataFrame) -> str:
    name = str(rows["checkpoint"].iloc[0])
    count = int(rows[rows["metric"] == "accuracy"]["n"].max())
    vectors = int(rows[rows["metric"] == "trace"]["n"].max())
    return "; ".join(
        [
            f"Sharpness and accuracy of {name} after each epoch of training, on the same n = {count} test images",
            "above: largest eigenvalue and trace of the Hessian of the mean loss, nats per squared unit",
            "below: share of images that are right",
            f"bands, 95 %: Student t over {vectors} random vectors for the trace, Wilson over images for accuracies",
        ]
    )

"""Draw example images of an audit: a clean image, the adversarial image, and their difference."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.figures.text_layout import height_of, sheet, write
from gradscope.results.audits import AuditOf, ExampleImages

MOST = 12
_COLUMNS = 6
#: Largest ratio of height to width of a picture.
_TALLEST = 1.5
#: Sizes in inches: a picture with the gap to the next, that gap, between bands, at the edge.
_CELL, _GAP, _BAND, _EDGE = 1.05, 0.06, 0.12, 0.04
_TEXT = 6.5
_LONGEST_NAME = 60
#: Checks that also attack in a wider ball and show examples from it.
_OTHER_BALLS = ("M1", "M2")


def draw_example_images(examples: ExampleImages, audits: Sequence[AuditOf]) -> list[Drawing]:
    """Draw ``audit-evidence-CHECKPOINT`` for each of ``audits`` that has examples: the first twelve of them."""
    owners = examples["checkpoint"].astype(str)
    names = file_names([entry.checkpoint for entry in audits])
    drawings = []
    for entry in audits:
        own = {key: values[owners == entry.checkpoint] for key, values in examples.items()}
        if len(own["index"]):
            drawings.append(_draw(f"audit-evidence-{names[entry.checkpoint]}", own, entry))
    return drawings


def file_names(checkpoints: Sequence[str]) -> dict[str, str]:
    """Give each checkpoint a file name that every file system accepts; names also differ when case is ignored."""
    taken: dict[str, str] = {}
    for checkpoint in checkpoints:
        plain = re.sub(r"[^\w.-]+", "-", checkpoint, flags=re.ASCII).strip("-.")[:_LONGEST_NAME] or "checkpoint"
        name, rank = plain, 1
        while name.lower() in {other.lower() for other in taken.values()}:
            rank += 1
            name = f"{plain}-{rank}"
        taken[checkpoint] = name
    return taken


def _draw(name: str, examples: ExampleImages, entry: AuditOf) -> Drawing:
    total = len(examples["index"])
    count = min(MOST, total)
    bands = -(-count // _COLUMNS)
    columns = -(-count // bands)
    side = _CELL - _GAP
    tall = side * min(_TALLEST, examples["clean"].shape[2] / examples["clean"].shape[3])
    above = height_of("#", _TEXT) + _GAP / 2
    scales = _scales(examples)
    feet = [_below(examples, place, scales[place]) for place in range(count)]
    lowest = [max(height_of(foot, _TEXT) for foot in feet[band * columns :][:columns]) for band in range(bands)]
    tops = [_EDGE + band * (above + 3 * (tall + _GAP) + _BAND) + above + sum(lowest[:band]) for band in range(bands)]
    pictures = _pictures(examples, count, scales)
    margin = _EDGE + max(style.text_width(words, _TEXT) for words in pictures) + _GAP
    size = (margin + columns * _CELL, tops[-1] + 3 * (tall + _GAP) + lowest[-1] + _EDGE)
    figure, paper = sheet(*size)
    for place in range(count):
        band, column = divmod(place, columns)
        left = margin + column * _CELL
        for row, (words, images) in enumerate(pictures.items()):
            y = tops[band] + row * (tall + _GAP)
            axes = figure.add_axes((left / size[0], 1 - (y + tall) / size[1], side / size[0], tall / size[1]))
            _show(axes, images[place])
            if column == 0:
                write(paper, _EDGE, y + tall / 2, words, _TEXT, ha="left")
        write(paper, left + side / 2, tops[band] - _GAP / 2, _above(examples, place), _TEXT, "bottom", weight="bold")
        write(paper, left + side / 2, tops[band] + 3 * (tall + _GAP), feet[place], _TEXT, "top")
    return Drawing(name, figure, _caption(entry, examples["check"][:count].tolist(), total), ())


def _scales(examples: ExampleImages) -> NDArray[np.float64]:
    """Compute each image's largest change of a pixel, ``(K,)``, shown as black or white; 1 if nothing changed."""
    changes = np.nan_to_num(np.abs(examples["adversarial"].astype(np.float64) - examples["clean"]))
    largest = changes.reshape(len(changes), -1).max(axis=1)
    return np.where(largest > 0, largest, 1.0)


def _pictures(examples: ExampleImages, count: int, scales: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Make the rows of pictures, in [0, 1], by the label beside each."""
    clean, adversarial = (examples[key][:count].astype(np.float64) for key in ("clean", "adversarial"))
    difference = (adversarial - clean) / scales[:count, None, None, None]
    words = "difference,\nblack \N{MINUS SIGN}\nwhite +"
    return {"clean": clean, "adversarial": adversarial, words: (difference + 1) / 2}


def _show(axes: Axes, image: NDArray[np.float64]) -> None:
    """Show an image ``(C, H, W)`` without interpolation."""
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
    axes.imshow(
        np.nan_to_num(shown, nan=0.5).clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _above(examples: ExampleImages, place: int) -> str:
    check = str(examples["check"][place])
    return f"#{int(examples['index'][place])}" + (f", {check}" if check else "")


def _below(examples: ExampleImages, place: int, scale: float) -> str:
    """Write the scale of the difference, the label, the predictions for both images, and the attack."""
    label, first, second = (int(examples[key][place]) for key in ("label", "clean_predicted", "adversarial_predicted"))
    true, before, after = (
        style.shorten(str(examples[f"{key}_name"][place]))
        for key in ("label", "clean_predicted", "adversarial_predicted")
    )
    parts = [f"\N{PLUS-MINUS SIGN}{scale:.2g}", f"{true}, not fooled" if second == label else f"{true} → {after}"]
    if first != label:
        parts.append(f"clean: {before}")
    parts.append(str(examples["attack"][place]))
    return "\n".join(style.wrapped(part, _CELL - _GAP, _TEXT) for part in parts)


def _caption(entry: AuditOf, checks: Sequence[str], total: int) -> str:
    wider = [check for check in dict.fromkeys(checks) if check in _OTHER_BALLS]
    ball = f"{entry.ball}, {' and '.join(wider)} in a wider ball" if wider else entry.ball
    return "; ".join(
        [
            f"{len(checks)} of {total} images of the audit of {entry.checkpoint}, {ball} ({entry.verdict_and_cause})",
            "rows: clean, adversarial, and adversarial minus clean in each channel, from black to white over the range "
            "written below, grey where nothing changes",
            "above each: index in the test set and, after a comma, the check that this image is evidence of; images "
            "without a check are examples",
            'below each: label → class predicted for the adversarial image, or "not fooled", and the attack',
        ]
    )

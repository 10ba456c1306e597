"""The evidence of an audit as pictures: an image, what an attack made of it, and their difference."""

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
#: Height over width of a picture at most.
_TALLEST = 1.5
#: Sizes in inches: a picture with the gap to the next, that gap, between bands, at the edge.
_CELL, _GAP, _BAND, _EDGE = 1.05, 0.06, 0.12, 0.04
_TEXT = 6.5
_LONGEST_NAME = 60
#: Checks that also attack in a wider ball, and show what they find there.
_OTHER_BALLS = ("M1", "M2")


def draw_example_images(examples: ExampleImages, audits: Sequence[AuditOf]) -> list[Drawing]:
    """The figure ``audit-evidence-CHECKPOINT`` of each of ``audits`` that has examples, the first twelve of them."""
    owners = examples["checkpoint"].astype(str)
    names = file_names([one.checkpoint for one in audits])
    drawings = []
    for one in audits:
        ours = {key: values[owners == one.checkpoint] for key, values in examples.items()}
        if len(ours["index"]):
            drawings.append(_draw(f"audit-evidence-{names[one.checkpoint]}", ours, one))
    return drawings


def file_names(checkpoints: Sequence[str]) -> dict[str, str]:
    """A name for each that every file system takes, and no two alike where capitals do not count."""
    found: dict[str, str] = {}
    for checkpoint in checkpoints:
        plain = re.sub(r"[^\w.-]+", "-", checkpoint, flags=re.ASCII).strip("-.")[:_LONGEST_NAME] or "checkpoint"
        name, rank = plain, 1
        while name.lower() in {other.lower() for other in found.values()}:
            rank += 1
            name = f"{plain}-{rank}"
        found[checkpoint] = name
    return found


def _draw(name: str, examples: ExampleImages, one: AuditOf) -> Drawing:
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
    return Drawing(name, figure, _caption(one, examples["check"][:count].tolist(), total), ())


def _scales(examples: ExampleImages) -> NDArray[np.float64]:
    """Of each image ``(K,)`` the largest change of a pixel: black and white in its difference; 1 where none is."""
    changes = np.nan_to_num(np.abs(examples["adversarial"].astype(np.float64) - examples["clean"]))
    largest = changes.reshape(len(changes), -1).max(axis=1)
    return np.where(largest > 0, largest, 1.0)


def _pictures(examples: ExampleImages, count: int, scales: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Each row of pictures, in [0, 1], by what is written beside it."""
    clean, adversarial = (examples[key][:count].astype(np.float64) for key in ("clean", "adversarial"))
    difference = (adversarial - clean) / scales[:count, None, None, None]
    words = "difference,\nblack \N{MINUS SIGN}\nwhite +"
    return {"clean": clean, "adversarial": adversarial, words: (difference + 1) / 2}


def _show(axes: Axes, image: NDArray[np.float64]) -> None:
    """An image ``(C, H, W)`` as its pixels are."""
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
    """The scale of the difference, the label, what the model made of both images, and the attack."""
    label, first, second = (int(examples[key][place]) for key in ("label", "clean_predicted", "adversarial_predicted"))
    true, before, after = (
        style.shorten(str(examples[f"{key}_name"][place]))
        for key in ("label", "clean_predicted", "adversarial_predicted")
    )
    parts = [f"\N{PLUS-MINUS SIGN}{scale:.2g}", f"{true} stands" if second == label else f"{true} → {after}"]
    if first != label:
        parts.append(f"clean: {before}")
    parts.append(str(examples["attack"][place]))
    return "\n".join(style.wrapped(part, _CELL - _GAP, _TEXT) for part in parts)


def _caption(one: AuditOf, checks: Sequence[str], total: int) -> str:
    wider = [check for check in dict.fromkeys(checks) if check in _OTHER_BALLS]
    ball = f"{one.ball}, {' and '.join(wider)} in a wider ball" if wider else one.ball
    return "; ".join(
        [
            f"{len(checks)} of {total} images of the audit of {one.checkpoint}, {ball} ({one.verdict_and_cause}): "
            "clean, adversarial, and the adversarial less the clean one in each channel, black to white over the "
            "range written below it, no change grey",
            "above: index in the test set and, after a comma, the check whose evidence the image is; an image without "
            "is an example",
            "below: label → class predicted for the adversarial image, or that the model stands, and the attack that "
            "made it",
        ]
    )

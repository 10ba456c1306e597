"""Figures as they stand in a page: a data address, vector where that is not much larger than pixels."""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib

from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.tables import file_content

#: A vector figure up to so many bytes is taken, sharp at any size; a larger one only where it is the smaller.
SMALL = 150_000
#: CSS pixels of an inch of paper: text of 8 points is then as large as that around it.
PIXELS = 132

_UNSHOWN = re.compile(r"<!--.*?-->|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", re.DOTALL)
_PATH = re.compile(r'(?<= d=")[^"]*')
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_SPACE = re.compile(r"\s+")


class Picture(NamedTuple):
    """A figure of a page. ``width``: CSS pixels.

    ``file``: the same as PDF, relative to the page; ``animation``: as a GIF, empty where there is none.
    """

    name: str
    address: str
    width: int
    height: int
    caption: str
    file: str
    animation: str = ""


def picture(drawing: Drawing, caption: str, pixels: Path, file: str) -> Picture:
    """The picture of ``drawing``, which was saved as the PNG ``pixels`` and, beside the page, as the PDF ``file``.

    Call it where the figure was drawn.
    """
    vector = as_svg(drawing)
    kept = file_content(pixels) if len(vector) > SMALL and pixels.exists() else b""
    kind, content = ("png", kept) if kept and len(kept) < len(vector) else ("svg+xml", vector)
    animation = f"{file.removesuffix('.pdf')}.gif" if pixels.with_suffix(".gif").exists() else ""
    width, height = drawing.figure.get_size_inches()
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(drawing.name, address, round(PIXELS * width), round(PIXELS * height), caption, file, animation)


def as_svg(drawing: Drawing) -> bytes:
    """The figure as SVG with its letters as outlines, coordinates to a hundredth of a point; always the same bytes."""
    written = io.StringIO()
    with style.drawing_any_letters(), matplotlib.rc_context({"svg.hashsalt": "gradscope", "svg.fonttype": "path"}):
        drawing.figure.savefig(written, format="svg", metadata={"Date": None})
    text = _UNSHOWN.sub("", written.getvalue())
    return _PATH.sub(lambda path: _SPACE.sub(" ", _DECIMALS.sub(r"\1", path[0])).strip(), text).encode()

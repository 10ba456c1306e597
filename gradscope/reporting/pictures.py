"""Figures for a page as data addresses: vector graphics unless pixels are much smaller."""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib

from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.tables import file_content

#: A vector figure of up to this many bytes is used; a larger one only if it is smaller than the pixels.
SMALL = 150_000
#: CSS pixels per inch of paper: text of 8 points then matches the text of the page.
PIXELS = 132

_UNSHOWN = re.compile(r"<!--.*?-->|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", re.DOTALL)
_PATH = re.compile(r'(?<= d=")[^"]*')
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_SPACE = re.compile(r"\s+")


class Picture(NamedTuple):
    """A figure of a page. ``width`` and ``height``: CSS pixels.

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
    """Return the picture of ``drawing``, saved before as the PNG ``pixels`` and, beside the page, as the PDF ``file``.

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
    """Return the figure as SVG: letters as outlines, numbers to a hundredth of a point, the same bytes each time."""
    written = io.StringIO()
    with style.drawing_any_letters(), matplotlib.rc_context({"svg.hashsalt": "gradscope", "svg.fonttype": "path"}):
        drawing.figure.savefig(written, format="svg", metadata={"Date": None})
    text = _UNSHOWN.sub("", written.getvalue())
    return _PATH.sub(lambda path: _SPACE.sub(" ", _DECIMALS.sub(r"\1", path[0])).strip(), text).encode()

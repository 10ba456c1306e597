"""Figures that move: a GIF of a drawing whose lines grow step by step."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.results.files import atomic

#: Bytes of a GIF at most.
MOST_BYTES = 3_000_000
#: Frames at most: of longer walks some steps are left out, never the first or the last.
MOST_FRAMES = 121
#: Dots an inch and frames that are tried in turn until the GIF is small enough.
_SIZES = ((140, MOST_FRAMES), (100, MOST_FRAMES), (72, 41), (50, 21))
_COLOURS, _SAME = 128, 255
#: Milliseconds of a GIF until its last frame, of each frame at least and at most, and of the last.
_LASTS, _SHORTEST, _LONGEST, _PAUSE = 6000, 60, 250, 3000


def save_animation(drawing: Drawing, directory: Path, most: int = MOST_BYTES) -> Path:
    """Write ``NAME.gif`` of what moves in ``drawing``, at most ``most`` bytes; the same drawing gives the same bytes.

    Raises :class:`GradscopeError` where not even a small one is small enough.
    """
    path = directory / f"{drawing.name}.gif"
    for dpi, frames in _SIZES:
        content = animation(drawing, dpi, frames)
        if len(content) <= most:
            with atomic(path) as temporary:
                temporary.write_bytes(content)
            return path
    raise GradscopeError(f"animate must be left out: {path.name} takes {len(content)} bytes, more than {most}")


def animation(drawing: Drawing, dpi: int, frames: int = MOST_FRAMES) -> bytes:
    """The GIF: at most ``frames`` frames from the first step to the last, which stays for three seconds."""
    shown = steps_shown(drawing, frames)
    images = [Image.fromarray(pixels) for pixels in _rendered(drawing, shown, dpi)]
    colours = images[-1].quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    coded = [np.array(image.quantize(palette=colours, dither=Image.Dither.NONE)) for image in images]
    # What stays as it was is left transparent: long runs of one colour, which compress to nothing.
    changes = [np.where(now == before, _SAME, now) for before, now in itertools.pairwise(coded)]
    reduced = [Image.fromarray(codes.astype(np.uint8), "P") for codes in (coded[0], *changes)]
    for image in reduced:
        image.putpalette(colours.getpalette() or [])
    each = int(np.clip(_LASTS / len(shown), _SHORTEST, _LONGEST)) // 10 * 10  # a GIF counts in hundredths of a second
    written = io.BytesIO()
    durations = [each] * (len(shown) - 1) + [_PAUSE]
    kept: dict[str, Any] = {"transparency": _SAME, "disposal": 1, "optimize": False, "loop": 0}
    reduced[0].save(written, format="GIF", save_all=True, append_images=reduced[1:], duration=durations, **kept)
    return written.getvalue()


def steps_shown(drawing: Drawing, frames: int = MOST_FRAMES) -> list[int]:
    """The steps that have a frame, ascending."""
    last = max(len(one.points) for one in drawing.moving) - 1
    return sorted({round(at) for at in np.linspace(0, last, min(frames, last + 1)).tolist()})


def _rendered(
    drawing: Drawing, steps: list[int], dpi: int
) -> Iterator["np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"]:
    """Pixels ``(height, width, 3)`` at each of ``steps``; what does not move is drawn once."""
    figure, lines = drawing.figure, [one.line for one in drawing.moving]
    before = figure.dpi, figure.canvas
    figure.dpi = dpi
    canvas: Any = FigureCanvasAgg(figure)
    counter = figure.text(0.01, 0.995, "", va="top", ha="left", fontsize=7, animated=True)
    counter.set_in_layout(False)
    for line in lines:
        line.set_animated(True)
    try:
        with style.drawing_any_letters():
            canvas.draw()
            ground = canvas.copy_from_bbox(figure.bbox)
            for step in steps:
                canvas.restore_region(ground)
                for one in sorted(drawing.moving, key=lambda one: one.line.get_zorder()):
                    one.show(step)
                    assert one.line.axes is not None
                    one.line.axes.draw_artist(one.line)
                counter.set_text(f"step {step}")
                figure.draw_artist(counter)
                yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
    finally:
        for one in drawing.moving:
            one.line.set_animated(False)
            one.show(len(one.points) - 1)
        counter.remove()
        figure.dpi = before[0]
        figure.set_canvas(before[1])

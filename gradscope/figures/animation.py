"""Write a drawing whose lines grow step by step as an animated GIF."""

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

#: Largest size of a GIF in bytes.
MOST_BYTES = 3_000_000
#: Most frames. A longer path skips some steps, never the first or the last.
MOST_FRAMES = 121
#: Resolutions (dots per inch) and numbers of frames, tried in turn until the GIF is small enough.
_SIZES = ((140, MOST_FRAMES), (100, MOST_FRAMES), (72, 41), (50, 21))
_COLOURS, _SAME = 128, 255
#: Milliseconds: all frames but the last together, the shortest and the longest of these, and the last frame.
_LASTS, _SHORTEST, _LONGEST, _PAUSE = 6000, 60, 250, 3000


def save_animation(drawing: Drawing, directory: Path, most: int = MOST_BYTES) -> Path:
    """Write ``NAME.gif`` of ``drawing``, at most ``most`` bytes. The same drawing gives the same bytes.

    Raises :class:`GradscopeError` if even the smallest GIF is larger.
    """
    path = directory / f"{drawing.name}.gif"
    for dpi, frames in _SIZES:
        content = animation(drawing, dpi, frames)
        if len(content) <= most:
            with atomic(path) as temporary:
                temporary.write_bytes(content)
            return path
    raise GradscopeError(
        f"animate must be left out: {path.name} takes {len(content)} bytes at its smallest, more than {most}"
    )


def animation(drawing: Drawing, dpi: int, frames: int = MOST_FRAMES) -> bytes:
    """Encode ``drawing`` as a GIF of at most ``frames`` frames, first to last step; the last stays three seconds."""
    shown = steps_shown(drawing, frames)
    images = [Image.fromarray(pixels) for pixels in _rendered(drawing, shown, dpi)]
    colours = images[-1].quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    coded = [np.array(image.quantize(palette=colours, dither=Image.Dither.NONE)) for image in images]
    # Pixels that do not change become transparent: long runs of one colour compress to almost nothing.
    changes = [np.where(now == before, _SAME, now) for before, now in itertools.pairwise(coded)]
    reduced = [Image.fromarray(codes.astype(np.uint8), "P") for codes in (coded[0], *changes)]
    for image in reduced:
        image.putpalette(colours.getpalette() or [])
    # A GIF counts in hundredths of a second.
    duration = int(np.clip(_LASTS / len(shown), _SHORTEST, _LONGEST)) // 10 * 10
    written = io.BytesIO()
    durations = [duration] * (len(shown) - 1) + [_PAUSE]
    options: dict[str, Any] = {"transparency": _SAME, "disposal": 1, "optimize": False, "loop": 0}
    reduced[0].save(written, format="GIF", save_all=True, append_images=reduced[1:], duration=durations, **options)
    return written.getvalue()


def steps_shown(drawing: Drawing, frames: int = MOST_FRAMES) -> list[int]:
    """Choose the steps that get a frame, in ascending order."""
    last = max(len(moving.points) for moving in drawing.moving) - 1
    return sorted({round(at) for at in np.linspace(0, last, min(frames, last + 1)).tolist()})


def _rendered(
    drawing: Drawing, steps: list[int], dpi: int
) -> Iterator["np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"]:
    """Yield the pixels ``(height, width, 3)`` at each of ``steps``; parts that do not move are drawn once."""
    figure, lines = drawing.figure, [moving.line for moving in drawing.moving]
    previous = figure.dpi, figure.canvas
    figure.dpi = dpi
    canvas: Any = FigureCanvasAgg(figure)
    counter = figure.text(0.01, 0.995, "", va="top", ha="left", fontsize=7, animated=True)
    counter.set_in_layout(False)
    for line in lines:
        line.set_animated(True)
    try:
        with style.drawing_any_letters():
            canvas.draw()
            background = canvas.copy_from_bbox(figure.bbox)
            for step in steps:
                canvas.restore_region(background)
                for moving in sorted(drawing.moving, key=lambda moving: moving.line.get_zorder()):
                    moving.show(step)
                    assert moving.line.axes is not None
                    moving.line.axes.draw_artist(moving.line)
                counter.set_text(f"step {step}")
                figure.draw_artist(counter)
                yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
    finally:
        for moving in drawing.moving:
            moving.line.set_animated(False)
            moving.show(len(moving.points) - 1)
        counter.remove()
        figure.dpi = previous[0]
        figure.set_canvas(previous[1])

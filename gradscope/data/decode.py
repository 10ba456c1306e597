"""Decode an image file to 8-bit pixels, grey or RGB.

Only raster formats are opened, because PIL would hand others to programs: PostScript runs in Ghostscript.

Grey images are those of 1, 8 and 16 bits, with or without alpha; 16 bits become 8 by dividing by 257, rounded.
Everything else is colour, including palettes. Alpha is dropped, not blended: a transparent pixel keeps its hidden
colour (PIL's ``convert("RGB")``). The EXIF orientation is ignored. Only the first of several frames is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gradscope.errors import GradscopeError, reason_of
from gradscope.limits import most, raising

#: PIL's names of the formats that are opened, whatever the file's suffix.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})


@dataclass(frozen=True)
class Header:
    """The header of an image file: its mode, and width and height in pixels."""

    path: Path
    mode: str
    width: int
    height: int


@contextmanager
def pillow_at_our_limit() -> Iterator[None]:
    """Disable Pillow's size limit; :func:`read_header` enforces the one of :mod:`gradscope.limits` instead."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_header(path: Path) -> Header:
    """Read the header of one file; raises :class:`GradscopeError` if it is not an image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _require_few(*image.size)
            return Header(path, image.mode, *image.size)
    except Exception as error:  # PIL's readers raise whatever their format's parsing raises.
        raise _unreadable(path, error) from None


def common_format(headers: Sequence[Header], image_size: int | None, resize: bool = True) -> tuple[int, int, int]:
    """Choose the common ``(channels, height, width)`` of all images: 1 channel if all are grey, else 3.

    Raises :class:`GradscopeError` if there is no ``image_size`` and the sizes differ, or if ``resize`` is off and an
    image is not of ``image_size``.
    """
    channels = 1 if all(header.mode in _GREY_MODES for header in headers) else 3
    if image_size is not None:
        for header in headers:
            _require_resizable(header, image_size)
            if not resize and (header.width, header.height) != (image_size, image_size):
                raise GradscopeError(
                    f"data_root: {header.path} must be {image_size}x{image_size} pixels, "
                    f"got {header.width}x{header.height}"
                )
        return channels, image_size, image_size
    first = headers[0]
    for header in headers:
        if (header.width, header.height) != (first.width, first.height):
            raise GradscopeError(
                f"image_size must be given if images differ in size; {header.path} is "
                f"{header.width}x{header.height}, {first.path.name} {first.width}x{first.height}"
            )
    return channels, first.height, first.width


def read_pixels(path: Path, channels: int, side: int | None) -> npt.NDArray[np.uint8]:
    """Read the pixels of one file, uint8 (channels, H, W); raises :class:`GradscopeError` if it cannot be decoded.

    The shorter side is resized to ``side`` (bicubic, antialiased), then the centre is cropped; None keeps the image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            plain = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    pixels = np.asarray(plain if side is None else _centre(plain, side))
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values must be from 0 to 65535, got {values.min()} to {values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return image.convert("RGBA")
    return image


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Resize and crop with the same rounding as torchvision's ``resize`` and ``center_crop``."""
    if min(image.size) != side:
        image = image.resize(_resized(*image.size, side), Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _resized(width: int, height: int, side: int) -> tuple[int, int]:
    """Compute width and height after the shorter side is resized to ``side``."""
    shorter = min(width, height)
    return int(side * width / shorter), int(side * height / shorter)


def _require_few(width: int, height: int) -> None:
    if not 0 < width * height <= most("PIXELS"):
        raise ValueError(f"it must have 1 to {most('PIXELS')} pixels, got {width}x{height}; {raising('PIXELS')}")


def _require_resizable(header: Header, side: int) -> None:
    width, height = _resized(header.width, header.height, side)
    if width * height > most("PIXELS"):
        raise GradscopeError(
            f"data_root: {header.path} is too elongated: resized from {header.width}x{header.height} to "
            f"{width}x{height} it has more than {most('PIXELS')} pixels; {raising('PIXELS')}"
        )


def _unreadable(path: Path, error: Exception) -> GradscopeError:
    if isinstance(error, UnidentifiedImageError):
        reason = f"it must be one of {', '.join(FORMATS)}"
    else:
        reason = reason_of(error)
    return GradscopeError(f"data_root: {path} cannot be decoded as an image: {reason}")

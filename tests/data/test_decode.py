from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradscope.data.decode import common_format, pillow_at_our_limit, read_header, read_pixels
from gradscope.errors import GradscopeError
from gradscope.vision import torchvision

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)


def saved(tmp_path: Path, image: Image.Image, suffix: str = ".png", **options: Any) -> Path:
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return path


def channels_of(path: Path) -> int:
    return common_format([read_header(path)], None)[0]


def test_grey_stays_one_channel(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP))
    assert channels_of(path) == 1
    assert np.array_equal(read_pixels(path, 1, 8), RAMP[None])


def test_one_bit_becomes_0_and_255(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP > 100))
    assert read_header(path).mode == "1"
    assert channels_of(path) == 1
    assert np.array_equal(read_pixels(path, 1, 8)[0], np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = saved(tmp_path, Image.fromarray(values), suffix)
    assert channels_of(path) == 1
    expected = np.floor(values / 257 + 0.5)
    assert np.array_equal(read_pixels(path, 1, 8)[0], expected)
    assert np.array_equal(read_pixels(path, 3, 8), np.stack([expected] * 3))


def test_grey_with_alpha_is_grey_and_loses_its_alpha(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.stack([RAMP, RAMP.T], axis=2), "LA"))
    assert channels_of(path) == 1
    assert np.array_equal(read_pixels(path, 1, 8)[0], RAMP)


def test_rgba_loses_its_alpha(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.dstack([COLOUR, RAMP])))
    assert read_header(path).mode == "RGBA"
    assert np.array_equal(read_pixels(path, 3, 8), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))], ids=["opaque", "index", "bytes"])
def test_a_palette_is_colour_with_or_without_transparency(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image.putpalette(COLOUR.reshape(-1).tolist())
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    path = saved(tmp_path, image, **options)
    assert read_header(path).mode == "P"
    assert channels_of(path) == 3
    assert np.array_equal(read_pixels(path, 3, 8), COLOUR.transpose(2, 0, 1))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOUR).convert("CMYK"), ".jpg")
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert channels_of(path) == 3
    assert np.array_equal(read_pixels(path, 3, 8), expected)


def test_the_orientation_of_exif_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(COLOUR), exif=exif)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert np.array_equal(read_pixels(path, 3, 8), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(17, 30), (31, 16), (8, 9), (5, 7), (8, 8), (4, 21)])
def test_resizing_is_torchvisions(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels))
    functional = torchvision.transforms.v2.functional
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    resized = functional.resize(Image.fromarray(pixels), [8], interpolation=bicubic, antialias=True)
    expected = np.asarray(functional.center_crop(resized, [8, 8])).transpose(2, 0, 1)
    assert np.array_equal(read_pixels(path, 3, 8), expected)


def test_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    grey = read_header(saved(tmp_path, Image.fromarray(RAMP), ".png"))
    colour = read_header(saved(tmp_path, Image.fromarray(COLOUR), ".bmp"))
    assert common_format([grey, grey], None) == (1, 8, 8)
    assert common_format([grey, colour], None) == (3, 8, 8)
    assert common_format([grey, colour], 5) == (3, 5, 5)


def test_differing_sizes_need_an_image_size(tmp_path: Path) -> None:
    eight = read_header(saved(tmp_path, Image.fromarray(RAMP), ".png"))
    other = read_header(saved(tmp_path, Image.fromarray(RAMP[:5]), ".bmp"))
    with pytest.raises(GradscopeError, match=r"image_size must be given .*image\.bmp is 8x5"):
        common_format([eight, other], None)
    assert common_format([eight, other], 4) == (1, 4, 4)


def test_images_of_one_size_need_not_be_square(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOUR[:5]))
    assert common_format([read_header(path)], None) == (3, 5, 8)
    assert np.array_equal(read_pixels(path, 3, None), COLOUR[:5].transpose(2, 0, 1))


@pytest.mark.parametrize("content", [b"", b"no image", b"cut"], ids=["empty", "text", "cut short"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, Image.fromarray(COLOUR))
    path.write_bytes(path.read_bytes()[:60] if content == b"cut" else content)
    with pytest.raises(GradscopeError, match=r"image\.png cannot be decoded") as raised:
        read_pixels(path, 3, 8)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = saved(tmp_path, Image.fromarray((RAMP.astype(dtype) - 5) * 1000), ".tif")
    with pytest.raises(GradscopeError, match=r"image\.tif cannot be decoded as an image: (floating|grey values)"):
        read_pixels(path, 1, 8)


def test_postscript_is_not_opened_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    for read in (read_header, lambda path: read_pixels(path, 3, 8)):
        with pytest.raises(GradscopeError, match=r"x\.png cannot be decoded as an image: it must be one of JPEG, PNG"):
            read(path)


@pytest.mark.parametrize("suffix", [*torchvision.datasets.folder.IMG_EXTENSIONS, ".gif"])
def test_every_known_extension_is_opened(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP).convert("L" if suffix == ".pgm" else "RGB"), suffix)
    header = read_header(path)
    assert (header.width, header.height) == (8, 8)
    assert read_pixels(path, 3, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [b"100000 100000", b"9000 10000", b"0 8"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixels_of_an_image_are_limited(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6 " + size + b" 255\n")
    with pytest.raises(GradscopeError, match=r"x\.ppm cannot be decoded as an image: "):
        read_header(path)


@pytest.mark.parametrize("length", [65_000, 5_000_000])
def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path: Path, length: int) -> None:
    header = read_header(saved(tmp_path, Image.new("1", (1, length))))
    with pytest.raises(GradscopeError, match=r"image\.png is too elongated: resized from 1x"):
        common_format([header], 224)
    assert common_format([header], 4 if length == 65_000 else None)


def test_the_limit_of_pixels_is_raised_and_pillows_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.new("L", (20, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # twice as many are an error of Pillow's
    monkeypatch.setenv("GRADSCOPE_MOST_PIXELS", "199")
    said = "must have 1 to 199 pixels, got 20x10; GRADSCOPE_MOST_PIXELS raises"
    with pillow_at_our_limit(), pytest.raises(GradscopeError, match=said):
        read_header(path)
    monkeypatch.setenv("GRADSCOPE_MOST_PIXELS", "200")
    with pillow_at_our_limit():
        assert read_pixels(path, 1, None).shape == (1, 10, 20)
    assert Image.MAX_IMAGE_PIXELS == 50

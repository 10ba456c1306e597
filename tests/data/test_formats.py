import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gradscope.config import Data
from gradscope.data.image_set import Splits
from gradscope.data.sources import load
from gradscope.errors import GradscopeError

Arrays = dict[str, np.ndarray[Any, Any]]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def arrays(**changes: Any) -> Arrays:
    """Sound arrays with ``changes``; None takes one away."""
    sound = {"X_train": IMAGES, "y_train": LABELS, "X_test": IMAGES[:2], "y_test": LABELS[:2]} | changes
    return {key: array for key, array in sound.items() if array is not None}


def load_saved(tmp_path: Path, content: Arrays) -> Splits:
    path = tmp_path / "blobs.v1.npz"
    np.savez(path, **content)
    return load(Data(dataset="npz", data_root=path))


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (IMAGES, 3),
        (IMAGES.transpose(0, 2, 3, 1), 3),
        (IMAGES[:, 0], 1),
        (IMAGES[:, :1], 1),
        (IMAGES[:, 0, :, :, None], 1),
    ],
    ids=["NCHW", "NHWC", "NHW", "N1HW", "NHW1"],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_every_layout_gives_the_same_images(tmp_path: Path, images: Any, channels: int, dtype: str) -> None:
    if dtype != "uint8":
        images = (images / 255).astype(dtype)
    splits = load_saved(tmp_path, arrays(X_train=images, X_test=images[:2]))
    assert np.array_equal(splits.train.images.numpy(), IMAGES[:, :channels])
    assert np.array_equal(splits.test.images.numpy(), IMAGES[:2, :channels])
    assert splits.train.labels.tolist() == LABELS.tolist()
    assert splits.train.classes == ("0", "1", "2")
    assert splits.train.name == "blobs.v1"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_that_are_no_bytes_stay_what_they_are(tmp_path: Path, dtype: str) -> None:
    pixels = (load_digits().images[:6, None] / 16).astype(dtype)
    splits = load_saved(tmp_path, arrays(X_train=pixels, X_test=pixels[:2]))
    assert np.array_equal(splits.train.images.numpy(), pixels.astype(np.float32))
    assert splits.train.batch(torch.arange(6), "cpu")[0].equal(torch.from_numpy(pixels).float())


def test_images_need_not_be_square(tmp_path: Path) -> None:
    splits = load_saved(tmp_path, arrays(X_train=IMAGES[:, :, :4], X_test=IMAGES[:2, :, :4]))
    assert (splits.test.height, splits.test.width) == (4, 5)
    with pytest.raises(GradscopeError, match="must be left out for 'npz', whose images have 4 x 5 pixels"):
        load(Data(dataset="npz", data_root=tmp_path / "blobs.v1.npz", image_size=5))


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("X", "y"), ("X_test", "y_test")])
def test_one_split_is_test_images_alone(tmp_path: Path, keys: tuple[str, str]) -> None:
    splits = load_saved(tmp_path, dict(zip(keys, (IMAGES, LABELS), strict=True)))
    assert np.array_equal(splits.test.images.numpy(), IMAGES)
    assert splits.test.classes == ("0", "1", "2")
    assert splits.training is None
    with pytest.raises(GradscopeError, match=r"blobs\.v1: the data set must have training images, got only test"):
        _ = splits.train


def test_classes_may_be_named(tmp_path: Path) -> None:
    splits = load_saved(tmp_path, arrays(classes=np.array(["ant", "bee", "cat", "unseen"])))
    assert splits.test.classes == ("ant", "bee", "cat", "unseen")


@pytest.mark.parametrize(
    "keys",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_the_names_of_keras_and_medmnist_are_known(tmp_path: Path, keys: tuple[str, ...]) -> None:
    content = dict(zip(keys, arrays().values(), strict=True)) | {"val_images": IMAGES[:1], "val_labels": LABELS[:1]}
    content[keys[1]] = content[keys[1]][:, None].astype(np.uint8)
    splits = load_saved(tmp_path, content)
    assert np.array_equal(splits.train.images.numpy(), IMAGES)
    assert splits.train.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"X_train": None},
            "lacks X_train; allowed: .* or images, labels or x, y or X, y; got: y_train, X_test, y_test",
        ),
        ({"X_test": None, "y_test": None}, "lacks X_test, y_test; allowed: X_train, .*; got: X_train, y_train"),
        ({"X_train": IMAGES.astype(np.int64)}, "X_train must be uint8 or float in .*, got int64"),
        ({"X_train": IMAGES.astype(np.float32)}, "X_train as floats must be in .*, got 0 to 255|got [0-9]+ to 255"),
        ({"X_test": np.full((2, 3, 5, 5), np.nan)}, "X_test as floats must be in"),
        ({"X_train": IMAGES[0, 0]}, r"X_train must be \(N, H, W\), .*got \(5, 5\)"),
        ({"X_train": np.zeros((6, 5, 5, 2), np.uint8)}, "with 1 or 3 channels"),
        ({"X_train": IMAGES[:, :, :4]}, "agree in height, got 4 and 5"),
        ({"X_train": IMAGES[:4]}, "one for each image"),
        ({"X_train": IMAGES[:0], "y_train": LABELS[:0]}, "at least one image"),
        ({"X_test": IMAGES[:2, 0]}, "agree in channels, got 3 and 1"),
        ({"y_test": np.array([0, 3])}, r"must be from 0 to 2 \(3 classes\), got 3"),
        ({"y_train": LABELS - 1}, "got -1"),
        ({"y_train": LABELS / 2}, "y_train must be whole numbers"),
        ({"y_train": np.eye(6, 3, dtype=int)}, r"y_train must be whole numbers .*\(6, 3\)"),
        ({"classes": np.array(["ant", "bee"])}, "must be from 0 to 1"),
        ({"classes": np.array([["ant", "bee", "cat"]])}, r"classes must be names \(K,\)"),
        ({"y_train": np.array([{}] * 6)}, "as an .npz of plain arrays: .*allow_pickle"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GradscopeError, match=message) as raised:
        load_saved(tmp_path, arrays(**changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 broken", "npy"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "file.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, IMAGES)
    with pytest.raises(GradscopeError, match=r"file\.npz cannot be read as an \.npz"):
        load(Data(dataset="npz", data_root=path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"nowhere\.npz does not exist"):
        load(Data(dataset="npz", data_root=tmp_path / "nowhere.npz"))


def header_of(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def claiming(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    return header_of(repr({"descr": kind, "fortran_order": False, "shape": shape}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            claiming((4_000_000_000, 3, 32, 32)),
            r"X_train\.npy must hold the 12288000000000 bytes .*, got 0",
        ),
        (claiming((-1, 3, 5, 5)) + bytes(75), "must hold the -75"),
        (header_of("(" * 9000), "X_train|header|EOF|nested"),
        (header_of("-" * 9000 + "1"), ""),
        (b"", "magic"),
        (b"\x93NUMPY\x09\x00", "version"),
    ],
    ids=["terabytes", "negative", "nested", "signs", "empty", "version"],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, **arrays(X_train=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("X_train.npy", content)
    with pytest.raises(GradscopeError, match=rf"file\.npz cannot be read as an \.npz of plain arrays: .*{message}"):
        load(Data(dataset="npz", data_root=path))


@pytest.mark.parametrize(
    ("at", "value"), [(8, 0x1), (8, 0x20), (8, 0x40), (10, 99)], ids=["encrypted", "patched", "strong", "method"]
)
def test_an_archive_of_another_kind_is_refused(tmp_path: Path, at: int, value: int) -> None:
    """``at``: where the flags or the method lie in the central directory, two bytes further than before the member."""
    path = tmp_path / "file.npz"
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x01\x02", at), (b"PK\x03\x04", at - 2)):
        found = -1
        while (found := content.find(magic, found + 1)) >= 0:
            content[found + offset : found + offset + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    with pytest.raises(GradscopeError, match=r"file\.npz cannot be read as an \.npz"):
        load(Data(dataset="npz", data_root=path))


def test_a_member_that_is_no_array_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in arrays():
            archive.writestr(name, b"raw")
    with pytest.raises(GradscopeError, match="lacks X_train, y_train"):
        load(Data(dataset="npz", data_root=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": LABELS + 2**40}, "labels must have at most 100000 classes, got 1099511627779"),
        ({"classes": np.zeros(100_001, np.uint8)}, "at most 100000 classes, got 100001"),
        ({"classes": np.array(["a\nb", "b", "c"])}, "names of classes must be one line"),
        ({"classes": np.array(["a\ud800", "b", "c"])}, "names of classes must be one line"),
        ({"classes": np.array(["a" * 256, "b", "c"])}, "names of classes must be one line of at most 255"),
        ({"classes": np.array([0x7FFFFFFF, 1, 2], "<u4").view("<U1")}, "cannot be read as an .npz of plain arrays"),
    ],
)
def test_what_names_no_classes_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GradscopeError, match=message):
        load_saved(tmp_path, arrays(**changes))

"""CIFAR-10 packed and unpacked gives the same images; these tests need no GPU."""

from pathlib import Path

import numpy as np

from gradscope.config import Data
from gradscope.data import sources
from tests.cuda import carry


def test_what_is_packed_is_unpacked_to_the_bit(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"X_{split}"] = stream.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = stream.permutation(np.arange(count) % 10)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    np.savez(tmp_path / "whole.npz", classes=classes, **arrays)
    folders = tmp_path / "one", tmp_path / "two"
    carry.pack(tmp_path / "whole.npz", folders)
    carry.unpack(folders, tmp_path / "carried.npz")
    whole, carried = (
        sources.load(Data(dataset="cifar10", data_root=tmp_path / f"{name}.npz")) for name in ("whole", "carried")
    )
    assert carried.train.fingerprint == whole.train.fingerprint
    assert carried.test.fingerprint == whole.test.fingerprint


def test_an_odd_number_of_mosaics_and_images() -> None:
    images = np.zeros((carry.MOSAIC**2 + 1, carry.SIDE, carry.SIDE, 3), np.uint8)
    images[-1, :, :, 1] = 200
    packed = carry.encode(images)
    assert len(packed["offsets"]) == 3
    assert np.array_equal(carry.decode(packed), images)

"""Pack CIFAR-10 into two folders, small enough for a machine without network, and unpack them there.

``carry.py pack DATA_ROOT DIR1 DIR2`` writes 50,000 training images and 100 test images of each class as mosaics in
lossless WebP, half into each folder. ``carry.py unpack DIR1 DIR2 FILE.npz`` makes the ``.npz`` that
``--dataset cifar10 --data-root FILE.npz`` reads: the same pixels in the same order.
"""

import io
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SIDE = 32
#: Images along a side of a mosaic. The codec compresses similar images together.
MOSAIC = 50
TEST_IMAGES = 100
NAMES = ("cifar10-first.npz", "cifar10-second.npz")


def encode(images: Pixels) -> dict[str, NDArray[np.generic]]:
    """Images ``(N, 32, 32, 3)`` as mosaics, one after the other in ``webp``, from ``offsets`` on; ``count`` is N."""
    per_mosaic = MOSAIC**2
    blobs = []
    for start in range(0, len(images), per_mosaic):
        part = images[start : start + per_mosaic]
        filled = np.concatenate([part, np.zeros((per_mosaic - len(part), SIDE, SIDE, 3), np.uint8)])
        mosaic = filled.reshape(MOSAIC, MOSAIC, SIDE, SIDE, 3).swapaxes(1, 2).reshape(MOSAIC * SIDE, MOSAIC * SIDE, 3)
        buffer = io.BytesIO()
        Image.fromarray(mosaic).save(buffer, format="WEBP", lossless=True, exact=True, method=4)
        blobs.append(buffer.getvalue())
    return {
        "webp": np.frombuffer(b"".join(blobs), np.uint8),
        "offsets": np.cumsum([0, *map(len, blobs)]),
        "count": np.array(len(images)),
    }


def decode(packed: dict[str, NDArray[np.generic]]) -> Pixels:
    """The images ``(N, 32, 32, 3)`` that :func:`encode` was given."""
    blob, offsets = packed["webp"].tobytes(), packed["offsets"]
    parts = []
    for start, stop in pairwise(offsets.tolist()):
        mosaic = np.asarray(Image.open(io.BytesIO(blob[start:stop])).convert("RGB"))
        tiles = mosaic.reshape(MOSAIC, SIDE, MOSAIC, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
        parts.append(tiles)
    return np.concatenate(parts)[: int(packed["count"])]


def pack(root: Path, folders: tuple[Path, Path]) -> None:
    """Write both folders from the images that ``--data-root root`` means."""
    import torch

    from gradscope.config import Data
    from gradscope.data import sources

    splits = sources.load(Data(dataset="cifar10", data_root=root))
    chosen = torch.cat([(splits.test.labels == label).nonzero()[:TEST_IMAGES, 0] for label in range(10)]).sort().values
    train, test = (images.permute(0, 2, 3, 1).numpy() for images in (splits.train.images, splits.test.images[chosen]))
    half = len(train) // 2
    classes = np.array(splits.train.classes)
    for folder, name, part, labels in zip(
        folders, NAMES, (train[:half], train[half:]), splits.train.labels.numpy().reshape(2, -1), strict=True
    ):
        folder.mkdir(parents=True, exist_ok=True)
        more = {}
        if name == NAMES[1]:
            more = {f"test_{key}": value for key, value in encode(test).items()}
            more |= {"test_labels": splits.test.labels[chosen].numpy(), "classes": classes}
        np.savez(folder / name, labels=labels, **encode(part), **more)


def unpack(folders: tuple[Path, Path], out: Path) -> None:
    """Write ``out``, an ``.npz`` with the images of both folders."""
    first, second = (dict(np.load(folder / name)) for folder, name in zip(folders, NAMES, strict=True))
    test = {key.removeprefix("test_"): value for key, value in second.items() if key.startswith("test_")}
    np.savez(
        out,
        X_train=np.concatenate([decode(first), decode(second)]),
        y_train=np.concatenate([first["labels"], second["labels"]]),
        X_test=decode(test),
        y_test=test["labels"],
        classes=second["classes"],
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pack", root, first, second]:
            pack(Path(root), (Path(first), Path(second)))
        case ["unpack", first, second, out]:
            unpack((Path(first), Path(second)), Path(out))
        case _:
            sys.exit(__doc__)

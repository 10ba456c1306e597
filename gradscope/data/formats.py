"""Read and check array files: IDX (Fashion-MNIST) and ``.npz``."""

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradscope.data.image_set import ImageSet, Splits, numbered, require_few_classes
from gradscope.errors import GradscopeError, reason_of
from gradscope.limits import require_memory
from gradscope.results.arrays import read_arrays

Array = npt.NDArray[Any]

#: The maximum number of axes of an IDX file.
_MOST_AXES = 4
#: Accepted names of the arrays in an ``.npz``: train images and labels, then test images and labels.
_NPZ_KEYS = (
    ("X_train", "y_train", "X_test", "y_test"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
#: Accepted names of images and labels in an ``.npz`` with one split.
_ONE_SPLIT = (*(keys[2:] for keys in _NPZ_KEYS), ("images", "labels"), ("x", "y"), ("X", "y"))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file, raw or ``.gz``: 0, 0, 8 (uint8), the number of axes, big-endian lengths, content."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            axes = magic[3] if magic[:3] == b"\0\0\x08" and len(magic) == 4 else 0
            lengths = file.read(4 * axes)
            shape = tuple(np.frombuffer(lengths, ">u4", count=len(lengths) // 4).tolist())
            size = math.prod(shape)
            require_memory(size)
            content = file.read(size + 1)  # one byte more, to notice a file longer than its header says
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        raise GradscopeError(f"data_root: {path} cannot be read: {reason_of(error)}") from None
    if not 1 <= axes <= _MOST_AXES or len(shape) != axes or len(content) != size:
        raise GradscopeError(f"data_root: {path} must be an IDX file of uint8 whose length matches its header")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_npz(path: Path, *, names_required: bool = False) -> Splits:
    """Read the splits of an ``.npz``: images uint8 or float in [0, 1], (N, H, W), (N, H, W, C) or (N, C, H, W).

    Labels are (N,). The images of a file with one split are test images. An array ``classes`` names the classes;
    without it they are numbered, unless ``names_required``. Raises :class:`GradscopeError` if an array is missing,
    pickled, or of a wrong shape or type.
    """
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise GradscopeError(f"data_root: {path} cannot be read as an .npz of plain arrays: {reason}") from None
    keys = _npz_keys(path, arrays)
    if names_required and "classes" not in arrays:
        raise GradscopeError(f"data_root: {path} must hold class names in an array classes, got {', '.join(arrays)}")
    labels = [_npz_labels(path, key, arrays[key]) for key in keys[1::2]]
    classes = _npz_classes(path, arrays, labels[0])
    images = [_npz_images(path, key, arrays[key]) for key in keys[::2]]
    *train, test = (ImageSet.from_tensors(path.stem, *split, classes) for split in zip(images, labels, strict=True))
    return Splits(train[0] if train else None, test)


def _npz_keys(path: Path, arrays: Mapping[str, Array]) -> Sequence[str]:
    """Find the names of images and labels, those of the training images first if there are any."""
    if not any("train" in key for key in arrays):
        alone = next((keys for keys in _ONE_SPLIT if set(keys) <= set(arrays)), None)
        if alone is not None:
            return alone
    keys = max(_NPZ_KEYS, key=lambda names: len(set(names) & set(arrays)))
    missing = [key for key in keys if key not in arrays]
    if missing:
        allowed = " or ".join(", ".join(names) for names in (*_NPZ_KEYS, *_ONE_SPLIT[len(_NPZ_KEYS) :]))
        raise GradscopeError(
            f"data_root: {path} lacks {', '.join(missing)}; allowed: {allowed}; got: {', '.join(arrays) or 'none'}"
        )
    return keys


def _npz_labels(path: Path, key: str, labels: Array) -> torch.Tensor:
    column = labels.ndim == 2 and labels.shape[1] == 1
    if not np.issubdtype(labels.dtype, np.integer) or not (labels.ndim == 1 or column):
        raise GradscopeError(
            f"data_root: {path}: {key} must be whole numbers (N,) or (N, 1), got {labels.dtype} {labels.shape}"
        )
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _npz_classes(path: Path, arrays: Mapping[str, Array], train_labels: torch.Tensor) -> tuple[str, ...]:
    if "classes" not in arrays:
        return numbered(int(train_labels.max()) + 1 if len(train_labels) else 0)
    names = arrays["classes"]
    if names.ndim != 1:
        raise GradscopeError(f"data_root: {path}: classes must be names (K,), got shape {names.shape}")
    require_few_classes(len(names))
    return tuple(str(name) for name in names)


def _npz_images(path: Path, key: str, images: Array) -> torch.Tensor:
    if np.issubdtype(images.dtype, np.floating):
        if images.size and not (images.min() >= 0 and images.max() <= 1):  # this form refuses NaN too
            raise GradscopeError(
                f"data_root: {path}: {key} as floats must be in [0, 1], got {images.min():g} to {images.max():g}"
            )
        pixels = np.rint(images * 255).astype(np.uint8)
        # Floats that are bytes divided by 255 become these bytes again; other floats stay floats.
        images = pixels if np.array_equal(pixels / images.dtype.type(255), images) else images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise GradscopeError(f"data_root: {path}: {key} must be uint8 or float in [0, 1], got {images.dtype}")
    return torch.from_numpy(np.ascontiguousarray(_channels_first(path, key, images)))


def _channels_first(path: Path, key: str, images: Array) -> Array:
    shape = images.shape
    if len(shape) == 3:
        return images[:, None]
    if len(shape) == 4 and shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if len(shape) == 4 and shape[1] in (1, 3):
        return images
    raise GradscopeError(
        f"data_root: {path}: {key} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, got {shape}"
    )

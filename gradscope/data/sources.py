"""Where images come from: :func:`load` reads the data sets of :mod:`gradscope.data.names`."""

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stderr
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from gradscope.config import Data
from gradscope.data.cache import Tree, cache_directory, load_tree
from gradscope.data.formats import read_idx, read_npz
from gradscope.data.image_set import ImageSet, Splits, stratified_split
from gradscope.data.names import check_data
from gradscope.data.published import CIFAR10, CIFAR100, TINY_IMAGENET, Published, split_folder
from gradscope.errors import GradscopeError
from gradscope.vision import torchvision

#: Fraction and seed of the test split of the digits, which come in one piece.
_DIGITS_TEST = (0.2, 0)

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = tuple(f"{split}-{what}-ubyte" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))

_IMAGENET100_SIZES = (32, 224)


def load(data: Data, *, download: bool = False, cache: Path | None = None) -> Splits:
    """The train and test images that ``data`` names.

    ``download`` allows the network; ``cache`` is where decoded folders and downloads without a ``data_root`` go (see
    :func:`~gradscope.data.cache.cache_directory`). Raises :class:`GradscopeError` for an unknown name, files that are
    missing or unsound, and an ``image_size`` that the set does not have.
    """
    check_data(data)
    splits = _READERS[data.dataset](data, download, cache)
    size = splits.test.height, splits.test.width
    if data.image_size is not None and size != (data.image_size, data.image_size):
        raise GradscopeError(
            f"image_size: {data.dataset!r} has images of {size[0]} x {size[1]} pixels and is not resized "
            f"(only 'folder' and 'imagenet100' are), got {data.image_size}"
        )
    return splits


def _digits(data: Data, download: bool, cache: Path | None) -> Splits:
    from sklearn.datasets import load_digits  # takes a second to import, and only this set needs it

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    classes = [str(name) for name in digits.target_names]
    split = stratified_split(labels, *_DIGITS_TEST)
    return Splits(*(ImageSet.from_tensors("digits", images[part], labels[part], classes) for part in split))


def _fashion_mnist(data: Data, download: bool, cache: Path | None) -> Splits:
    kind = torchvision.datasets.FashionMNIST
    root = _download_root(data, cache)
    candidates = [root, root / "FashionMNIST" / "raw", _DEBIAN_FASHION_MNIST]
    files = _idx_files(candidates)
    if files is None and download:
        _download(kind, root)
        files = _idx_files(candidates)
    if files is None:
        raise GradscopeError(
            f"data_root: no {', '.join(_IDX_FILES)} (raw or .gz) in {', '.join(map(str, candidates))}; "
            "give `data_root` or `download`"
        )
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(read_idx(file).copy()) for file in files)
    return Splits(
        ImageSet.from_tensors("fashion-mnist", train_images[:, None], train_labels.long(), kind.classes),
        ImageSet.from_tensors("fashion-mnist", test_images[:, None], test_labels.long(), kind.classes),
    )


def _idx_files(folders: Iterable[Path]) -> list[Path] | None:
    """The four files in the first of ``folders`` that has all, raw before ``.gz``."""
    for folder in folders:
        found = [file for name in _IDX_FILES if (file := _first_file(folder / name, folder / f"{name}.gz"))]
        if len(found) == len(_IDX_FILES):
            return found
    return None


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _cifar(data: Data, download: bool, cache: Path | None, *, kind: Any, published: Published) -> Splits:
    """Torchvision's files where ``--data-root`` holds them, else an image folder or an ``.npz``, else a download."""
    root = _download_root(data, cache)
    stored = None if (root / kind.base_folder).is_dir() else published.find(root)
    if stored is not None:
        return published.read(stored, cache)
    if download:
        _download(kind, root)
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of the dtypes in pickles as old as the published files.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            parts = [kind(root, train=train) for train in (True, False)]
    except RuntimeError:
        raise GradscopeError(
            f"data_root: no sound {kind.base_folder}, train/ and test/ or {data.dataset}.npz in {root}; "
            "give `data_root` or `download`"
        ) from None
    images = [torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))) for part in parts]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in parts]
    classes = parts[0].classes
    return Splits(*(ImageSet.from_tensors(data.dataset, *split, classes) for split in zip(images, labels, strict=True)))


def _download_root(data: Data, cache: Path | None) -> Path:
    return cache_directory(cache) / "downloads" if data.data_root is None else data.data_root.expanduser()


def _download(kind: Any, root: Path) -> None:
    """Let torchvision download what ``root`` does not have; one process at a time, its bar on a terminal only."""
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind.__name__}.lock"), quiet:
            kind(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise GradscopeError(f"download: {kind.__name__} did not come into {root}: {reason}") from None


def _tiny_imagenet(data: Data, download: bool, cache: Path | None) -> Splits:
    root = _given_root(data)
    stored = TINY_IMAGENET.find(root)
    if stored is None:
        raise GradscopeError(f"data_root: {root} must hold train/ and test/ (or val/), or tiny-imagenet.npz")
    return TINY_IMAGENET.read(stored, cache)


def _imagenet100(data: Data, download: bool, cache: Path | None) -> Splits:
    size = 32 if data.image_size is None else data.image_size
    if size not in _IMAGENET100_SIZES:
        raise GradscopeError(f"image_size: 'imagenet100' allows 32 or 224, got {size}")
    root = _given_root(data)
    tree = Tree(split_folder(root, "train"), split_folder(root, "val", "test"), _class_list(root), size)
    return load_tree("imagenet100", tree, cache)


def _class_list(root: Path) -> tuple[str, ...] | None:
    """Class folders in the order of ``classes.txt`` (a name a line) or ``Labels.json`` (names as keys), if any."""
    path = _first_file(root / "classes.txt", root / "Labels.json")
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = list(json.loads(text).keys()) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError, AttributeError) as error:
        raise GradscopeError(f"data_root: {path} is not a list of class folders: {error}") from None
    classes = tuple(name.strip() for name in names if name.strip())
    if not classes or len(set(classes)) != len(classes):
        raise GradscopeError(f"data_root: {path} must list one or more class folders, each once")
    return classes


def _folder(data: Data, download: bool, cache: Path | None) -> Splits:
    """``train/`` with ``test/`` or ``val/``; or test images alone, in one of these or in the folder itself."""
    root = _given_root(data)
    if (root / "train").is_dir():
        train, test = root / "train", split_folder(root, "test", "val")
    else:
        train, test = None, next((root / name for name in ("test", "val") if (root / name).is_dir()), root)
    return load_tree(root.resolve().name, Tree(train, test, image_size=data.image_size), cache)


def _npz(data: Data, download: bool, cache: Path | None) -> Splits:
    path = _given_root(data)
    if not path.is_file():
        raise GradscopeError(f"data_root: 'npz' needs an .npz file, {path} is none")
    return read_npz(path)


def _given_root(data: Data) -> Path:
    assert data.data_root is not None  # check_data made sure
    return data.data_root.expanduser()


#: How each of :data:`~gradscope.data.names.DATASETS` is read: ``read(data, download, cache)``.
_READERS: dict[str, Callable[[Data, bool, Path | None], Splits]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": partial(_cifar, kind=torchvision.datasets.CIFAR10, published=CIFAR10),
    "cifar100": partial(_cifar, kind=torchvision.datasets.CIFAR100, published=CIFAR100),
    "tiny-imagenet": _tiny_imagenet,
    "imagenet100": _imagenet100,
    "folder": _folder,
    "npz": _npz,
}

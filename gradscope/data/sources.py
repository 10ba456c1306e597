"""Load images: :func:`load` reads the data sets of :mod:`gradscope.data.names`."""

import io
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from gradscope import vision
from gradscope.config import Data
from gradscope.data.cache import Tree, load_tree
from gradscope.data.formats import read_idx, read_npz
from gradscope.data.image_set import ImageSet, Splits, stratified_split
from gradscope.data.names import check_data
from gradscope.data.places import (
    CIFAR_FOLDERS,
    download_root,
    fashion_mnist_files,
    find_published,
    folders,
    given_root,
    imagenet100_folders,
    no_cifar,
    npz_file,
    tiny_imagenet_storage,
)
from gradscope.data.published import CIFAR10, CIFAR100, TINY_IMAGENET, Published
from gradscope.errors import GradscopeError
from gradscope.reading import read_json, read_text
from gradscope.validation import is_plain_name

#: Fraction and seed of the test split of the digits, which are published without one.
_DIGITS_TEST = (0.2, 0)

_IMAGENET100_SIZES = (32, 224)


def load(data: Data, *, download: bool = False, cache: Path | None = None) -> Splits:
    """Load the training and test images that ``data`` names.

    ``download`` allows the network; decoded folders and downloads without a ``data_root`` go to ``cache`` (see
    :func:`~gradscope.data.places.cache_directory`). Raises :class:`GradscopeError` for an unknown name, missing or
    damaged files, and an ``image_size`` that the set does not have.
    """
    check_data(data)
    splits = _READERS[data.dataset](data, download, cache)
    size = splits.test.height, splits.test.width
    if data.image_size is not None and size != (data.image_size, data.image_size):
        raise GradscopeError(
            f"image_size must be left out for {data.dataset!r}, whose images have {size[0]} x {size[1]} pixels "
            f"(only 'folder' and 'imagenet100' are resized), got {data.image_size}"
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
    kind = vision.torchvision.datasets.FashionMNIST
    root = download_root(data, cache)
    try:
        files = fashion_mnist_files(root)
    except GradscopeError:
        if not download:
            raise
        _download(kind, root)
        files = fashion_mnist_files(root)
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(read_idx(file).copy()) for file in files)
    return Splits(
        ImageSet.from_tensors("fashion-mnist", train_images[:, None], train_labels.long(), kind.classes),
        ImageSet.from_tensors("fashion-mnist", test_images[:, None], test_labels.long(), kind.classes),
    )


def _cifar(data: Data, download: bool, cache: Path | None, *, kind: str, published: Published) -> Splits:
    """Read torchvision's files if ``--data-root`` holds them, else an image folder or an ``.npz``, else download."""
    root = download_root(data, cache)
    stored = None if (root / CIFAR_FOLDERS[data.dataset]).is_dir() else find_published(data.dataset, root)
    if stored is not None:
        return published.read(stored, cache)
    reader = getattr(vision.torchvision.datasets, kind)
    if download:
        _download(reader, root)
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of the dtypes in pickles as old as the published files.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            parts = [reader(root, train=train) for train in (True, False)]
    except RuntimeError:
        raise no_cifar(data.dataset, root) from None
    images = [torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))) for part in parts]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in parts]
    classes = parts[0].classes
    return Splits(*(ImageSet.from_tensors(data.dataset, *split, classes) for split in zip(images, labels, strict=True)))


def _download(kind: Any, root: Path) -> None:
    """Let torchvision download what ``root`` lacks, one process at a time; show its bar on a terminal only."""
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind.__name__}.lock"), quiet:
            kind(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise GradscopeError(f"download: fetching {kind.__name__} into {root} failed: {reason}") from None


def _tiny_imagenet(data: Data, download: bool, cache: Path | None) -> Splits:
    return TINY_IMAGENET.read(tiny_imagenet_storage(given_root(data)), cache)


def _imagenet100(data: Data, download: bool, cache: Path | None) -> Splits:
    size = 32 if data.image_size is None else data.image_size
    if size not in _IMAGENET100_SIZES:
        raise GradscopeError(f"image_size must be 32 or 224 for 'imagenet100', got {size}")
    root = given_root(data)
    tree = Tree(*imagenet100_folders(root), _class_list(root), size)
    return load_tree("imagenet100", tree, cache)


def _class_list(root: Path) -> tuple[str, ...] | None:
    """Read the order of the classes from ``classes.txt`` (one name per line) or ``Labels.json`` (keys), if any."""
    path = next((path for path in (root / "classes.txt", root / "Labels.json") if path.exists()), None)
    if path is None:
        return None
    names = read_json(path, "data_root") if path.suffix == ".json" else read_text(path, "data_root").split("\n")
    if path.suffix == ".json" and not isinstance(names, dict):
        raise GradscopeError(f"data_root: {path} must be a JSON object with class folders as keys, got another value")
    classes = tuple(name.strip() for name in names if name.strip())
    if not classes or len(set(classes)) != len(classes):
        raise GradscopeError(f"data_root: {path} must list one or more class folders, each once")
    paths = [name for name in classes if not is_plain_name(name)]
    if paths:
        raise GradscopeError(f"data_root: {path} must list names of folders, not paths, got {paths[0]!r:.100}")
    return classes


def _folder(data: Data, download: bool, cache: Path | None) -> Splits:
    root = given_root(data)
    return load_tree(root.resolve().name, Tree(*folders(root), image_size=data.image_size), cache)


def _npz(data: Data, download: bool, cache: Path | None) -> Splits:
    return read_npz(npz_file(given_root(data)))


#: The reader of each of :data:`~gradscope.data.names.DATASETS`: ``read(data, download, cache)``.
_READERS: dict[str, Callable[[Data, bool, Path | None], Splits]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": partial(_cifar, kind="CIFAR10", published=CIFAR10),
    "cifar100": partial(_cifar, kind="CIFAR100", published=CIFAR100),
    "tiny-imagenet": _tiny_imagenet,
    "imagenet100": _imagenet100,
    "folder": _folder,
    "npz": _npz,
}

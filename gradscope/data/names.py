"""The names and needs of the data sets. Without torch, so that the command line can check them quickly."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradscope.config import Data
from gradscope.data.places import REQUIRED, given_root, in_any_directory
from gradscope.errors import GradscopeError, lookup


@dataclass(frozen=True)
class Source:
    """Facts about a data set that are known before it is read.

    ``needs_root``: ``data_root`` must say where its files are. ``resizes``: ``image_size`` resizes its images.
    ``downloads``: ``download`` can fetch it.
    """

    description: str
    needs_root: bool = False
    resizes: bool = False
    downloads: bool = False


DATASETS: dict[str, Source] = {
    "digits": Source("handwritten digits, 8x8 grey, 10 classes, 1797 images; embedded (scikit-learn)"),
    "fashion-mnist": Source(
        "clothes, 28x28 grey, 10 classes, 70000 images; IDX files or downloaded",
        downloads=True,
    ),
    "cifar10": Source(
        "objects, 32x32 RGB, 10 classes, 60000 images; torchvision's files, an image folder, an .npz or downloaded",
        downloads=True,
    ),
    "cifar100": Source(
        "objects, 32x32 RGB, 100 classes, 60000 images; torchvision's files, an image folder, an .npz or downloaded",
        downloads=True,
    ),
    "tiny-imagenet": Source(
        "photographs, 64x64 RGB, any of its 200 classes; the published files, an image folder or an .npz",
        needs_root=True,
    ),
    "imagenet100": Source(
        "a folder train/ and val/ or test/ of ImageNet's class folders, at 32 or 224 pixels; "
        "classes.txt or Labels.json picks the classes",
        needs_root=True,
        resizes=True,
    ),
    "folder": Source(
        "a folder train/ and test/ or val/ with a folder of images for each class; without train/, test images alone",
        needs_root=True,
        resizes=True,
    ),
    "npz": Source(
        "a file with X_train, y_train, X_test, y_test and optionally classes; or test images alone, as images, labels",
        needs_root=True,
    ),
}


def _is_path(text: str) -> bool:
    with suppress(OSError):  # the text is too long for a path
        return os.sep in text or text.endswith(".npz") or (text != "" and Path(text).exists())
    return False


def check_data(data: Data, *, download: bool = True) -> None:
    """Raise :class:`GradscopeError` for an unknown name, and for missing files that may not be downloaded."""
    if data.dataset not in DATASETS and _is_path(data.dataset):
        is_folder = os.path.isdir(data.dataset)  # noqa: PTH112 (Path raises an error for a text that is too long)
        kind, place = ("folder", "folder") if is_folder else ("npz", "file")
        raise GradscopeError(
            f"dataset must be a name of `gradscope list datasets`, got {data.dataset!r}; "
            f"for this {place} give dataset {kind!r} with `data_root` {data.dataset}"
        )
    source = lookup(DATASETS, data.dataset, "dataset")
    in_any_directory(data)
    if source.needs_root and data.data_root is None:
        raise GradscopeError(f"data_root must be given for {data.dataset!r} ({source.description}), got none")
    if source.needs_root and not given_root(data).exists():
        raise GradscopeError(f"data_root: {data.data_root} does not exist")
    if data.dataset in REQUIRED and not (download and source.downloads):
        REQUIRED[data.dataset](data)

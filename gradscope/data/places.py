"""Where the files of a data set lie. Without torch, so that the command line can report missing files quickly."""

import os
from collections.abc import Callable
from pathlib import Path

from gradscope.config import Data
from gradscope.errors import GradscopeError, reason_of

#: Torchvision's folder of each CIFAR set.
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = tuple(f"{split}-{what}-ubyte" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


def cache_directory(given: Path | None = None) -> Path:
    """Return the cache directory: ``given``, else the variable GRADSCOPE_CACHE, else ``~/.cache/gradscope``."""
    return given or Path(os.environ.get("GRADSCOPE_CACHE") or Path.home() / ".cache" / "gradscope")


def download_root(data: Data, cache: Path | None = None) -> Path:
    """Return the ``data_root`` of a set that can be downloaded; without one, the folder of downloads."""
    return cache_directory(cache) / "downloads" if data.data_root is None else data.data_root.expanduser()


def given_root(data: Data) -> Path:
    """Return the ``data_root`` of a set that needs one; ``check_data`` ensures that it is given."""
    assert data.data_root is not None
    return data.data_root.expanduser()


def in_any_directory(data: Data) -> Data:
    """Make ``data_root`` absolute; raises :class:`GradscopeError` if it is not a valid path."""
    try:
        root = data.data_root and data.data_root.expanduser().resolve()
        if root:
            root.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise GradscopeError(f"data_root: {data.data_root} must be a valid path: {reason_of(error)}") from None
    return data.model_copy(update={"data_root": root})


def first_file(*paths: Path) -> Path | None:
    """Return the first of ``paths`` that is a file."""
    return next((path for path in paths if path.is_file()), None)


def fashion_mnist_files(root: Path) -> list[Path]:
    """Find the four IDX files, raw or ``.gz``, in the first folder with all; raises GradscopeError if there is none."""
    folders = [root, root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    files = next((complete for folder in folders if (complete := _idx_files(folder))), None)
    if files is None:
        raise GradscopeError(
            f"data_root must hold {', '.join(_IDX_FILES)} (raw or .gz), none of {', '.join(map(str, folders))} does; "
            "give `data_root` or `download`"
        )
    return files


def _idx_files(folder: Path) -> list[Path] | None:
    files = [file for name in _IDX_FILES if (file := first_file(folder / name, folder / f"{name}.gz"))]
    return files if len(files) == len(_IDX_FILES) else None


def find_published(name: str, root: Path) -> Path | None:
    """Find a published set: the file ``root``, or ``name.npz`` or the folder ``name`` in it, or the folder ``root``."""
    if root.is_file():
        return root
    candidates = (root / f"{name}.npz", root / name, root)
    return next((path for path in candidates if path.is_file() or (path / "train").is_dir()), None)


def no_cifar(name: str, root: Path) -> GradscopeError:
    """Make the error for a ``root`` that does not hold a CIFAR set."""
    return GradscopeError(
        f"data_root must hold {CIFAR_FOLDERS[name]} undamaged, or train/ and test/, or {name}.npz, got {root}; "
        "`download` fetches it"
    )


def tiny_imagenet_storage(root: Path) -> Path:
    """Find the folder or ``.npz`` of Tiny-ImageNet; raises :class:`GradscopeError` if ``root`` holds neither."""
    storage = find_published("tiny-imagenet", root)
    if storage is None:
        raise GradscopeError(f"data_root: {root} must hold train/ and test/ (or val/), or tiny-imagenet.npz")
    return storage


def imagenet100_folders(root: Path) -> tuple[Path, Path]:
    """Find the folders of training and test images; raises :class:`GradscopeError` if one is missing."""
    return split_folder(root, "train"), split_folder(root, "val", "test")


def folders(root: Path) -> tuple[Path | None, Path]:
    """Find ``train/`` with ``test/`` or ``val/``; without ``train/``, test images in one of these or in ``root``."""
    if (root / "train").is_dir():
        return root / "train", split_folder(root, "test", "val")
    _require_folder(root)
    return None, next((root / name for name in ("test", "val") if (root / name).is_dir()), root)


def npz_file(path: Path) -> Path:
    """Return ``path``; raises :class:`GradscopeError` if it is not a file."""
    if not path.is_file():
        raise GradscopeError(f"data_root must be an .npz file for 'npz', got {path}")
    return path


def split_folder(root: Path, *names: str) -> Path:
    """Find the first of the folders ``names`` in ``root``; raises :class:`GradscopeError` if it has none."""
    _require_folder(root)
    for name in names:
        if (root / name).is_dir():
            return root / name
    content = ", ".join(sorted(each.name for each in root.iterdir())[:5]) or "nothing"
    raise GradscopeError(f"data_root: {root} must hold {' or '.join(f'{name}/' for name in names)}, got {content}")


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise GradscopeError(f"data_root must be a folder with train/ and test/ (or val/), got {root}")


def _require_cifar(data: Data) -> None:
    root = download_root(data)
    if not (root / CIFAR_FOLDERS[data.dataset]).is_dir() and find_published(data.dataset, root) is None:
        raise no_cifar(data.dataset, root)


#: How to find the files of each data set; missing files raise :class:`GradscopeError`.
REQUIRED: dict[str, Callable[[Data], object]] = {
    "fashion-mnist": lambda data: fashion_mnist_files(download_root(data)),
    "cifar10": _require_cifar,
    "cifar100": _require_cifar,
    "tiny-imagenet": lambda data: tiny_imagenet_storage(given_root(data)),
    "imagenet100": lambda data: imagenet100_folders(given_root(data)),
    "folder": lambda data: folders(given_root(data)),
    "npz": lambda data: npz_file(given_root(data)),
}

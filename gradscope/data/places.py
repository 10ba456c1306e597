"""Where the files of a data set lie. No torch here: the command line refuses what is missing with these."""

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
    """``given``, else the environment's GRADSCOPE_CACHE, else ``~/.cache/gradscope``."""
    return given or Path(os.environ.get("GRADSCOPE_CACHE") or Path.home() / ".cache" / "gradscope")


def download_root(data: Data, cache: Path | None = None) -> Path:
    """The ``data_root`` of a set that can be downloaded, or where downloads go."""
    return cache_directory(cache) / "downloads" if data.data_root is None else data.data_root.expanduser()


def given_root(data: Data) -> Path:
    """The ``data_root`` of a set whose files are nowhere else; ``check_data`` made sure that it is given."""
    assert data.data_root is not None
    return data.data_root.expanduser()


def in_any_directory(data: Data) -> Data:
    """``data`` with a ``data_root`` that holds in any working directory; what is no path raises GradscopeError."""
    try:
        root = data.data_root and data.data_root.expanduser().resolve()
        if root:
            root.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links that lead to each other
        raise GradscopeError(f"data_root: {data.data_root} is no path: {reason_of(error)}") from None
    return data.model_copy(update={"data_root": root})


def first_file(*paths: Path) -> Path | None:
    """The first of ``paths`` that is a file."""
    return next((path for path in paths if path.is_file()), None)


def fashion_mnist_files(root: Path) -> list[Path]:
    """The four IDX files, raw before ``.gz``, of the first folder that has all; GradscopeError where none has."""
    folders = [root, root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    files = next((found for folder in folders if (found := _idx_files(folder))), None)
    if files is None:
        raise GradscopeError(
            f"data_root: no {', '.join(_IDX_FILES)} (raw or .gz) in {', '.join(map(str, folders))}; "
            "give `data_root` or `download`"
        )
    return files


def _idx_files(folder: Path) -> list[Path] | None:
    found = [file for name in _IDX_FILES if (file := first_file(folder / name, folder / f"{name}.gz"))]
    return found if len(found) == len(_IDX_FILES) else None


def find_published(name: str, root: Path) -> Path | None:
    """The storage of a published set: the file ``root``, or in it ``name.npz`` or the folder ``name``, or ``root``."""
    if root.is_file():
        return root
    candidates = (root / f"{name}.npz", root / name, root)
    return next((path for path in candidates if path.is_file() or (path / "train").is_dir()), None)


def no_cifar(name: str, root: Path) -> GradscopeError:
    """The error where ``root`` does not hold a CIFAR set."""
    return GradscopeError(
        f"data_root must hold {CIFAR_FOLDERS[name]} undamaged, or train/ and test/, or {name}.npz, got {root}; "
        "`download` fetches it"
    )


def tiny_imagenet_storage(root: Path) -> Path:
    """The folder or ``.npz`` of Tiny-ImageNet; :class:`GradscopeError` where ``root`` holds neither."""
    found = find_published("tiny-imagenet", root)
    if found is None:
        raise GradscopeError(f"data_root: {root} must hold train/ and test/ (or val/), or tiny-imagenet.npz")
    return found


def imagenet100_folders(root: Path) -> tuple[Path, Path]:
    """The folders of training and test images; :class:`GradscopeError` where one is missing."""
    return split_folder(root, "train"), split_folder(root, "val", "test")


def folders(root: Path) -> tuple[Path | None, Path]:
    """``train/`` with ``test/`` or ``val/``; or test images alone, in one of these or in the folder itself."""
    if (root / "train").is_dir():
        return root / "train", split_folder(root, "test", "val")
    _require_folder(root)
    return None, next((root / name for name in ("test", "val") if (root / name).is_dir()), root)


def npz_file(path: Path) -> Path:
    """``path``; :class:`GradscopeError` where it is no file."""
    if not path.is_file():
        raise GradscopeError(f"data_root: 'npz' needs an .npz file, {path} is none")
    return path


def split_folder(root: Path, *names: str) -> Path:
    """The first of the folders ``names`` that ``root`` has; :class:`GradscopeError` where it has none."""
    _require_folder(root)
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = ", ".join(sorted(each.name for each in root.iterdir())[:5]) or "nothing"
    raise GradscopeError(f"data_root: {root} needs a folder {' or '.join(f'{name}/' for name in names)}, has {found}")


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise GradscopeError(f"data_root: a folder with train/ and test/ (or val/) is needed, {root} is none")


def _require_cifar(data: Data) -> None:
    root = download_root(data)
    if not (root / CIFAR_FOLDERS[data.dataset]).is_dir() and find_published(data.dataset, root) is None:
        raise no_cifar(data.dataset, root)


#: How the files of each data set that has some are looked for; what is missing raises :class:`GradscopeError`.
REQUIRED: dict[str, Callable[[Data], object]] = {
    "fashion-mnist": lambda data: fashion_mnist_files(download_root(data)),
    "cifar10": _require_cifar,
    "cifar100": _require_cifar,
    "tiny-imagenet": lambda data: tiny_imagenet_storage(given_root(data)),
    "imagenet100": lambda data: imagenet100_folders(given_root(data)),
    "folder": lambda data: folders(given_root(data)),
    "npz": lambda data: npz_file(given_root(data)),
}

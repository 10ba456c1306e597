"""Decode image folders once and keep the pixels of a train/test tree as memory maps.

A cache entry is a folder with ``train.bin`` (if there are training images) and ``test.bin``, the pixels (N, C, H, W) as
uint8, and ``format.json``, their shapes and fingerprints. Labels and class names come from the listing of the tree,
which is read each time. The entry's name contains a hash of the listing (names, sizes, times), so that a changed tree
is decoded again.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from gradscope import vision
from gradscope.data.decode import common_format, pillow_at_our_limit, read_header, read_pixels
from gradscope.data.image_set import ImageSet, Splits, fingerprint, require_printable
from gradscope.data.places import cache_directory
from gradscope.errors import GradscopeError, first_of
from gradscope.limits import most, raising
from gradscope.reading import parse_json, read_bytes, read_text

T = TypeVar("T")

_FORMAT_VERSION = 1
#: Files per task of a thread (decoding a small file takes less time than scheduling it), and tasks scheduled before
#: their results are written, which bounds the memory.
_RUN, _RUNS_AT_A_TIME = 32, 16
#: Entries up to this size are verified by fingerprint when opened (under a second), larger ones by length only.
_VERIFIED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Tree:
    """An ImageFolder tree: ``train`` and ``test`` are folders with one folder per class; ``train`` may be None.

    ``classes`` selects and orders the classes; None takes every folder of ``train`` (without it, of ``test``), sorted.
    ``image_size`` is the side to resize to, in pixels; None keeps the images' size. Without ``resize``, images of
    another size are refused. ``annotations`` is a table (file name, tab, class on each line) of test images outside
    class folders; images of classes that ``train`` lacks are left out.
    """

    train: Path | None
    test: Path
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    resize: bool = True
    annotations: Path | None = None


@dataclass(frozen=True)
class _File:
    path: str  # listing a hundred thousand files takes half the time of Path
    label: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class _Listing:
    """The image files of both splits, sorted by class and path, and the class names that their labels index.

    ``train`` is empty if there are only test images.
    """

    classes: tuple[str, ...]
    train: tuple[_File, ...]
    test: tuple[_File, ...]

    @property
    def splits(self) -> dict[str, tuple[_File, ...]]:
        """The splits that the tree has, by name."""
        return {"train": self.train, "test": self.test} if self.train else {"test": self.test}


def load_tree(name: str, tree: Tree, cache: Path | None = None) -> Splits:
    """Load the splits of ``tree`` as memory maps; decode the files unless a valid cache entry of them exists.

    Concurrent processes decode only once. Entries of earlier listings are removed. Raises :class:`GradscopeError` if
    the tree is empty, train lacks a class of test, or a file cannot be decoded.
    """
    with _file_errors("data_root"):
        tree = replace(tree, train=tree.train and tree.train.resolve(), test=tree.test.resolve())
        listing = _list_tree(tree)
    directory = cache_directory(cache) / "folders"
    options = _digest(_FORMAT_VERSION, tree)
    entry = directory / f"{options}-{_digest(listing)}"
    splits = _open_entry(entry, name, listing)
    if splits is not None:
        return splits
    with _file_errors("GRADSCOPE_CACHE", "; set it to a writable folder with free space"):
        directory.mkdir(parents=True, exist_ok=True)
        splits = _build_once(entry, name, listing, tree)
    if splits is None:
        raise GradscopeError(
            f"GRADSCOPE_CACHE: {directory} returns other bytes than were written to it; set another folder"
        )
    return splits


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


@contextmanager
def _file_errors(argument: str, advice: str = "") -> Iterator[None]:
    """Turn an error of the file system within the block into a one-line :class:`GradscopeError`."""
    try:
        yield
    except OSError as error:
        raise GradscopeError(
            f"{argument}: {error.filename or 'the disk'}: {error.strerror or error}{advice}"
        ) from error


def _list_tree(tree: Tree) -> _Listing:
    named = tree.test if tree.train is None else tree.train
    classes = tree.classes or class_folders(named)
    if not classes:
        instead = " (or train/ and test/ with such folders)" if tree.train is None else ""
        raise GradscopeError(f"data_root: {named} must hold a folder of images for each class{instead}, got none")
    require_printable(classes, f"data_root: {named}")
    if tree.classes is None and tree.annotations is None:
        unknown = [label for label in class_folders(tree.test) if label not in set(classes)]
        if unknown:
            raise GradscopeError(f"data_root: {tree.test} must hold classes of {named} only, got {first_of(unknown)}")
    train = () if tree.train is None else _files_in_class_folders(tree.train, classes)
    if tree.annotations is None:
        test = _files_in_class_folders(tree.test, classes)
    else:
        test = _annotated_files(tree.test, classes, tree.annotations)
    present = {file.label for file in train}
    empty = [folder for label, folder in enumerate(classes) if label not in present]
    if empty and tree.train is not None:
        raise GradscopeError(
            f"data_root: {tree.train} must hold images of {first_of(empty)}, got none; {_extensions()}"
        )
    if not test:
        raise GradscopeError(f"data_root: {tree.test} must hold images, got none; {_extensions()}")
    return _Listing(classes, train, test)


def _extensions() -> str:
    return f"images end in {' '.join(vision.torchvision.datasets.folder.IMG_EXTENSIONS)}"


def class_folders(split: Path) -> tuple[str, ...]:
    """List the classes: the folder names in ``split``, sorted, without hidden ones such as ``.ipynb_checkpoints``."""
    return tuple(sorted(each.name for each in split.iterdir() if each.is_dir() and not each.name.startswith(".")))


def _files_in_class_folders(split: Path, classes: Sequence[str]) -> tuple[_File, ...]:
    return tuple(file for label, folder in enumerate(classes) for file in _image_files(split / folder, label))


def _annotated_files(split: Path, classes: Sequence[str], annotations: Path) -> tuple[_File, ...]:
    """List the image files of ``split``, sorted by class and path, with the class of each from ``annotations``."""
    text = read_text(annotations, "data_root")
    try:
        rows = dict(line.split("\t")[:2] for line in text.splitlines())
    except ValueError:  # a line without a tab
        raise GradscopeError(f"data_root: {annotations} must have lines of file name, tab, class") from None
    labels = {name: label for label, name in enumerate(classes)}
    files = []
    for file in _image_files(split, 0):
        name = Path(file.path).name
        if name not in rows:
            raise GradscopeError(f"data_root: {annotations} must name the class of every image, got none for {name}")
        if rows[name] in labels:
            files.append(replace(file, label=labels[rows[name]]))
    return tuple(sorted(files, key=lambda file: (file.label, file.path)))


def _image_files(folder: Path, label: int) -> list[_File]:
    """List the image files at any depth below ``folder``, sorted by path, without hidden ones; [] if it is missing."""
    return sorted(_walk(str(folder), label), key=lambda file: file.path) if folder.is_dir() else []


def _walk(folder: str, label: int, above: tuple[tuple[int, int], ...] = ()) -> Iterator[_File]:
    """Walk the image files below ``folder``; ``above`` holds the device and inode of each folder that contains it."""
    status = Path(folder).stat()
    here = status.st_dev, status.st_ino
    if here in above:
        raise GradscopeError(f"data_root: {folder} must not link back to a folder that contains it")
    if len(above) >= most("FOLDERS"):
        deepest = f"at most {most('FOLDERS')} folders deep; {raising('FOLDERS')}"
        raise GradscopeError(f"data_root: {folder} must be {deepest}")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, label, (*above, here))
            elif entry.name.lower().endswith(vision.torchvision.datasets.folder.IMG_EXTENSIONS):
                status = entry.stat()
                if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
                    raise GradscopeError(f"data_root: {entry.path} must be a regular file")
                yield _File(entry.path, label, status.st_size, status.st_mtime_ns)


def _build_once(entry: Path, name: str, listing: _Listing, tree: Tree) -> Splits | None:
    """Open ``entry``; build it first unless another process just did. Holds the lock of this tree and its options."""
    options = entry.name.partition("-")[0]
    with FileLock(entry.with_name(f"{options}.lock")):
        splits = _open_entry(entry, name, listing)
        if splits is None:
            _build_entry(entry, entry.with_name(f"{options}-building"), listing, tree)
            splits = _open_entry(entry, name, listing)
            _remove_others(entry.parent.glob(f"{options}-*"), keep=entry)
        return splits


def _build_entry(entry: Path, building: Path, listing: _Listing, tree: Tree) -> None:
    """Decode the files of ``listing`` in ``building`` and rename it to ``entry``; the caller holds the lock."""
    files = [Path(file.path) for file in (*listing.train, *listing.test)]
    with pillow_at_our_limit():
        headers = list(_threaded(read_header, files, "reading headers"))
    channels, height, width = common_format(headers, tree.image_size, tree.resize)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        record: dict[str, Any] = {}
        for split, members in listing.splits.items():
            paths = [Path(file.path) for file in members]
            decoded = _threaded(lambda path: read_pixels(path, channels, tree.image_size), paths, f"decoding {split}")
            with pillow_at_our_limit(), (building / f"{split}.bin").open("wb") as output:
                for pixels in decoded:
                    output.write(pixels.data)
            shape = [len(members), channels, height, width]
            images = _mapped(building / f"{split}.bin", shape)
            record[split] = {"shape": shape, "fingerprint": fingerprint(images, _labels(members), listing.classes)}
        (building / "format.json").write_text(json.dumps(record))
        shutil.rmtree(entry, ignore_errors=True)
        building.rename(entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open_entry(entry: Path, name: str, listing: _Listing) -> Splits | None:
    """Open the splits kept in ``entry``; None if it is missing or damaged."""
    try:
        record = parse_json(read_bytes(entry / "format.json"))
        opened = {split: _open_split(entry, split, name, listing, record[split]) for split in listing.splits}
        return Splits(opened.get("train"), opened["test"])
    except (OSError, ValueError, KeyError, TypeError, GradscopeError):
        return None


def _open_split(entry: Path, split: str, name: str, listing: _Listing, record: dict[str, Any]) -> ImageSet:
    labels = _labels(listing.splits[split])
    images = _mapped(entry / f"{split}.bin", record["shape"])
    if images.nbytes <= _VERIFIED_BYTES and fingerprint(images, labels, listing.classes) != record["fingerprint"]:
        raise ValueError(f"{entry} is damaged")
    return ImageSet(name, images, labels, listing.classes, record["fingerprint"])


def _mapped(path: Path, shape: Sequence[int]) -> torch.Tensor:
    """Map the file as a uint8 tensor, copy on write, so that the file never changes; ValueError for a wrong size."""
    if path.stat().st_size != np.prod(shape):
        raise ValueError(f"{path} must have the shape {shape}")
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=tuple(shape)))


def _labels(files: Sequence[_File]) -> torch.Tensor:
    return torch.tensor([file.label for file in files], dtype=torch.int64)


def _remove_others(entries: Iterator[Path], keep: Path) -> None:
    for entry in entries:
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True)


def _threaded(function: Callable[[Path], T], paths: Sequence[Path], description: str) -> Iterator[T]:
    """Apply ``function`` to each path in a thread pool; yield results in order, with a progress bar on a terminal."""
    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    runs = [paths[start : start + _RUN] for start in range(0, len(paths), _RUN)]
    with ThreadPoolExecutor() as pool, bar:
        task = bar.add_task(description, total=len(paths))
        for start in range(0, len(runs), _RUNS_AT_A_TIME):
            for results in pool.map(
                lambda run: [function(path) for path in run], runs[start : start + _RUNS_AT_A_TIME]
            ):
                yield from results
                bar.advance(task, len(results))

"""Checks that several commands share; without torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradscope.errors import GradscopeError


def require_directory(directory: Path) -> None:
    """Raise :class:`GradscopeError` if there is no such directory, before slow imports."""
    if not directory.is_dir():
        raise GradscopeError(f"DIR must be a directory of results, got {directory}, which is not a directory")


def require_place(file: Path, argument: str) -> None:
    """Raise :class:`GradscopeError` if ``file`` cannot be written, before any work is done."""
    if file.is_dir():
        raise GradscopeError(f"{argument} must be a file, got the directory {file}")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise GradscopeError(f"{argument} must be in a writable directory, got {file}")


def is_first_process() -> bool:
    """Whether this process prints for all processes that ``torchrun`` started; works without torch."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def shared_mistakes() -> Iterator[None]:
    """Mark errors in this block as seen by every process that ``torchrun`` started, so that only one prints them."""
    try:
        yield
    except GradscopeError as error:
        error.shared = True
        raise

"""What several commands need beside declared options; without torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradscope.errors import GradscopeError


def require_directory(directory: Path) -> None:
    """Raise :class:`GradscopeError` where there is no such directory, before anything is imported to read it."""
    if not directory.is_dir():
        raise GradscopeError(f"DIR must be a directory of results, got {directory}, which is no directory")


def require_place(file: Path, argument: str) -> None:
    """Raise :class:`GradscopeError` where no file can be written at ``file``, before any work is done."""
    if file.is_dir():
        raise GradscopeError(f"{argument} must be a file, got {file}, a directory")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise GradscopeError(f"{argument} must be in a directory that can be written to, got {file}")


def is_first_process() -> bool:
    """Whether this process is the one that speaks for all that ``torchrun`` has started; asked without torch."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def shared_mistakes() -> Iterator[None]:
    """Mark a mistake in the command line as one that every process that ``torchrun`` has started sees."""
    try:
        yield
    except GradscopeError as error:
        error.shared = True
        raise

"""Limits on what is read from a file, so that a hostile file cannot use up the machine's memory.

The environment variable ``GRADSCOPE_MOST_PIXELS=200000000`` sets the limit on pixels; every name of :data:`LIMITS` has
its own variable. Processes that a command starts inherit the variables.
"""

import os

from gradscope.errors import GradscopeError


def memory() -> int | None:
    """Return this machine's memory in bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


#: Name to the limit and what it limits. The size of a table is its size after decompression.
LIMITS: dict[str, tuple[int, str]] = {
    "PIXELS": (89_478_485, "pixels of an image, before and after resizing; as many take a quarter of a gigabyte"),
    "SIDE": (4096, "pixels a side that image_size may ask for"),
    "CLASSES": (100_000, "classes of a data set"),
    "FOLDERS": (32, "levels of nested folders in a data set"),
    "TEXT_BYTES": (2**26, "bytes of a text file that is read whole: JSON, recipes, lists of classes, annotations"),
    "TABLE_BYTES": ((memory() or 2**34) // 4, "bytes of a table; a quarter of the machine's memory"),
}


def most(name: str) -> int:
    """Return the limit ``name`` of :data:`LIMITS`: the environment's value if it sets one, else the default."""
    variable = f"GRADSCOPE_MOST_{name}"
    text = os.environ.get(variable, "")
    if not text:
        return LIMITS[name][0]
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not int(text):
        raise GradscopeError(f"{variable} must be a whole number above 0, got {text!r:.100}", "")
    return int(text)


def raising(name: str) -> str:
    """Say, for a message, which environment variable raises the limit ``name``."""
    return f"GRADSCOPE_MOST_{name} raises this limit"


def require_memory(size: int) -> None:
    """Raise ValueError if ``size`` bytes exceed this machine's memory."""
    available = memory()
    if available is not None and size > available:
        raise ValueError(f"it asks for {size / 2**30:.1f} GiB, this machine has {available / 2**30:.1f} GiB of memory")

"""How much is read from a file at most, so that a hostile one does not take the machine's memory.

``GRADSCOPE_MOST_PIXELS=200000000`` in the environment sets the limit on pixels, and so on for every name of
:data:`LIMITS`. Processes that a command starts inherit it.
"""

import os

from gradscope.errors import GradscopeError


def memory() -> int | None:
    """The bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # there is no sysconf on Windows
        return None


#: Name to the limit and what it limits. A table is measured once it is decompressed.
LIMITS: dict[str, tuple[int, str]] = {
    "PIXELS": (89_478_485, "pixels of an image, before and after resizing; they take a quarter gigabyte"),
    "SIDE": (4096, "pixels that image_size brings a side to"),
    "CLASSES": (100_000, "classes of a data set"),
    "FOLDERS": (32, "folders that lie within each other in a data set"),
    "TEXT_BYTES": (2**26, "bytes of a text that is read whole: JSON, recipes, lists of classes, annotations"),
    "TABLE_BYTES": ((memory() or 2**34) // 4, "bytes of a table; a quarter of the machine's memory"),
}


def most(name: str) -> int:
    """The limit called ``name`` in :data:`LIMITS`, as the environment sets it or as it usually is."""
    variable = f"GRADSCOPE_MOST_{name}"
    given = os.environ.get(variable, "")
    if not given:
        return LIMITS[name][0]
    if not given.isascii() or not given.isdigit() or len(given) > 18 or not int(given):
        raise GradscopeError(f"{variable} must be a whole number above 0, got {given!r:.100}", "")
    return int(given)


def raising(name: str) -> str:
    """How the limit called ``name`` is raised, for a message."""
    return f"GRADSCOPE_MOST_{name} raises this limit"


def require_memory(size: int) -> None:
    """Raise ValueError where ``size`` bytes are more than this machine's memory."""
    there = memory()
    if there is not None and size > there:
        raise ValueError(f"it asks for {size / 2**30:.1f} GiB, this machine has {there / 2**30:.1f} GiB of memory")

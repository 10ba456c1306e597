"""The arrays of an ``.npz``: what the file says of their sizes is checked before memory is taken."""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gradscope.errors import reason_of
from gradscope.limits import require_memory
from gradscope.reading import open_file

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_arrays(source: Path | BinaryIO) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an ``.npz``, by name; what is pickled is refused.

    Raises OSError where the file cannot be read, and ValueError, in one line, for everything else.
    """
    try:
        with open_file(source) if isinstance(source, Path) else source as file, zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            require_memory(2 * sum(member.file_size for member in members))  # they may be converted
            return {member.filename.removesuffix(".npy"): _read(archive, member) for member in members}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever their parsing raises.
        raise ValueError(reason_of(error)) from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"{member.filename} has version {version} of the format")
        shape, _, dtype = _HEADER_READERS[version](file)
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if size != held and not dtype.hasobject:
            raise ValueError(f"{member.filename} asks for {size} bytes and holds {held}")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind == "U":
        array.tolist()  # fails where a character is none
    return array

"""Read the arrays of an ``.npz`` safely: check the sizes that the file declares before memory is allocated."""

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
    """Read the arrays of an ``.npz``, by name. Pickled arrays are refused.

    Raises OSError if the file cannot be read, and ValueError with a one-line message for everything else.
    """
    try:
        with open_file(source) if isinstance(source, Path) else source as file, zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            require_memory(2 * sum(member.file_size for member in members))  # twice: the caller may convert them
            return {member.filename.removesuffix(".npy"): _read(archive, member) for member in members}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever their parsing raises.
        raise ValueError(reason_of(error)) from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"the format version of {member.filename} must be 1.0 or 2.0, got {version}")
        shape, _, dtype = _HEADER_READERS[version](file)
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if size != held and not dtype.hasobject:
            raise ValueError(f"{member.filename} must hold the {size} bytes that its header declares, got {held}")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind == "U":
        array.tolist()  # raises on an invalid character
    return array

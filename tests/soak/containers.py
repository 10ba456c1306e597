"""The formats that gradscope reads, as containers: opened, changed within and closed again, so that they still open."""

import csv
import gzip
import io
import json
import pickle
import pickletools
import struct
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.soak.mutation import (
    NUMBERS,
    TEXTS,
    mutate_bytes,
    mutate_tree,
    odd_array,
    odd_tensor_or_value,
    odd_value,
)

#: Changes the content of a file within its container; says what it did.
Change = Callable[[bytes, Random], tuple[bytes, str]]


def json_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    tree, done = mutate_tree(json.loads(content), random, odd_value)
    return json.dumps(tree).encode(errors="surrogatepass"), done


def toml_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    tree, done = mutate_tree(tomllib.loads(content.decode()), random, odd_value)
    return _toml(tree).encode(errors="replace"), done


def _toml(tree: Any) -> str:
    """TOML of ``tree``: every value inline, so that any nesting can be said."""
    items = tree.items() if isinstance(tree, dict) else [("value", tree)]
    return "".join(f"{json.dumps(str(key))} = {_inline(value)}\n" for key, value in items)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if value is None:
        return '""'
    if isinstance(value, float):
        return repr(value)  # nan and inf are TOML's words, too
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else json.dumps(value)


def csv_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    rows = list(csv.reader(io.StringIO(content.decode())))
    kind = random.randrange(6)
    row = random.randrange(len(rows))
    column = random.randrange(len(rows[row]))
    if kind < 3 and len(rows) > 1:
        row = random.randrange(1, len(rows))
        rows[row][column] = str(random.choice((*NUMBERS, *TEXTS)))
        done = f"{rows[0][column]} of row {row} -> {rows[row][column]!r:.60}"
    elif kind == 3:
        for each in rows:
            del each[column : column + 1]
        done = f"column {column} left out"
    elif kind == 4:
        rows[row:row] = [rows[row]] * random.choice((1, 2, 500))
        done = f"row {row} repeated"
    else:
        del rows[row]
        done = f"row {row} left out"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="replace"), done


def zip_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """A member's bytes are changed, its name, or how it is stored; the checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    at = random.randrange(len(members))
    name, inner = members[at]
    kind = random.randrange(6)
    if kind < 3:
        inner, done = mutate_bytes(inner, random)
        members[at] = name, inner
        done = f"{name}: {done}"
    elif kind == 3:
        members[at] = random.choice(TEXTS)[:1000].replace("\ud800", "?") or "x", inner
        done = f"{name} called {members[at][0]!r:.60}"
    elif kind == 4:
        members.append((name, inner[: len(inner) // 2]))
        done = f"{name} twice"
    else:
        del members[at]
        done = f"{name} left out"
    changed = io.BytesIO()
    stored = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(changed, "w", stored) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
        for name, inner in members:
            archive.writestr(zipfile.ZipInfo(name), inner, stored)
    return changed.getvalue(), done


def npz_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """An array of an ``.npz`` is another one."""
    with np.load(io.BytesIO(content)) as arrays:
        tree = {name: arrays[name] for name in arrays}
    if random.random() < 0.2:  # a header that says something else than what follows
        name = random.choice(list(tree))
        shape = random.choice(((10**15,), (-1,), (2**40, 0), tuple(2 for _ in range(40)), "x", (True,), (2.5,)))
        header = repr(
            {"descr": random.choice(("|u1", "<f8", "|O", "<U9", "x")), "fortran_order": False, "shape": shape}
        )
        inner = b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + tree[name].tobytes()
        members = {f"{name}.npy": inner}
        done = f"the header of {name} says {header}"
    else:
        tree, done = mutate_tree(tree, random, odd_array)
        if not isinstance(tree, dict):
            tree = {"arr_0": tree}
        members = {}
        for name, array in tree.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            members[f"{str(name)[:1000].replace(chr(0xD800), '?')}.npy"] = member.getvalue()
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for name, inner in members.items():
            archive.writestr(zipfile.ZipInfo(name), inner)
    return changed.getvalue(), done


def torch_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """A value in a file of ``torch.save`` is another one."""
    tree, done = mutate_tree(torch.load(io.BytesIO(content), weights_only=True), random, odd_tensor_or_value)
    return _saved(tree), done


def _saved(value: Any) -> bytes:
    changed = io.BytesIO()
    torch.save(value, changed)
    return changed.getvalue()


class _Calls:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickle(content: bytes, random: Random) -> tuple[bytes, str]:
    """A file of ``torch.save`` in which a value is a call."""
    import builtins
    import os

    calls = (
        _Calls(os.system, "touch escaped"),
        _Calls(builtins.eval, "open('escaped', 'w')"),
        _Calls(builtins.exec, "import pathlib; pathlib.Path('escaped').touch()"),
        _Calls(builtins.open, "escaped", "w"),
        _Calls(os.mkdir, "escaped"),
        _Calls(torch.load, "a.pt"),
        _Calls(getattr, "", "join"),
        _Calls(bytearray, 1 << 40),
    )
    call = random.choice(calls)
    tree, done = mutate_tree(torch.load(io.BytesIO(content), weights_only=True), random, lambda value, random: call)
    if random.random() < 0.3:
        return pickle.dumps(tree, random.randrange(6)), f"a bare pickle, {done}"
    return _saved(tree), f"{done}: calls {call.call[0].__name__}"


def safetensors_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """The header of a safetensors file says something else; its length is right."""
    (length,) = struct.unpack("<Q", content[:8])
    tree, done = mutate_tree(json.loads(content[8 : 8 + length]), random, odd_value)
    header = json.dumps(tree).encode(errors="replace")
    return struct.pack("<Q", len(header)) + header + content[8 + length :], done


def gzip_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    inner, done = mutate_bytes(gzip.decompress(content), random)
    return gzip.compress(inner, 1), done


def idx_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """The header of an IDX file says another kind, another number of axes or other lengths."""
    axes = content[3]
    lengths = list(struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes]))
    at = random.randrange(axes)
    lengths[at] = random.choice((0, 1, lengths[at] - 1, lengths[at] + 1, 2**31, 2**32 - 1))
    head = random.choice((content[:4], content[:4], b"\0\0\x0d" + content[3:4], b"\0\0\x08" + bytes([axes + 1])))
    inner = content[4 + 4 * axes :]
    if random.random() < 0.3:
        inner, _ = mutate_bytes(inner, random)
    return head + struct.pack(f">{axes}I", *lengths) + inner, f"header {head.hex()} {lengths}"


def png_changed(content: bytes, random: Random) -> tuple[bytes, str]:
    """A chunk of a PNG is changed, doubled or left out; its checksum is right."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    chosen = random.randrange(len(chunks))
    name, inner = chunks[chosen]
    kind = random.randrange(5)
    if name == b"IHDR" and kind < 3:
        side = random.choice((0, 1, 8, 4096, 65_000, 5_000_000, 2**31 - 1, 2**32 - 1))
        other = random.choice((1, 8, side))
        inner = struct.pack(">II", *random.sample((side, other), 2)) + inner[8:]
        if random.random() < 0.3:
            inner = inner[:8] + bytes(
                [random.choice((1, 2, 4, 8, 16, 3)), random.randrange(8), 0, 0, random.randrange(2)]
            )
        done = f"IHDR {inner.hex()}"
    elif name == b"IDAT" and kind < 3:
        raw = zlib.decompress(inner)
        raw, done = mutate_bytes(raw, random) if kind else (raw * random.choice((2, 100_000)), "repeated")
        inner, done = zlib.compress(raw), f"IDAT: {done}"
    elif kind == 3:
        text = random.choice((b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"gAMA", b"acTL", b"tRNS", b"PLTE"))
        chunks.insert(1, (text, random.randbytes(random.choice((0, 3, 1000))) + b"\0\0" + zlib.compress(bytes(10**6))))
        done = f"{text.decode()} put in"
    else:
        inner, done = mutate_bytes(inner, random)
        done = f"{name.decode()}: {done}"
    if kind != 3:
        chunks[chosen] = name, inner
    written = content[:8]
    for name, inner in chunks:
        written += struct.pack(">I", len(inner)) + name + inner + struct.pack(">I", zlib.crc32(name + inner))
    return written, done


def odd_image(content: bytes, random: Random) -> tuple[bytes, str]:
    """A sound picture of another format, mode or size."""
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
    formats = (
        "PNG",
        "JPEG",
        "BMP",
        "GIF",
        "TIFF",
        "WEBP",
        "PPM",
        "EPS",
        "ICO",
        "PDF",
        "TGA",
        "PCX",
        "DDS",
        "IM",
        "SGI",
    )
    size = random.choice(((1, 1), (8, 8), (1, 3000), (3000, 1), (5, 700), (33, 2)))
    for _ in range(20):
        mode, kind = random.choice(modes), random.choice(formats)
        written = io.BytesIO()
        try:
            Image.new(mode, size).save(written, kind)
        except (OSError, ValueError, KeyError):
            continue
        return written.getvalue(), f"{kind} {mode} {size}"
    return content, "none"


GHOSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(escaped) (w) file closefile\nshowpage\n"
)


def program_image(content: bytes, random: Random) -> tuple[bytes, str]:
    """What other programs would open: PostScript that writes a file, SVG, a shell script, a link to a file."""
    kinds = {
        "PostScript": GHOSTSCRIPT,
        "PostScript after a head": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<II", 30, len(GHOSTSCRIPT))
        + bytes(18)
        + GHOSTSCRIPT,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "a script": b"#!/bin/sh\ntouch escaped\n",
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "MPO": content + content,
        "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(touch)>>>>endobj\n",
    }
    name = random.choice(list(kinds))
    return kinds[name], name


def opens(path: Path) -> bool:
    """Whether the container at ``path``, by the name of the file, can be opened and its checksums are right."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it reads past
            return _OPENS[path.suffix](path)
    except Exception:  # each of these readers raises whatever its parsing raises
        return False


def _zip_opens(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _torch_opens(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        inner = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.testzip() is None and bool(list(pickletools.genops(inner)))


def _image_opens(path: Path) -> bool:
    with Image.open(path, formats=("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")) as image:
        image.verify()
    return True


def _safetensors_opens(path: Path) -> bool:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return isinstance(json.loads(content[8 : 8 + length]), dict)


def _idx_opens(path: Path) -> bool:
    content = path.read_bytes()
    return content[:3] == b"\0\0\x08" and 1 <= content[3] <= 4


def _csv_opens(path: Path) -> bool:
    return len({len(row) for row in csv.reader(io.StringIO(path.read_text()))}) == 1


def _json_opens(path: Path) -> bool:
    json.loads(path.read_text())
    return True


def _toml_opens(path: Path) -> bool:
    tomllib.loads(path.read_text())
    return True


def _gzip_opens(path: Path) -> bool:
    return bool(gzip.decompress(path.read_bytes()))


_OPENS: dict[str, Callable[[Path], bool]] = {
    ".npz": _zip_opens,
    ".pt": _torch_opens,
    ".resume": _torch_opens,
    ".safetensors": _safetensors_opens,
    ".png": _image_opens,
    ".gz": _gzip_opens,
    "": _idx_opens,
    ".csv": _csv_opens,
    ".json": _json_opens,
    ".toml": _toml_opens,
}

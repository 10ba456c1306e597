"""Random changes: of bytes, and of values in nested dicts and lists with tensors and arrays at their ends."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch

#: Texts that programs take for something else than a name.
TEXTS = (
    "",
    " ",
    "-1",
    "../../escaped",
    "/escaped",
    "a/b",
    ".",
    "..",
    "nan",
    "inf",
    "1e999",
    "\0",
    "a\nb",
    "\r\ngradscope: all is well",
    "\x1b[31mred",
    "\ud800",
    "\u202e",
    "=1+1",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "%s%n",
    "CON",
    "x" * 300,
    "x" * 100_000,
    "package.module:factory",
    "os:system",
    "--overwrite",
    "file:///etc/passwd",
    "ä€😀",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e300,
    -1e300,
    math.nan,
    math.inf,
    -math.inf,
)


def mutate_bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    """``content`` with bits flipped, or parts cut, doubled, zeroed or put in; and what was done."""
    if not content:
        return bytes([random.randrange(256)]), "a byte put into an empty file"
    at = random.randrange(len(content))
    length = min(len(content) - at, random.choice((1, 2, 4, 16, 200)))
    kind = random.randrange(7)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(random.choice((1, 1, 2, 8, 64))):
            flipped[random.randrange(len(content))] ^= 1 << random.randrange(8)
        return bytes(flipped), "bits flipped"
    if kind == 1:
        return content[:at], f"cut at {at}"
    if kind == 2:
        return content[:at] + content[at + length :], f"{length} bytes taken out at {at}"
    if kind == 3:
        return content[: at + length] + content[at:], f"{length} bytes doubled at {at}"
    if kind == 4:
        return content[:at] + bytes(length) + content[at + length :], f"{length} bytes zeroed at {at}"
    if kind == 5:
        filled = b"\xff" * length
        return content[:at] + filled + content[at + length :], f"{length} bytes set at {at}"
    return content[:at] + random.randbytes(length) + content[at:], f"{length} random bytes put in at {at}"


def mutate_tree(tree: Any, random: Random, odd: Callable[[Any, Random], Any]) -> tuple[Any, str]:
    """``tree`` with one of its values changed, and what was done; ``odd`` makes the new value out of the old.

    Deep values are as likely as shallow ones. Dicts and lists on the way are copied.
    """
    places = list(_places(tree))
    place = random.choice(places)
    return _changed(tree, place, random, odd)


def _places(tree: Any, place: tuple[Any, ...] = ()) -> Any:
    yield place
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _places(value, (*place, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _places(value, (*place, index))


def _changed(tree: Any, place: tuple[Any, ...], random: Random, odd: Callable[[Any, Random], Any]) -> tuple[Any, str]:
    if not place:
        value = odd(tree, random)
        return value, f"{_short(tree)} -> {_short(value)}"
    key, *rest = place
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    if not rest and random.random() < 0.3:
        kind = random.randrange(3)
        if kind == 0:
            value = copy.pop(key)
            return _like(tree, copy), f"{key!r:.60} left out"
        if kind == 1 and isinstance(copy, dict):
            name = random.choice((*TEXTS, *copy))
            copy[name] = copy.pop(key)
            return copy, f"{key!r:.60} called {name!r:.60}"
        if isinstance(copy, list):
            copy[key:key] = [copy[key]] * random.choice((1, 3, 1000))
            return _like(tree, copy), f"{key} repeated"
        copy[random.choice(TEXTS)] = copy[key]
        return copy, f"{key!r:.60} doubled"
    copy[key], done = _changed(copy[key], tuple(rest), random, odd)
    return _like(tree, copy), f"{key!r:.60}: {done}"


def _like(tree: Any, copy: Any) -> Any:
    return tuple(copy) if isinstance(tree, tuple) else copy


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {value.dtype} {tuple(value.shape)} {str(value.layout).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"{value!r:.60}"


def odd_value(value: Any, random: Random) -> Any:
    """Something else in the place of ``value``, of its kind or of another, that JSON and TOML can hold."""
    if isinstance(value, bool) or random.random() < 0.3:
        return _any_value(random)
    if isinstance(value, int | float):
        changed = random.choice((value + 1, value - 1, -value, value * 1000, value / 3, str(value), *NUMBERS))
        return int(changed) if isinstance(value, int) and random.random() < 0.5 and _is_finite(changed) else changed
    if isinstance(value, str):
        return random.choice((*TEXTS, value + " ", value[:-1], value.upper(), value * 2, [value]))
    if isinstance(value, list | tuple) and value:
        return random.choice((list(value[:-1]), [*value, value[0]], list(reversed(value)), [list(value)], value[0]))
    if isinstance(value, dict) and value:
        return random.choice((dict(list(value.items())[1:]), list(value), {**value, "unknown": 1}))
    return _any_value(random)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _any_value(random: Random) -> Any:
    deep: Any = random.choice(([], {}))
    for _ in range(random.choice((1, 5, 60, 300))):
        deep = [deep] if isinstance(deep, list) else {"a": deep}
    return random.choice((None, True, False, [], {}, random.choice(NUMBERS), random.choice(TEXTS), deep))


def odd_tensor_or_value(value: Any, random: Random) -> Any:
    """As :func:`odd_value`, and for a tensor another kind, shape, layout or content; what ``torch.save`` can hold."""
    if not isinstance(value, torch.Tensor):
        return torch.zeros(2) if random.random() < 0.1 else odd_value(value, random)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    flat = value.detach().clone().reshape(-1)
    spoilt = flat.clone()
    if len(spoilt) and spoilt.is_floating_point():
        spoilt[random.randrange(len(spoilt))] = random.choice((math.nan, math.inf, 1e30, -1e30, 0.0))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: value.to(random.choice(kinds)),
        lambda: flat,
        lambda: flat[:-1],
        lambda: value.unsqueeze(0),
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
        lambda: value.to_sparse(),
        lambda: torch.zeros(1).expand(random.choice((7, 10**6, 10**12))),
        lambda: torch.empty(random.choice((1, 10**4)), 3, device="meta"),
        lambda: spoilt.reshape(value.shape),
        lambda: torch.nn.Parameter(value.float()),
        lambda: value.tolist() if value.numel() < 1000 else None,
        lambda: value.t().contiguous().t() if value.dim() == 2 else value.flip(0) if value.dim() else value,
        lambda: odd_value(0, random),
    )
    return random.choice(changes)()


def odd_array(value: Any, random: Random) -> Any:
    """For an array another kind, shape or content that ``.npy`` holds without pickling."""
    if not isinstance(value, np.ndarray):
        return np.zeros(2)
    kinds = ("f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "U3", "S3", "M8[s]", "V4", ">i8", ">f4")
    flat = value.reshape(-1)
    spoilt = flat.copy()
    if len(spoilt) and spoilt.dtype.kind in "iuf":
        highest = np.finfo(spoilt.dtype).max if spoilt.dtype.kind == "f" else np.iinfo(spoilt.dtype).max
        spoilt[random.randrange(len(spoilt))] = random.choice((highest, 0, math.nan if spoilt.dtype.kind == "f" else 1))
    kind = random.choice(kinds)
    converted = np.zeros(value.shape, kind) if kind[0] in "MV" or value.dtype.kind == "U" else value.astype(kind)
    axis = random.randrange(value.ndim) if value.ndim else 0
    return random.choice(
        (
            converted,
            flat,
            flat[:-1],
            value[None],
            value[..., None],
            np.zeros(0, value.dtype),
            np.zeros((0, *value.shape[1:]), value.dtype),
            np.zeros((), value.dtype),
            np.zeros((len(value) if value.ndim else 0, 0), value.dtype),
            np.repeat(value, 2, axis) if value.ndim else value,
            np.asfortranarray(value),
            spoilt.reshape(value.shape),
            np.full_like(value, 255) if value.dtype.kind in "iu" else value,
            np.array(random.choice(TEXTS)),
            np.array([random.choice(TEXTS) for _ in range(len(value) if value.ndim else 1)]),
            np.zeros(value.shape, [("a", "f4"), ("b", "i4")]),
        )
    )

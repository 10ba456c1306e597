"""Named random streams. Each purpose has its own generator, so a new purpose changes no other number."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive(seed: int, *names: object) -> int:
    """Derive the 63-bit seed of the stream ``names`` from ``seed``, by BLAKE2b; the same on every platform."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Make the CPU generator of the stream ``names`` under ``seed``."""
    return torch.Generator().manual_seed(derive(seed, *names))


def sent(drawn: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy random numbers drawn on the CPU to ``device``, as ``dtype`` (None keeps their own).

    The copy to a GPU is asynchronous: the CPU draws the next numbers in the meantime.
    """
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, dtype, non_blocking=True)


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Seed torch's global generators for the stream ``names`` inside, and restore the caller's state afterwards.

    For code that takes no generator and draws from the global state: weight initialisation and dropout.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(derive(seed, *names))
        yield

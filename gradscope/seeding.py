"""Named random streams. Every purpose has its own generator, so adding one changes no other number."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called ``names`` under ``seed``; BLAKE2b, equal on every platform."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for the stream called ``names`` under ``seed``."""
    return torch.Generator().manual_seed(derive(seed, *names))


def sent(drawn: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """What was ``drawn`` on the CPU, on ``device`` and in the precision ``dtype``, its own where None.

    A GPU fetches it when it gets there: the CPU does not wait, and draws what comes next meanwhile.
    """
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, dtype, non_blocking=True)


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Seed torch's global generators for the stream called ``names``; the caller's state comes back after.

    For what draws from the global state and takes no generator: weight initialisation and dropout.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(derive(seed, *names))
        yield

"""A labelled set of images as tensors: uint8 where it is kept, float32 in [0, 1] where it is used."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from gradscope.errors import GradscopeError
from gradscope.seeding import generator

#: Bytes hashed at a time, so that the fingerprint of a memory map reads it in pieces.
_CHUNK_BYTES = 32 * 2**20
#: Images whose statistics are taken at a time.
_STATISTICS_BATCH = 1024


def fingerprint(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """BLAKE2b over the images (N, C, H, W), labels (N,) and class names: equal content, equal text of 32 hex digits."""
    digest = hashlib.blake2b(repr((tuple(images.shape), tuple(classes))).encode(), digest_size=16)
    digest.update(labels.cpu().numpy().tobytes())
    rows = max(1, _CHUNK_BYTES // max(1, images[:1].numel()))
    for part in images.split(rows):
        digest.update(part.reshape(-1).cpu().numpy())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Square images (N, C, H, W) as uint8 with labels (N,) as int64, each an index into ``classes``.

    The images may be a memory map or live on a device. ``fingerprint`` stands for the content.
    Raises :class:`GradscopeError` where shapes, types or labels disagree.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        self._check_images()
        self._check_labels()

    @classmethod
    def from_tensors(cls, name: str, images: Tensor, labels: Tensor, classes: Sequence[str]) -> Self:
        """The set of these tensors, its fingerprint taken from their content."""
        return cls(name, images, labels, tuple(classes), fingerprint(images, labels, classes))

    def _check_images(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise GradscopeError(
                f"{self.name}: images must be uint8 (N, C, H, W), got {_kind(self.images)} of shape {shape}"
            )
        if 0 in shape:
            raise GradscopeError(f"{self.name}: at least one image of one pixel is needed, got shape {shape}")
        if shape[2] != shape[3]:
            raise GradscopeError(f"{self.name}: images must be square, got height {shape[2]} and width {shape[3]}")

    def _check_labels(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise GradscopeError(
                f"{self.name}: labels must be int64 ({len(self.images)},), one for each image, "
                f"got {_kind(self.labels)} of shape {tuple(self.labels.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            wrong = low if low < 0 else high
            raise GradscopeError(
                f"{self.name}: labels from 0 to {len(self.classes) - 1} are allowed "
                f"({len(self.classes)} classes), got {wrong}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.images.shape[2]

    def subset(self, indices: Tensor) -> "ImageSet":
        """A copy of the images at ``indices`` (M,), in that order; its fingerprint follows from the set's and theirs.

        Raises :class:`GradscopeError` where ``indices`` are not int64 from 0 to N - 1.
        """
        valid = indices.dtype == torch.int64 and indices.dim() == 1 and len(indices) > 0
        if not valid or int(indices.min()) < 0 or int(indices.max()) >= len(self):
            raise GradscopeError(
                f"indices: one or more int64 (M,) from 0 to {len(self) - 1} are allowed, "
                f"got {_kind(indices)} of shape {tuple(indices.shape)}"
            )
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(indices.cpu().numpy().tobytes())
        here = indices.to(self.images.device)
        images, labels = self.images.index_select(0, here), self.labels.index_select(0, here)
        return replace(self, images=images, labels=labels, fingerprint=digest.hexdigest())

    def on(self, device: torch.device | str) -> "ImageSet":
        """The set with images and labels on ``device`` if they fit in half of its free memory, else the set itself.

        What stays behind streams: the batches are moved one by one. Free memory is known for CUDA only.
        """
        device = torch.device(device)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * self.images.nbytes > free:
                return self
        elif device.type != "cpu":
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def raw_batch(self, indices: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """The uint8 images (B, C, H, W) and labels (B,) at ``indices`` (B,), on ``device``."""
        return _gathered(self.images, indices, device), _gathered(self.labels, indices, device)

    def batch(self, indices: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """The float32 images in [0, 1] (B, C, H, W) and labels (B,) at ``indices`` (B,), on ``device``."""
        images, labels = self.raw_batch(indices, device)
        # CUDA divides by a Python number through its reciprocal, a rounding off; by a tensor it divides as a CPU does.
        return images.float().div_(torch.full((), 255.0, device=device)), labels

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All images in order, as ``(indices, images, labels)``; the indices stay on the CPU."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield indices, *self.batch(indices, device)

    def channel_statistics(self, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in [0, 1] units, over the images at ``indices`` (M,).

        A channel that never varies gets 1, so that dividing by it is harmless.
        """
        sums = torch.zeros(2, self.channels, dtype=torch.float64)
        for part in indices.split(_STATISTICS_BATCH):
            images, _ = self.batch(part, "cpu")
            sums += torch.stack([images.double().sum(dim=(0, 2, 3)), images.double().square().sum(dim=(0, 2, 3))])
        mean, square = sums / (len(indices) * self.image_size**2)
        std = (square - mean.square()).clamp(min=0).sqrt()
        return tuple(mean.tolist()), tuple(std.where(std > 0, 1.0).tolist())


@dataclass(frozen=True)
class Splits:
    """The two halves of a data set; classes, channels and image size agree, else :class:`GradscopeError`."""

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for what in ("classes", "channels", "image_size"):
            of_train, of_test = getattr(self.train, what), getattr(self.test, what)
            if of_train != of_test:
                raise GradscopeError(
                    f"{self.train.name}: train and test must agree in {what}, got {of_train} and {of_test}"
                )


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices ``(train, held out)`` of ``labels`` (N,): round(fraction * count) of each class are held out.

    From a class of two or more, at least one is held out and at least one stays. Each class has its own stream of
    ``seed``. Raises :class:`GradscopeError` where ``fraction`` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise GradscopeError(f"fraction: a number between 0 and 1 is allowed, got {fraction}")
    labels = labels.cpu()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, "stratified-split", label))
        held[members[order[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def _gathered(source: Tensor, indices: Tensor, device: torch.device | str) -> Tensor:
    """``source[indices]`` on ``device``, gathered where ``source`` lives; through pinned memory from CPU to CUDA."""
    if torch.device(device).type != "cuda" or source.device.type != "cpu":
        return source.index_select(0, indices.to(source.device)).to(device)
    pinned = torch.empty((len(indices), *source.shape[1:]), dtype=source.dtype, pin_memory=True)
    torch.index_select(source, 0, indices.cpu(), out=pinned)
    return pinned.to(device, non_blocking=True)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

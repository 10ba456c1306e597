"""A labelled set of images as tensors: stored as uint8 or float32 in [0, 1], used as float32."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from gradscope.errors import UNPRINTABLE, GradscopeError
from gradscope.limits import most, raising
from gradscope.seeding import generator

#: Bytes hashed at a time, so that hashing a memory map does not load it whole.
_CHUNK_BYTES = 32 * 2**20
#: Floats that leave [0, 1] by at most this much probably come from rounding or interpolation.
_ROUNDING = 0.05
#: Accepted types of labels; the fingerprint hashes them as int64.
INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64)
#: The maximum length of a class's or a set's name, in characters.
_LONGEST_NAME = 255
#: Images per batch when statistics are computed.
_STATISTICS_BATCH = 1024


def fingerprint(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """Compute BLAKE2b over the images (N, C, H, W), labels (N,) and class names, as 32 hex digits.

    Equal content gives equal fingerprints. Bytes and the floats they represent have different ones.
    """
    digest = hashlib.blake2b(repr((tuple(images.shape), tuple(classes))).encode(), digest_size=16)
    digest.update(labels.cpu().numpy().tobytes())
    rows = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for part in images.split(rows):
        digest.update(part.reshape(-1).contiguous().cpu().numpy())
    return digest.hexdigest()


def numbered(count: int) -> tuple[str, ...]:
    """Name ``count`` classes by their numbers: "0", "1", ...

    >>> numbered(3)
    ('0', '1', '2')
    """
    require_few_classes(count)
    return tuple(str(number) for number in range(count))


def require_few_classes(count: int) -> None:
    """Raise :class:`GradscopeError` for more classes than the limit, as values that are not labels would give."""
    if count > most("CLASSES"):
        raise GradscopeError(f"labels must have at most {most('CLASSES')} classes, got {count}; {raising('CLASSES')}")


def require_printable(classes: Sequence[str], where: str) -> None:
    """Raise :class:`GradscopeError` unless each class's name is one short line, as tables and figures require."""
    for name in classes:
        if len(name) > _LONGEST_NAME or UNPRINTABLE.search(name):
            raise GradscopeError(
                f"{where}: names of classes must be one line of at most {_LONGEST_NAME} characters, got {name!r:.100}"
            )


def as_floats(images: Tensor) -> Tensor:
    """Convert ``images`` to float32 in [0, 1]: bytes are divided by 255, floats stay unchanged.

    >>> as_floats(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if images.dtype != torch.uint8:
        return images
    # CUDA multiplies by the reciprocal of a Python number, which rounds once more; by a tensor it divides like a CPU.
    return images.float().div_(torch.full((), 255.0, device=images.device))


def require_unit_range(images: Tensor, name: str) -> None:
    """Raise :class:`GradscopeError` unless floats ``(N, C, H, W)``, called ``name``, are finite and in [0, 1]."""
    if not images.is_floating_point():
        return
    low, high = (float(end) for end in images.aminmax())
    if low >= 0 and high <= 1:
        return
    if not math.isfinite(low) or not math.isfinite(high):
        bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
        raise GradscopeError(
            f"{name} must be finite, got NaN or infinity in {len(bad)} of {len(images)} images, first in {int(bad[0])}"
        )
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        hint = "clamp to [0, 1]"
    elif low >= 0 and high > 2:
        hint = "divide by 255 or pass uint8"
    else:
        hint = "normalisation belongs in mean= and std="
    raise GradscopeError(f"{name} must be in [0, 1], got {low:.7g} to {high:.7g}; {hint}")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, C, H, W) as uint8, or float32 in [0, 1], with labels (N,) as int64, each an index into ``classes``.

    Floats are used unchanged, never quantised. The images may be a memory map or live on a device. ``fingerprint``
    identifies the content. Raises :class:`GradscopeError` if shapes, types or labels do not fit together.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        self._check_images()
        self._check_labels()
        require_printable(self.classes, self.name)
        if len(self.name) > _LONGEST_NAME or UNPRINTABLE.search(self.name):
            raise GradscopeError(f"name must be one line of at most {_LONGEST_NAME} characters, got {self.name!r:.100}")

    @classmethod
    def from_tensors(cls, name: str, images: Tensor, labels: Tensor, classes: Sequence[str] | None = None) -> Self:
        """Make a set from tensors and compute its fingerprint from their content.

        Labels may be integers of any type. Without ``classes`` the names are "0" to the largest label.
        """
        if labels.dtype in INTEGERS:
            labels = labels.long()
        if classes is None:
            classes = numbered(int(labels.max()) + 1 if len(labels) else 0)
        return cls(name, images, labels, tuple(classes), fingerprint(images, labels, classes))

    def _check_images(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.dim() != 4:
            raise GradscopeError(
                f"{self.name}: images must be uint8 or float32 (N, C, H, W), got {_kind(self.images)} of shape {shape}"
            )
        if 0 in shape:
            raise GradscopeError(
                f"{self.name}: images must hold at least one image of at least one pixel, got shape {shape}"
            )
        require_unit_range(self.images, f"{self.name}: images")

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
                f"{self.name}: labels must be from 0 to {len(self.classes) - 1} "
                f"({len(self.classes)} classes), got {wrong}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.images.shape[1]

    @property
    def height(self) -> int:
        """Height of the images, in pixels."""
        return self.images.shape[2]

    @property
    def width(self) -> int:
        """Width of the images, in pixels."""
        return self.images.shape[3]

    @property
    def image_size(self) -> int:
        """Side of square images, in pixels; raises :class:`GradscopeError` if they are not square."""
        if self.height != self.width:
            raise GradscopeError(
                f"{self.name}: images must be square here, got height {self.height} and width {self.width}"
            )
        return self.height

    def subset(self, indices: Tensor) -> "ImageSet":
        """Copy the images at ``indices`` (M,), in that order; the fingerprint hashes the set's own and the indices.

        Raises :class:`GradscopeError` unless ``indices`` are int64 from 0 to N - 1.
        """
        valid = indices.dtype == torch.int64 and indices.dim() == 1 and len(indices) > 0
        if not valid or int(indices.min()) < 0 or int(indices.max()) >= len(self):
            raise GradscopeError(
                f"indices must be one or more int64 (M,) from 0 to {len(self) - 1}, "
                f"got {_kind(indices)} of shape {tuple(indices.shape)}"
            )
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(indices.cpu().numpy().tobytes())
        here = indices.to(self.images.device)
        images, labels = self.images.index_select(0, here), self.labels.index_select(0, here)
        return replace(self, images=images, labels=labels, fingerprint=digest.hexdigest())

    def on(self, device: torch.device | str) -> "ImageSet":
        """Move images and labels to ``device`` if they fit in half of its free memory; else return the set unchanged.

        The batches of a set that is not moved go to the device one by one. Free memory is known for CUDA only.
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
        """Gather images in their stored type (B, C, H, W) and labels (B,) at ``indices`` (B,), on ``device``."""
        return _gathered(self.images, indices, device), _gathered(self.labels, indices, device)

    def batch(self, indices: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Gather images as float32 in [0, 1] (B, C, H, W) and labels (B,) at ``indices`` (B,), on ``device``."""
        images, labels = self.raw_batch(indices, device)
        return as_floats(images), labels

    def batches(self, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over all images in order, as ``(indices, images, labels)``; the indices stay on the CPU."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield indices, *self.batch(indices, device)

    def channel_statistics(self, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Compute mean and standard deviation of each channel, in [0, 1] units, over the images at ``indices`` (M,).

        A constant channel gets the standard deviation 1, so that dividing by it is harmless.
        """
        sums = torch.zeros(2, self.channels, dtype=torch.float64)
        for part in indices.split(_STATISTICS_BATCH):
            images, _ = self.batch(part, "cpu")
            sums += torch.stack([images.double().sum(dim=(0, 2, 3)), images.double().square().sum(dim=(0, 2, 3))])
        mean, square = sums / (len(indices) * self.height * self.width)
        std = (square - mean.square()).clamp(min=0).sqrt()
        return tuple(mean.tolist()), tuple(std.where(std > 0, 1.0).tolist())


@dataclass(frozen=True)
class Splits:
    """Training and test images of a data set; raises :class:`GradscopeError` if classes, channels or sizes differ.

    ``training`` may be None, because measuring a model needs only test images.
    """

    training: ImageSet | None
    test: ImageSet

    @property
    def train(self) -> ImageSet:
        """The training images; raises :class:`GradscopeError` if there are none."""
        if self.training is None:
            raise GradscopeError(f"{self.test.name}: the data set must have training images, got only test images")
        return self.training

    def __post_init__(self) -> None:
        if self.training is None:
            return
        for name in ("classes", "channels", "height", "width"):
            in_train, in_test = getattr(self.train, name), getattr(self.test, name)
            if in_train != in_test:
                raise GradscopeError(
                    f"{self.train.name}: train and test must agree in {name}, got {in_train} and {in_test}"
                )


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``labels`` (N,) into sorted indices ``(train, held out)``; hold out round(fraction * count) of each class.

    Of a class of two or more, at least one is held out and at least one stays. Each class has its own random stream
    from ``seed``. Raises :class:`GradscopeError` unless ``fraction`` is between 0 and 1.

    >>> [len(part) for part in stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)]
    [3, 3]
    """
    if not 0 < fraction < 1:
        raise GradscopeError(f"fraction must be between 0 and 1, got {fraction}")
    labels = labels.cpu()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, "stratified-split", label))
        held[members[order[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def stratified_sample(labels: Tensor, count: int, seed: int) -> Tensor:
    """Sample sorted indices of ``count`` of ``labels`` (N,), in proportion to the classes, by largest remainders.

    Each class has its own random stream from ``seed``, so that a larger sample contains a class's images of a smaller
    one. Raises :class:`GradscopeError` unless ``count`` is between 2 and N.
    """
    if not 2 <= count <= len(labels):
        raise GradscopeError(f"train_samples must be from 2 to {len(labels)}, the training images, got {count}")
    labels = labels.cpu()
    classes, sizes = labels.unique(return_counts=True)
    exact = sizes.double() * count / len(labels)
    shares = exact.floor().long()
    shares[(exact - shares).argsort(descending=True, stable=True)[: count - int(shares.sum())]] += 1
    chosen = []
    for label, share in zip(classes.tolist(), shares.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator(seed, "stratified-sample", label))
        chosen.append(members[order[:share]])
    return torch.cat(chosen).sort().values


def training_split(labels: Tensor, fraction: float, seed: int, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Apply :func:`stratified_split` to ``labels`` (N,), or to a :func:`stratified_sample` of ``samples`` of them."""
    if samples is None:
        return stratified_split(labels, fraction, seed)
    used = stratified_sample(labels, samples, seed)
    trained, held_out = stratified_split(labels.cpu()[used], fraction, seed)
    return used[trained], used[held_out]


def _gathered(source: Tensor, indices: Tensor, device: torch.device | str) -> Tensor:
    """Gather ``source[indices]`` where ``source`` is and move it to ``device``, by pinned memory from CPU to CUDA."""
    if torch.device(device).type != "cuda" or source.device.type != "cpu":
        return source.index_select(0, indices.to(source.device)).to(device)
    pinned = torch.empty((len(indices), *source.shape[1:]), dtype=source.dtype, pin_memory=True)
    torch.index_select(source, 0, indices.cpu(), out=pinned)
    return pinned.to(device, non_blocking=True)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

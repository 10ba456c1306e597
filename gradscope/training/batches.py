"""Make the batches of an epoch: images, augmentation, and the random numbers of each update."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gradscope.config import Adversary, Phase, Training
from gradscope.data import augment
from gradscope.data.image_set import ImageSet
from gradscope.seeding import sent
from gradscope.training.objectives import Draws

#: Bytes of stored images that are gathered and augmented at a time on a GPU.
STRETCH_BYTES = 48 * 2**20


@dataclass(frozen=True)
class Batch:
    """A process's share of a batch: stored images ``(N, C, H, W)``, labels ``(N,)``, and the draws of both passes.

    ``noise`` ``(N, C, H, W)``, uniform in [-1, 1], gives PGD its random start; it is empty without a random start.
    """

    images: Tensor
    labels: Tensor
    clean: Draws
    adversarial: Draws
    noise: Tensor


class Batches:
    """Make the batches of an epoch for process ``rank`` of ``processes``, on ``device``.

    Every random number comes from one stream on the CPU and is drawn for the global batch, update after update: first
    the augmentation, then the draws of both passes, then the adversary's noise. So neither the device nor the number of
    processes changes the numbers. If the images are on a GPU, draws and augmentation of many updates are made at a
    time, without waiting for the device.
    """

    def __init__(self, images: ImageSet, training: Training, device: torch.device, rank: int, processes: int) -> None:
        self.images = images
        self.training = training
        self.device = device
        self.rank = rank
        self.processes = processes

    def of(self, order: Tensor, size: int, phase: Phase, stream: torch.Generator) -> Iterator[Batch]:
        """Iterate over batches of ``size`` images in ``order`` ``(updates * size,)``."""
        start, stop = (size * part // self.processes for part in (self.rank, self.rank + 1))
        updates = order.split(size)
        at_once = self._updates_at_once(size)
        for first in range(0, len(updates), at_once):
            yield from self._stretch(updates[first : first + at_once], slice(start, stop), phase, stream)

    def _updates_at_once(self, size: int) -> int:
        """Return many updates for images on a GPU, else one, because one batch fits in the CPU's cache."""
        if self.device.type == "cpu" or self.images.images.device != self.device:
            return 1
        return max(1, STRETCH_BYTES // (size * self.images.images[:1].nbytes))

    def _stretch(
        self, updates: Sequence[Tensor], share: slice, phase: Phase, stream: torch.Generator
    ) -> Iterator[Batch]:
        drawn = [self._draw(len(indices), share, phase.adversary, stream) for indices in updates]
        transforms, clean, adversarial, noise = zip(*drawn, strict=True)
        own_share = torch.cat([indices[share] for indices in updates])
        raw, labels = self.images.raw_batch(sent(own_share, self.device), self.device)
        images = augment.apply(raw, augment.Augmentation.joined(transforms))
        size = len(own_share) // len(updates)
        yield from map(
            Batch,
            images.split(size),
            labels.split(size),
            self._moved_draws(clean),
            self._moved_draws(adversarial),
            sent(torch.stack(noise), self.device).unbind(),
        )

    def _moved_draws(self, draws: Sequence[Draws]) -> list[Draws]:
        """Move the draws of several updates to the device together."""
        names = [field.name for field in fields(Draws)]
        columns = [sent(torch.stack([getattr(each, name) for each in draws]), self.device) for name in names]
        return [Draws(*row) for row in zip(*columns, strict=True)]

    def _draw(
        self, count: int, share: slice, adversary: Adversary | None, stream: torch.Generator
    ) -> tuple[augment.Augmentation, Draws, Draws, Tensor]:
        """Draw for one update of ``count`` images and keep this process's share."""
        training = self.training
        transforms = augment.draw(
            count,
            self.images.height,
            self.images.width,
            horizontal_flip=training.horizontal_flip,
            vertical_flip=training.vertical_flip,
            shift=training.shift,
            generator=stream,
        )
        clean, adversarial = Draws.make(count, stream), Draws.make(count, stream)
        noise = torch.empty(0)
        if adversary is not None and adversary.method == "pgd" and adversary.random_start:
            noise = torch.rand((count, *self.images.images.shape[1:]), generator=stream)[share].mul_(2).sub_(1)
        return transforms[share], clean[share], adversarial[share], noise

"""Metrics that need passes of their own: gradients at random points of the ball, and end points of other starts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, Streams, look, pgd, threat_model
from gradscope.config import PGD
from gradscope.functional import cosine, flatten

#: Number of random points of the ball whose gradients give the signal-to-noise ratio.
DRAWS = 8


@dataclass(frozen=True)
class Surroundings:
    """A batch of images ``(B, C, H, W)`` under attack by ``settings``, with a model prepared for the attack."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    settings: PGD
    streams: Streams

    def _at_random_point(self, *names: object) -> Iterate:
        """Compute logits, loss and gradient at a uniform random point of each image's ball."""
        threat, streams = threat_model(self.settings), self.streams
        points = threat.random_start(self.images, "ball", streams.seed, names, streams.numbers)
        return look(self.model, points, self.labels, self.settings, streams=streams)

    def alignment(self, clean: Iterate) -> Tensor:
        """Compute the cosine ``(B,)`` of the gradients at the image and at a random point of its ball.

        NaN (undefined) where either gradient is 0.
        """
        return cosine(clean.unit, self._at_random_point("alignment").unit)

    def signal_to_noise(self) -> Tensor:
        """Compute ``|mean|^2 / trace of the covariance``, ``(B,)``, of gradients at :data:`DRAWS` points of the ball.

        Exact for tiny gradients, because sums are kept in multiples of the largest norm so far. NaN (undefined) where a
        gradient is 0 or all gradients are equal.
        """
        total = torch.zeros_like(flatten(self.images), dtype=torch.float64)
        squares, largest = (torch.zeros(len(total), dtype=torch.float64, device=total.device) for _ in range(2))
        known = torch.ones_like(largest, dtype=torch.bool)
        for draw in range(DRAWS):
            here = self._at_random_point("snr", draw)
            norms, units = here.norm_and_unit[0].double(), here.unit.double()
            known &= norms > 0
            scale = torch.maximum(largest, norms)
            shrunk, size = ((values / scale).nan_to_num(0.0) for values in (largest, norms))
            total = total * shrunk.unsqueeze(1) + units * size.unsqueeze(1)
            squares = squares * shrunk**2 + size**2
            largest = scale
        signal = (total / DRAWS).square().sum(dim=1)
        trace = (squares - DRAWS * signal) / (DRAWS - 1)
        # Differences below the rounding of float32 count as equal.
        return torch.where(known & (trace > 1e-12 * signal), signal / trace, math.nan)

    def spread(self, first: Iterate, restarts: Iterable[int]) -> dict[str, Tensor]:
        """Measure how far apart PGD ends from several starts, ``(B,)`` each.

        ``first`` is the end x_T of one start; ``restarts`` are run here. ``restart-spread``: sample standard deviation
        of the attack's loss at x_T. ``restart-distance``: mean L2 distance between two ends, in pixel units. Both are
        NaN with a single start. ``fooled``: an iterate of ``restarts`` fooled the model.
        """
        losses, points = [first.loss.double()], [flatten(first.images)]
        fooled = torch.zeros_like(self.labels, dtype=torch.bool)
        for restart in restarts:
            seen: list[Iterate] = []

            def keep_last(iterate: Iterate, seen: list[Iterate] = seen) -> None:
                seen[:] = [iterate]

            streams = replace(self.streams, restart=restart)
            given = (self.model, self.images, self.labels, self.settings)
            fooled |= pgd(*given, streams=streams, observe=keep_last).fooled
            losses.append(seen[0].loss.double())
            points.append(flatten(seen[0].images))
        undefined = torch.full_like(losses[0], math.nan)
        if len(losses) == 1:
            return {"restart-spread": undefined, "restart-distance": undefined, "fooled": fooled}
        ends = torch.stack(points, dim=1)
        apart = torch.cdist(ends, ends, compute_mode="donot_use_mm_for_euclid_dist").double().sum(dim=(1, 2))
        pairs = len(losses) * (len(losses) - 1)
        return {"restart-spread": torch.stack(losses).std(dim=0), "restart-distance": apart / pairs, "fooled": fooled}

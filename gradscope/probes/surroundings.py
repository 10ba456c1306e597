"""What takes passes beside the attack's own: gradients at random points of the ball, and where other starts end."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, Streams, look, pgd, threat_model
from gradscope.config import PGD
from gradscope.functional import cosine, flatten

#: Random points of the ball whose gradients a signal-to-noise ratio is made from.
DRAWS = 8


@dataclass(frozen=True)
class Surroundings:
    """A batch of images ``(B, C, H, W)`` under attack by ``settings``, with a model that is prepared for it."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    settings: PGD
    streams: Streams

    def _drawn(self, *names: object) -> Iterate:
        """The facts at a uniform point of each image's ball."""
        threat, streams = threat_model(self.settings), self.streams
        points = threat.random_start(self.images, "ball", streams.seed, names, streams.numbers)
        return look(self.model, points, self.labels, self.settings, streams=streams)

    def alignment(self, clean: Iterate) -> Tensor:
        """The cosine ``(B,)`` of the gradients at the image and at a random point of its ball.

        NaN, "undefined", where either gradient is 0.
        """
        return cosine(clean.unit, self._drawn("alignment").unit)

    def signal_to_noise(self) -> Tensor:
        """``|mean|^2 / trace of the covariance`` ``(B,)`` of the gradients at :data:`DRAWS` random points of the ball.

        Exact for tiny gradients: sums are kept in multiples of the largest norm so far. NaN, "undefined", where a
        gradient is 0, or where all are equal.
        """
        total = torch.zeros_like(flatten(self.images), dtype=torch.float64)
        squares, largest = (torch.zeros(len(total), dtype=torch.float64, device=total.device) for _ in range(2))
        known = torch.ones_like(largest, dtype=torch.bool)
        for draw in range(DRAWS):
            here = self._drawn("snr", draw)
            norms, units = here.norm_and_unit[0].double(), here.unit.double()
            known &= norms > 0
            scale = torch.maximum(largest, norms)
            shrunk, size = ((values / scale).nan_to_num(0.0) for values in (largest, norms))
            total = total * shrunk.unsqueeze(1) + units * size.unsqueeze(1)
            squares = squares * shrunk**2 + size**2
            largest = scale
        signal = (total / DRAWS).square().sum(dim=1)
        trace = (squares - DRAWS * signal) / (DRAWS - 1)
        # Below what float32 rounds in the gradients, they are equal.
        return torch.where(known & (trace > 1e-12 * signal), signal / trace, math.nan)

    def spread(self, first: Iterate, restarts: Iterable[int]) -> dict[str, Tensor]:
        """How far apart PGD ends from several starts, ``(B,)`` each: of ``first``, x_T of one, and of ``restarts``.

        ``restart-spread``: sample standard deviation of the attack's loss at x_T; ``restart-distance``: mean L2
        distance of two of them, in pixel units; both NaN with one start. ``fooled``: an iterate of ``restarts`` did.
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

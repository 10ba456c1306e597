"""The threat model: which changes of an image an attacker may make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gradscope.config import Norm
from gradscope.functional import flatten, norm_and_unit, per_sample
from gradscope.seeding import derive, sent

Start = Literal["ball", "cube", "surface"]


@dataclass(frozen=True)
class ThreatModel:
    """A ball of radius ``epsilon`` (pixel units) around an image, cut to [0, 1] where ``box`` is set."""

    norm: Norm
    epsilon: float
    box: bool = True

    def project(self, images: Tensor, origin: Tensor, radii: Tensor | None = None) -> Tensor:
        """Project ``images`` ``(N, C, H, W)`` into the ball around ``origin``, then clamp them to the box.

        ``radii`` ``(N,)`` replace epsilon by one radius per image.

        >>> ThreatModel("linf", 0.25).project(torch.tensor([[[[0.9]]]]), torch.tensor([[[[0.5]]]]))
        tensor([[[[0.7500]]]])
        """
        delta = images - origin
        if self.norm == "linf" and radii is None:
            delta.clamp_(-self.epsilon, self.epsilon)
        elif self.norm == "linf":
            assert radii is not None
            reach = per_sample(radii, delta)
            delta.clamp_(-reach, reach)
        else:
            norms = torch.linalg.vector_norm(flatten(delta), dim=1)
            reaches = self.epsilon if radii is None else radii
            shrink = torch.where(norms > reaches, reaches / norms, 1.0)
            delta.mul_(per_sample(shrink, delta))
        projected = delta.add_(origin)
        return projected.clamp_(0, 1) if self.box else projected

    def steepest_step(self, gradient: Tensor, step_size: float, norm_floor: float = 0.0) -> Tensor:
        """Compute the step of length ``step_size`` along which the loss rises fastest.

        L-infinity: ``step_size * sign(g)``; L2: ``step_size * g / max(|g|, norm_floor)``. With a floor of 0 the length
        is exact for any non-zero gradient, however small. A zero gradient gives a zero step.
        """
        if self.norm == "linf":
            return gradient.sign().mul_(step_size)
        norms, units = norm_and_unit(flatten(gradient))
        return self.scaled_step(norms, units, step_size, norm_floor).reshape(gradient.shape)

    @staticmethod
    def scaled_step(norms: Tensor, units: Tensor, step_size: float, norm_floor: float) -> Tensor:
        """Compute the L2 step ``(N, D)`` from the gradient's norm ``(N,)`` and direction ``(N, D)``."""
        if norm_floor == 0:
            return units * step_size
        return units * (step_size * (norms / norm_floor).clamp(max=1)).unsqueeze(1)

    def random_start(self, images: Tensor, shape: Start, seed: int, names: Sequence[object], indices: Tensor) -> Tensor:
        """Draw a random point of the ball around each image, ``(N, C, H, W)``.

        ``shape`` "ball" is uniform in the ball. "cube" is uniform in [-epsilon, epsilon]^D and then projected; in many
        dimensions such a point lies on the sphere. "surface" lies on the ball's surface: uniform on the sphere (L2), or
        uniform in the cube and then stretched to touch a face (L-infinity). Each image draws from its own stream
        ``(seed, names, index)``, so its start depends neither on the batch size nor on the other images of the batch.
        """
        noise, shares = torch.empty(images.shape), torch.ones(len(images))
        normal, inside = self.norm == "l2" and shape != "cube", self.norm == "l2" and shape == "ball"
        stream = torch.Generator()
        for row, share, index in zip(noise.unbind(), shares.unbind(), indices.tolist(), strict=True):
            stream.manual_seed(derive(seed, *names, index))
            if normal:
                row.normal_(generator=stream)
            else:
                row.uniform_(-self.epsilon, self.epsilon, generator=stream)
            if inside:
                share.uniform_(generator=stream)
        if normal or shape == "surface":
            reach = self.distance(noise, torch.zeros_like(noise)).double().clamp(min=math.ulp(0.0))
            lengths = self.epsilon * shares.double() ** (1 / images[0].numel())
            noise *= per_sample((lengths / reach).float(), noise)
        return self.project(images + sent(noise, images.device, images.dtype), images)

    def radius_of_a_coordinate(self, coordinates: int) -> float:
        """Compute how far all coordinates may move equally: epsilon, or epsilon / sqrt(coordinates) in L2."""
        return self.epsilon / (1 if self.norm == "linf" else coordinates**0.5)

    def unbounded(self, coordinates: int) -> "ThreatModel":
        """Return the threat model whose ball around any point of [0, 1]^coordinates contains the whole box."""
        return replace(self, epsilon=1.0 if self.norm == "linf" else coordinates**0.5)

    def distance(self, images: Tensor, origin: Tensor) -> Tensor:
        """Compute the norm of ``images - origin``, ``(N,)``, in pixel units."""
        delta = flatten(images - origin)
        return delta.abs().amax(dim=1) if self.norm == "linf" else torch.linalg.vector_norm(delta, dim=1)

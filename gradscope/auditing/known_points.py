"""Unit test of an attack: does it find adversarial points that are known to exist (Zimmermann et al. 2022)?"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, Streams, pgd, prepared
from gradscope.attacks.threat import Start, ThreatModel
from gradscope.config import PGD
from gradscope.distributed.units import Values
from gradscope.functional import fooled, margin
from gradscope.models.inspection import laid_out
from gradscope.seeding import seeded

#: Radius of the ball of the inner points, as a share of epsilon (the paper's eta).
INNER_RADIUS = 0.95
#: Most inner points, and the number of features needed for each. With more points, a readout seldom separates them from
#: the point on the surface; with fewer, a random point fools it.
MOST_INNER, FEATURES_EACH = 48, 8
#: Position of the readout's boundary between the inner points (0) and the known point (1).
CLOSENESS = 0.99
#: Number of random points of the ball tried on each readout.
RANDOM_POINTS = 50
#: Ridge of the least squares, as a share of the features' mean squared length.
_RIDGE = 1e-9


def look_for_known_points(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, PGD],
    seed: int,
) -> Values:
    """Plant a known adversarial point for each image, and test whether each of ``attacks`` finds one; ``(N,)`` each.

    A linear readout for each image replaces the last layer of ``model``. It predicts the image's label at random points
    inside a smaller ball, and another class at a random point on the surface, the known point. Its logits at the image
    equal the layer's own, so a saturated network stays saturated. ``known``: the readout separates the points, so the
    known point is adversarial. ``random``: one of :data:`RANDOM_POINTS` random points of the ball fools the readout.
    ``last-layer``: the last layer is an ``nn.Linear`` that can be replaced; otherwise the readout takes the outputs as
    features.
    """

    def drawn(ball: ThreatModel, shape: Start, *names: object) -> Tensor:
        return ball.random_start(images, shape, seed, ("unit-test", *names), numbers)

    with prepared(model, next(iter(attacks.values()))), seeded(seed, "unit-test", *numbers.tolist()):
        layer = last_linear(model, images[:1])
        smaller = replace(threat, epsilon=INNER_RADIUS * threat.epsilon)
        surface = drawn(threat, "surface", "known")
        with torch.no_grad():
            at_image, own = features_and_outputs(model, layer, images)
            count = max(1, min(MOST_INNER, at_image.shape[1] // FEATURES_EACH))
            points = (drawn(smaller, "ball", "inner", place) for place in range(count))
            inner = torch.stack([at_image, *(features_and_outputs(model, layer, point)[0] for point in points)], dim=1)
            known, _ = features_and_outputs(model, layer, surface)
            readout = fit_readout(inner, known, labels, own)
            network = Rewired(model, layer, readout)
            is_known = fooled(network(surface), labels) & ~fooled(network(images), labels)
            lucky = torch.zeros_like(is_known)
            for place in range(RANDOM_POINTS):
                lucky |= fooled(network(drawn(threat, "ball", "random", place)), labels)
        finds = {name: _finds(network, images, labels, numbers, settings, seed) for name, settings in attacks.items()}
    by_layer = torch.full_like(is_known, layer is not None)
    values = {"known": is_known, "random": lucky, "last-layer": by_layer, **finds}
    return {key: value.cpu() for key, value in values.items()}


def _finds(network: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int) -> Tensor:
    """Mark the images ``(N,)`` on which some iterate of PGD fools ``network``.

    No image leaves the batch, because the readouts belong to its rows.
    """
    fooled_once = torch.zeros_like(labels, dtype=torch.bool)

    def note(iterate: Iterate) -> None:
        fooled_once.logical_or_(fooled(iterate.logits, labels))

    pgd(network, images, labels, settings, streams=Streams(seed, numbers), observe=note)
    return fooled_once


@dataclass(frozen=True)
class Readout:
    """One linear classifier per image, with score ``s = weight . (features - centre) - offset``, ``(N,)``.

    The margin of its logits is ``-s``. Starting from ``outputs`` ``(N, K)``, the label's logit falls by as much as the
    others rise. Where the label's probability rounds to 1, the gradient of its logit is exactly 0 in float32, but the
    gradients of the other logits are not.
    """

    weight: Tensor
    centre: Tensor
    offset: Tensor
    labels: Tensor
    outputs: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Compute logits ``(N, K)`` from features ``(N, D)``, in the precision of the features."""
        parts = (self.weight, self.centre, self.offset, self.outputs)
        weight, centre, offset, outputs = (part.to(features) for part in parts)
        score = (weight * (features - centre)).sum(dim=1) - offset
        shift = ((score + margin(outputs, self.labels)) / 2).unsqueeze(1)
        return (outputs + shift).scatter_add(1, self.labels.unsqueeze(1), -2 * shift)


def fit_readout(inner: Tensor, known: Tensor, labels: Tensor, outputs: Tensor) -> Readout:
    """Fit the least-squares readout of least norm that is 0 on features ``inner`` ``(N, P, D)`` and 1 on ``known``.

    Its boundary is then moved close to the known point's features ``(N, D)``, by :data:`CLOSENESS`. Its scale is chosen
    so that the logits of the image, the first of the inner points, are its ``outputs`` ``(N, K)``.
    """
    points, centre = torch.cat([inner, known.unsqueeze(1)], dim=1).double(), inner.double().mean(dim=1)
    apart = points - centre.unsqueeze(1)
    products = apart @ apart.transpose(1, 2)
    count = products.shape[1]
    ridge = _RIDGE * products.diagonal(dim1=1, dim2=2).mean(dim=1) + torch.finfo(torch.float64).tiny
    products += ridge[:, None, None] * torch.eye(count, device=products.device)
    wanted = torch.zeros(count, 1, dtype=torch.float64, device=products.device)
    wanted[-1] = 1
    weight = (apart.transpose(1, 2) @ torch.linalg.solve(products, wanted.expand(len(products), -1, -1))).squeeze(2)
    scores = (apart @ weight.unsqueeze(2)).squeeze(2)
    highest = scores[:, :-1].amax(dim=1)
    offset = highest + CLOSENESS * (scores[:, -1] - highest)
    scale = margin(outputs.double(), labels) / (offset - scores[:, 0])
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    return Readout(weight * scale.unsqueeze(1), centre, offset * scale, labels, outputs)


class Rewired(nn.Module):
    """``model`` with ``layer`` replaced by ``readout``; if ``layer`` is None, ``readout`` is applied to the outputs."""

    def __init__(self, model: nn.Module, layer: nn.Linear | None, readout: Readout) -> None:
        super().__init__()
        self.model, self.layer, self.readout = model, layer, readout
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``(N, K)`` of the N images that the readouts belong to, in order."""
        if self.layer is None:
            return self.readout(self.model(laid_out(images)))
        with self.layer.register_forward_hook(lambda layer, given, output: self.readout(given[0])):
            logits: Tensor = self.model(laid_out(images))
        return logits


def features_and_outputs(model: nn.Module, layer: nn.Linear | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return input ``(N, D)`` and output ``(N, K)`` of ``layer``; if it is None, the model's outputs twice."""
    if layer is None:
        outputs: Tensor = model(laid_out(images))
        return outputs, outputs
    seen: list[tuple[Tensor, Tensor]] = []
    with layer.register_forward_hook(lambda layer, given, output: seen.append((given[0], output))):
        model(laid_out(images))
    return seen[0]


def last_linear(model: nn.Module, image: Tensor) -> nn.Linear | None:
    """Find the ``nn.Linear`` through which alone the outputs depend on the image; None if there is none.

    The layer must run once per pass, on features ``(N, D)``, and return as many numbers as the model. With its output
    held constant, ``image`` ``(1, C, H, W)`` and its negative must give the same outputs.
    """
    calls: list[tuple[nn.Linear, int]] = []
    shown = laid_out(torch.cat([image, 1 - image]))
    with torch.no_grad(), ExitStack() as hooks:
        for part in model.modules():
            if isinstance(part, nn.Linear):
                note = part.register_forward_hook(lambda layer, given, output: calls.append((layer, given[0].dim())))
                hooks.enter_context(note)
        outputs = model(shown)
    if not calls:
        return None
    layer, dimensions = calls[-1]
    once = sum(called is layer for called, _ in calls) == 1
    if not once or dimensions != 2 or layer.out_features != outputs.shape[1]:
        return None
    held = torch.linspace(-1, 1, outputs.shape[1]).to(outputs).expand_as(outputs)
    with torch.no_grad(), layer.register_forward_hook(lambda layer, given, output: held):
        first, second = model(shown)
    return layer if torch.equal(first, second) else None

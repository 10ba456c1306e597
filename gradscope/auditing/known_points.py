"""The attack's unit test: does it find adversarial points that are known to be there (Zimmermann et al. 2022)?"""

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

#: Radius of the ball that holds the inner points, as a share of epsilon (the paper's eta).
INNER_RADIUS = 0.95
#: Inner points at most, and how many features there must be for each: of more points few are parted from the one on
#: the surface by a readout, of fewer a random point fools it.
MOST_INNER, FEATURES_EACH = 48, 8
#: Where the readout's boundary lies on the way from the inner points (0) to the known point (1).
CLOSENESS = 0.99
#: Random points of the ball that each readout is tried with.
RANDOM_POINTS = 50
#: Ridge of the least squares, as a share of the mean squared length of the features.
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
    """For each image ``(N,)`` whether an adversarial point is ``known``, and whether each of ``attacks`` finds one.

    The last layer of ``model`` is replaced by a linear readout for each image. It gives the image's label at points
    drawn inside a smaller ball, and another class at one drawn on the surface: the known point. Its logits at the image
    are the layer's own, so that what was saturated stays so. Where no readout parts the points none is ``known``.
    ``random``: one of :data:`RANDOM_POINTS` points of the ball fools the readout. ``last-layer``: the last layer is an
    ``nn.Linear`` that can be replaced; else the readout reads the outputs.
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
        found = {name: _finds(network, images, labels, numbers, settings, seed) for name, settings in attacks.items()}
    by_layer = torch.full_like(is_known, layer is not None)
    values = {"known": is_known, "random": lucky, "last-layer": by_layer, **found}
    return {key: value.cpu() for key, value in values.items()}


def _finds(network: nn.Module, images: Tensor, labels: Tensor, numbers: Tensor, settings: PGD, seed: int) -> Tensor:
    """Which images ``(N,)`` some iterate of PGD fools ``network`` on. None leaves the batch: each has its readout."""
    found = torch.zeros_like(labels, dtype=torch.bool)

    def note(iterate: Iterate) -> None:
        found.logical_or_(fooled(iterate.logits, labels))

    pgd(network, images, labels, settings, streams=Streams(seed, numbers), observe=note)
    return found


@dataclass(frozen=True)
class Readout:
    """A linear classifier of its own for each image, by ``s = weight . (features - centre) - offset``, ``(N,)``.

    The margin of the logits is ``-s``. From ``outputs`` ``(N, K)`` the label's logit falls as far as the others rise:
    its gradient in float32 is exactly 0 where the label's probability rounds to 1, theirs is not.
    """

    weight: Tensor
    centre: Tensor
    offset: Tensor
    labels: Tensor
    outputs: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits ``(N, K)`` of features ``(N, D)``, in their precision."""
        parts = (self.weight, self.centre, self.offset, self.outputs)
        weight, centre, offset, outputs = (part.to(features) for part in parts)
        score = (weight * (features - centre)).sum(dim=1) - offset
        shift = ((score + margin(outputs, self.labels)) / 2).unsqueeze(1)
        return (outputs + shift).scatter_add(1, self.labels.unsqueeze(1), -2 * shift)


def fit_readout(inner: Tensor, known: Tensor, labels: Tensor, outputs: Tensor) -> Readout:
    """The least-squares readout of least norm that is 0 on the features ``inner`` ``(N, P, D)`` and 1 on ``known``.

    Its boundary is moved up to the known point's features ``(N, D)``, as :data:`CLOSENESS` says, and its scale is such
    that the logits of the image, the first of the inner points, are its ``outputs`` ``(N, K)``.
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
    """``model`` with ``layer`` replaced by ``readout``, or with ``readout`` behind its outputs where that is None."""

    def __init__(self, model: nn.Module, layer: nn.Linear | None, readout: Readout) -> None:
        super().__init__()
        self.model, self.layer, self.readout = model, layer, readout
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of the N images that the readouts belong to, in their order."""
        if self.layer is None:
            return self.readout(self.model(laid_out(images)))
        with self.layer.register_forward_hook(lambda layer, given, output: self.readout(given[0])):
            logits: Tensor = self.model(laid_out(images))
        return logits


def features_and_outputs(model: nn.Module, layer: nn.Linear | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """What ``layer`` gets ``(N, D)`` and gives ``(N, K)``; the model's outputs twice where it is None."""
    if layer is None:
        outputs: Tensor = model(laid_out(images))
        return outputs, outputs
    seen: list[tuple[Tensor, Tensor]] = []
    with layer.register_forward_hook(lambda layer, given, output: seen.append((given[0], output))):
        model(laid_out(images))
    return seen[0]


def last_linear(model: nn.Module, image: Tensor) -> nn.Linear | None:
    """The ``nn.Linear`` through which alone the outputs depend on the image; None where there is no such layer.

    It is called once in a pass, on features ``(N, D)``, and gives as many numbers as the model. While its output is
    held, ``image`` ``(1, C, H, W)`` and its negative have the same outputs.
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
    once = sum(one is layer for one, _ in calls) == 1
    if not once or dimensions != 2 or layer.out_features != outputs.shape[1]:
        return None
    held = torch.linspace(-1, 1, outputs.shape[1]).to(outputs).expand_as(outputs)
    with torch.no_grad(), layer.register_forward_hook(lambda layer, given, output: held):
        first, second = model(shown)
    return layer if torch.equal(first, second) else None

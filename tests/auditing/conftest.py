"""Small classifiers of digits whose truth is known: as they are honest, and behind masks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.attacks.pgd import pgd, prepared
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.functional import margin


class Behind(nn.Module):
    """A classifier behind a mask: ``after(model(before(x)))``."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


class Votes(nn.Module):
    """The votes of the five nearest neighbours in the features of a network: flat wherever nobody changes his mind."""

    def __init__(self, model: nn.Sequential, images: ImageSet) -> None:
        super().__init__()
        self.features = model[:-1]
        pixels, self.labels = images.batch(torch.arange(len(images)), "cpu")
        with torch.no_grad():
            self.known = self.features(pixels)

    def forward(self, images: Tensor) -> Tensor:
        distances = torch.cdist(self.features(images), self.known)
        votes = F.one_hot(self.labels[distances.topk(5, largest=False).indices], 10).sum(dim=1)
        return votes + 0 * distances.sum(dim=1, keepdim=True)


class _Severed(torch.autograd.Function):
    """The identity, whose backward pass is zero."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class _Noisy(torch.autograd.Function):
    """The identity, whose backward pass is noise."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn_like(gradient)


def quantised(images: Tensor) -> Tensor:
    """Five levels."""
    return (images * 4).round() / 4


def noisy(images: Tensor) -> Tensor:
    return images + 0.2 * torch.randn_like(images)


#: Each mask and the cause that the audit has to name.
MASKS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "logits x 100": (lambda model: Behind(model, after=lambda logits: 100 * logits), "saturation"),
    "logits x 1000": (lambda model: Behind(model, after=lambda logits: 1000 * logits), "saturation"),
    "input quantised": (lambda model: Behind(model, before=quantised), "shattering"),
    "noise layer": (lambda model: Behind(model, before=noisy), "randomness"),
    "backward zero": (lambda model: Behind(model, before=_Severed.apply), "missing gradient"),
    "backward noise": (lambda model: Behind(model, before=_Noisy.apply), "false gradient"),
    "30 tanh": (lambda model: Behind(model, after=lambda logits: 30 * torch.tanh(2 * logits)), "bounded output"),
    "clipped log-probabilities": (
        lambda model: Behind(model, after=lambda logits: (10 * logits).softmax(dim=1).clamp(1e-7, 1 - 1e-7).log()),
        "clipped output",
    ),
    "probabilities": (lambda model: Behind(model, after=lambda logits: logits.softmax(dim=1)), "probabilities"),
    "sharp probabilities": (
        lambda model: Behind(model, after=lambda logits: (30 * logits).softmax(dim=1)),
        "probabilities",
    ),
}


def small_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    convolution = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def fit(
    model: nn.Sequential, images: ImageSet, epochs: int, *, smoothing: float = 0.0, attack: PGD | None = None
) -> nn.Sequential:
    """Train by Adam on cross-entropy, on ``attack``'s examples where there is one (Madry et al. 2018)."""
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for part in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(64):
            points = pixels[part]
            if attack is not None:
                with prepared(model, attack) as attacked:
                    points = pgd(attacked, points, labels[part], attack).points
            optimizer.zero_grad()
            F.cross_entropy(model(points), labels[part], label_smoothing=smoothing).backward()
            optimizer.step()
    return model.eval()


def overtrain(model: nn.Sequential, images: ImageSet, median: float) -> nn.Sequential:
    """Go on with the last layer until the median margin is ``median`` nats.

    On what it gets right, which a last layer separates by any margin; in float64, whose gradient lives on, and with a
    short memory: else Adam's steps shrink with the gradient.
    """
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    with torch.no_grad():
        features = model[:-1](pixels).double()
    right = copy.deepcopy(model[-1]).double()(features).argmax(dim=1) == labels
    features, labels = features[right], labels[right]
    last = copy.deepcopy(model[-1]).double()
    optimizer = torch.optim.Adam(last.parameters(), lr=0.1, betas=(0.5, 0.5), eps=1e-300)
    for _ in range(2000):
        if float(margin(last(features), labels).detach().median()) > median:
            break
        optimizer.zero_grad()
        F.cross_entropy(last(features), labels).backward()
        optimizer.step()
    return nn.Sequential(*model[:-1], last.float()).eval()


@dataclass(frozen=True)
class Zoo:
    """Models of one seed: those that are honest, and those behind a mask with the cause that has to be named."""

    honest: dict[str, nn.Module]
    masked: dict[str, tuple[nn.Module, str]]


def make_zoo(train: ImageSet, seed: int) -> Zoo:
    plain = fit(small_network(seed), train, 15)
    settings = PGD(norm="linf", epsilon=0.1, step_size=0.04, steps=5, start="none")
    robust = fit(small_network(seed), train, 15, attack=settings)
    torch.manual_seed(seed)
    line = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), train, 15)
    smoothed = fit(small_network(seed), train, 15, smoothing=0.1)
    masked = {name: (mask(plain), cause) for name, (mask, cause) in MASKS.items()}
    masked["votes"] = (Votes(plain, train).eval(), "missing gradient")
    masked["smoothed, over-trained"] = (overtrain(smoothed, train, 100.0), "saturation")
    sharp = Behind(plain, after=lambda logits: 10 * logits)
    honest = {"SL": plain, "SL-adv": robust, "linear": line, "SL smoothed": smoothed, "logits x 10": sharp.eval()}
    return Zoo(honest, masked)


@pytest.fixture(scope="session")
def zoo(digits) -> Callable[[int], Zoo]:
    """The models of a seed, trained once."""
    return cache(lambda seed: make_zoo(digits.train, seed))

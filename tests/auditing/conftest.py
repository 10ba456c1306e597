"""Small classifiers of digits whose truth is known: as they are honest, and behind masks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.attacks.pgd import pgd, prepared
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from tests.masks import Behind, masked


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
    sharp = Behind(plain, after=lambda logits: 10 * logits)
    honest = {"SL": plain, "SL-adv": robust, "linear": line, "SL smoothed": smoothed, "logits x 10": sharp.eval()}
    return Zoo(honest, masked(plain, smoothed, train))


@pytest.fixture(scope="session")
def zoo(digits) -> Callable[[int], Zoo]:
    """The models of a seed, trained once."""
    return cache(lambda seed: make_zoo(digits.train, seed))

"""Models on which attacks are judged."""

from functools import cache

import pytest
import torch
from torch import nn

from gradscope.config import PGD
from gradscope.distributed.units import Work, alone
from tests.auditing.conftest import Behind, fit, small_network


def _scaled(model, factor):
    return Behind(model, after=lambda logits: factor * logits)


def _flat_at_images(images):
    """The images, without a gradient where a value is exactly one of the data's, k / 255 of 17 levels."""
    levels = (images * 255).round() / 255
    return torch.where((images - levels).abs() < 1e-6, images.detach(), images)


def _moody(*layers) -> nn.Sequential:
    """A small network that changes in training mode."""
    torch.manual_seed(0)
    convolution = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolution, *layers, nn.Linear(128, 10))


@pytest.fixture(scope="session")
def work_on():
    """Work on the model of a name that runs our attacks on it once for all judgements in a norm."""
    kept = {}

    def each(units):
        for unit, make in units:
            values = kept[unit] if unit in kept else next(alone([(unit, make)]))
            if "ours-" in unit:
                kept[unit] = values
            yield values

    return lambda model, norm: Work(each=each).prefixed(f"{model}-{norm}")


@pytest.fixture(scope="session")
def models(digits):
    """Classifiers of digits by name, trained once when they are asked for."""
    robust = PGD(norm="linf", epsilon=0.1, step_size=0.04, steps=5, start="none")

    @cache
    def of(name: str) -> nn.Module:
        plain, _, factor = name.partition(" x ")
        if factor:
            return _scaled(of(plain), float(factor)).eval()
        if plain.startswith("flat "):
            return Behind(of(plain.removeprefix("flat ")), before=_flat_at_images).eval()
        if plain == "dropout":
            return fit(_moody(nn.Dropout(0.9)), digits.train, 15)
        if plain == "batch norm":
            return fit(_moody(nn.BatchNorm1d(128), nn.Dropout(0.9)), digits.train, 15)
        return fit(small_network(0), digits.train, 15, attack=robust if plain == "SL-adv" else None)

    return of

"""The first look at models whose truth is known: a line of logits, and the same behind masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscope.auditing.first_look import PROBED, first_look
from gradscope.data.image_set import ImageSet
from tests.masks import MASKS, Behind

#: Two classes, told apart by which of two pixels is brighter; every fifth label is wrong.
COUNT, WRONG = 100, 20


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.rand(COUNT, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.1
    labels = torch.arange(COUNT) % 2
    pixels[torch.arange(COUNT), 0, 0, labels] += 0.5
    labels[::5] = 1 - labels[::5]
    return ImageSet.from_tensors("pixels", pixels, labels, ("0", "1"))


def look_at(model: nn.Module, images: ImageSet) -> dict[str, Any]:
    return first_look(model.eval(), images, torch.arange(COUNT), 0, torch.device("cpu"))


class Centred(nn.Module):
    """Logits less their mean over the batch."""

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)
        return logits - 0.5 * logits.mean(dim=0)


class _NotFinite(torch.autograd.Function):
    """Logits as they are; a gradient that is NaN for every image but the first."""

    @staticmethod
    def forward(_: object, logits: Tensor) -> Tensor:
        return logits * 1

    @staticmethod
    def backward(_: object, slopes: Tensor) -> Tensor:
        return torch.cat([slopes[:1], slopes[1:] * torch.nan])


class Cut(nn.Module):
    """Logits that autograd cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).detach()


def test_an_honest_model_is_counted_and_nothing_else_is_seen(images: ImageSet) -> None:
    assert look_at(nn.Flatten(), images) == {
        "images": COUNT,
        "classes": 2,
        "right": COUNT - WRONG,
        "classes_labelled": 2,
        "classes_predicted": 2,
        "probed": PROBED,
        "pixels": 2,
        "random": False,
        "flips": 0,
        "depends_on_batch": False,
        "probabilities": False,
        "zero_gradients": 0,
        "not_finite_gradients": 0,
    }


@pytest.mark.parametrize(
    ("model", "fact", "value"),
    [
        (lambda: MASKS["noise layer"][0](nn.Flatten()), "random", True),
        (Centred, "depends_on_batch", True),
        (lambda: MASKS["probabilities"][0](nn.Flatten()), "probabilities", True),
        (lambda: MASKS["backward zero"][0](nn.Flatten()), "zero_gradients", PROBED),
        (lambda: Behind(nn.Flatten(), after=_NotFinite.apply), "not_finite_gradients", PROBED - 1),
    ],
    ids=["noise", "batch", "probabilities", "severed", "not finite"],
)
def test_masks_are_seen(images: ImageSet, model: Callable[[], nn.Module], fact: str, value: object) -> None:
    honest, seen = look_at(nn.Flatten(), images), look_at(model(), images)
    assert seen[fact] == value
    assert {**seen, fact: honest[fact]} == honest or fact == "random"


def test_logits_cut_off_from_the_image_have_no_gradient_to_count(images: ImageSet) -> None:
    honest, seen = look_at(nn.Flatten(), images), look_at(Cut(), images)
    assert seen == honest | {"zero_gradients": None, "not_finite_gradients": None}


def test_saturation_is_seen_where_the_model_is_right(images: ImageSet) -> None:
    """Margins of 100 to 900 nats: in float32 exp(-margin) is 0 beyond 104, and with it the gradient."""
    saturated = Behind(nn.Flatten(), after=lambda logits: 1000 * logits)
    places = torch.linspace(0, COUNT - 1, PROBED).long()
    pixels = images.images.flatten(1).double()[places]
    margins = 1000 * (pixels.gather(1, images.labels[places, None]) * 2 - pixels.sum(dim=1, keepdim=True)).squeeze(1)
    assert look_at(saturated, images)["zero_gradients"] == int((margins > 104).sum())
    assert 0 < int((margins > 104).sum()) < PROBED


def test_no_trace_is_left(images: ImageSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2)).eval()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    look_at(model, images)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)

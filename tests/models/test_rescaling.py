"""Logits multiplied by a number, and the number that calibrates them."""

from dataclasses import replace

import pytest
import torch

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.names import ARCHITECTURES
from gradscope.models.rescaling import calibrating_factor, rescaled

CPU = torch.device("cpu")


def checkpoint(architecture: str = "cnn2") -> Checkpoint:
    torch.manual_seed(0)
    spec = ModelSpec(architecture, 5, 3, 8, (0.5,), (0.25,))
    config = {"seed": 0, "data": {"dataset": "digits"}}
    return Checkpoint(spec, build(spec).state_dict(), "sl", "random", tuple("01234"), "", config, [], {})


def judged(plain: Checkpoint, images: ImageSet, wrong: int) -> ImageSet:
    """``images`` with the labels that the model predicts, but for the first few."""
    batch, _ = images.batch(torch.arange(len(images)), CPU)
    with torch.no_grad():
        labels = plain.build()(batch).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 5
    return replace(images, labels=labels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_multiplied_and_decisions_stay(architecture: str, image_set: ImageSet) -> None:
    plain = checkpoint(architecture)
    scaled = rescaled(plain, 10, "sl-x10")
    images, _ = image_set.batch(torch.arange(16), CPU)
    with torch.no_grad():
        before, after = plain.build()(images), scaled.build()(images)
    torch.testing.assert_close(after, 10 * before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert (scaled.mode, scaled.config["logit_factor"], scaled.config["seed"]) == ("sl-x10", 10, 0)
    assert "logit_factor" not in plain.config


def test_the_calibrating_factor_is_where_the_loss_is_smallest(image_set: ImageSet) -> None:
    """Whatever a model's logits were multiplied by before: calibrated, all of them are one model."""
    plain = checkpoint()
    image_set = judged(plain, image_set, wrong=8)
    factor = calibrating_factor(plain, image_set, CPU)
    images, labels = image_set.batch(torch.arange(40), CPU)
    with torch.no_grad():
        logits = plain.build()(images).double()
    scale = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits * scale, labels)
    (slope,) = torch.autograd.grad(loss, scale)
    assert abs(float(slope) * factor) < 1e-5 * loss.item()
    assert calibrating_factor(rescaled(plain, 30, "x"), image_set, CPU) == pytest.approx(factor / 30, rel=1e-4)


def test_where_every_image_is_right_no_temperature_calibrates(image_set: ImageSet) -> None:
    plain = checkpoint()
    with pytest.raises(
        GradscopeError, match="no temperature calibrates this model on 40 validation images, of which 0"
    ):
        calibrating_factor(plain, judged(plain, image_set, wrong=0), CPU)

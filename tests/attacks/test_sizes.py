"""Float images that are not square: every attack stays in ball and box, and fools where it can."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.registry import ATTACKS
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.data.image_set import ImageSet
from gradscope.losses import margin_loss

BUDGET = Budget(steps=4, queries=40, noise_points=20, restarts=2, smoothing=2, targets=2)


def digits(height: int, width: int) -> ImageSet:
    """Digits beside each other or below, cut to the size; floats that are no byte over 255."""
    pixels = torch.from_numpy(load_digits().images[:12] / 16).float()[:, None]
    labels = torch.from_numpy(load_digits().target[:12])
    return ImageSet.from_tensors("digits", pixels.repeat(1, 1, 3, 3)[:, :, :height, :width].contiguous(), labels)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The class of the nearest digit, by its upper left corner of 5 x 5 pixels."""
    corners = digits(5, 5).images[:10].flatten(1)

    class Nearest(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen = images[:, :, :5, :5].flatten(1)
            return 2 * (seen @ corners.T.to(seen) - corners.square().sum(1).to(seen) / 2)

    return Nearest().eval()


@pytest.mark.parametrize(("height", "width"), [(5, 17), (24, 7)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_images_that_are_not_square(
    model: nn.Module, name: str, norm: str, height: int, width: int
) -> None:
    images = digits(height, width)
    threat = ThreatModel(norm, 0.4 if norm == "linf" else 1.5)
    clean = images.batch(torch.arange(len(images)), "cpu")[0]
    outcome = evaluate(model, images, [name], threat, BUDGET, examples=[clean], loss=margin_loss, keep_images=True)
    assert not outcome.skipped
    found = outcome.attacks[name]
    # Noise is too weak at this size, and the examples of the transfer are the clean images.
    assert found.fooled.any() or name in ("noise", "transfer", "square", "autoattack", "rays", "hop-skip-jump")
    assert found.adversarial is not None
    assert threat.distance(found.adversarial, clean[found.attacked]).max() <= threat.epsilon * (1 + 1e-5)
    assert 0 <= found.adversarial.min() <= found.adversarial.max() <= 1

import pytest
import torch
from torch import nn

from gradscope.models.inspection import laid_out


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cpu_convolves_channels_last(channels):
    """Also grey images, which torch would take for the plain layout."""
    images = torch.rand(4, channels, 6, 5, requires_grad=True)
    shown = laid_out(images)
    assert torch.equal(shown, images)
    assert shown.stride() == (30 * channels, 1, 5 * channels, channels)
    features = nn.Conv2d(channels, 8, 3)(shown)
    assert features.is_contiguous(memory_format=torch.channels_last)
    (slope,) = torch.autograd.grad(features.sum(), images)
    assert slope.shape == images.shape
    assert slope.any()

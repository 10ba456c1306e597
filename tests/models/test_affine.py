import pytest
import torch
from torch import nn

from gradscope.models.affine import PlaneModel
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.inspection import LogitsCheck

POINTS = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 3.0], [-2.5, 0.1]])


def plain(model, origin, directions):
    points = origin.flatten() + POINTS @ directions.flatten(1)
    with torch.no_grad():
        return model(points.reshape(-1, *origin.shape))


def shared(model, origin, directions):
    with torch.no_grad():
        plane = PlaneModel(model)
        return plane(*plane.span(origin, directions), POINTS), plane


def example(channels=3, side=8):
    stream = torch.Generator().manual_seed(0)
    return torch.rand(channels, side, side, generator=stream), 0.1 * torch.randn(
        2, channels, side, side, generator=stream
    )


@pytest.mark.parametrize(("architecture", "layers"), [("cnn2", 2), ("cnn4", 2), ("cnn6", 4), ("resnet18", 0)])
def test_our_networks_share_their_front_and_give_the_same_logits(architecture, layers):
    torch.manual_seed(0)
    model = build(ModelSpec(architecture, 5, 3, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))).eval()
    origin, directions = example(side=16)
    logits, plane = shared(model, origin, directions)
    assert (0 if plane.front is None else len(plane.front)) == layers
    torch.testing.assert_close(logits, plain(model, origin, directions), rtol=1e-4, atol=1e-5)


def test_a_linear_model_is_all_front():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.Dropout(), nn.Linear(7, 4)).eval()
    origin, directions = example()
    logits, plane = shared(model, origin, directions)
    assert len(plane.front) == 4
    torch.testing.assert_close(logits, plain(model, origin, directions), rtol=1e-4, atol=1e-5)


def hooked():
    layer = nn.Conv2d(3, 2, 3)
    layer.register_forward_hook(lambda module, given, output: output.relu())
    return layer


class Odd(nn.Conv2d):
    def forward(self, images):
        return super().forward(images).relu()


@pytest.mark.parametrize("first", [hooked(), Odd(3, 2, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()])
def test_what_may_not_be_affine_is_not_shared(first):
    torch.manual_seed(0)
    channels = getattr(first, "out_channels", 3)
    model = nn.Sequential(first, nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    origin, directions = example()
    with torch.no_grad():
        model(origin[None])
        assert PlaneModel(model).front is None
    logits, _ = shared(model, origin, directions)
    torch.testing.assert_close(logits, plain(model, origin, directions), rtol=1e-4, atol=1e-5)


def test_a_check_of_the_logits_takes_nothing_from_what_is_shared():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    model.register_forward_hook(LogitsCheck("model", 2))
    assert len(PlaneModel(model).front) == 1

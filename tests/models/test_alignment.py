import copy
from functools import partial
from itertools import permutations

import pytest
import torch
from torch import nn

from gradscope.errors import GradscopeError
from gradscope.models.alignment import aligned_state
from gradscope.models.architectures import ModelSpec, build


def network(architecture, seed):
    """One of ours, in evaluation mode; batch norm has statistics, scales and shifts of its own."""
    torch.manual_seed(seed)
    model = build(ModelSpec(architecture, 10, 3, 16, (0.4, 0.5, 0.6), (0.2,)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def shallow(seed, hidden=7):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, 4)).eval()


def normed(seed):
    """Batch norm of flattened channels, pooled to a side of two."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 10)]
    model = nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:])
    for tensor in (model[2].weight.data, model[2].bias.data, model[2].running_mean, model[2].running_var):
        tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def shuffled(model, seed):
    """``model`` with the hidden units of each layer in a random order, done by hand: convolutions and linear layers."""
    torch.manual_seed(seed)
    copied = copy.deepcopy(model)
    layers = [layer for layer in copied.modules() if not list(layer.children()) and list(layer.parameters())]
    order, units = None, 0
    weighted = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if order is not None:
                blocks = layer.weight.data.unflatten(1, (units, -1))
                layer.weight.data.copy_(blocks[:, order].flatten(1, 2))
            if layer is weighted[-1]:
                break
            units = len(layer.weight)
            order = torch.randperm(units)
            named = ("weight", "bias")
        else:
            named = ("weight", "bias", "running_mean", "running_var")
        for name in named:
            tensor = getattr(layer, name).data
            tensor.copy_(tensor[order])
    return copied


def distance(model, state):
    return sum(float((value.detach() - state[key]).square().sum()) for key, value in model.named_parameters()) ** 0.5


def test_the_permutation_of_a_hidden_layer_is_recovered():
    model, order = shallow(0), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    other = copy.deepcopy(model)
    other[1].weight.data, other[1].bias.data = model[1].weight.data[order], model[1].bias.data[order]
    other[3].weight.data = model[3].weight.data[:, order]
    state = aligned_state(model, other)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(other[1].weight, model[1].weight)


@pytest.mark.parametrize("architecture", ["cnn2", "cnn4", "cnn6"])
def test_a_network_with_its_units_in_disorder_is_recovered(architecture):
    model = network(architecture, 0)
    other = shuffled(model, 1)
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(other(images), model(images), rtol=1e-4, atol=1e-5)
    state = aligned_state(model, other)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


MAKE = {"cnn2": partial(network, "cnn2"), "normed": normed}


@pytest.mark.parametrize("make", MAKE.values(), ids=list(MAKE))
def test_the_aligned_network_computes_the_same(make, digest):
    model, other = make(0), make(1)
    before = digest(model), digest(other)
    state = aligned_state(model, other)
    assert (digest(model), digest(other)) == before
    images = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        expected = other(images)
        other.load_state_dict(state)
        torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-5)
    assert distance(model, state) < distance(model, make(1).state_dict())


def test_no_order_of_a_hidden_layer_is_nearer():
    """Of one hidden layer the assignment is the best of all orders."""
    model, other = shallow(0, hidden=5), shallow(1, hidden=5)
    everything = []
    for order in permutations(range(5)):
        one = copy.deepcopy(other).state_dict()
        for key in ("1.weight", "1.bias"):
            one[key] = one[key][list(order)]
        one["3.weight"] = one["3.weight"][:, list(order)]
        everything.append(distance(model, one))
    assert distance(model, aligned_state(model, other)) == pytest.approx(min(everything), rel=1e-6)
    assert min(everything) < 0.98 * everything[0]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(12, 5), nn.Linear(5, 4)

    def forward(self, images):
        return self.two(self.one(images.flatten(1)))


TWICE = nn.Linear(12, 12)
REFUSED = {
    "a network with skips": (network("resnet18", 0), "got ResNet"),
    "a module of one's own": (Own(), "got Own"),
    "groups": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()), "got Conv2d"),
    "a layer norm": (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5), nn.Linear(5, 4)), "got LayerNorm"),
    "no flattening": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Flatten()), "got Linear"),
    "a layer twice": (nn.Sequential(nn.Flatten(), TWICE, TWICE), "uses one layer twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_aligned_is_refused(name):
    model, message = REFUSED[name]
    with pytest.raises(GradscopeError, match=f"^align must be left out .*{message}"):
        aligned_state(model, copy.deepcopy(model))
    with pytest.raises(GradscopeError, match="two networks' layers differ"):
        aligned_state(shallow(0), shallow(0, hidden=6))

import copy

import loss_landscapes
import loss_landscapes.metrics
import pytest
import torch
from loss_landscapes.model_interface.model_wrapper import wrap_model
from torch import nn
from torch.nn import functional as F

from gradscope.errors import GradscopeError
from gradscope.probes.weight_landscape import (
    direction_towards,
    evaluate_plane,
    filter_normalised_direction,
    mean_loss_and_accuracy,
    orthogonal_to,
)

CPU = torch.device("cpu")
AXIS = torch.linspace(-1, 1, 5, dtype=torch.float64)


def directions(model):
    return [filter_normalised_direction(model, seed=0, name=name) for name in ("first", "second")]


def moved(model, first, second, a, b):
    point = copy.deepcopy(model)
    with torch.no_grad():
        for key, parameter in point.named_parameters():
            parameter += a * first[key] + b * second[key]
    return point.eval()


def test_filters_have_their_weights_norm_and_one_axis_parameters_stay(convolutional):
    first, second = directions(convolutional)
    for key, weight in convolutional.named_parameters():
        if weight.dim() == 1:
            assert not first[key].any()
        else:
            torch.testing.assert_close(first[key].flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1))
            alike = F.cosine_similarity(first[key].flatten(), second[key].flatten(), dim=0)
            assert abs(alike) < 0.3
    again = filter_normalised_direction(convolutional, seed=0, name="first")
    assert all(torch.equal(again[key], part) for key, part in first.items())


def test_every_point_is_the_network_with_its_weights(convolutional, image_set, digest):
    before = digest(convolutional)
    first, second = directions(convolutional)
    measure = mean_loss_and_accuracy(image_set, CPU, batch_size=7)
    values = evaluate_plane(convolutional, first, second, (AXIS, AXIS), measure)
    assert digest(convolutional) == before
    images, labels = image_set.batch(torch.arange(40), "cpu")
    for row, a in enumerate(AXIS.tolist()):
        for column, b in enumerate(AXIS.tolist()):
            with torch.no_grad():
                logits = moved(convolutional, first, second, a, b)(images)
            assert values["loss"][row, column] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert values["accuracy"][row, column] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_the_centre_is_the_plain_loss_bit_for_bit(convolutional, image_set):
    first, second = directions(convolutional)
    measure = mean_loss_and_accuracy(image_set, CPU)
    values = evaluate_plane(convolutional, first, second, (AXIS, AXIS), measure)
    with torch.no_grad():
        assert values["loss"][2, 2] == measure(convolutional.eval())["loss"]


def test_planes_equal_loss_landscapes_on_the_same_directions(image_set):
    """Its grid has even rows at columns 1 .. steps and odd ones at 0 .. steps - 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    first, second = directions(model)
    images, labels = image_set.batch(torch.arange(40), "cpu")
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), images, labels)
    ends = [moved(model, first, second, *at) for at in ((1, 0), (0, 1))]
    theirs = loss_landscapes.planar_interpolation(model, *ends, metric, steps=4, deepcopy_model=True)
    axis = torch.linspace(0, 1, 5, dtype=torch.float64)
    measure = mean_loss_and_accuracy(image_set, CPU)

    def both(network):
        return {"ours": measure(network)["loss"], "theirs": metric(wrap_model(network))}

    values = evaluate_plane(model, first, second, (axis, axis), both)
    for row in range(4):
        columns = slice(1, 5) if row % 2 == 0 else slice(0, 4)
        assert values["ours"][row, columns] == pytest.approx(theirs[row], rel=1e-5)
    # Any of its metric objects can be measured on our planes.
    assert values["theirs"] == pytest.approx(values["ours"], rel=1e-5)


def test_the_line_between_two_checkpoints_ends_at_each(convolutional, image_set):
    other = copy.deepcopy(convolutional)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    towards = direction_towards(convolutional, other.state_dict())
    still = {key: torch.zeros_like(part) for key, part in towards.items()}
    measure = mean_loss_and_accuracy(image_set, CPU)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    values = evaluate_plane(convolutional, towards, still, (ends, ends[:1]), measure)["loss"][:, 0]
    with torch.no_grad():
        plain = [measure(network.eval())["loss"] for network in (convolutional, other)]
    assert values == pytest.approx(plain, rel=1e-6)


def test_orthogonal_directions(convolutional):
    first, second = directions(convolutional)
    remainder = orthogonal_to(second, first)
    assert sum(float((part * first[key]).sum()) for key, part in remainder.items()) == pytest.approx(0, abs=1e-4)
    with pytest.raises(GradscopeError, match="these are parallel"):
        orthogonal_to({key: -2 * part for key, part in first.items()}, first)


def test_bad_models_are_refused(convolutional):
    with pytest.raises(GradscopeError, match="it has none to move"):
        filter_normalised_direction(nn.BatchNorm2d(3), seed=0, name="first")
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(GradscopeError, match=r"0\.weight is \(8, 3, 3, 3\) and \(4, 3, 3, 3\)"):
        direction_towards(convolutional, narrow.state_dict())

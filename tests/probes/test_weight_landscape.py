import copy

import loss_landscapes
import loss_landscapes.metrics
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.attacks.pgd import pgd, prepared
from gradscope.config import PGD
from gradscope.errors import GradscopeError
from gradscope.probes.weight_landscape import (
    Custom,
    Measures,
    aligned_axis,
    direction_towards,
    evaluate_curve,
    evaluate_plane,
    filter_normalised_direction,
    line_axis,
    orthogonal_to,
    principal_directions,
    reestimate_batch_norm,
    sharpness,
)

CPU = torch.device("cpu")
AXIS = torch.linspace(-1, 1, 5, dtype=torch.float64)


def measures(image_set, **options):
    return Measures(image_set, torch.arange(len(image_set)), CPU, **options)


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
    measure = measures(image_set, batch_size=7)
    values = evaluate_plane(convolutional, first, second, (AXIS, AXIS), measure)
    values = {name: measure.mean(torch.from_numpy(sums)) for name, sums in values.items()}
    assert digest(convolutional) == before
    images, labels = image_set.batch(torch.arange(40), "cpu")
    for row, a in enumerate(AXIS.tolist()):
        for column, b in enumerate(AXIS.tolist()):
            with torch.no_grad():
                logits = moved(convolutional, first, second, a, b)(images)
            assert values["loss"][row, column] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert values["right"][row, column] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_the_centre_is_the_plain_loss_bit_for_bit(convolutional, image_set):
    first, second = directions(convolutional)
    measure = measures(image_set)
    values = evaluate_plane(convolutional, first, second, (AXIS, AXIS), measure)
    with torch.no_grad():
        assert values["loss"][2, 2].tolist() == measure(convolutional.eval())["loss"].tolist()


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
    measure = measures(image_set, custom=Custom(metric))

    def both(network):
        found = measure(network)
        return {"ours": measure.mean(found["loss"]), "theirs": found["custom"]}

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
    measure = measures(image_set)
    axis = line_axis(0.5, 9)
    values = evaluate_plane(convolutional, towards, None, (axis, torch.zeros(1)), measure)["loss"][:, 0]
    ends = [axis.tolist().index(end) for end in (0.0, 1.0)]
    with torch.no_grad():
        plain = np.stack([measure(network.eval())["loss"] for network in (convolutional, other)])
    assert values[ends] == pytest.approx(plain, rel=1e-5)


def test_orthogonal_directions(convolutional):
    first, second = directions(convolutional)
    remainder = orthogonal_to(second, first)
    assert sum(float((part * first[key]).sum()) for key, part in remainder.items()) == pytest.approx(0, abs=1e-4)
    with pytest.raises(GradscopeError, match="directions must span a plane, got two parallel ones"):
        orthogonal_to({key: -2 * part for key, part in first.items()}, first)


def test_bad_models_are_refused(convolutional):
    with pytest.raises(GradscopeError, match="model must have a non-zero parameter of two or more axes, got none"):
        filter_normalised_direction(nn.BatchNorm2d(3), seed=0, name="first")
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(GradscopeError, match=r"0\.weight is \(8, 3, 3, 3\) and \(4, 3, 3, 3\)"):
        direction_towards(convolutional, narrow.state_dict())


@pytest.mark.parametrize("points", [2, 3, 8, 51])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.1, 5.0), (0.0, 2.0), (-3.0, 0.0)])
def test_an_axis_has_0_on_it_and_reaches_both_ends(points, low, high):
    axis = aligned_axis(low, high, points)
    assert len(axis) == points
    assert 0.0 in axis.tolist()
    if points > 2:
        assert axis[0] <= low + 1e-12
        assert axis[-1] >= high - 1e-12
    torch.testing.assert_close(axis.diff(), (axis[1] - axis[0]).expand(points - 1))
    line = line_axis(0.5, points).tolist()
    assert (len(line), 0.0 in line, 1.0 in line) == (points, True, True)


def test_principal_directions_span_the_epochs(convolutional):
    """Three states on a known plane: it is found, and each state is projected to where it was put."""
    first, second = directions(convolutional)
    second = orthogonal_to(second, first)
    lengths = [sum(float(part.square().sum()) for part in direction.values()) ** 0.5 for direction in (first, second)]
    places = [(3.0, 0.5), (2.0, -0.4), (1.0, 0.1)]
    states = [moved(convolutional, first, second, *place).state_dict() for place in places]
    found, path, explained = principal_directions(convolutional, states)
    assert sum(explained) == pytest.approx(1, abs=1e-5)
    assert path[:, 2] == pytest.approx(0, abs=1e-2)
    expected = [((a * lengths[0]) ** 2 + (b * lengths[1]) ** 2) ** 0.5 for a, b in places]
    assert np.hypot(path[:, 0], path[:, 1]) == pytest.approx(expected, rel=1e-4)
    for direction in found:
        assert sum(float(part.square().sum()) for part in direction.values()) == pytest.approx(1, rel=1e-4)
    again = moved(convolutional, *found, *path[0, :2])
    for key, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.detach(), states[0][key], rtol=1e-3, atol=1e-4)
    for few in (states[:1], [states[0], moved(convolutional, first, second, 6.0, 1.0).state_dict()]):
        with pytest.raises(GradscopeError, match=r"epochs must hold weights that span a plane, .* on one line"):
            principal_directions(convolutional, few)


def test_the_attack_is_made_anew_at_every_point_from_the_same_start(convolutional, image_set):
    settings = PGD(epsilon=0.5, step_size=0.25, steps=3, start="none")
    first, second = directions(convolutional)
    measure = measures(image_set, attack=settings)
    axis = AXIS[[1, 2]]
    values = evaluate_plane(convolutional, first, second, (axis, axis), measure)
    images, labels = image_set.batch(torch.arange(40), "cpu")
    for row, a in enumerate(axis.tolist()):
        for column, b in enumerate(axis.tolist()):
            point = moved(convolutional, first, second, a, b)
            with prepared(point, settings) as attacked:
                logits = attacked(pgd(attacked, images, labels, settings).points)
            expected = F.cross_entropy(logits, labels, reduction="none").detach()
            groups = [expected[group::10].sum().item() for group in range(10)]
            assert values["adversarial_loss"][row, column] == pytest.approx(groups, rel=1e-3)
            assert values["adversarial_right"][row, column].sum() == (logits.argmax(1) == labels).sum()
    same = measures(image_set, attack=PGD(epsilon=0.5, step_size=0.25, steps=3))
    with torch.no_grad():
        assert torch.equal(same(convolutional.eval())["adversarial_loss"], same(convolutional)["adversarial_loss"])


def test_leaving_a_group_out_is_the_mean_over_the_others(convolutional, image_set):
    measure = measures(image_set)
    with torch.no_grad():
        sums = measure(convolutional.eval())["loss"]
    images, labels = image_set.batch(torch.arange(40), "cpu")
    with torch.no_grad():
        losses = F.cross_entropy(convolutional(images), labels, reduction="none")
    left = measure.leave_one_out(sums)
    for group in range(10):
        others = torch.arange(40) % 10 != group
        assert float(left[group]) == pytest.approx(losses[others].mean().item(), rel=1e-5)
    few = measures(image_set.subset(torch.arange(3)))
    assert few.groups == 3


def test_batch_norm_is_re_estimated_on_the_batches_and_nothing_else_changes(convolutional, image_set):
    images, _ = image_set.batch(torch.arange(40), "cpu")
    model = convolutional.eval()
    with torch.no_grad():
        reestimate_batch_norm(model, [images[:20], images[20:]])
        features = model[0](images)
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, features.mean(dim=(0, 2, 3)))
    halves = torch.stack([half.var(dim=(0, 2, 3)) for half in features.split(20)])
    torch.testing.assert_close(norm.running_var, halves.mean(dim=0))
    assert (norm.momentum, norm.training, model[3].training) == (0.1, False, False)


def test_with_re_estimation_the_scale_of_a_layer_before_batch_norm_does_not_matter(convolutional, image_set, digest):
    images, _ = image_set.batch(torch.arange(40), "cpu")
    before = digest(convolutional)
    scale = {key: torch.zeros_like(part) for key, part in convolutional.named_parameters()}
    scale["0.weight"], scale["0.bias"] = (convolutional[0].weight.detach(), convolutional[0].bias.detach())
    axis = torch.tensor([0.0, 1.0, 3.0])
    anew = evaluate_plane(convolutional, scale, None, (axis, axis[:1]), measures(image_set, reestimate=[images]))
    assert anew["loss"][1:].sum(axis=2) == pytest.approx(anew["loss"][:1].sum(axis=2).repeat(2, axis=0), rel=1e-3)
    as_is = evaluate_plane(convolutional, scale, None, (axis, axis[:1]), measures(image_set))
    assert as_is["loss"][2].sum() > 1.5 * as_is["loss"][0].sum()
    assert digest(convolutional) == before


def test_a_metric_that_fails_at_one_point_is_nan_there_and_the_rest_is_kept(convolutional, image_set):
    images, labels = image_set.batch(torch.arange(40), "cpu")
    inner = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), images, labels)
    calls = []

    def metric(wrapper):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("a bad point")
        return inner(wrapper)

    custom = Custom(metric)
    first, second = directions(convolutional)
    measure = measures(image_set, custom=custom)
    values = evaluate_plane(convolutional, first, second, (AXIS[:2], AXIS[:2]), measure)
    assert np.isnan(values["custom"]).tolist() == [[False, False], [True, False]]
    assert custom.failures == ["ZeroDivisionError: a bad point"]
    assert values["custom"][0] == pytest.approx(values["loss"][0].sum(axis=1) / 40, rel=1e-5)
    assert np.isnan(Custom(lambda wrapper: [1.0, 2.0])(convolutional))


def test_sharpness_is_the_rise_within_distance_1():
    axis = torch.linspace(-3, 3, 7, dtype=torch.float64)
    bowl = (axis[:, None] ** 2 + axis[None, :] ** 2).float()
    torch.testing.assert_close(sharpness(bowl + 4, torch.tensor(4.0), (axis, axis)), torch.tensor(1.0))
    assert sharpness(4 - bowl, torch.tensor(4.0), (axis, axis)) == 0
    assert sharpness(bowl, torch.tensor(0.0), (2 * axis, 2 * axis)).isnan(), "no point is near enough"


def test_a_model_that_gains_a_parameter_meanwhile_is_refused():
    class Growing(nn.Linear):
        def forward(self, images):
            self.late = nn.Parameter(torch.ones(1))
            return super().forward(images)

    model = Growing(4, 5)
    first = {key: torch.ones_like(parameter) for key, parameter in model.named_parameters()}
    with pytest.raises(GradscopeError, match=r"^model must keep its parameters, but has gained or lost late$"):
        evaluate_plane(
            model, first, None, (AXIS, torch.zeros(1)), lambda moving: {"sum": moving(torch.ones(1, 4)).sum()}
        )


def test_along_a_curve_every_point_is_the_network_with_its_weights(convolutional, image_set, digest):
    """At the ends it is the checkpoints, bit for bit."""
    other = copy.deepcopy(convolutional)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    ends = [{key: weight.detach() for key, weight in model.named_parameters()} for model in (convolutional, other)]
    bend = {key: torch.randn_like(weight) for key, weight in ends[0].items()}
    before, measure = digest(convolutional), measures(image_set)
    axis = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    values = evaluate_curve(convolutional, (ends[0], bend, ends[1]), axis, measure)["loss"][:, 0]
    assert digest(convolutional) == before
    middle = copy.deepcopy(convolutional)
    for key, parameter in middle.named_parameters():
        parameter.data = 0.25 * ends[0][key] + 0.5 * bend[key] + 0.25 * ends[1][key]
    with torch.no_grad():
        first, between, last = (measure(model.eval())["loss"].numpy() for model in (convolutional, middle, other))
    np.testing.assert_array_equal(values[[0, 2]], [first, last])
    np.testing.assert_allclose(values[1], between, rtol=1e-5)

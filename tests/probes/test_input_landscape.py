import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.attacks.pgd import prepared, threat_model
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD, Grid
from gradscope.errors import GradscopeError
from gradscope.probes import input_landscape
from gradscope.probes.input_landscape import (
    DISC,
    Planes,
    StepFacts,
    adversarial_planes,
    attack_walk,
    coordinates,
    correct_radius,
    evaluate_planes,
    losses_on_disc,
    margins_along,
    roughness,
    shared_planes,
)

SETTINGS = PGD(epsilon=0.5, step_size=0.1, steps=8)
GRID = Grid(points=9, span=2.0)
L2 = ThreatModel("l2", 0.5)


def walk_of(model, image_set, numbers, settings=SETTINGS, seed=0):
    images, labels = image_set.batch(numbers, "cpu")
    with prepared(model, settings) as attacked:
        return images, labels, attack_walk(attacked, images, labels, settings, numbers=numbers, seed=seed)


def planes_of(model, image_set, numbers, settings=SETTINGS, seed=0):
    images, labels, walk = walk_of(model, image_set, numbers, settings, seed)
    return adversarial_planes(images, walk, threat_model(settings), numbers=numbers, seed=seed), labels


def test_directions_are_orthonormal_and_the_first_is_the_attacks(convolutional, image_set):
    planes, _ = planes_of(convolutional, image_set, torch.arange(12))
    torch.testing.assert_close(planes.first.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(planes.second.norm(dim=1), torch.ones(12))
    assert (planes.first * planes.second).sum(dim=1).abs().max() < 1e-6
    assert not planes.fallback.any()
    # The last iterate lies on the first axis, inside the ball; the path has every iterate.
    assert planes.paths.shape == (1, 12, 9, 3)
    assert planes.paths[0, :, -1, 1:].abs().max() < 1e-5
    assert (planes.paths[0, :, -1, 0] > 0.5).all()
    # On the plane and off it make up the iterate's whole displacement.
    _, _, walk = walk_of(convolutional, image_set, torch.arange(12))
    torch.testing.assert_close(planes.paths[0].norm(dim=2), walk.norm(dim=2) / 0.5)
    assert planes.paths.norm(dim=3).max() <= 1 + 1e-5


def test_a_plane_depends_on_its_image_and_the_seed_alone(convolutional, image_set):
    whole, _ = planes_of(convolutional, image_set, torch.arange(10))
    part, _ = planes_of(convolutional, image_set, torch.tensor([7, 3]))
    torch.testing.assert_close(part.second, whole.second[[7, 3]], rtol=0, atol=1e-4)
    other, _ = planes_of(convolutional, image_set, torch.arange(10), seed=1)
    assert (other.second * whole.second).sum(dim=1).abs().max() < 0.5


def test_every_point_equals_a_forward_pass_of_its_own(convolutional, image_set):
    planes, labels = planes_of(convolutional, image_set, torch.arange(3))
    values = evaluate_planes(convolutional, planes, labels, GRID)
    model, axis = convolutional.eval(), coordinates(GRID)
    for image in range(3):
        for row, a in enumerate(axis.tolist()):
            for column, b in enumerate(axis.tolist()):
                step = 0.5 * (a * planes.first[image] + b * planes.second[image])
                with torch.no_grad():
                    logits = model((planes.origins[image].flatten() + step).reshape(1, 3, 8, 8))
                expected = F.cross_entropy(logits, labels[image : image + 1])
                torch.testing.assert_close(values.loss[image, row, column], expected, rtol=1e-4, atol=1e-5)
                assert values.predicted[image, row, column] == logits.argmax()


def test_the_centre_is_the_plain_loss_bit_for_bit(convolutional, image_set):
    planes, labels = planes_of(convolutional, image_set, torch.arange(20))
    values = evaluate_planes(convolutional, planes, labels, GRID)
    model = convolutional.eval()
    for image in range(20):
        alone = planes.origins[image : image + 1].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            loss = F.cross_entropy(model(alone), labels[image : image + 1], reduction="none")
        assert torch.equal(values.loss[image, 4, 4], loss[0])


def test_a_linear_models_plane_is_its_closed_form(linear):
    """Two classes: the margin is affine in (a, b), constant along b, and the loss is softplus(-margin)."""
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model, images, labels = linear(weight), torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    settings = PGD(epsilon=0.5, step_size=0.1, steps=8, start="none", box=False)
    walk = attack_walk(model, images, labels, settings, numbers=torch.arange(2))
    planes = adversarial_planes(images, walk, L2, numbers=torch.arange(2))
    difference = torch.stack([weight[int(label)] - weight[1 - int(label)] for label in labels])
    torch.testing.assert_close(planes.first, -difference / difference.norm(dim=1, keepdim=True))
    values = evaluate_planes(model, planes, labels, GRID)
    axis = coordinates(GRID).float()
    centre = (images.flatten(1) * difference).sum(dim=1)
    expected = centre[:, None] - 0.5 * axis * difference.norm(dim=1, keepdim=True)
    expected = expected[:, :, None].expand(2, 9, 9)
    torch.testing.assert_close(values.margin, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values.loss, F.softplus(-expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(values.predicted == labels[:, None, None], values.margin > 0)
    assert roughness(values.margin, (axis, axis)).max() < 1e-4
    # The margin falls by epsilon * |w_y - w_other| an epsilon, so it is 0 at a known distance along the first ray.
    distances = torch.linspace(0, 40, 2001)
    margins = margins_along(model, images, labels, planes.axes, distances)
    radius, beyond = correct_radius(margins, distances)
    where = (centre / (0.5 * difference.norm(dim=1))).clamp(min=0)
    torch.testing.assert_close(radius[:, 0], where, rtol=1e-4, atol=1e-4)
    assert torch.equal(beyond[:, 1], centre > 0), "along the second direction nothing changes"


def test_an_image_whose_gradient_is_zero_gets_a_named_fallback_and_no_nan(linear):
    model = linear(torch.zeros(3, 12))
    images, labels = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    still = PGD(epsilon=0.5, step_size=0.1, steps=3, start="none")
    walk = attack_walk(model, images, labels, still, numbers=torch.arange(2))
    planes = adversarial_planes(images, walk, threat_model(still), numbers=torch.arange(2))
    assert planes.fallback.tolist() == [[True, False]] * 2
    torch.testing.assert_close(planes.first.norm(dim=1), torch.ones(2))
    assert (planes.first * planes.second).sum(dim=1).abs().max() < 1e-6
    values = evaluate_planes(model, planes, labels, GRID)
    torch.testing.assert_close(values.loss, torch.full((2, 9, 9), math.log(3)))


def test_no_trace_is_left(convolutional, image_set, digest):
    before = digest(convolutional)
    planes, labels = planes_of(convolutional, image_set, torch.arange(4))
    evaluate_planes(convolutional, planes, labels, GRID)
    assert digest(convolutional) == before


def test_the_batch_is_halved_where_memory_runs_out_and_nothing_is_lost(convolutional, image_set, monkeypatch):
    class Small(nn.Module):
        """A device that holds at most 5 images."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            if len(images) > 5:
                raise torch.OutOfMemoryError
            return self.model(images)

    planes, labels = planes_of(convolutional, image_set, torch.arange(2))
    told = []
    small = evaluate_planes(
        Small(convolutional), planes, labels, GRID, advanced=lambda points, note: told.append(points)
    )
    whole = evaluate_planes(convolutional, planes, labels, GRID)
    torch.testing.assert_close(small.loss, whole.loss)
    assert sum(told) == 2 * 81
    monkeypatch.setitem(input_landscape.POINTS_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(evaluate_planes(convolutional, planes, labels, GRID).loss, whole.loss)


@pytest.mark.parametrize("points", [2, 3, 50, 51, 300])
def test_coordinates_are_symmetric(points):
    axis = coordinates(Grid(points=points, span=3.0))
    assert (axis[0], axis[-1], len(axis)) == (-3, 3, points)
    assert torch.equal(axis, -axis.flip(0))
    assert (points % 2 == 0) or axis[points // 2] == 0


def test_bad_grids_and_threats_are_refused(convolutional, image_set):
    for bad, message in (
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"span": 0}, "span must be above 0, got 0"),
    ):
        with pytest.raises(GradscopeError, match=message):
            Grid.parse(bad)
    with pytest.raises(GradscopeError, match="epsilon must be above 0, because"):
        planes_of(convolutional, image_set, torch.arange(2), PGD(epsilon=0, steps=1))


def test_correct_radius_interpolates_the_first_crossing():
    axis = torch.tensor([0.0, 1.0, 2.0])
    margins = torch.tensor([[3.0, 1.0, -1.0], [-1.0, 5.0, 5.0], [2.0, 1.0, 0.5], [1.0, -3.0, 5.0]])
    radius, beyond = correct_radius(margins, axis)
    torch.testing.assert_close(radius, torch.tensor([1.5, 0.0, 2.0, 0.25]))
    assert beyond.tolist() == [False, False, True, False]
    lost = torch.tensor([[2.0, 1.0, math.nan], [math.inf, -1.0, 0.0]])
    torch.testing.assert_close(correct_radius(lost, axis)[0], torch.tensor([1.0, 0.0]))


def test_roughness_of_a_bowl():
    axis = coordinates(Grid(points=7, span=3.0)).float()
    bowl = 1.5 * (axis[:, None] ** 2 + axis[None, :] ** 2)
    plane = axis[:, None] + 2 * axis
    torch.testing.assert_close(roughness(torch.stack([bowl, plane]), (axis, axis)), torch.tensor([3.0, 0.0]))
    half = axis / 2
    bowl = 1.5 * (half[:, None] ** 2 + axis[None, :] ** 2)
    torch.testing.assert_close(roughness(bowl, (half, axis)), torch.tensor(3.0))
    torch.testing.assert_close(roughness(bowl[:, 3:4], (half, torch.zeros(1))), torch.tensor(3.0))
    assert roughness(bowl[:2, :2], (half[:2], axis[:2])).isnan()


def test_the_disc_reaches_exactly_one_along_both_axes(linear):
    """On two classes the loss rises with a alone, so its largest value on the disc is at a = 1."""
    assert DISC.norm(dim=1).max() <= 1 + 1e-6
    assert len(DISC) == 128
    images, labels, numbers = torch.full((1, 3, 2, 2), 0.5), torch.tensor([0]), torch.arange(1)
    model = linear(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
    walk = attack_walk(model, images, labels, PGD(epsilon=0.5, steps=8, start="none", box=False), numbers=numbers)
    planes = adversarial_planes(images, walk, L2, numbers=numbers)
    losses = losses_on_disc(model, planes, labels)
    difference = model.weight[0] - model.weight[1]
    centre = (images.flatten(1) * difference).sum()
    expected = [F.softplus(-centre), F.softplus(-centre + 0.5 * difference.norm())]
    torch.testing.assert_close(torch.stack([losses[0, 0], losses.max()]), torch.stack(expected).detach())


def test_planes_of_your_own_directions(linear):
    """Directions may come from elsewhere: a plane is only a value."""
    origins = torch.full((1, 3, 2, 2), 0.5)
    first, second = torch.eye(12)[:1], torch.eye(12)[1:2]
    planes = Planes(
        origins, first, second, torch.tensor([0.1]), torch.zeros(1, 1, 1, 3), torch.zeros(1, 2, dtype=torch.bool)
    )
    weight = torch.zeros(2, 12)
    weight[0, :2] = torch.tensor([1.0, 2.0])
    values = evaluate_planes(linear(weight), planes, torch.tensor([0]), Grid(points=3, span=1.0))
    expected = 1.5 + 0.1 * torch.tensor([[-3.0, -1.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 1.0, 3.0]])
    torch.testing.assert_close(values.margin[0], expected)


def test_a_plane_shared_by_two_models_holds_both_attacks(convolutional, image_set, linear):
    numbers = torch.arange(6)
    images, _, walk = walk_of(convolutional, image_set, numbers)
    other = linear(torch.randn(5, 192, generator=torch.Generator().manual_seed(1)))
    _, _, others = walk_of(other, image_set, numbers)
    planes = shared_planes(images, (walk, others), L2, numbers=numbers)
    assert not planes.fallback.any()
    # Both last iterates lie on the plane, the first model's on the first axis.
    assert planes.paths[:, :, -1, 2].max() < 1e-5
    assert planes.paths[0, :, -1, 1].abs().max() < 1e-5
    cosine = F.cosine_similarity(walk[:, -1], others[:, -1], dim=1)
    tip = planes.paths[1, :, -1]
    torch.testing.assert_close(tip[:, 0] / tip.norm(dim=1), cosine, rtol=1e-4, atol=1e-5)
    assert (tip[:, 1] > 0).all()


def three_classes(linear):
    """Class 0 has no weights, classes 1 and 2 have one pixel each, so attacks on class 0 have ends that are known."""
    weight = torch.zeros(3, 12)
    weight[1, 0] = weight[2, 1] = 1.0
    images = torch.full((1, 3, 2, 2), 0.5)
    images[0, 0, 0, 0] += 1e-5  # so that class 1 is the margin's
    return linear(weight), images, torch.tensor([0])


def test_the_plane_of_two_attacks_holds_ends_that_are_known(linear):
    """Cross-entropy climbs both classes alike, the margin the first of them alone: 45 degrees apart."""
    model, images, labels = three_classes(linear)
    given = {"epsilon": 0.5, "step_size": 0.1, "steps": 8, "start": "none", "box": False}
    numbers, facts = torch.arange(1), StepFacts(labels)
    walk = attack_walk(model, images, labels, PGD(**given), numbers=numbers, facts=facts)
    other = attack_walk(model, images, labels, PGD(**given, loss="margin"), numbers=numbers)
    planes = shared_planes(images, (walk, other), L2, numbers=numbers)
    assert not planes.fallback.any()
    along = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])  # in multiples of epsilon, to the ball's surface
    half, near = math.sqrt(0.5), {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(planes.paths[0, 0, 1:], along[:, None] * torch.tensor([[1.0, 0.0, 0.0]]), **near)
    torch.testing.assert_close(planes.paths[1, 0, 1:], along[:, None] * torch.tensor([[half, half, 0.0]]), **near)
    wrong = 2 * torch.exp(0.5 + 0.5 * half * torch.cat([torch.zeros(1), along]).double())
    torch.testing.assert_close(facts.losses[0], torch.log1p(wrong), **near)
    torch.testing.assert_close(facts.gradients[0, :-1], (half * wrong / (1 + wrong))[:-1], **near)
    assert facts.gradients[0, -1].isnan(), "no step leaves the last iterate"


def test_a_floor_shortens_the_steps_of_an_attack_by_its_gradient(linear):
    """Of a gradient g below the floor every step is g / floor of its length; a mean over two images halves g."""
    weight = torch.zeros(2, 12, dtype=torch.float64)
    weight[0, 0] = 40.0
    images, labels, numbers = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 0]), torch.arange(2)
    given = {"epsilon": 1.0, "step_size": 0.1, "steps": 10, "start": "none", "box": False, "precision": "float64"}
    blind, facts = PGD(**given, reduction="mean", norm_floor=1e-6), StepFacts(labels)
    walk = attack_walk(linear(weight), images, labels, blind, numbers=numbers, facts=facts)
    gradient = 40 * math.exp(-20) / 2
    assert facts.gradients[:, 0].tolist() == pytest.approx([gradient, gradient], rel=1e-3)
    shares = (facts.gradients[0, :-1] / 1e-6).clamp(max=1)
    assert walk[0, -1].norm().item() == pytest.approx(0.1 * shares.sum().item(), rel=1e-4)
    assert gradient * 0.1 / 1e-6 * 10 < walk[0, -1].norm() < 0.5
    exact = attack_walk(linear(weight), images, labels, PGD(**given), numbers=numbers)
    planes = shared_planes(images, (exact, walk), ThreatModel("l2", 1.0), numbers=numbers)
    assert planes.fallback.tolist() == [[False, True]] * 2, "both go the same way"
    torch.testing.assert_close(planes.paths[0, :, -1], torch.tensor([[1.0, 0.0, 0.0]] * 2))
    torch.testing.assert_close(planes.paths[1, 0, -1, 0], walk[0, -1].norm())


def test_two_attacks_that_are_parallel_or_still_span_a_plane_with_a_named_fallback(convolutional, image_set):
    numbers = torch.arange(4)
    images, _, walk = walk_of(convolutional, image_set, numbers)
    parallel = torch.cat([walk[:1], -walk[1:2], 0 * walk[2:3], walk[3:4].roll(1, dims=2)])
    planes = shared_planes(images, (walk, parallel), L2, numbers=numbers)
    assert planes.fallback.tolist() == [[False, True], [False, True], [False, True], [False, False]]
    torch.testing.assert_close(planes.second.norm(dim=1), torch.ones(4))
    assert (planes.first * planes.second).sum(dim=1).abs().max() < 1e-6


def test_rows_are_the_same_whether_taken_alone_or_together(convolutional, image_set):
    planes, labels = planes_of(convolutional, image_set, torch.arange(2))
    whole = evaluate_planes(convolutional, planes, labels, GRID)
    for rows in (range(3), range(3, 5), range(5, 9)):
        part = evaluate_planes(convolutional, planes[0:2], labels, GRID, rows=rows)
        torch.testing.assert_close(part.loss, whole.loss[:, rows.start : rows.stop], rtol=1e-5, atol=1e-6)
    assert torch.equal(
        evaluate_planes(convolutional, planes, labels, GRID, rows=range(4, 5)).loss[:, 0, 4], whole.loss[:, 4, 4]
    )


def test_in_l_infinity_the_axes_are_multiples_of_epsilon_in_that_norm(linear):
    """A linear model's steepest point is at a = 1: the plane has the attack on it, however many pixels there are."""
    weight = torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
    model, images, labels = linear(weight), torch.full((1, 3, 8, 8), 0.5), torch.tensor([0])
    settings = PGD(norm="linf", epsilon=0.1, step_size=0.02, steps=20, start="none")
    walk = attack_walk(model, images, labels, settings, numbers=torch.arange(1))
    planes = adversarial_planes(images, walk, threat_model(settings), numbers=torch.arange(1))
    torch.testing.assert_close(planes.paths[0, 0, -1], torch.tensor([1.0, 0.0, 0.0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(planes.axes[0, 0].abs().max(), torch.tensor(0.1))
    torch.testing.assert_close(planes.axes[0].norm(dim=1), planes.unit.expand(2))
    difference = weight[0] - weight[1]
    expected = (images.flatten() @ difference - 0.1 * difference.abs().sum()).reshape(())
    values = evaluate_planes(model, planes, labels, Grid(points=3, span=1.0))
    torch.testing.assert_close(values.margin[0, 2, 1], expected, rtol=1e-4, atol=1e-3)


def test_losses_of_bfloat16_logits_fit_into_numpy(convolutional, image_set):
    class Rounded(nn.Module):
        def forward(self, images):
            return convolutional(images).bfloat16()

    planes, labels = planes_of(convolutional, image_set, torch.arange(1))
    values = evaluate_planes(Rounded().eval(), planes, labels, GRID)
    assert values.loss.numpy().dtype == values.margin.numpy().dtype == "float32"

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.apgd import apgd, apgd_targeted, ascend, checkpoints, targeted_dlr
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.losses import LOSSES

torchattacks = importlib.import_module("torchattacks")
NAMES = {"linf": "Linf", "l2": "L2"}


def test_checkpoints_are_the_papers():
    """p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), of 100 steps."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(3)) == [1, 2, 3]


def right_when_clean(model, image_set, problem_of, threat, **budget):
    """The images with the labels that the model gives them."""
    problem = problem_of(model, image_set, threat, **budget)
    return replace(problem, labels=model(problem.images).argmax(dim=1))


def published_start(norm, images, epsilon):
    """torchattacks' own start, on its random state."""
    if norm == "linf":
        noise = 2 * torch.rand(images.shape) - 1
        return (images + epsilon * noise / noise.flatten(1).abs().amax(1)[:, None, None, None]).clamp(0, 1)
    noise = torch.randn(images.shape)
    return (images + epsilon * noise / (noise.flatten(1).norm(dim=1)[:, None, None, None] + 1e-12)).clamp(0, 1)


@pytest.mark.parametrize("loss", ["cross-entropy", "dlr"])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.3)])
def test_equals_torchattacks_from_the_same_start(convolutional, image_set, problem_of, norm, epsilon, loss):
    """Of the images that stand, the point of largest loss; of the others, that they fall."""
    problem = right_when_clean(convolutional, image_set, problem_of, ThreatModel(norm, epsilon), steps=40)
    short = {"cross-entropy": "ce", "dlr": "dlr"}[loss]
    reference = torchattacks.APGD(problem.model, norm=NAMES[norm], eps=epsilon, steps=40, loss=short)
    torch.manual_seed(5)
    best, right, best_loss, _ = reference.attack_single_run(problem.images, problem.labels)
    torch.manual_seed(5)
    start = published_start(norm, problem.images, epsilon)

    def untargeted(logits, labels, targets):
        return LOSSES[loss](logits, labels)

    points = ascend(problem, untargeted, problem.labels, start)
    stands = ~problem.fooled_at(points)
    assert torch.equal(stands, right)
    assert 3 < int(stands.sum()) < len(problem) - 3
    with torch.no_grad():
        found = LOSSES[loss](problem.model(points), problem.labels)
    torch.testing.assert_close(found[stands], best_loss[stands], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(points[stands], best[stands], rtol=0, atol=2e-3)


def test_targeted_dlr_by_hand():
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0, -7.0]])
    label, target = torch.tensor([0]), torch.tensor([4])
    assert targeted_dlr(logits, label, target).item() == pytest.approx(-12 / (5 - 0.5))
    reference = torchattacks.APGDT(nn.Linear(1, 1))
    torch.testing.assert_close(targeted_dlr(logits, label, target), reference.dlr_loss_targeted(logits, label, target))


def test_targeted_dlr_of_few_classes_is_its_numerator():
    logits = torch.tensor([[5.0, 3.0, 1.0]])
    assert targeted_dlr(logits, torch.tensor([0]), torch.tensor([2])).item() == -4
    assert targeted_dlr(logits[:, :2], torch.tensor([0]), torch.tensor([1])).item() == -2


class Towards(nn.Module):
    """Class 0 is right; one pixel for each other class, which only that class's target finds."""

    def forward(self, images):
        pixels = images.flatten(1)[:, :5]
        others = torch.stack([-5 - pixels[:, 0], 4 * pixels[:, 1] - 4, 3 * pixels[:, 2] - 2], dim=1)
        return torch.cat([torch.zeros(len(images), 1), others], dim=1)


def test_a_wrong_class_is_aimed_at_by_its_rank(image_set, problem_of):
    """Only class 3 is within reach, and it is the likeliest."""
    problem = problem_of(Towards(), image_set, ThreatModel("linf", 0.3), 6, steps=10)
    problem = replace(
        problem, images=torch.full((6, 3, 8, 8), 0.5), labels=torch.zeros(6, dtype=torch.int64), classes=4
    )
    assert problem.fooled_at(apgd_targeted(problem, [0])).all()
    near = replace(problem, threat=ThreatModel("linf", 0.1))
    for rank in range(3):
        tally = Tally()
        apgd_targeted(replace(near, model=Counted(near.model, tally)), [rank])
        assert tally.forward == 6 * (1 + 11)  # the ranking and every iterate
        assert tally.backward == 6 * 10


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_classes_side_by_side_fool_whom_one_of_them_fools_alone(convolutional, image_set, problem_of, norm):
    """And end with the first of them: each pass has the points of an image for all classes, or none."""
    threat = ThreatModel(norm, 0.015 if norm == "linf" else 0.2)
    problem = right_when_clean(convolutional, image_set, problem_of, threat, steps=15)
    alone = [problem.fooled_at(apgd_targeted(problem, [rank])) for rank in (1, 2, 3)]
    tally = Tally()
    together = problem.fooled_at(apgd_targeted(replace(problem, model=Counted(problem.model, tally)), [1, 2, 3]))
    assert torch.equal(together, torch.stack(alone).any(dim=0))
    assert 3 < int(together.sum()) < len(problem) - 3
    assert any(int(one.sum()) < int(together.sum()) for one in alone)
    standing, paid = int((~together).sum()), tally.forward - len(problem)
    assert paid % 3 == 0
    assert 3 * 16 * standing < paid < 3 * 16 * len(problem)
    apart = 0
    for row in range(len(problem)):
        tally = Tally()
        one = replace(problem.only(torch.tensor([row])), model=Counted(problem.model, tally))
        apgd_targeted(one, [1, 2, 3])
        apart += tally.forward
    assert apart == pytest.approx(paid + len(problem), rel=0.02)


class Scale(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.factor * self.model(images)


def test_a_gradient_too_small_for_torchattacks(convolutional, image_set, problem_of):
    """Why ours: where the square of the gradient's norm underflows, torchattacks stays at its random start (L2)."""
    problem = right_when_clean(convolutional, image_set, problem_of, ThreatModel("l2", 0.5), steps=10)
    flat = replace(problem, model=Scale(problem.model, 1e-26))
    found = [attacked.fooled_at(apgd(attacked, "cross-entropy")).float().mean() for attacked in (problem, flat)]
    assert min(found) > 0.8
    stuck = torchattacks.APGD(flat.model, norm="L2", eps=0.5, steps=10)(flat.images, flat.labels)
    assert flat.fooled_at(stuck).float().mean() < 0.5


def test_the_l2_step_of_torchattacks_targeted_form_is_the_first_images(convolutional, image_set, problem_of):
    """Why ours: with the same draws, another first image changes what becomes of all others."""
    problem = right_when_clean(convolutional, image_set, problem_of, ThreatModel("l2", 1.0), steps=30)
    one, other = torch.arange(1, 40), torch.tensor([0, *range(2, 40)])
    reference = torchattacks.APGDT(problem.model, norm="L2", eps=1.0, steps=30, n_classes=5)
    reference.target_class = 3

    def theirs(rows):
        torch.manual_seed(0)
        return reference.attack_single_run(problem.images[rows], problem.labels[rows])[0][1:]

    def ours(rows):
        targets = problem.model(problem.images[rows]).argsort(dim=1)[:, -3]
        start = torch.cat([problem.images[rows[:1]], problem.start("surface", "here")[2:]])
        return ascend(problem.only(rows), targeted_dlr, targets, start)[1:]

    assert (theirs(one) - theirs(other)).abs().amax() > 0.01
    torch.testing.assert_close(ours(one), ours(other), rtol=0, atol=1e-4)


def test_a_step_is_halved_where_the_loss_goes_up_and_down(image_set, problem_of):
    """A narrow ridge: steps of 2 epsilon jump over it for ever, halved ones climb it."""

    class Ridge(nn.Module):
        def forward(self, images):
            height = -(images.flatten(1) - 0.53).abs().amax(dim=1)
            return torch.stack([torch.full_like(height, -0.003), height], dim=1)

    problem = problem_of(Ridge(), image_set, ThreatModel("linf", 0.1), 4, steps=100)
    problem = replace(problem, images=torch.full((4, 1, 1, 1), 0.5), labels=torch.zeros(4, dtype=torch.int64))
    assert problem.fooled_at(apgd(problem, "margin")).all()

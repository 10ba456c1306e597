import importlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope.vision  # noqa: F401, before torchattacks, which imports torchvision
from gradscope.attacks.pgd import Streams, look, pgd, prepared
from gradscope.config import PGD, attack_settings

torchattacks = importlib.import_module("torchattacks")


def l2_start(images, epsilon):
    """torchattacks' own random start, on its random state."""
    delta = torch.empty_like(images).normal_()
    flat = delta.flatten(1)
    radius = torch.zeros_like(flat.norm(dim=1)).view(-1, 1, 1, 1).uniform_(0, 1)
    return (images + delta * radius / flat.norm(dim=1).view(-1, 1, 1, 1) * epsilon).clamp(0, 1)


@pytest.mark.parametrize("random_start", [False, True])
def test_l2_equals_torchattacks_from_the_same_start(convolutional, image_set, random_start):
    model = convolutional.eval()
    images, labels = image_set.batch(torch.arange(40), "cpu")
    reference = torchattacks.PGDL2(model, eps=1.0, alpha=0.1, steps=25, random_start=random_start)
    torch.manual_seed(5)
    expected = reference(images, labels)
    torch.manual_seed(5)
    start = l2_start(images, 1.0) if random_start else images
    ours = pgd(model, images, labels, PGD(steps=25), start=start).points
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("random_start", [False, True])
def test_linf_equals_torchattacks_from_the_same_start(convolutional, image_set, random_start):
    model = convolutional.eval()
    images, labels = image_set.batch(torch.arange(40), "cpu")
    reference = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=25, random_start=random_start)
    torch.manual_seed(5)
    expected = reference(images, labels)
    torch.manual_seed(5)
    noise = torch.empty_like(images).uniform_(-8 / 255, 8 / 255) if random_start else 0
    settings = attack_settings("pgd", {"norm": "linf", "steps": 25, "step_size": "2/255"})
    ours = pgd(model, images, labels, settings, start=(images + noise).clamp(0, 1)).points
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def paper_pgd(model, images, labels, start, epsilon, step_size, steps):
    """The paper's form written out: mean loss, backward through the parameters too, norm floored at 1e-6, no box."""
    adversarial = start
    for _ in range(steps):
        point = adversarial.clone().detach().requires_grad_(True)
        F.cross_entropy(model(point), labels).backward()
        gradient = point.grad.detach()
        squared = gradient.square().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        eta = point.detach() + step_size * gradient / squared.sqrt() - images
        norms = eta.square().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        adversarial = images + eta * (epsilon / norms).clamp(max=1)
    return adversarial


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_pgd_paper_is_the_paper_to_the_letter(convolutional, image_set, scale):
    """With logits times 30 many gradients are below the floor: there the two forms must shorten steps alike."""
    model = nn.Sequential(convolutional.eval(), Scale(scale))
    images, labels = image_set.batch(torch.arange(40), "cpu")
    settings = attack_settings("pgd-paper", {"steps": 20})
    start = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ours = pgd(model, images, labels, settings, start=start).points
    expected = paper_pgd(model, images, labels, start, 1.0, 0.1, 20)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours.min() < 0 or ours.max() > 1


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor


def test_a_linear_models_closed_form(linear):
    """Two classes: the gradient is (1 - p_y)(w_other - w_y), its direction constant, the attack walks straight."""
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model = linear(weight)
    images = torch.full((3, 3, 2, 2), 0.5)
    labels = torch.tensor([0, 1, 0])
    settings = PGD(epsilon=0.35, step_size=0.1, steps=6, start="none", box=False)
    seen = []
    final = pgd(model, images, labels, settings, observe=seen.append).points
    towards = torch.stack([weight[1 - int(label)] - weight[int(label)] for label in labels])
    unit = towards / towards.norm(dim=1, keepdim=True)
    torch.testing.assert_close(final.flatten(1), images.flatten(1) + 0.35 * unit)
    for iterate in seen[:-1]:
        probability = torch.softmax(iterate.images.flatten(1) @ weight.T, dim=1).gather(1, labels[:, None])
        torch.testing.assert_close(iterate.gradient.flatten(1), (1 - probability) * towards)
        walked = min(0.1 * iterate.step, 0.35)
        torch.testing.assert_close(iterate.images.flatten(1), images.flatten(1) + walked * unit)


@pytest.mark.parametrize("attack", ["pgd", "pgd-paper"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_record_belongs_to_the_iterate_it_names(convolutional, image_set, attack, norm):
    model = convolutional.eval()
    images, labels = image_set.batch(torch.arange(16), "cpu")
    settings = attack_settings(attack, {"norm": norm, "steps": 5})
    seen = []
    final = pgd(model, images, labels, settings, observe=seen.append).points
    assert [iterate.step for iterate in seen] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(seen[-1].images, final)
    assert seen[-1].gradient is None
    for iterate in seen:
        point = iterate.images.clone().requires_grad_(True)
        logits = model(point)
        torch.testing.assert_close(iterate.logits, logits.detach())
        losses = F.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(iterate.loss, losses.detach())
        if iterate.gradient is not None:
            (own,) = torch.autograd.grad(losses.sum(), point)
            torch.testing.assert_close(iterate.own_norm, own.flatten(1).norm(dim=1))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_no_trace_is_left(convolutional, image_set, digest, precision):
    convolutional[0].weight.requires_grad_(False)
    convolutional[0].bias.grad = torch.ones(8)
    convolutional[1].eval()
    before = digest(convolutional)
    images, labels = image_set.batch(torch.arange(16), "cpu")
    original = images.clone()
    settings = PGD(steps=3, precision=precision)
    with prepared(convolutional, settings) as model:
        pgd(model, images.double() if precision == "float64" else images, labels, settings)
    assert digest(convolutional) == before
    assert torch.equal(images, original)


def test_float64_sees_the_gradient_that_float32_loses(linear):
    """At a margin of 200 nats the other class's half is left: p_y rounds to 1 in float64 too."""
    weight = torch.tensor([[100.0], [-100.0]])
    images, labels = torch.ones(1, 1, 1, 1), torch.tensor([0])
    single = PGD(steps=1, start="none")
    assert float(look(linear(weight), images, labels, single).gradient) == 0
    double = PGD(steps=1, start="none", precision="float64")
    with prepared(linear(weight), double) as model:
        gradient = look(model, images.double(), labels, double).gradient
    assert float(gradient) == pytest.approx(-100 * math.exp(-200), rel=1e-9, abs=0)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_other_losses_climb_their_own_hill(convolutional, image_set, loss):
    model = convolutional.eval()
    images, labels = image_set.batch(torch.arange(40), "cpu")
    seen = []
    pgd(model, images, labels, PGD(steps=10, loss=loss), observe=seen.append)
    assert (seen[-1].loss >= seen[0].loss - 1e-6).float().mean() > 0.9  # DLR is exactly 1 once the label ranks third
    assert seen[-1].logits.argmax(1).eq(labels).sum() < seen[0].logits.argmax(1).eq(labels).sum()


class Quadratic(nn.Module):
    """Two classes, ``z = (0, x' A x)``: the gradient of the margin is linear in x, so its mean is that at the mean."""

    def __init__(self, dimension):
        super().__init__()
        root = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(0))
        self.register_buffer("matrix", root + root.T)

    def forward(self, images):
        flat = images.flatten(1)
        square = ((flat @ self.matrix) * flat).sum(dim=1)
        return torch.stack([torch.zeros_like(square), square], dim=1)


def test_a_smoothed_gradient_is_the_mean_over_its_copies():
    images = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(5, dtype=torch.int64)
    noise = Streams(7, torch.arange(5))
    settings = PGD(loss="margin", smoothing=6, smoothing_radius=0.2)
    model = Quadratic(9)
    smoothed = look(model, images, labels, settings, 3, streams=noise)
    drawn = noise.gaussian(images, 6, 3)
    centre = images + 0.2 * drawn.mean(dim=0)
    torch.testing.assert_close(smoothed.gradient.flatten(1), 2 * centre.flatten(1) @ model.matrix)
    plain = look(model, images, labels, PGD(loss="margin"))
    assert torch.equal(smoothed.logits, plain.logits)
    assert torch.equal(smoothed.loss, plain.loss)
    assert torch.equal(smoothed.images, plain.images)
    mean = look(model, images, labels, settings.model_copy(update={"reduction": "mean"}), 3, streams=noise)
    torch.testing.assert_close(mean.own_norm, smoothed.own_norm)


def test_noise_depends_on_the_image_and_the_step_alone():
    like = torch.zeros(40, 3, 8, 8)
    numbers = torch.arange(100, 140)
    whole = Streams(7, numbers).gaussian(like, 3, 2)
    assert whole.shape == (3, 40, 3, 8, 8)
    assert abs(float(whole.mean())) < 0.02
    assert float(whole.std()) == pytest.approx(1, abs=0.02)
    for part in numbers.split(7):
        rows = part - 100
        assert torch.equal(Streams(7, part).gaussian(like[rows], 3, 2), whole[:, rows])
    for other in (Streams(8, numbers), Streams(7, numbers, restart=1)):
        assert not torch.equal(other.gaussian(like, 3, 2), whole)
    assert not torch.equal(Streams(7, numbers).gaussian(like, 3, 1), whole)


def test_smoothed_pgd_records_what_belongs_together(convolutional, image_set):
    model = convolutional.eval()
    images, labels = image_set.batch(torch.arange(16), "cpu")
    settings = PGD(steps=4, smoothing=3, smoothing_radius=0.05)
    seen = []
    final = pgd(model, images, labels, settings, observe=seen.append).points
    assert [iterate.step for iterate in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1].images, final)
    assert seen[-1].gradient is None
    for iterate in seen:
        torch.testing.assert_close(iterate.logits, model(iterate.images).detach())
    assert torch.equal(pgd(model, images, labels, settings).points, final)


class Shattered(nn.Module):
    """Two classes, ``z = (0, b'x + a mean sin(w x))``: the ripple's slope hides the plane's."""

    def forward(self, images):
        flat = images.flatten(1)
        height = flat.sum(dim=1) + 0.02 * torch.sin(400 * flat).sum(dim=1) - 0.55 * flat.shape[1]
        return torch.stack([torch.zeros_like(height), height], dim=1)


def test_smoothing_sees_through_a_shattered_gradient():
    images = 0.45 + 0.1 * torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    labels = torch.zeros(20, dtype=torch.int64)
    model = Shattered()
    plain = look(model, images, labels, PGD(loss="margin"))
    smoothed = look(model, images, labels, PGD(loss="margin", smoothing=64, smoothing_radius=0.05))
    wrong_way = [(iterate.gradient < 0).float().mean() for iterate in (plain, smoothed)]
    assert wrong_way[0] > 0.4
    assert wrong_way[1] < 0.15

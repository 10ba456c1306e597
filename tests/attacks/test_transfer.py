import pytest
import torch
from torch import nn

from gradscope.attacks.pgd import pgd, prepared
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.transfer import make_examples, transfer
from gradscope.config import PGD
from gradscope.distributed.units import Work
from gradscope.errors import GradscopeError
from gradscope.results.stats import wilson_interval


def test_a_matrix_of_linear_models_by_hand(boundary):
    """Examples over the boundary of one fool its negative's labels nowhere, and a scaled copy as itself."""
    case = boundary("l2", 2, count=60)
    images, labels = case.image_set.batch(torch.arange(60), "cpu")
    towards = case.model.weight[1 - labels] - case.model.weight[labels]
    unit = towards / towards.norm(dim=1, keepdim=True)

    def moved(factor):
        return (images + (factor * case.distance[:, None] * unit).reshape(images.shape)).detach()

    stronger = type(case.model)(3 * case.model.weight.detach(), 3 * case.model.bias.detach())
    biased = type(case.model)(case.model.weight.detach(), case.model.bias.detach() + torch.tensor([1.0, 0.0]))
    models = {"one": case.model, "scaled": stronger, "biased": biased}
    examples = {"clean": images, "near": moved(0.9), "over": moved(1.1)}
    found = transfer(models, case.image_set, examples, ThreatModel("l2", 1.0), work=Work(batch_size=7))
    assert found.sources == ("clean", "near", "over")
    assert found.targets == ("one", "scaled", "biased")
    assert found.clean.shape == (3, 60)
    assert found.right.shape == (3, 3, 60)
    torch.testing.assert_close(found.accuracy[:, :2], torch.tensor([[1.0, 1], [1, 1], [0, 0]]).double())
    assert torch.equal(found.right[0], found.clean)
    share = float((labels == 0).double().mean())
    assert found.accuracy[2, 2] == pytest.approx(share)
    assert torch.equal(found.of("over", "biased"), labels == 0)
    assert found.interval("over", "biased") == wilson_interval(int((labels == 0).sum()), 60)
    assert torch.equal(found.numbers, torch.arange(60))
    assert torch.equal(found.labels, case.image_set.labels)


@pytest.mark.parametrize(
    "settings", [PGD(steps=5), PGD(steps=3, start="none", norm="linf", epsilon=0.1, step_size=0.05)]
)
def test_examples_are_the_last_iterates(convolutional, image_set, settings, digest):
    numbers = torch.arange(200, 240)
    before = digest(convolutional)
    made = make_examples(convolutional, image_set, settings, numbers=numbers, work=Work(seed=3))
    assert digest(convolutional) == before
    images, labels = image_set.batch(torch.arange(40), "cpu")
    threat = ThreatModel(settings.norm, settings.epsilon)
    start = None if settings.start == "none" else threat.random_start(images, "ball", 3, ("start", 0), numbers)
    with prepared(convolutional, settings) as model:
        torch.testing.assert_close(made, pgd(model, images, labels, settings, start=start).points, rtol=0, atol=1e-5)
    alone = make_examples(convolutional, image_set, settings, numbers=numbers, work=Work(seed=3, batch_size=1))
    torch.testing.assert_close(alone, made, rtol=0, atol=1e-4)


def test_smoothed_examples_do_not_depend_on_the_batch_size(convolutional, image_set):
    settings = PGD(steps=3, smoothing=2, smoothing_radius=0.05, precision="float64")
    made = make_examples(convolutional, image_set, settings)
    assert made.dtype == torch.float32
    alone = make_examples(convolutional, image_set, settings, work=Work(batch_size=7))
    torch.testing.assert_close(alone, made, rtol=0, atol=1e-5)


def test_no_trace_is_left(convolutional, image_set, digest):
    images, _ = image_set.batch(torch.arange(40), "cpu")
    before = digest(convolutional)
    seen = []
    transfer(
        {"a": convolutional},
        image_set,
        {"a": images},
        ThreatModel("linf", 0.1),
        work=Work(batch_size=16, advance=lambda count, target: seen.append((target, count))),
    )
    assert digest(convolutional) == before
    assert seen == [("a", 16), ("a", 16), ("a", 8)]


def test_logits_that_are_not_finite_are_not_right(convolutional, image_set):
    class Holes(nn.Module):
        def forward(self, images):
            logits = convolutional(images)
            return torch.where(images.flatten(1)[:, :1] > 0.6, torch.nan, logits)

    images, _ = image_set.batch(torch.arange(40), "cpu")
    found = transfer({"h": Holes()}, image_set, {"h": images}, ThreatModel("linf", 0.1))
    holes = images.flatten(1)[:, 0] > 0.6
    assert holes.any()
    assert not found.of("h", "h")[holes].any()


def test_mistakes_are_named_in_one_line(convolutional, image_set):
    images, _ = image_set.batch(torch.arange(40), "cpu")
    threat = ThreatModel("linf", 0.1)
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan
    cases = [
        ({"a": convolutional}, images[:3], r"examples: those of s must have .* \(40, 3, 8, 8\), got \(3, 3, 8, 8\)"),
        ({"a": convolutional}, broken, "examples: those of s must be finite"),
        ({"a": convolutional}, images + 0.01, r"examples: those of s must lie in \[0, 1\]"),
        ({"a": convolutional}, 1 - images, "examples: those of s must lie within 0.1 of their images, got up to"),
        ({"b": nn.Flatten()}, images, "model: b must have the data's 5 classes, got 192"),
        ({"b": nn.Conv2d(1, 3, 1)}, images, "model: b must take the data's 3 x 8 x 8 images"),
    ]
    for models, examples, message in cases:
        with pytest.raises(GradscopeError, match=message) as caught:
            transfer(models, image_set, {"s": examples}, threat)
        assert "\n" not in str(caught.value)

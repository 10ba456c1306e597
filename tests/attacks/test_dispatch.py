import math

import pytest
import torch
from scipy import stats
from torch import nn

from gradscope.attacks.dispatch import turns
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.distributed.units import Work
from gradscope.functional import margin

NAMES = [name for name in ATTACKS if name != OWN]  # which needs a loss
#: Attacks that search at random: they fool nobody beyond the distance, but do not come up to it.
RANDOM = {"square", "noise", "rays", "hop-skip-jump"}
SMALL = Budget(steps=20, queries=400, noise_points=60, restarts=2, smoothing=2)


def nearest(case, norm, factor):
    """The images moved ``factor`` times the distance straight at the boundary between classes 0 and 1."""
    images, labels = case.image_set.batch(torch.arange(len(case.image_set)), "cpu")
    towards = case.model.weight[1 - labels] - case.model.weight[labels]
    direction = towards.sign() if norm == "linf" else towards / towards.norm(dim=1, keepdim=True)
    return (images + (factor * case.distance[:, None] * direction).reshape(images.shape)).detach()


def test_every_attack_says_what_it_is():
    for attack in ATTACKS.values():
        assert attack.meaning
        assert attack.classes in (2, 3)
        assert attack.norms == {"linf", "l2"}
    assert {name for name, attack in ATTACKS.items() if "gradient" not in attack.needs} == RANDOM | {"transfer"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANDOM])
def test_attacks_reach_the_boundary_and_no_further(case_and_norm, name):
    """Fooled are exactly the images whose closed-form distance is below the radius."""
    case, norm = case_and_norm
    examples = [nearest(case, norm, 0.5), nearest(case, norm, 1.01)]
    threat = ThreatModel(norm, case.epsilon)
    outcome = evaluate(case.model, case.image_set, [name], threat, SMALL, examples=examples)
    if name in outcome.skipped:
        assert len(case.image_set.classes) < ATTACKS[name].classes
        return
    assert torch.equal(outcome.fooled_by(name), case.distance < case.epsilon)
    attack = outcome.attacks[name]
    reached = attack.distance[attack.fooled]
    assert (reached >= case.distance[attack.fooled] * (1 - 1e-4)).all()
    assert (reached <= case.epsilon * (1 + 1e-5)).all()
    assert attack.distance[~attack.fooled].isnan().all()


def test_square_reaches_the_boundary_in_linf_and_comes_near_in_l2(case_and_norm):
    case, norm = case_and_norm
    threat = ThreatModel(norm, case.epsilon)
    budget = Budget(queries=1000)
    fooled = evaluate(case.model, case.image_set, ["square"], threat, budget).fooled_by("square")
    assert not fooled[case.distance > case.epsilon].any()
    assert fooled[case.distance < case.epsilon / (1.03 if norm == "linf" else 2)].all()


def test_noise_fools_as_often_as_the_normal_distribution_says(boundary):
    """w'u of a uniform u in the cube is close to normal with variance epsilon^2 |w|^2 / 3."""
    case = boundary("linf", 2, count=300)
    epsilon, draws = 0.02, 3
    threat = ThreatModel("linf", epsilon)
    outcome = evaluate(case.model, case.image_set, ["noise"], threat, Budget(noise_points=draws))
    between = case.model.weight[0] - case.model.weight[1]
    gap = case.distance * between.abs().sum()
    once = stats.norm.sf((gap / (epsilon * between.norm() / math.sqrt(3))).detach().numpy())
    expected = 1 - (1 - once) ** draws
    assert float(outcome.fooled_by("noise").sum()) == pytest.approx(expected.sum(), abs=4 * math.sqrt(expected.sum()))
    assert not outcome.fooled_by("noise")[case.distance > epsilon].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_results_lie_in_ball_and_box(convolutional, image_set, norm, name):
    """The images are noise from 0 to 255, so that the box cuts nearly every step."""
    threat = ThreatModel(norm, 0.2 if norm == "linf" else 1.5)
    images, _ = image_set.batch(torch.arange(40), "cpu")
    budget = Budget(steps=5, queries=60, noise_points=5, restarts=2, smoothing=2)
    examples = [images + 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))]
    outcome = evaluate(
        convolutional, image_set, [name], threat, budget, examples=examples, keep_images=True, work=Work(batch_size=16)
    )
    attack = outcome.attacks[name]
    points, origin = attack.adversarial, images[attack.attacked]
    assert 0 < len(points) < 40
    assert points.min() >= 0
    assert points.max() <= 1
    reach = threat.distance(points, origin)
    assert reach.max() <= threat.epsilon + 1e-6
    torch.testing.assert_close(attack.distance[attack.fooled], reach[attack.fooled].double())
    predicted = convolutional.eval()(points).argmax(dim=1)
    assert torch.equal(predicted != image_set.labels[attack.attacked], attack.fooled)


@pytest.mark.parametrize("name", NAMES)
def test_a_ball_of_radius_0_holds_nothing(case_and_norm, name):
    case, norm = case_and_norm
    images, _ = case.image_set.batch(torch.arange(24), "cpu")
    budget = Budget(steps=2, queries=10, noise_points=2, restarts=2, smoothing=2)
    threat = ThreatModel(norm, 0.0)
    outcome = evaluate(case.model, case.image_set, [name], threat, budget, examples=[1 - images], keep_images=True)
    if name not in outcome.skipped:
        assert outcome.robust_accuracy == 1
        torch.testing.assert_close(outcome.attacks[name].adversarial, images, rtol=0, atol=1e-6)


def test_a_ball_that_covers_the_box_holds_a_fooling_point_for_every_image(case_and_norm):
    """The images mirrored in mid-grey have the other label."""
    case, norm = case_and_norm
    images, _ = case.image_set.batch(torch.arange(24), "cpu")
    names = [name for name in NAMES if name != "noise" and ATTACKS[name].classes <= len(case.image_set.classes)]
    threat = ThreatModel(norm, 1.0 if norm == "linf" else images[0].numel() ** 0.5)
    outcome = evaluate(case.model, case.image_set, names, threat, SMALL, examples=[1 - images], cascade=False)
    for name in names:
        assert outcome.fooled_by(name).all(), name


class Saturated(nn.Module):
    """Logits times a factor: the boundaries stay, the gradient of cross-entropy does not."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.factor * self.model(images)


@pytest.mark.parametrize("factor", [1e-9, 1e4])
def test_attacks_that_no_scale_of_the_logits_blinds(case_and_norm, factor):
    case, norm = case_and_norm
    names = ["pgd-log-odds", "pgd-margin", "pgd-rescaled", "apgd-t", "fab", "fab-t", "fmn"]
    model = Saturated(case.model, factor)
    threat = ThreatModel(norm, case.epsilon)
    outcome = evaluate(model, case.image_set, names, threat, SMALL, cascade=False)
    for name in names:
        assert torch.equal(outcome.fooled_by(name), case.distance < case.epsilon), name


def test_cross_entropy_is_blind_where_it_saturates(boundary):
    """Float32 has no gradient past a margin of 104, float64 past 745."""
    case = boundary("l2", 2, count=60)
    model = Saturated(case.model, 2500.0)
    threat = ThreatModel("l2", 2 * float(case.distance.max()))
    budget = Budget(steps=20)
    names = ["fgsm", "pgd", "pgd-float64", "pgd-log-odds"]
    outcome = evaluate(model, case.image_set, names, threat, budget, cascade=False)
    fooled = {name: int(outcome.fooled_by(name).sum()) for name in names}
    assert fooled["fgsm"] < fooled["pgd-float64"] <= fooled["pgd-log-odds"] == 60
    images, labels = case.image_set.batch(torch.arange(60), "cpu")
    seen = margin(model(images), labels) < 104
    assert 10 < int(seen.sum()) < 50
    assert torch.equal(outcome.fooled_by("fgsm"), seen)


def test_the_likeliest_wrong_class_is_aimed_at_alone_then_several_at_once():
    """At most eight, and no more points of an image than the batch may have."""

    def ranks(classes, batch_size):
        budget = Budget(targets=12)
        return [list(turn.run.keywords["ranks"]) for turn in turns(ATTACKS["apgd-t"], budget, classes, 0, batch_size)]

    assert ranks(2, 32) == [[0]]
    assert ranks(4, 32) == [[0], [1, 2]]
    assert ranks(100, 32) == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]
    assert ranks(5, 1) == [[0], [1], [2], [3]]

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.attacks.decision import STARTS, TOLERANCE, hop_skip_jump, rays
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.problem import Counted, Tally
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.budgets import BY_LABEL
from gradscope.config import Budget
from tests.auditing.conftest import fit, small_network
from tests.masks import MASKS

ATTACKS = [rays, hop_skip_jump]
CHANGES = {
    "one-hot": lambda logits: F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype),
    "x 1e-20": lambda logits: 1e-20 * logits,
    "cut off": lambda logits: logits.detach(),
}


class Changed(nn.Module):
    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images):
        return self.change(self.model(images))


@pytest.fixture(params=["linf", "l2"])
def problem(request, convolutional, image_set, problem_of):
    """Images that a network with random weights is right on, by definition."""
    problem = problem_of(convolutional, image_set, ThreatModel(request.param, 1e-6), 12, queries=300)
    return replace(problem, labels=convolutional(problem.images).argmax(dim=1))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("change", CHANGES)
def test_only_the_label_is_read(problem, attack, change):
    points = attack(problem)
    assert problem.fooled_at(points).sum() > 6
    changed = Changed(problem.model, CHANGES[change])
    assert torch.equal(attack(replace(problem, model=changed)), points)


def test_a_linear_boundary_is_approached_and_never_passed(case_and_norm, problem_of):
    """The distance to it is known in closed form; another class stands wherever the attack stops."""
    case, norm = case_and_norm
    ratios = []
    for queries in (300, 3000):
        problem = problem_of(case.model, case.image_set, ThreatModel(norm, 1e-6), queries=queries)
        points = hop_skip_jump(problem)
        assert problem.fooled_at(points).all()
        ratios.append(problem.threat.distance(points, problem.images).double() / case.distance)
    early, late = ratios
    assert (late >= 1 - 1e-4).all()
    assert late.median() < (1.05 if norm == "l2" else 1.5)
    assert (late < early).double().mean() > 0.9


def test_rays_find_the_signs_of_a_linear_model(boundary, problem_of):
    """In L-infinity the nearest point of a plane lies along the signs of its normal."""
    case = boundary("linf", 2)
    problem = problem_of(case.model, case.image_set, ThreatModel("linf", 1e-6), queries=4000)
    points = rays(problem)
    assert problem.fooled_at(points).all()
    ratio = problem.threat.distance(points, problem.images).double() / case.distance
    assert (ratio >= 1 - 1e-4).all()
    assert ratio.max() < 1 + 2 * TOLERANCE


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("queries", [1, STARTS - 1, STARTS, STARTS + 1, 43, 163, 164, 300])
def test_no_image_is_asked_for_more_often_than_allowed(problem, attack, queries):
    tally = Tally()
    budget = problem.budget.model_copy(update={"queries": queries})
    points = attack(replace(problem, model=Counted(problem.model, tally), budget=budget))
    assert points.isfinite().all()
    assert 0 < tally.forward <= queries * len(problem)
    assert tally.backward == 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_image_goes_its_way_alone_and_ends_in_the_ball(problem, attack):
    whole = attack(problem)
    distance = problem.threat.distance(whole, problem.images)[problem.fooled_at(whole)]
    wide = replace(problem, threat=replace(problem.threat, epsilon=float(distance.median())))
    tally, alone = Tally(), Tally()
    points = attack(replace(wide, model=Counted(wide.model, tally)))
    ended = wide.fooled_at(points) & (wide.threat.distance(points, wide.images) <= wide.threat.epsilon)
    assert 0 < int(ended.sum()) < len(wide)
    one_by_one = [
        attack(replace(wide.only(torch.tensor([row])), model=Counted(wide.model, alone))) for row in range(len(wide))
    ]
    assert tally.forward == alone.forward < 300 * len(wide)
    torch.testing.assert_close(torch.cat(one_by_one), points, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5)])
def test_the_audits_fools_a_network_of_severed_gradient_as_square_does(digits, norm, epsilon):
    sever, _ = MASKS["backward zero"]
    model = sever(fit(small_network(0), digits.train, 5))
    images, threat, name = digits.test.subset(torch.arange(60)), ThreatModel(norm, epsilon), BY_LABEL[norm]
    outcome = evaluate(model, images, ["pgd", "square", name], threat, Budget(steps=5, queries=1500), cascade=False)
    along, by_logit, by_label = (int(outcome.fooled_by(one).sum()) for one in ("pgd", "square", name))
    assert by_logit > 10
    assert along < 0.2 * by_logit
    assert by_label > 0.85 * by_logit

import copy
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from gradscope.attacks.apgd import apgd
from gradscope.attacks.black_box import square
from gradscope.attacks.pgd import pgd
from gradscope.attacks.problem import Counted, Tally, fooled
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD
from gradscope.models.adaptive import Averaged


def test_fooled_is_a_wrong_argmax_or_logits_that_are_not_finite():
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, nan], [nan, nan], [inf, 0.0], [1.0, -inf]])
    assert fooled(logits, torch.zeros(6, dtype=torch.int64)).tolist() == [False, True, True, True, True, True]


def test_passes_are_counted_image_by_image(convolutional, image_set):
    tally = Tally()
    model = Counted(convolutional.eval().requires_grad_(False), tally)
    images, labels = image_set.batch(torch.arange(7), "cpu")
    with torch.no_grad():
        assert torch.equal(model(images), convolutional(images))
    assert (tally.forward, tally.backward) == (7, 0)
    point = images.requires_grad_()
    logits = model(point)
    F.cross_entropy(logits, labels).backward(retain_graph=True)
    torch.autograd.grad(logits[:, 0].sum(), point)
    assert (tally.forward, tally.backward) == (14, 14)
    doubled = copy.deepcopy(model).double()
    doubled(images.double())
    assert tally.forward == 21


def test_counting_leaves_the_training_flag_as_it_is(convolutional):
    """torchattacks puts a model that seems to be in training mode back into it: the wrapper must not seem so."""
    assert not Counted(convolutional.eval(), Tally()).training
    assert Counted(convolutional.train(), Tally()).training


def test_the_usual_settings_cross_the_ball(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("linf", 0.1, box=False), steps=20)
    assert problem.settings() == PGD(norm="linf", epsilon=0.1, box=False, steps=20, step_size=0.0125)
    assert problem.settings(loss="margin", steps=3).steps == 3
    told = problem_of(convolutional, image_set, ThreatModel("l2", 1.0), step_size=0.5)
    assert told.settings().step_size == 0.5


def test_some_of_the_victims_keep_what_is_theirs(convolutional, image_set, problem_of):
    problem = problem_of(convolutional, image_set, ThreatModel("l2", 1.0))
    rows = torch.tensor([5, 2, 30])
    some = problem.only(rows)
    assert torch.equal(some.images, problem.images[rows])
    assert torch.equal(some.labels, problem.labels[rows])
    assert some.numbers.tolist() == [5, 2, 30]
    assert torch.equal(some.start("ball", "here"), problem.start("ball", "here")[rows])
    drawn = problem.streams.gaussian(problem.images, 2, 0)
    assert torch.equal(some.streams.gaussian(some.images, 2, 0), drawn[:, rows])


def test_where_draws_are_averaged_no_success_ends_an_attack(convolutional, image_set, problem_of):
    """The first to fool may have been lucky: PGD's last iterate counts, the others spend all that they may."""
    model = Averaged(convolutional.eval(), 2)
    problem = problem_of(model, image_set, ThreatModel("l2", 0.5), steps=6, queries=9)
    settings = problem.settings()
    assert not problem.fixed
    last = pgd(model, problem.images, problem.labels, settings, streams=problem.streams)
    assert torch.equal(problem.climb(settings).points, last.points)
    first = pgd(model, problem.images, problem.labels, settings, streams=problem.streams, keep_first=True)
    assert not torch.equal(first.points, last.points)
    for attack, passes in ((square, 9), (partial(apgd, loss="cross-entropy"), 7)):
        tally = Tally()
        attack(replace(problem, model=Counted(model, tally)))
        assert tally.forward == 2 * passes * len(problem)

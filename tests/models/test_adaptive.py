"""Models as adaptive attacks see them: stand-ins for what has no gradient, and means over random draws."""

import copy
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.attacks.problem import Counted, Tally
from gradscope.errors import GradscopeError
from gradscope.models.adaptive import Averaged, draws_of, stands_in, with_backward
from gradscope.seeding import seeded

BATCH = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Quantise(nn.Module):
    """Eight levels, by NumPy: it takes no tensor that asks for a gradient."""

    def forward(self, images):
        return torch.from_numpy(np.round(images.numpy() * 7) / 7)


class Halves(nn.Module):
    """Two parts called alike in a part each, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Identity())
        self.right = nn.Sequential(nn.Identity())
        self.idle = nn.ReLU()
        self.last = nn.Flatten()

    def forward(self, images):
        return self.last(self.left(images) + self.right(images))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(Quantise(), nn.Flatten(), nn.Linear(16, 3)).eval()


def slope_of(model, images=BATCH):
    point = images.clone().requires_grad_()
    logits = model(point)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), point)
    return logits.detach(), slope


def test_values_are_the_models_and_gradients_the_stand_ins(model, digest):
    before = digest(model)
    weight = model[2].weight[0].detach().reshape(1, 4, 4)
    with pytest.raises(RuntimeError, match="numpy"):
        slope_of(model)
    for standin, factor in (("identity", 1.0), (lambda images: 3 * images, 3.0)):
        logits, slope = slope_of(with_backward(model, {"0": standin}, BATCH))
        assert torch.equal(logits, model(BATCH))
        torch.testing.assert_close(slope, (factor * weight).expand_as(BATCH))
    assert digest(model) == before
    assert not stands_in(model)


def test_a_whole_model_takes_another_models_gradient(model):
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    adapted = with_backward(model, {"": other}, BATCH)
    logits, slope = slope_of(adapted)
    assert torch.equal(logits, model(BATCH))
    assert torch.equal(slope, slope_of(other)[1])
    assert stands_in(adapted)


def test_copies_in_float64_and_second_derivatives_work():
    parts = nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3)).eval()
    adapted = with_backward(parts, {"0": lambda images: images**3}, BATCH)
    double = copy.deepcopy(adapted).double()
    logits, slope = slope_of(double, BATCH.double())
    assert torch.equal(logits, copy.deepcopy(parts).double()(BATCH.double()))
    assert slope.dtype == torch.float64
    point = BATCH.clone().requires_grad_()
    (slope,) = torch.autograd.grad(adapted(point)[:, 0].sum(), point, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), point)
    weight = parts[2].weight[0].detach().reshape(1, 4, 4)
    torch.testing.assert_close(bend, 6 * BATCH * weight)


def test_a_name_may_leave_out_what_outer_modules_add(model):
    wrapped = nn.Sequential(OrderedDict(normalise=nn.Identity(), network=model)).eval()
    logits, slope = slope_of(with_backward(wrapped, {"0": "identity"}, BATCH))
    assert torch.equal(logits, model(BATCH))
    assert slope.abs().sum() > 0


def test_a_shared_part_is_replaced_wherever_it_is():
    part = nn.Sigmoid()
    twice = nn.Sequential(part, part, nn.Flatten()).eval()
    _, slope = slope_of(with_backward(twice, {"1": lambda images: 2 * images}, BATCH))
    torch.testing.assert_close(slope.flatten(1)[:, 0], torch.full((2,), 4.0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantize": "identity"}, "'quantize' is unknown; known: 0, 1, 2"),
        ({"0": lambda images: images[:, :, 1:]}, "what 0 returns, a tensor (2, 1, 4, 4), got a tensor (2, 1, 3, 4)"),
        ({"0": lambda images: None}, "what 0 returns, a tensor (2, 1, 4, 4), got a NoneType"),
        ({"0": lambda images: 1 / 0}, "that of 0 raised ZeroDivisionError"),
        ({"0": lambda images: images.detach()}, "another part still detaches it"),
        ({"1": "identity"}, "what 1 returns, a tensor (2, 16), got a tensor (2, 1, 4, 4)"),
        ({"0": "somewhere:standin"}, "somewhere:standin runs the code of somewhere; pass `trust_code`"),
        ({"0": "somewhere"}, "must be package.module:function, got 'somewhere'"),
    ],
)
def test_stand_ins_that_do_not_fit_are_refused_in_one_line(given, words):
    parts = nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(GradscopeError) as error:
        with_backward(parts, given, BATCH)
    assert words in str(error.value)
    assert error.value.argument == "backward"
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_models_that_cannot_be_adapted_are_refused(model):
    with pytest.raises(GradscopeError, match=r"got '0', which may be left.0, right.0"):
        with_backward(Halves().eval(), {"0": "identity"}, BATCH)
    with pytest.raises(GradscopeError, match="calls as modules, got idle, never called"):
        with_backward(Halves().eval(), {"idle": "identity"}, BATCH)
    with pytest.raises(GradscopeError, match="backward must leave a model that runs, it raised RuntimeError"):
        with_backward(model, {"2": lambda values: values[:, :3]}, BATCH)
    scripted = torch.jit.script(nn.Sequential(nn.Sigmoid(), nn.Flatten())).eval()
    with pytest.raises(GradscopeError, match="whole model if 0 is part of a TorchScript model"):
        with_backward(scripted, {"0": "identity"}, BATCH)
    assert stands_in(with_backward(scripted, {"": nn.Flatten()}, BATCH))
    assert stands_in(with_backward(nn.Sequential(scripted).eval(), {"0": scripted}, BATCH))
    model.state = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(GradscopeError, match="if the model cannot be copied"):
        with_backward(model, {"0": "identity"}, BATCH)


def test_trusted_code_gives_functions_with_options_and_objects(tmp_path: Path, monkeypatch, model):
    (tmp_path / "standing.py").write_text(
        "def scaled(images, factor=1.0):\n    return factor * images\n\n\n"
        "class Twice:\n    def __call__(self, images):\n        return 2 * images\n"
    )
    monkeypatch.chdir(tmp_path)
    weight = model[2].weight[0].detach().reshape(1, 4, 4)
    for text, factor in (("standing:scaled", 1), ("standing:scaled(factor=3.0)", 3), ("standing:Twice", 2)):
        _, slope = slope_of(with_backward(model, {"0": text}, BATCH, trust_code=True))
        torch.testing.assert_close(slope, (factor * weight).expand_as(BATCH))
    with pytest.raises(GradscopeError, match="must give arguments by name"):
        with_backward(model, {"0": "standing:scaled(3.0)"}, BATCH, trust_code=True)
    sys.modules.pop("standing")


class Wandering(nn.Module):
    """Two logits ``(4 x + noise, 0)`` of the first pixel x, with standard Gaussian noise."""

    def forward(self, images):
        first = 4 * images.flatten(1)[:, 0]
        return torch.stack([first + torch.randn_like(first), torch.zeros_like(first)], dim=1)


def test_the_mean_of_draws_is_the_expectation_of_the_softmax():
    """By Gauss-Hermite quadrature ``p = E sigmoid(4 x + n)``, ``dp/dx = 4 E sigmoid'(4 x + n)``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    pixel, draws = 0.3, 4000
    sigmoid = 1 / (1 + np.exp(-(4 * pixel + nodes)))
    mean, square = ((weights * value).sum() / weights.sum() for value in (sigmoid, sigmoid**2))
    slope = 4 * (weights * sigmoid * (1 - sigmoid)).sum() / weights.sum()
    model = Averaged(Wandering().eval(), draws)
    point = torch.full((1, 1, 1, 1), pixel, dtype=torch.float64, requires_grad=True)
    with seeded(0):
        share = model(point).softmax(dim=1)[0, 0]
    error = np.sqrt((square - mean**2) / draws)
    assert abs(float(share.detach()) - mean) < 4 * error
    assert float(torch.autograd.grad(share, point)[0]) == pytest.approx(slope, rel=0.05)


def test_the_mean_of_a_fixed_models_draws_is_its_softmax(model):
    averaged = Averaged(model, 7)
    torch.testing.assert_close(averaged(BATCH), model(BATCH).log_softmax(dim=1))
    assert (draws_of(model), draws_of(averaged), draws_of(nn.Sequential(averaged))) == (None, 7, 7)


def test_each_draw_is_a_pass():
    tally = Tally()
    slope_of(Counted(Averaged(Wandering().eval(), 5), tally))
    assert (tally.forward, tally.backward) == (5 * len(BATCH), 5 * len(BATCH))


def test_draws_are_those_of_the_seed():
    model = Averaged(Wandering().eval(), 3)
    found = []
    for seed in (0, 0, 1):
        with seeded(seed):
            found.append(model(BATCH))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])

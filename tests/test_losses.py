from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gradscope.config import AttackLoss
from gradscope.errors import GradscopeError
from gradscope.losses import (
    LOSSES,
    cross_entropy,
    dlr,
    expected_accuracy,
    log_odds,
    margin_loss,
    rescaled_cross_entropy,
)

few = settings(derandomize=True, max_examples=40, deadline=None)


def batch(seed: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(classes, (6,), generator=generator)


def gradient(loss, logits, labels):
    return torch.autograd.grad(loss(logits, labels).sum(), logits)[0]


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, classes).double()


def test_the_table_holds_what_the_configuration_allows():
    assert set(LOSSES) == set(get_args(AttackLoss))


@pytest.mark.parametrize("loss", [*LOSSES.values(), expected_accuracy])
def test_losses_are_per_sample(loss):
    logits, labels = batch(0)
    values = loss(logits, labels)
    assert values.shape == (6,)
    assert_close(values[2:3], loss(logits[2:3], labels[2:3]))


@few
@given(st.integers(0, 1000))
def test_cross_entropy_and_its_gradient(seed):
    logits, labels = batch(seed)
    exponentials = np.exp(logits.detach().numpy())
    share = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(cross_entropy(logits, labels).detach(), -np.log(share[np.arange(6), labels]))
    assert_close(gradient(cross_entropy, logits, labels), torch.from_numpy(share) - one_hot(labels, 5))


def test_where_float32_loses_the_gradient_of_cross_entropy():
    labels = torch.tensor([0])

    def at(size: float, dtype: torch.dtype) -> torch.Tensor:
        return gradient(cross_entropy, torch.tensor([[size, 0.0]], dtype=dtype, requires_grad=True), labels)[0]

    assert (at(16.0, torch.float32) != 0).all()
    half_lost = at(20.0, torch.float32)
    assert half_lost[0] == 0
    assert half_lost[1] > 0
    assert (at(105.0, torch.float32) == 0).all()
    assert at(105.0, torch.float64)[1] > 0


@few
@given(st.integers(0, 1000))
def test_margin_loss_and_its_gradient(seed):
    logits, labels = batch(seed)
    rows = logits.detach().numpy()
    expected = [max(np.delete(row, label)) - row[label] for row, label in zip(rows, labels, strict=True)]
    np.testing.assert_allclose(margin_loss(logits, labels).detach(), expected)
    others = logits.detach() - 1e9 * one_hot(labels, 5)
    assert_close(gradient(margin_loss, logits, labels), one_hot(others.argmax(1), 5) - one_hot(labels, 5))


def test_margin_loss_never_saturates():
    logits = torch.tensor([[1e6, 0.0, -1.0]], requires_grad=True)
    assert gradient(margin_loss, logits, torch.tensor([0])).tolist() == [[-1.0, 1.0, 0.0]]


@few
@given(st.integers(0, 1000))
def test_dlr_as_croce_and_hein_write_it(seed):
    logits, labels = batch(seed)
    rows = logits.detach().numpy()
    ordered = np.sort(rows, axis=1)
    first = rows.argmax(1) == labels.numpy()
    other = np.where(first, ordered[:, -2], ordered[:, -1])
    expected = -(rows[np.arange(6), labels] - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    np.testing.assert_allclose(dlr(logits, labels).detach(), expected)
    assert torch.equal(dlr(logits, labels) < 0, torch.from_numpy(first))


def test_dlr_by_hand():
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0]])
    assert dlr(logits, torch.tensor([0])).item() == pytest.approx(-0.5)
    assert dlr(logits, torch.tensor([3])).item() == pytest.approx(1.25)
    assert dlr(torch.zeros(1, 3), torch.tensor([0])).item() == 0


@few
@given(st.integers(0, 1000), st.floats(1e-4, 1e4), st.floats(-100, 100))
def test_dlr_is_unchanged_by_shift_and_scale(seed, scale, shift):
    logits, labels = batch(seed)
    assert_close(dlr(scale * logits + shift, labels), dlr(logits, labels), rtol=1e-6, atol=1e-6)


def test_dlr_of_two_classes_is_refused_in_one_line():
    with pytest.raises(GradscopeError, match="needs at least 3 classes, the model has 2; use 'margin'") as caught:
        dlr(torch.zeros(1, 2), torch.tensor([0]))
    assert "\n" not in str(caught.value)


@few
@given(st.integers(0, 1000))
def test_cross_entropy_is_the_softplus_of_the_log_odds(seed):
    logits, labels = batch(seed)
    odds = log_odds(logits, labels)
    assert_close(torch.nn.functional.softplus(odds), cross_entropy(logits, labels))
    share = torch.softmax(logits, 1).gather(1, labels.unsqueeze(1))
    assert_close(odds, torch.log((1 - share) / share).squeeze(1))
    slopes = (1 - share) * gradient(log_odds, logits, labels), gradient(cross_entropy, logits, labels)
    assert_close(*(slope.detach() for slope in slopes))


@pytest.mark.parametrize("margin", [1e-3, 20.0, 1000.0, 1e6])
def test_log_odds_never_saturate(margin):
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    slope = gradient(log_odds, logits, torch.tensor([0]))
    others = torch.softmax(torch.tensor([0.0, -1.0]), 0)
    assert_close(slope[0], torch.tensor([-1.0, others[0], others[1]]))


@few
@given(st.integers(0, 1000))
def test_rescaled_cross_entropy_and_its_gradient(seed):
    logits, labels = batch(seed)
    ordered = np.sort(logits.detach().numpy(), axis=1)
    gap = torch.from_numpy(ordered[:, -1:] - ordered[:, -2:-1])
    assert_close(rescaled_cross_entropy(logits, labels), cross_entropy(logits / gap, labels))
    expected = (torch.softmax(logits.detach() / gap, 1) - one_hot(labels, 5)) / gap
    assert_close(gradient(rescaled_cross_entropy, logits, labels), expected)


@pytest.mark.parametrize("margin", [1e-3, 20.0, 1000.0, 1e6])
def test_rescaled_cross_entropy_never_saturates(margin):
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    slope = gradient(rescaled_cross_entropy, logits, torch.tensor([0]))
    assert slope.isfinite().all()
    assert slope[0, 0] < 0 < slope[0, 1]
    assert (margin < 105) or (gradient(cross_entropy, logits, torch.tensor([0])) == 0).all()


@few
@given(st.integers(0, 1000), st.floats(1e-4, 1e4), st.floats(-100, 100))
def test_rescaled_cross_entropy_is_unchanged_by_shift_and_scale(seed, scale, shift):
    logits, labels = batch(seed)
    once, again = rescaled_cross_entropy(logits, labels), rescaled_cross_entropy(scale * logits + shift, labels)
    assert_close(again, once, rtol=1e-6, atol=1e-6)


def test_rescaled_cross_entropy_of_a_tie_is_finite():
    logits = torch.tensor([[2.0, 2.0, 1.0]], requires_grad=True)
    assert rescaled_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(np.log(2))
    assert gradient(rescaled_cross_entropy, logits, torch.tensor([0])).isfinite().all()


@few
@given(st.integers(0, 1000))
def test_expected_accuracy_and_its_gradient(seed):
    logits, labels = batch(seed)
    share = torch.exp(-cross_entropy(logits, labels))
    assert_close(expected_accuracy(logits, labels), share)
    expected = share.unsqueeze(1) * (one_hot(labels, 5) - torch.softmax(logits, 1))
    assert_close(gradient(expected_accuracy, logits, labels), expected.detach())

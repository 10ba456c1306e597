import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from gradscope.functional import (
    cosine,
    entropy,
    flatten,
    largest_other,
    margin,
    mean_pairwise_cosine,
    norm_and_unit,
    per_sample,
    sign_agreement,
)

few = settings(derandomize=True, max_examples=40, deadline=None)
SUBNORMAL = 2.0**-149  # the smallest positive float32
EXPONENTS = st.integers(-44, 36)


def vectors(seed: int, count: int = 4, size: int = 30, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return cosine(norm_and_unit(first)[1], norm_and_unit(second)[1])


def reference_cosine(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    one, other = first.double().numpy(), second.double().numpy()
    return (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def test_flatten_and_per_sample():
    batch = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert flatten(batch).shape == (2, 12)
    assert_close(flatten(batch)[1], torch.arange(12.0, 24.0))
    values = per_sample(torch.tensor([2.0, 3.0]), batch)
    assert values.shape == (2, 1, 1, 1)
    assert_close((batch * values)[1], batch[1] * 3)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-38, 2.0**-126, SUBNORMAL])
def test_three_four_five_at_every_scale(scale):
    norm, unit = norm_and_unit(torch.tensor([[3.0, -4.0], [0.0, 2.0]]) * scale)
    assert_close(norm, torch.tensor([5.0, 2.0]) * scale, rtol=1e-6, atol=0)
    assert_close(unit, torch.tensor([[0.6, -0.8], [0.0, 1.0]]))


def test_three_four_five_at_the_ends_of_float64():
    for scale in (1e-300, 5e-324, 1e300):
        norm, unit = norm_and_unit(torch.tensor([[3.0, 4.0]], dtype=torch.float64) * scale)
        assert norm.item() == pytest.approx(math.hypot(3 * scale, 4 * scale), rel=1e-15)
        assert_close(unit, torch.tensor([[0.6, 0.8]], dtype=torch.float64))


def test_a_row_of_zeros_has_norm_0_and_stays_zero():
    norm, unit = norm_and_unit(torch.zeros(2, 3))
    assert_close(norm, torch.zeros(2))
    assert_close(unit, torch.zeros(2, 3))


def test_norm_does_not_touch_its_argument():
    given_vectors = vectors(0)
    before = given_vectors.clone()
    norm_and_unit(given_vectors)
    assert torch.equal(given_vectors, before)


def test_a_nan_is_not_hidden():
    norm, unit = norm_and_unit(torch.tensor([[math.nan, 1.0]]))
    assert norm.isnan().all()
    assert cosine(unit, torch.tensor([[0.6, 0.8]])).isnan().all()


@few
@given(st.integers(0, 1000), EXPONENTS)
def test_norm_against_float64(seed, exponent):
    rows = vectors(seed) * 10.0**exponent
    norm, unit = norm_and_unit(rows)
    expected = np.linalg.norm(rows.double().numpy(), axis=1)
    np.testing.assert_allclose(norm.double().numpy(), expected, rtol=1e-6, atol=SUBNORMAL)
    if (rows != 0).any(dim=1).all():
        assert_close(unit.norm(dim=1), torch.ones(4))


@few
@given(st.integers(0, 1000), EXPONENTS, EXPONENTS)
def test_cosine_against_float64_at_every_scale(seed, exponent, other_exponent):
    first, second = vectors(seed) * 10.0**exponent, vectors(seed + 1) * 10.0**other_exponent
    defined = (first != 0).any(dim=1) & (second != 0).any(dim=1)
    value = cosine_of(first, second)
    assert torch.equal(value.isnan(), ~defined)
    np.testing.assert_allclose(value[defined], reference_cosine(first[defined], second[defined]), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-9, SUBNORMAL])
def test_cosine_of_a_vector_with_itself_is_1(scale):
    rows = torch.tensor([[1.0, 2.0, 3.0]]) * scale
    assert_close(cosine_of(rows, rows), torch.ones(1))
    assert_close(cosine_of(rows, -rows), -torch.ones(1))
    assert cosine_of(rows, rows).abs() <= 1


def test_cosine_is_undefined_where_either_is_zero():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    for first, second in ((zero, one), (one, zero), (zero, zero)):
        assert cosine_of(first, second).isnan().all()


def test_cosine_keeps_the_precision():
    assert cosine_of(vectors(0, dtype=torch.float64), vectors(1, dtype=torch.float64)).dtype == torch.float64


def test_sign_agreement_by_hand():
    first = torch.tensor([[1.0, -2.0, 0.0, 1e-30], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.0]])
    second = torch.tensor([[3.0, 1.0, 1.0, 1e-30], [1.0, 1.0, 0.0, 0.0], [2.0, 2.0, -2.0, -2.0]])
    agreement, zero = sign_agreement(first, second)
    assert_close(agreement, torch.tensor([2 / 3, math.nan, 1.0]), equal_nan=True)
    assert_close(zero, torch.tensor([0.25, 1.0, 0.0]))


@few
@given(st.integers(0, 1000), st.sampled_from([1e-45, 1e-30, 1.0]))
def test_sign_agreement_against_numpy(seed, scale):
    random = np.random.default_rng(seed)
    one, other = random.integers(-1, 2, (2, 5, 12)).astype(np.float32) * np.float32(scale)
    agreement, zero = sign_agreement(torch.from_numpy(one), torch.from_numpy(other))
    for row in range(5):
        both = (one[row] != 0) & (other[row] != 0)
        equal = np.sign(one[row][both]) == np.sign(other[row][both])
        assert agreement[row].item() == pytest.approx(equal.mean() if both.any() else math.nan, nan_ok=True)
        assert zero[row].item() == pytest.approx(1 - both.mean(), abs=1e-6)


def test_entropy_closed_forms():
    assert entropy(torch.zeros(3, 8)).tolist() == pytest.approx([3.0, 3.0, 3.0], rel=1e-6)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert entropy(torch.tensor([0.0, math.log(3)])).item() == pytest.approx(quarter, rel=1e-6)


@pytest.mark.parametrize("scale", [90.0, 104.0, 1e4, 1e30])
def test_entropy_is_0_where_saturated(scale):
    assert entropy(torch.tensor([[scale, 0.0, -scale]])).item() == pytest.approx(0, abs=1e-30)


@few
@given(st.integers(0, 1000), st.floats(0.01, 20), st.floats(-100, 100))
def test_entropy_against_scipy_and_under_a_shift(seed, scale, shift):
    logits = vectors(seed, 3, 7, torch.float64) * scale
    weights = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    np.testing.assert_allclose(entropy(logits), stats.entropy(weights, base=2, axis=1), rtol=1e-9, atol=1e-12)
    assert_close(entropy(logits + shift), entropy(logits), rtol=1e-6, atol=1e-9)


def test_margin_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [2.0, 2.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    assert largest_other(logits, labels).tolist() == [2.0, 3.0, 2.0]
    assert margin(logits, labels).tolist() == [1.0, -2.0, 0.0]


@few
@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_margin_against_numpy_and_its_sign_is_the_prediction(seed, scale):
    logits = vectors(seed, 6, 5) * scale
    labels = torch.randint(5, (6,), generator=torch.Generator().manual_seed(seed))
    expected = [row[label] - max(np.delete(row, label)) for row, label in zip(logits.numpy(), labels, strict=True)]
    np.testing.assert_array_equal(margin(logits, labels).numpy(), np.array(expected, dtype=np.float32))
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) == labels)


@few
@given(st.integers(0, 1000), st.integers(2, 8))
def test_mean_pairwise_cosine_against_brute_force(seed, count):
    units = norm_and_unit(vectors(seed, count, 6, torch.float64))[1]
    expected = np.mean([float(one @ other) for one, other in combinations(units, 2)])
    value = mean_pairwise_cosine(units.sum(0, keepdim=True), torch.tensor([float(count)]))
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_mean_pairwise_cosine_closed_forms():
    sums = torch.tensor([[5.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    value = mean_pairwise_cosine(sums, torch.tensor([5.0, 2.0, 1.0, 0.0]))
    assert_close(value, torch.tensor([1.0, -1.0, math.nan, math.nan]), equal_nan=True)

import numpy as np
import pytest
import torch

from gradscope.functional import norm_and_unit
from gradscope.probes.lanczos import Krylov


def symmetric(eigenvalues, seed=0, dtype=torch.float32):
    stream = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=stream, dtype=torch.float64))
    return ((basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T).to(dtype)


def grown(matrices, steps, seed=1):
    """The Krylov spaces of a batch of matrices ``(N, D, D)``."""
    stream = torch.Generator().manual_seed(seed)
    start = norm_and_unit(torch.randn(matrices.shape[:2], generator=stream, dtype=torch.float64))[1].to(matrices)
    space = Krylov(lambda vectors: torch.einsum("nij,nj->ni", matrices, vectors), start, stream, most=steps)
    space.grow(steps)
    return space, start


def test_all_eigenvalues_of_small_matrices_are_found_as_often_as_they_occur():
    spectra = [[9.0, 9.0, 9.0, 1.0, 0.0, 0.0, -4.0, -4.0], [1.0] * 8, [0.0] * 8, [5.0, -5.0, 3.0, 2.0, 1.0, 0, 0, 0]]
    space, _ = grown(torch.stack([symmetric(one) for one in spectra]), 100)
    assert space.steps == 8
    values, residuals = space.extremes(8)
    expected = torch.tensor([sorted(one, key=abs) for one in spectra], dtype=torch.float64).flip(1)
    torch.testing.assert_close(values.abs(), expected.abs(), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.sum(dim=1), expected.sum(dim=1), rtol=0, atol=1e-5)
    assert residuals.max() < 1e-5


def test_the_largest_of_either_sign_come_first_with_their_vectors():
    matrix = symmetric([-20.0, 15.0, *np.linspace(-1, 1, 198)])
    space, _ = grown(matrix[None], 30)
    found = space.eigenpairs(3)
    assert found.values[0, :2].tolist() == pytest.approx([-20, 15], rel=1e-5)
    vectors = found.vectors[0]
    off = (vectors @ matrix - found.values[0, :, None].float() * vectors).norm(dim=1)
    assert off[:2].max() < 1e-4
    torch.testing.assert_close(found.residuals[0].float(), off, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3), rtol=0, atol=1e-5)


def test_an_eigenvalue_is_as_near_as_its_residual():
    exact = np.linspace(-1, 1, 60)
    space, _ = grown(symmetric(exact, dtype=torch.float64)[None], 12)
    values, residuals = space.extremes(8)
    assert residuals[0].max() > 1e-3, "none has converged"
    for value, residual in zip(values[0].tolist(), residuals[0].tolist(), strict=True):
        assert np.abs(exact - value).min() <= residual + 1e-12


@pytest.mark.parametrize("power", range(8))
def test_the_quadrature_is_exact_for_polynomials(power):
    matrix = symmetric(np.linspace(-1.5, 2, 40), dtype=torch.float64)
    space, start = grown(matrix[None], 4)
    quadrature = space.quadrature()
    expected = start[0] @ torch.linalg.matrix_power(matrix, power) @ start[0]
    found = (quadrature.weights * quadrature.nodes**power).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_a_low_rank_leaves_a_quadrature_without_ghosts():
    """Of three eigenvalues and many zeros, rounding must not make a fourth."""
    space, _ = grown(symmetric([8.0, 4.0, -2.0] + [0.0] * 97)[None], 20)
    quadrature = space.quadrature()
    seen = quadrature.nodes[quadrature.weights > 1e-6]
    assert sorted(round(value, 3) for value in seen.tolist()) == [-2, 0, 4, 8]
    assert float(quadrature.weights.sum()) == pytest.approx(1)


def test_a_start_that_is_drawn_again_is_no_new_direction():
    """The vector that goes on after an invariant subspace lies in it, but for rounding."""
    matrix = torch.diag(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    start = norm_and_unit(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))[1]
    space = Krylov(lambda vectors: vectors @ matrix, start, torch.Generator().manual_seed(0), most=4)
    space.grow(4)
    torch.testing.assert_close(space.extremes(4)[0][0].abs(), torch.tensor([3.0, 0, 0, 0]).double(), atol=1e-6, rtol=0)


def test_matrices_of_a_batch_do_not_touch_each_other():
    matrices = torch.stack([symmetric([3.0, 1.0, 0.5, 0.1], seed=seed) * 10.0**seed for seed in range(3)])
    together, start = grown(matrices, 3)
    for place, matrix in enumerate(matrices):
        alone = Krylov(
            lambda vectors, matrix=matrix: vectors @ matrix, start[place : place + 1], torch.Generator(), most=3
        )
        alone.grow(3)
        torch.testing.assert_close(alone.extremes(2)[0][0], together.extremes(2)[0][place], rtol=1e-5, atol=0)

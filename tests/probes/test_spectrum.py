import math

import numpy as np
import pyhessian
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from gradscope.models.inspection import measuring
from gradscope.probes.spectrum import (
    MATRICES,
    densities,
    density_grid,
    find_eigenpairs,
    input_matrix,
    layers_of,
    masses,
    probe,
    random_signs,
    random_unit,
    weight_matrix,
)
from gradscope.results.metrics import CURVATURE_MATRICES
from gradscope.seeding import generator


@pytest.fixture(scope="module")
def small():
    """A smooth network of 160 parameters, in training mode, with batch norm; images and labels in two batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(27, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)),
    )
    model(torch.rand(64, 1, 8, 8))
    images, labels = torch.rand(20, 1, 8, 8), torch.randint(0, 3, (20,))
    return model, images, labels


def parameters(model):
    return {name: value.detach().double() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def exact(small):
    """The Hessian and the Gauss-Newton matrix of the mean loss, entry by entry, in float64."""
    model, images, labels = small
    frozen = {name: value.double() for name, value in model.named_buffers() if value.is_floating_point()}
    known = parameters(model)
    names, sizes = list(known), [value.numel() for value in known.values()]
    model.eval()

    def logits(values):
        return functional_call(model, values | frozen, (images.double(),))

    second = jacrev(jacrev(lambda values: F.cross_entropy(logits(values), labels)))(known)
    rows = [
        torch.cat([second[one][other].reshape(n, m) for other, m in zip(names, sizes, strict=True)], 1)
        for one, n in zip(names, sizes, strict=True)
    ]
    jacobian = jacrev(logits)(known)
    flat = torch.cat([jacobian[name].reshape(20, 3, -1) for name in names], 2)
    p = logits(known).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    model.train()
    return {
        "hessian": torch.cat(rows).detach(),
        "gauss-newton": (torch.einsum("nki,nkl,nlj->ij", flat, inner, flat) / 20).detach(),
    }


def batches(small):
    _, images, labels = small
    return [(images[:12], labels[:12]), (images[12:], labels[12:])]


def test_the_names_are_the_declared_ones():
    assert MATRICES.keys() == CURVATURE_MATRICES.keys()


@pytest.mark.parametrize("matrix", MATRICES)
def test_products_are_those_of_the_exact_matrix(small, exact, matrix, digest):
    model = small[0]
    vector = torch.randn(1, 160, generator=torch.Generator().manual_seed(0))
    before = digest(model)
    with measuring(model):
        found = weight_matrix(model, batches(small), matrix=matrix)(vector)
    assert digest(model) == before
    torch.testing.assert_close(found[0].double(), exact[matrix] @ vector[0].double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_layers_block_is_the_exact_one(small, exact, matrix):
    model = small[0]
    layers = layers_of(model)
    assert {name: part.stop - part.start for name, part in layers.items()} == {"0": 30, "1": 6, "4": 112, "6": 12}
    for part in layers.values():
        vector = torch.randn(1, part.stop - part.start, generator=torch.Generator().manual_seed(1))
        with measuring(model):
            found = weight_matrix(model, batches(small), matrix=matrix, part=part)(vector)
        expected = exact[matrix][part, part] @ vector[0].double()
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_layer_is_called_as_in_the_innermost_model(small):
    model = small[0]
    wrapped = nn.Sequential(nn.Sequential(model))
    assert layers_of(wrapped) == layers_of(model)
    assert list(layers_of(nn.Sequential(nn.Linear(2, 2)))) == ["0"]
    one = nn.Module()
    one.scale, one.inner = nn.Parameter(torch.ones(3)), nn.Linear(2, 2)
    assert layers_of(one) == {"scale": slice(0, 3), "inner": slice(3, 9)}
    assert layers_of(nn.Flatten()) == {}


@pytest.mark.parametrize("matrix", MATRICES)
def test_eigenvalues_are_the_exact_ones(small, exact, matrix):
    model = small[0]
    values = torch.linalg.eigvalsh(exact[matrix])
    expected = values[values.abs().argsort(descending=True)][:6]
    with measuring(model):
        found, products = find_eigenpairs(
            *(weight_matrix(model, batches(small), matrix=matrix), random_unit((1, 160), 0, "start")),
            *(generator(0, "beyond"),),
            count=6,
            most=100,
        )
    torch.testing.assert_close(found.values[0], expected, rtol=1e-4, atol=1e-6)
    assert (found.residuals[0] <= 1e-3 * found.values[0].abs()).all()
    assert products < 60


def probes_of(small, count, known=None, most=20, matrix="hessian"):
    model = small[0]
    with measuring(model):
        product = weight_matrix(model, batches(small), matrix=matrix)
        return [
            probe(
                *(product, random_signs((1, 160), 0, number), generator(0, "beyond", number)),
                most=most,
                parts=list(layers_of(model).values()),
                known=known,
            )
            for number in range(count)
        ]


def test_the_trace_is_unbiased_by_layer_and_less_noisy_with_known_eigenvalues(small, exact):
    model = small[0]
    with measuring(model):
        product = weight_matrix(model, batches(small))
        known, _ = find_eigenpairs(product, random_unit((1, 160), 1), generator(1), count=8, most=60)
    expected = [float(exact["hessian"].diagonal()[part].sum()) for part in layers_of(model).values()]
    errors = []
    for given in (None, known):
        traces = torch.stack([one.traces[0] for one in probes_of(small, 100, given, most=1)])
        error = traces.std(dim=0) / len(traces) ** 0.5
        assert ((traces.mean(dim=0) - torch.tensor(expected)).abs() < 4 * error).all()
        whole = traces.sum(dim=1)
        errors.append(float(whole.std()))
        assert abs(float(whole.mean()) - sum(expected)) < 4 * errors[-1] / 100**0.5
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_density_is_that_of_the_exact_eigenvalues(small, exact, matrix):
    values = torch.linalg.eigvalsh(exact[matrix])
    seen = [one.quadrature for one in probes_of(small, 12, most=30, matrix=matrix)]
    grid, width = density_grid(seen)
    found = np.concatenate([densities(one, grid, width) for one in seen]).mean(axis=0)
    step = np.gradient(grid)
    assert (found * step).sum() == pytest.approx(1, abs=1e-2)
    for one in seen:  # Chebyshev, Markov and Stieltjes: its distribution is known at the nodes, to their weights
        below = torch.cat([torch.zeros(1), one.weights[0].cumsum(0)])
        shares = (values < one.nodes[0, :, None]).double().mean(dim=1)
        assert ((shares - below[:-1] > -0.25) & (shares - below[1:] < 0.25)).all()
    largest = values.abs().max()
    outside = values.abs() > 0.3 * largest
    beyond = np.abs(grid) > 0.3 * float(largest)
    assert (found * step)[beyond].sum() == pytest.approx(float(outside.double().mean()), rel=0.5)
    negative, size = torch.cat([masses(one) for one in seen]).sum(dim=0).tolist()
    mass = float(-values[values < 0].sum() / values.abs().sum())
    assert negative / size == pytest.approx(mass, abs=0.05)
    assert (mass > 0.1) == (matrix == "hessian")


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_matrix_of_an_image_is_its_closed_form(linear, matrix):
    """Two classes: p (1 - p) w w' with w the difference of the rows, of rank one, whatever the other images."""
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model = linear(weight)
    images, labels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 3)
    p = torch.softmax(model(images), 1)[:, 0].detach()
    expected = p * (1 - p) * (weight[0] - weight[1]).square().sum()
    with measuring(model):
        product = input_matrix(model, images, labels, matrix=matrix)
        found, _ = find_eigenpairs(product, random_unit((6, 12), 0), generator(0), count=3, most=12)
        seen = probe(product, random_signs((6, 12), 0), generator(1), most=12, known=found)
    torch.testing.assert_close(found.values[:, 0].float(), expected, rtol=1e-4, atol=0)
    assert (found.values[:, 1:].abs() < 1e-5).all()
    torch.testing.assert_close(seen.traces[:, 0].float(), expected, rtol=1e-4, atol=0)


def test_the_trace_of_known_eigenvalues_has_no_noise_where_they_are_all():
    matrix = torch.diag(torch.tensor([5.0, -3.0, 1.0, 0.0, 0.0]))
    product = lambda vectors: vectors @ matrix  # noqa: E731
    known, _ = find_eigenpairs(product, random_unit((1, 5), 0), generator(0), count=3, most=5)
    for number in range(5):
        seen = probe(product, random_signs((1, 5), 0, number), generator(number), most=5, known=known)
        assert float(seen.traces) == pytest.approx(3, abs=1e-5)


def test_a_flat_loss_has_a_spectrum_of_zeros():
    product = torch.zeros_like
    found, _ = find_eigenpairs(product, random_unit((2, 7), 0), generator(0), count=3, most=7)
    assert not found.values.any()
    seen = probe(product, random_signs((2, 7), 0), generator(0), most=4, known=found)
    assert not seen.traces.any()
    grid, width = density_grid([seen.quadrature])
    assert width > 0
    assert float((densities(seen.quadrature, grid, width)[0] * np.gradient(grid)).sum()) == pytest.approx(1, abs=1e-2)
    assert math.isnan(float(masses(seen.quadrature)[0, 0] / masses(seen.quadrature)[0, 1]))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_pyhessian_finds_the_same(small):
    """PyHessian's power iteration and Hutchinson, on one batch; its density needs a `torch.eig` that is gone."""
    model, images, labels = small
    reference = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(images, labels), cuda=False)
    theirs, _ = reference.eigenvalues(maxIter=500, tol=1e-7, top_n=2)
    traces = reference.trace(maxIter=200, tol=-math.inf)  # it stops where its running mean is negative
    model.zero_grad(set_to_none=True)
    with measuring(model):
        product = weight_matrix(model, [(images, labels)])
        ours, _ = find_eigenpairs(product, random_unit((1, 160), 0), generator(0), count=2, most=60)
    assert ours.values[0].tolist() == pytest.approx(theirs, rel=1e-3)
    mine = torch.stack([one.traces.sum() for one in probes_of(small, 50, ours, most=1)])
    error = math.hypot(float(mine.std()) / 50**0.5, float(np.std(traces)) / 200**0.5)
    assert abs(float(mine.mean()) - float(np.mean(traces))) < 4 * error

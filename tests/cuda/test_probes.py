import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradscope as gs
from gradscope.probes.similarity import gradient_cosines, relative_curvature
from gradscope.probes.spectrum import MATRICES
from gradscope.probes.weight_landscape import filter_normalised_direction
from gradscope.results.metrics import METRICS
from tests.cuda.measurements import (
    EPSILONS,
    audit,
    curvature,
    examples_of,
    input_landscape,
    moved,
    planes_of,
    spectrum,
    trajectory,
    transferred,
    weight_landscape,
)

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
#: Tolerance for values at the same point: IEEE float32 differs by about 1e-5 (order of summation, Winograd's
#: convolutions), TF32 by 5e-4 to 5e-3.
SAME_POINT = 1e-4
#: Tolerance near kinks: where rounding moves an activation across a ReLU's edge, its part of the gradient appears or
#: vanishes, a few thousandths of a gradient each.
SAME_SLOPE = 1e-2
#: How many of 24 images may be fooled on only one device, because paths separate.
MAY_DIFFER = 2


def close(found: Tensor, expected: Tensor, tolerance: float, name: str, *, least: float = 0.0) -> None:
    """Compare within ``tolerance`` times the value or the largest value beside it, or within ``least``."""
    scale = max(float(expected.double().nan_to_num().abs().max()), least)
    torch.testing.assert_close(
        found.double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance * scale,
        equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("norm", EPSILONS)
def test_a_trajectory_is_that_of_the_cpu(norm, precision, model, images, device, to_device):
    expected = trajectory(model, images, CPU, norm, precision=precision)
    found = trajectory(to_device(model), images, device, norm, precision=precision)
    assert found.keys() == expected.keys()
    assert {key.split("/")[1] for key in found if key.startswith(("steps/", "samples/"))} >= METRICS.keys() - {
        "dispersion"
    }
    for name in ("loss", "margin", "entropy"):
        close(found[f"samples/{name}/clean"], expected[f"samples/{name}/clean"], SAME_POINT, name)
    assert torch.equal(found["samples/accuracy/clean"], expected["samples/accuracy/clean"])
    for name in ("accuracy/final", "accuracy/worst"):
        assert (found[f"samples/{name}"] != expected[f"samples/{name}"]).sum() <= MAY_DIFFER
    close(found["samples/norm/clean"].sort().values, expected["samples/norm/clean"].sort().values, SAME_SLOPE, "norm")
    for key in (key for key in expected if key.startswith("steps/")):
        steps, theirs = found[key][2], expected[key][2]
        # Paths separate slowly: the first steps are as close as one point, the rest is compared on average.
        early = SAME_POINT if key.removeprefix("steps/") in ("loss", "margin", "entropy") else SAME_SLOPE
        close(steps[:2], theirs[:2], early, f"{key}, early", least=0.01)
        close(steps, theirs, 0.05, key, least=0.01)
        # Undefined gradients are exact zeros; rounding never produces them.
        assert (found[key][:2] - expected[key][:2]).abs().max() <= MAY_DIFFER
    close(found["directions/counts"], expected["directions/counts"], 0.0, "counts")
    first, theirs = (sums["directions/sums"][0] for sums in (found, expected))
    close(first, theirs, SAME_SLOPE, "sums of gradients at the start")


@pytest.mark.parametrize("norm", EPSILONS)
def test_an_input_landscape_is_that_of_the_cpu(norm, model, images, device, to_device):
    """The device's directions are close to the CPU's; values are compared on the CPU's planes."""
    on_device = to_device(model)
    planes, labels = planes_of(model, images, CPU, norm)
    own, _ = planes_of(on_device, images, device, norm)
    # In L-infinity a changed sign moves the end of the path by two step sizes in one of 768 coordinates.
    assert (F.cosine_similarity(own.first.cpu(), planes.first) > 0.98).all()
    expected = input_landscape(model, planes, labels, norm)
    found = input_landscape(on_device, moved(planes, device), labels.to(device), norm)
    assert found.keys() == expected.keys()
    for name in ("loss", "margin"):
        close(found[name], expected[name], SAME_POINT, name)
    assert (found["predicted"] != expected["predicted"]).double().mean() < 0.01
    # Second differences of the loss over steps of one epsilon, and its maximum on a disc.
    for name in ("roughness", "sharpness"):
        close(found[name], expected[name], 1e-3, name)
    for name in ("radius-adversarial", "radius-random", "beyond-adversarial", "beyond-random"):
        close(found[name], expected[name], 1e-3, name)
    # The Hessian of a ReLU network jumps at every kink, and the search for nonlinearity crosses many.
    close(found["nonlinearity"], expected["nonlinearity"], SAME_SLOPE, "nonlinearity")
    close(found["curvature"], expected["curvature"], SAME_SLOPE, "curvature")


def test_a_weight_landscape_is_that_of_the_cpu(model, images, device, to_device):
    on_device = to_device(model)
    directions = (filter_normalised_direction(of, seed=0, name="first") for of in (on_device, model))
    found, expected = ({key: part.cpu() for key, part in direction.items()} for direction in directions)
    for key, part in expected.items():
        close(found[key], part, 1e-5, key)
    expected, found = weight_landscape(model, images, CPU), weight_landscape(on_device, images, device)
    assert found.keys() == expected.keys() == {"loss", "right", "adversarial_loss", "adversarial_right"}
    close(found["loss"], expected["loss"], SAME_POINT, "loss")
    close(found["adversarial_loss"], expected["adversarial_loss"], 1e-3, "adversarial loss, after three steps")
    assert (found["right"] - expected["right"]).abs().max() <= 1
    assert (found["adversarial_right"] - expected["adversarial_right"]).abs().max() <= 1


def test_curvatures_are_those_of_the_cpu(model, images, device, to_device):
    """Power iterations run to a residual of 1e-4; the eigenvalues agree better than that."""
    expected, found = curvature(model, images, CPU), curvature(to_device(model), images, device)
    for name in ("input", "weight", "along"):
        close(found[name], expected[name], SAME_SLOPE, name)


@pytest.mark.parametrize("matrix", MATRICES)
def test_spectra_are_those_of_the_cpu(matrix, model, images, device, to_device):
    expected, found = (spectrum(of, images, at, matrix) for of, at in ((model, CPU), (to_device(model), device)))
    for name in ("weights", "traces"):
        close(found[name], expected[name], SAME_SLOPE, name)
    close(found["images"][:, 0], expected["images"][:, 0], SAME_SLOPE, "images")
    assert (found["residuals"] < 2 * expected["residuals"] + 1e-4 * expected["weights"].abs().max()).all()


def test_examples_transfer_as_on_the_cpu(model, images, make_network, device, to_device):
    other = make_network("cnn2", 16).eval()
    models = {"one": model, "other": other}
    expected = examples_of(model, images, CPU)
    found = examples_of(to_device(model), images, device)
    moves = [(points.cpu() - images.images.float() / 255).flatten(1) for points in (found, expected)]
    assert (F.cosine_similarity(*moves) > 0.98).all()
    on_device = {name: to_device(each) for name, each in models.items()}
    ours, theirs = transferred(on_device, images, expected, device), transferred(models, images, expected, CPU)
    assert (ours.clean != theirs.clean).sum() <= 1
    assert (ours.right != theirs.right).sum() <= 1


def test_gradients_of_two_models_are_as_alike_as_on_the_cpu(model, images, make_network, device, to_device):
    models = [model, make_network("cnn2", 16).eval()]
    batch, labels = images.batch(torch.arange(len(images)), "cpu")
    expected, found = (
        gradient_cosines(ours, batch.to(where), labels.to(where)).cpu()
        for ours, where in ((models, CPU), ([to_device(each) for each in models], device))
    )
    close(found, expected, SAME_SLOPE, "cosine", least=1.0)
    bends = [
        relative_curvature(ours, batch.to(where), labels.to(where), numbers=torch.arange(len(images))).cpu()
        for ours, where in ((model, CPU), (to_device(model), device))
    ]
    close(bends[1], bends[0], SAME_SLOPE, "relative curvature")


def test_an_attack_on_trial_is_found_what_it_is_on_the_cpu(model, make_blobs, device, to_device):
    given = make_blobs(60, 16, noise=0.3, seed=2).batch(torch.arange(60), "cpu")
    ball = {"norm": "l2", "epsilon": EPSILONS["l2"], "budget": "quick", "progress": False}
    expected, found = (
        gs.judge(short_steps, ours, *(part.to(where) for part in given), **ball)
        for ours, where in ((model, CPU), (to_device(model), device))
    )
    assert found.verdict == expected.verdict == "the attack is blind"
    assert found.parts[0] == expected.parts[0] == "norm floor"
    assert abs(found.left - expected.left) <= MAY_DIFFER / 60


def short_steps(model, images, labels):
    """PGD that divides gradients by at least 1, although most are shorter."""
    points = images.clone()
    for _ in range(10):
        points.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(points), labels, reduction="sum"), points)
        norms = slope.flatten(1).norm(dim=1).clamp_min(1.0).reshape(-1, 1, 1, 1)
        points = points.detach() + 0.2 * slope / norms
        moved = points - images
        length = moved.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        points = (images + moved * (EPSILONS["l2"] / length).clamp_max(1.0)).clamp(0, 1)
    return points


def test_an_audit_comes_to_the_verdict_of_the_cpu(model, images, device, to_device):
    expected, found = audit(model, images, CPU), audit(to_device(model), images, device)
    assert found.verdict == expected.verdict
    assert (found.standing != expected.standing).sum() <= MAY_DIFFER
    assert found.left_out == expected.left_out
    # Two passes over one image, alone and in a batch: beyond 1e-4 a model counts as random (SAME_LOGITS).
    assert not found.evidence.random
    states = [{check.id: check.state == "abstained" for check in of.checks} for of in (found, expected)]
    assert states[0] == states[1]

"""What takes passes of its own: alignment, signal-to-noise, the spread of restarts; and that FOSC takes none."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.attacks.pgd import Streams, pgd, threat_model
from gradscope.attacks.problem import Counted, Tally
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.functional import first_order_gap
from gradscope.probes.surroundings import DRAWS
from gradscope.probes.trajectory import measure_trajectory
from gradscope.results.metrics import METRICS, USUAL_METRICS

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(6, dtype=torch.int64)
SET = ImageSet.from_tensors("six", IMAGES, LABELS, "01")
BALLS = [PGD(epsilon=0.3, steps=3), PGD(norm="linf", epsilon=0.05, steps=3)]


class Given(nn.Module):
    """A model of two classes whose margin is ``-function(x)``, so that the margin loss is ``function``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        value = self.function(images.flatten(1))
        return torch.stack([-value, torch.zeros_like(value)], dim=1)


def measured(model: nn.Module, settings: PGD, *metrics: str) -> dict[tuple[str, str], np.ndarray]:
    return measure_trajectory(model, SET, settings, frozenset(metrics)).samples


def drawn(settings: PGD, *names: object) -> Tensor:
    return threat_model(settings).random_start(IMAGES, "ball", 0, names, torch.arange(6))


@pytest.mark.parametrize("settings", BALLS, ids=["l2", "linf"])
def test_alignment_is_the_cosine_of_the_two_gradients(convolutional: nn.Module, settings: PGD) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    points = [IMAGES, drawn(settings, "alignment")]
    slopes = []
    for point in points:
        point = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(point), LABELS, reduction="sum"), point)
        slopes.append(slope.flatten(1).double().numpy())
    one, other = slopes
    expected = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert measured(model, settings, "alignment")["alignment", "clean"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("settings", BALLS, ids=["l2", "linf"])
def test_signal_to_noise_is_that_of_the_gradients_at_the_drawn_points(settings: PGD) -> None:
    """The loss |x|^2 has the gradient 2 x: its mean and covariance are those of the points."""
    settings = settings.model_copy(update={"loss": "margin"})
    g = 2 * torch.stack([drawn(settings, "snr", draw).flatten(1) for draw in range(DRAWS)]).double().numpy()
    expected = (g.mean(0) ** 2).sum(1) / g.var(0, ddof=1).sum(1)
    for scale in (1.0, 1e-30):
        model = Given(lambda x, scale=scale: scale * x.square().sum(dim=1))
        assert measured(model, settings, "snr")["snr", "clean"] == pytest.approx(expected, rel=1e-3)


def test_signal_to_noise_does_not_underflow_in_float64() -> None:
    settings = PGD(epsilon=0.3, steps=2, loss="margin", precision="float64")
    found = [
        measured(Given(lambda x, scale=scale: scale * x.square().sum(dim=1)), settings, "snr")["snr", "clean"]
        for scale in (1.0, 1e-200)
    ]
    assert found[1] == pytest.approx(found[0])


def test_gradients_that_are_zero_or_equal_leave_them_undefined() -> None:
    flat = measured(Given(lambda x: 0 * x.sum(dim=1)), PGD(steps=2, loss="margin"), "alignment", "snr", "fosc")
    for metric, point in (("alignment", "clean"), ("snr", "clean"), ("fosc", "clean"), ("fosc", "final")):
        assert np.isnan(flat[metric, point]).all()
    straight = measured(Given(lambda x: x.sum(dim=1)), PGD(steps=2, loss="margin"), "alignment", "snr")
    assert np.isnan(straight["snr", "clean"]).all()
    assert straight["alignment", "clean"] == pytest.approx(1)


def test_fosc_falls_in_a_line_where_the_gradient_is_constant() -> None:
    """Steps of a tenth of epsilon along it, from the image: what is left is 1 - t / 10, and 0 at last."""
    settings = PGD(epsilon=0.5, step_size=0.05, steps=12, start="none", box=False, loss="margin")
    result = measure_trajectory(Given(lambda x: x.sum(dim=1)), SET, settings, frozenset({"fosc"}))
    assert result.moments["fosc"].mean == pytest.approx([max(0.0, 1 - step / 10) for step in range(12)], abs=1e-5)
    assert result.samples["fosc", "clean"] == pytest.approx(1)
    assert result.samples["fosc", "final"] == pytest.approx(0, abs=1e-5)


def test_fosc_is_the_best_that_the_ball_has_left_to_first_order() -> None:
    """Against a search over many points of the ball, of which none is better, and some are as good."""
    stream = torch.Generator().manual_seed(3)
    gradient = torch.randn(1, 4, generator=stream)
    offset = torch.tensor([[0.1, -0.2, 0.05, 0.3]])
    for norm, draws in (("linf", torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))), ("l2", gradient)):
        ends = 0.5 * draws / (draws.norm(dim=1, keepdim=True) if norm == "l2" else 1.0)
        left = float(((ends - offset) @ gradient.T).max())
        whole = 0.5 * float(gradient.abs().sum() if norm == "linf" else gradient.norm())
        found = first_order_gap(offset, gradient / gradient.norm(), norm, 0.5)
        assert float(found) == pytest.approx(left / whole, rel=1e-5)


def test_restarts_end_together_where_the_gradient_is_constant() -> None:
    settings = PGD(norm="linf", epsilon=0.2, steps=40, restarts=4, box=False, loss="margin")
    straight = measured(Given(lambda x: x.sum(dim=1)), settings, "restart-spread", "restart-distance")
    assert straight["restart-distance", "final"] == pytest.approx(0, abs=1e-5)
    assert straight["restart-spread", "final"] == pytest.approx(0, abs=1e-5)


def test_the_spread_is_that_of_each_start_alone(convolutional: nn.Module) -> None:
    settings = PGD(epsilon=0.5, steps=3, restarts=3, loss="margin")
    model = Given(lambda x: torch.sin(9 * x).sum(dim=1))
    losses, ends = [], []
    for restart in range(3):
        reached = pgd(model, IMAGES, LABELS, settings, streams=Streams(0, torch.arange(6), restart)).points
        losses.append(torch.sin(9 * reached.flatten(1)).sum(dim=1).double().numpy())
        ends.append(reached.flatten(1).double().numpy())
    found = measured(model, settings, "restart-spread", "restart-distance")
    assert found["restart-spread", "final"] == pytest.approx(np.std(losses, axis=0, ddof=1), abs=1e-5)
    apart = [np.linalg.norm(one - other, axis=1) for one, other in itertools.combinations(ends, 2)]
    assert found["restart-distance", "final"] == pytest.approx(np.mean(apart, axis=0), abs=1e-5)
    assert (found["restart-distance", "final"] > 0.1).all()


def test_the_worst_accuracy_is_the_same_with_and_without_the_spread(
    convolutional: nn.Module, image_set: ImageSet
) -> None:
    settings = PGD(epsilon=0.3, steps=3, restarts=6)
    found = [
        measure_trajectory(convolutional.eval(), image_set, settings, frozenset(metrics)).samples["accuracy", "worst"]
        for metrics in ((), ("restart-spread",))
    ]
    assert (found[0] == found[1]).all()


def test_one_start_has_no_spread() -> None:
    found = measured(Given(lambda x: x.sum(dim=1)), PGD(steps=2), "restart-spread", "restart-distance")
    assert all(math.isnan(value) for value in found["restart-spread", "final"])
    assert all(math.isnan(value) for value in found["restart-distance", "final"])


def passes(*metrics: str, restarts: int = 1) -> tuple[int, int]:
    """Forward and backward passes an image."""
    tally = Tally()
    model = Counted(Given(lambda x: -9 - x.square().sum(dim=1)), tally)
    measure_trajectory(model, SET, PGD(steps=10, epsilon=0.1, restarts=restarts), frozenset(metrics))
    return tally.forward // len(SET), tally.backward // len(SET)


def test_what_comes_with_the_attack_takes_no_pass_more() -> None:
    assert passes(*USUAL_METRICS) == passes("norm") == passes("fosc") == (12, 12)
    assert passes("accuracy") == (12, 10)
    assert {name for name in METRICS if METRICS[name].extra}.isdisjoint(USUAL_METRICS)


def test_the_others_take_as_many_as_they_say() -> None:
    assert passes("accuracy", "alignment") == (13, 12)
    assert passes("accuracy", "snr") == (12 + DRAWS, 10 + DRAWS)
    assert passes("accuracy", "restart-spread", restarts=3) == (12 + 22, 10 + 20)

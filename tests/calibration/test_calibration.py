"""The calibration's parts: each defence hides what its way round shows; the committed table is what it claims."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.calibration import __main__ as calibration
from tests.calibration.attacks import adaptive_pgd, plain_pgd
from tests.calibration.defences import (
    DEFENCES,
    BlockRounding,
    LikelyPixels,
    OutputCode,
    Pruned,
    Quilt,
    Smoothed,
    Squeezed,
    Thermometer,
    WinnersTakeAll,
    bypassed,
)
from tests.calibration.networks import fit
from tests.conftest import random_images

TABLES = Path(__file__).parents[2] / "reports" / "calibration"


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", DEFENCES)
def test_the_way_round_has_the_outputs_of_the_defence_and_a_gradient(pictures, name):
    model = DEFENCES[name].build(0).eval()
    around = bypassed(model)
    found = []
    for which in (model, around):
        torch.manual_seed(0)
        points = pictures.clone().requires_grad_()
        logits = which(points)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), points)
        found.append((logits.detach(), gradient))
    assert found[1][1].abs().sum() > 0
    # Two ways round have other outputs: what goes into tanh, and all activations.
    if name not in ("error-correcting output codes", "stochastic activation pruning"):
        assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    part = model[0] if isinstance(model, torch.nn.Sequential) else model
    if isinstance(part, (Thermometer, BlockRounding, LikelyPixels, Smoothed, Quilt, Squeezed)):
        assert not found[0][1].any()


def test_thermometer_of_a_known_pixel():
    coded = Thermometer()(torch.full((1, 1, 1, 1), 0.25))
    assert coded.flatten().tolist() == [1.0] * 4 + [0.0] * 12


def test_rounding_of_blocks_is_idempotent_and_fine_rounding_the_identity(pictures):
    inside = 0.25 + pictures / 2
    coarse = BlockRounding(6.0)
    once = coarse(inside)
    assert (once - inside).abs().max() > 0.02
    assert torch.allclose(coarse(once), once, atol=2e-3)
    assert torch.allclose(BlockRounding(1e-3)(inside), inside, atol=1e-3)


def test_quilts_are_sewn_from_the_nearest_patches(pictures):
    quilt = Quilt()
    quilt.patches[0], quilt.patches[1:] = 0.2, 5.0
    quilt.patches[7] = 0.9
    dark_and_bright = torch.cat([torch.full((1, 3, 2, 2), 0.3), torch.full((1, 3, 2, 2), 0.8)], dim=3)
    assert quilt(dark_and_bright)[0, 1].tolist() == [[pytest.approx(value) for value in (0.2, 0.2, 0.9, 0.9)]] * 2


def test_less_total_variation_lowers_it_and_keeps_the_mean(pictures):
    calm = Smoothed()(pictures)

    def variation(images):
        return sum(images.diff(dim=dim).abs().sum() for dim in (2, 3))

    assert variation(calm) < 0.9 * variation(pictures)
    assert torch.allclose(calm.mean(dim=(2, 3)), pictures.mean(dim=(2, 3)), atol=1e-5)
    assert torch.allclose(Smoothed()(torch.full_like(pictures, 0.4)), torch.full_like(pictures, 0.4), atol=1e-6)


def test_likely_pixels_are_levels_near_their_own(pictures):
    likely = LikelyPixels()(pictures)
    assert torch.allclose(255 * likely, (255 * likely).round(), atol=1e-3)
    assert 15 / 255 < (likely - pictures).abs().max() < 17 / 255


def test_pruning_keeps_the_mean():
    features = torch.rand(1, 50).expand(20_000, 50)
    assert torch.allclose(Pruned(0.3)(features).mean(dim=0), features[0], rtol=0.1, atol=0.02)


def test_winners_are_the_largest_share():
    won = WinnersTakeAll(0.25)(torch.tensor([[3.0, -1.0, 2.0, 4.0, 0.5, -2.0, 1.0, 0.1]]))
    assert won.tolist() == [[3.0, 0, 0, 4.0, 0, 0, 0, 0]]


def test_codes_are_as_far_apart_as_they_can_be():
    codes = OutputCode(0).codes
    assert torch.equal(codes @ codes.T, 16 * torch.eye(10))


@pytest.mark.parametrize("attack", [plain_pgd, adaptive_pgd])
def test_the_attacks_by_hand_raise_the_loss_inside_the_ball(pictures, attack):
    model = DEFENCES["defensive distillation"].build(0).eval()
    labels = model(pictures).argmax(dim=1)
    points = attack(model, pictures, labels, 4 / 255)
    assert points.min() >= 0
    assert points.max() <= 1
    assert (points - pictures).abs().max() <= 4 / 255 + 1e-7
    with torch.no_grad():
        assert F.cross_entropy(model(points), labels) > F.cross_entropy(model(pictures), labels)


def test_training_separates_two_classes():
    images = random_images(256, side=32, classes=2)
    bright = replace(images, images=images.images // 2 + 100 * images.labels.to(torch.uint8).reshape(-1, 1, 1, 1))
    model = fit(DEFENCES["JPEG"].build(0), bright, 0, epochs=4)
    points, labels = bright.batch(torch.arange(64), "cpu")
    assert (model(points).argmax(dim=1) == labels).double().mean() > 0.9


@pytest.mark.slow
def test_rows_are_written_as_they_come_and_not_made_again(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    labels = np.arange(120) % 10
    images = (random.integers(0, 60, (120, 32, 32, 3)) + 18 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", X_train=images, y_train=labels, X_test=images[:20], y_test=labels[:20])
    places = ["--data-root", str(tmp_path / "data.npz"), "--checkpoints", str(tmp_path), "--out", str(tmp_path)]
    command = ["calibrate", "--dataset", "npz", *places, "--images", "20"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(calibration, "CASES", {name: calibration.CASES[name] for name in ("backward zero", "SL")})
    calibration.main()
    table = tmp_path / "npz-quick.csv"
    rows = calibration.read(table)
    assert [row.model for row in rows] == ["backward zero", "SL"]
    first = table.read_text()
    capsys.readouterr()
    calibration.main()
    assert "seed" in capsys.readouterr().out
    assert table.read_text() == first


def test_checks_are_counted_by_truth():
    row = calibration.read(TABLES / "cifar10-quick.csv")[0]
    honest = [replace(row, truth="", fired=fired) for fired in ("", "N1 K1!")]
    hiding = replace(row, truth="saturation", fired="N1 N3!", pgd_leaves=0.5, bypass_leaves=0.3)
    hardly = replace(hiding, pgd_leaves=0.4)
    lines = calibration.by_check([*honest, hiding, hardly])
    assert [line.split() for line in lines[1:]] == [
        ["N1", "1", "0", "1", "0"],
        ["N3", "0", "0", "1", "1"],
        ["K1", "1", "1", "0", "0"],
    ]


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.csv")), ids=lambda path: path.stem)
def test_no_honest_model_of_a_committed_table_is_accused(table):
    rows = calibration.read(table)
    assert {row.model for row in rows} <= calibration.CASES.keys()
    assert [row.model for row in rows if not row.truth and row.verdict == "masking found"] == []


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.csv")), ids=lambda path: path.stem)
def test_what_hides_twenty_points_in_a_committed_table_is_found_with_its_cause(table):
    rows = [row for row in calibration.read(table) if row.hidden >= 0.2]
    assert [(row.model, row.verdict, row.cause) for row in rows if not row.agrees] == []

"""The ways between two checkpoints: straight, with units aligned, along a trained curve, and their barriers."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.data.image_set import Splits
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.measure import ways, weight_landscape
from gradscope.measure.inputs import order
from gradscope.models.checkpoint import load
from gradscope.results.schemas import LANDSCAPE, SUMMARY
from gradscope.results.tables import read_table
from gradscope.training.options import TrainOptions
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, run_training
from tests.measure.requests import measured

ALL = ["line", "aligned", "bezier"]


@pytest.fixture(scope="module", autouse=True)
def _little_curvature() -> Iterator[None]:
    """The curvature at the checkpoint, which is not looked at here, takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_landscape, "MOST_PRODUCTS", 2)
        yield


@pytest.fixture(scope="module")
def seeds(trained: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two networks of one mode and two seeds, on digits."""
    out = tmp_path_factory.mktemp("seeds") / "other.pt"
    training, splits = configure_training(TrainingRequest(options=TrainOptions(mode="sl", epochs=3, seed=1)))
    run_training(training, splits, out, Hardware("cpu"), resume=False, overwrite=False)
    return [trained[0], str(out)]


def along(texts: list[str], out: Path, **given: Any) -> Path:
    """The straight line, and what else is ``given``, from the first to the second."""
    values = {"space": "weights", "towards": texts[1], "line": True, "points": 9, "images": 60}
    return measured("landscape", texts[:1], out, **values | given)


def heights(rows: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Rows of SUMMARY that are of a barrier, by way and metric."""
    found = rows[rows["metric"].str.endswith("barrier")]
    return {(row["subset"].removesuffix("/all"), row["metric"]): row for _, row in found.iterrows()}


@pytest.fixture(scope="module")
def everything(seeds: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ways") / "out"
    attack: dict[str, Any] = {"adversarial": True, "steps": 2, "epsilon": 0.3}
    return along(seeds, out, align=True, curve="bezier", curve_updates=30, images=100, points=7, **attack)


def test_each_way_has_its_points_and_the_ends_are_the_checkpoints(everything: Path, seeds: list[str]) -> None:
    rows = read_table(everything / LANDSCAPE.file, LANDSCAPE)
    assert rows["way"].unique().tolist() == ALL
    assert (rows["b"] == 0).all()
    points = {str(way): own["a"].tolist() for way, own in rows.groupby("way")}
    assert points["bezier"] == points["aligned"] == [a for a in points["line"] if 0 <= a <= 1]
    assert (points["line"][0], points["line"][-1]) == (-0.25, 1.25)
    for column in ("loss", "adversarial_loss"):
        ends = {way: own.set_index("a")[column] for way, own in rows.groupby("way")}
        for end in (0, 1):
            assert ends["aligned"][end] == pytest.approx(ends["line"][end], rel=1e-4)
            assert ends["bezier"][end] == pytest.approx(ends["line"][end], rel=1e-4)


def test_between_two_seeds_the_barrier_falls(everything: Path) -> None:
    found = heights(read_table(everything / SUMMARY.file, SUMMARY))
    assert list(found) == [
        (way, f"{prefix}{metric}-barrier")
        for way in ALL
        for prefix in ("", "adversarial-")
        for metric in ("loss", "accuracy")
    ]
    for metric in ("loss-barrier", "accuracy-barrier", "adversarial-loss-barrier", "adversarial-accuracy-barrier"):
        line = found["line", metric]
        for way in ("aligned", "bezier"):
            assert found[way, metric]["ci_high"] < line["ci_low"], "by more than both intervals"
            assert found[way, metric]["value"] < 0.5 * line["value"]
    assert found["line", "loss-barrier"]["norm"] == ""
    assert (found["line", "adversarial-loss-barrier"][["norm", "epsilon"]] == ["l2", 0.3]).all()
    assert {row["n"] for row in found.values()} == {100}


def test_the_barrier_is_that_of_the_points_in_the_file(everything: Path) -> None:
    """With nothing but pandas."""
    rows = read_table(everything / LANDSCAPE.file, LANDSCAPE)
    found = heights(read_table(everything / SUMMARY.file, SUMMARY))
    for way, own in rows[rows["a"].between(0, 1)].groupby("way"):
        for column, sign in (("loss", 1), ("accuracy", -1), ("adversarial_loss", 1), ("adversarial_accuracy", -1)):
            ends = own[own["a"].isin([0, 1])].sort_values("a")[column].tolist()
            above = own[column] - ((1 - own["a"]) * ends[0] + own["a"] * ends[1])
            row = found[str(way), f"{column.replace('_', '-')}-barrier"]
            assert row["value"] == pytest.approx((sign * above).max(), abs=1e-12)
            assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_the_interval_is_the_jackknife_over_groups_of_images(tmp_path: Path, seeds: list[str], digits: Splits) -> None:
    """Ten groups, image i in group i modulo 10, each left out in turn: by hand from every image's own loss."""
    out = along(seeds, tmp_path / "out", images=50, points=5)
    (row,) = [row for key, row in heights(read_table(out / SUMMARY.file, SUMMARY)).items() if key[1] == "loss-barrier"]
    chosen, _ = order(digits.test, 0)[:50].sort()
    images, labels = digits.test.batch(chosen, "cpu")
    one, other = (load(Path(text)).build() for text in seeds)
    shares = [a for a in read_table(out / LANDSCAPE.file, LANDSCAPE)["a"] if 0 <= a <= 1]
    losses = []
    for share in shares:
        moved = copy.deepcopy(one).eval()
        for ours, theirs in zip(moved.parameters(), other.parameters(), strict=True):
            ours.data.lerp_(theirs.data, share)
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(moved(images), labels, reduction="none").double().numpy())
    table, at = np.array(losses), np.array(shares)

    def height(kept: np.ndarray) -> float:
        means = table[:, kept].mean(axis=1)
        return float((means - (1 - at) * means[0] - at * means[-1]).max())

    groups = np.arange(50) % 10
    leaving = np.array([height(groups != group) for group in range(10)])
    error = np.sqrt(0.9 * ((leaving - leaving.mean()) ** 2).sum())
    assert row["value"] == pytest.approx(height(groups >= 0), rel=1e-4)
    assert row["ci_high"] == pytest.approx(row["value"] + 2.262157 * error, rel=1e-3)


def pixels(count: int = 40) -> torch.Tensor:
    return torch.rand((count, 1, 3, 4), generator=torch.Generator().manual_seed(0))


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()


def test_a_convex_loss_has_no_barrier_on_the_line() -> None:
    """Cross-entropy is convex in the weights of a linear model."""
    x = pixels()
    y = linear(0)(x).argmax(dim=1)
    options: dict[str, Any] = {"space": "weights", "line": True, "points": 9, "align": True}
    found = heights(gs.landscape({"one": linear(0)}, x, y, towards={"other": linear(1)}, **options).frame("summary"))
    assert list(found) == [(way, f"{what}-barrier") for way in ("line", "aligned") for what in ("loss", "accuracy")]
    for way in ("line", "aligned"):
        row = found[way, "loss-barrier"]
        assert row["value"] == 0
        assert np.isnan([row["ci_low"], row["ci_high"]]).all(), "the ends are the highest of all"


def test_two_copies_with_units_in_disorder_are_one_after_alignment(digest: Any) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    for parameter in one.parameters():
        parameter.data *= 5
    other = copy.deepcopy(one)
    order = torch.randperm(20)
    other[1].weight.data, other[1].bias.data = one[1].weight.data[order], one[1].bias.data[order]
    other[3].weight.data = one[3].weight.data[:, order]
    x = pixels()
    y = one(x).argmax(dim=1)
    before = digest(one), digest(other)
    options: dict[str, Any] = {"space": "weights", "line": True, "points": 9}
    found = gs.landscape(
        {"one": one}, x, y, towards={"other": other}, align=True, curve="bezier", curve_updates=5, **options
    )
    assert (digest(one), digest(other)) == before
    rows, barriers = found.frame(), heights(found.frame("summary"))
    assert barriers["line", "loss-barrier"]["value"] > 0.2
    assert barriers["line", "accuracy-barrier"]["value"] > 0.05
    aligned = rows[rows["way"] == "aligned"]
    assert (aligned["loss"] == aligned["loss"].iloc[0]).all()
    assert (aligned["accuracy"] == 1).all()
    for metric in ("loss-barrier", "accuracy-barrier"):
        assert barriers["aligned", metric]["value"] == 0
    assert found.manifest["landscape"]["curve"]["trained_on"] == "given images"
    assert found.plots[0] == "weights-ways"
    assert ", barrier line 0." in repr(found)
    assert "aligned 0, bezier 0." in repr(found)
    with pytest.raises(GradscopeError, match="towards must have other weights than one in any order of its un"):
        gs.landscape({"one": one}, x, y, towards={"other": other}, align=True, space="weights", points=3)


def test_an_aligned_plane_leads_to_the_aligned_checkpoint(seeds: list[str], tmp_path: Path) -> None:
    out = along(seeds, tmp_path / "out", line=False, align=True, points=3, images=20)
    rows = read_table(out / LANDSCAPE.file, LANDSCAPE)
    assert (len(rows), rows["way"].unique().tolist()) == (9, ["aligned"])
    assert not heights(read_table(out / SUMMARY.file, SUMMARY)), "a plane has none"


def test_a_training_that_was_interrupted_is_resumed_to_the_same_files(
    seeds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "_STRETCH", 2)
    train, begun = ways.train_bend, []
    options: dict[str, Any] = {"align": True, "curve": "bezier", "curve_updates": 6, "images": 20, "points": 5}

    def counted(*arguments: Any, **given: Any) -> Any:
        begun.append(arguments[4])
        if len(begun) == 6:
            raise KeyboardInterrupt
        return train(*arguments, **given)

    monkeypatch.setattr(ways, "train_bend", counted)
    whole = along(seeds, tmp_path / "whole", **options)
    assert begun == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(KeyboardInterrupt):
        along(seeds, tmp_path / "out", **options)
    with pytest.raises(GradscopeError, match=r"resume: .* was begun with another .*curve"):
        along(seeds, tmp_path / "out", resume=True, **options | {"curve_updates": 13})
    out = along(seeds, tmp_path / "out", resume=True, **options)
    assert begun[6:] == [range(4, 6)], "what was kept is not trained again"
    for name in (LANDSCAPE.file, SUMMARY.file):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.filterwarnings("ignore::gradscope.errors.Caution")
def test_batch_norm_that_is_taken_anew_ends_at_the_other_checkpoint(tmp_path: Path) -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        model(torch.rand(64, 1, 3, 4))
        return model.eval()

    x = pixels(count=64)
    y = normed(0)(x).argmax(dim=1)
    options: dict[str, Any] = {"space": "weights", "batch_norm": "re-estimated"}
    way: dict[str, Any] = {"line": True, "points": 5, "align": True, "curve": "bezier", "curve_updates": 3}
    found = gs.landscape({"one": normed(0)}, x, y, towards={"other": normed(1)}, **way, **options).frame()
    alone = gs.landscape({"other": normed(1)}, x, y, points=3, **options).frame()
    expected = alone[(alone["a"] == 0) & (alone["b"] == 0)]["loss"].iloc[0]
    assert found[found["a"] == 1]["loss"].to_numpy() == pytest.approx(expected, rel=1e-4)


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.one(images.flatten(1)) + images.flatten(1)[:, :3]


def test_what_is_refused_on_the_way(seeds: list[str], tmp_path: Path) -> None:
    plain: dict[str, Any] = {"align": False, "curve": None}
    for options, message in (
        ({"align": True, "towards": None}, "align must be left out without `towards`"),
        ({"curve": "bezier", "towards": None}, "curve must be given with `towards` and `line`"),
        ({"curve": "bezier", "line": False}, "curve must be given with `towards` and `line`"),
        ({"curve": "spline"}, "curve: 'spline' is unknown; known: bezier"),
        ({"curve_updates": 0, "curve": "bezier"}, "curve_updates must be at least 1, got 0"),
        ({"curve_updates": 5}, "curve_updates must be left out without `curve`, got 5"),
        ({"space": "input", "towards": None, "line": False, "align": True}, "align must be left out unless `space` is"),
    ):
        with pytest.raises(GradscopeError, match=message):
            along(seeds, tmp_path / "out", **plain | options)
        assert not (tmp_path / "out").exists()
    x = pixels()
    y = linear(0)(x).argmax(dim=1)
    pair: dict[str, Any] = {"towards": {"other": Branched().eval()}, "space": "weights", "line": True, "points": 3}
    with pytest.raises(GradscopeError, match=r"align must be left out .* got Branched"):
        gs.landscape({"one": Branched().eval()}, x, y, align=True, **pair)
    with pytest.raises(GradscopeError, match=r"towards must be of the architecture of one, Sequential, got other, whi"):
        gs.landscape({"one": linear(0)}, x, y, **pair)
    longer = nn.Sequential(*linear(0), nn.Linear(3, 3)).eval()
    with pytest.raises(GradscopeError, match=r"towards must have the parameters of one, got other with 2\.bias, 2\.w"):
        gs.landscape({"one": linear(0)}, x, y, **pair | {"towards": {"other": longer}})
    five = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    with pytest.raises(GradscopeError, match=r"1.weight is \(3, 12\) and \(5, 12\)"):
        gs.landscape({"one": linear(0)}, x, y, **pair | {"towards": {"five": five}})

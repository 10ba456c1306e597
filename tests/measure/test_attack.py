"""Attacks as a request asks for them; their files counted anew."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gradscope
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure import attack
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.result import Attacks
from gradscope.models import checkpoint as checkpoints
from gradscope.reporting import console
from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS, CURVE
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import read_table
from tests.measure.requests import measured

NAMES = ("fgsm", "pgd", "square")
BUDGET: dict[str, Any] = {"steps": 5, "queries": 20, "noise_points": 3}
CUT = """
import torch


class Cut(torch.nn.Module):
    def __init__(self):
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(10, 64, generator=stream))

    def forward(self, images):
        return (images.flatten(1) @ self.weight.T).detach()
"""


def attacked(texts: list[str], out: Path, **given: Any) -> Path:
    return measured("attack", texts, out, **{"attacks": NAMES, "epsilon": 0.7, "samples": 40, **BUDGET, **given})


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_table(out / ATTACKS.file, ATTACKS), read_table(out / ATTACK_SAMPLES.file, ATTACK_SAMPLES)


@pytest.mark.parametrize("cascade", [True, False])
def test_the_files_say_what_the_battery_found(
    trained: list[str], tmp_path: Path, digits: Splits, cascade: bool
) -> None:
    out = attacked(trained, tmp_path / "out", cascade=cascade)
    rows, samples = tables(out)
    for text, label in zip(trained, ("sl", "rl"), strict=True):
        ours, images = rows[rows["checkpoint"] == label], samples[samples["checkpoint"] == label]
        numbers = torch.tensor(images[images["attack"] == "none"]["index"].tolist())
        found = evaluate(
            *(checkpoints.load(Path(text)).build(), digits.test.subset(numbers), NAMES),
            ThreatModel("l2", 0.7),
            Budget(**BUDGET),
            numbers=numbers,
            cascade=cascade,
        )
        assert 0 < found.robust_accuracy < 1
        lowest = ours[(ours["attack"] == "square") & (ours["metric"] == "robust-accuracy")].iloc[0]
        assert (lowest["value"], lowest["n"]) == (found.robust_accuracy, 40)
        first = images[images["first"] == 1].set_index("index")
        felled = {int(n): by for n, by in zip(numbers, found.felled_by(), strict=True) if by}
        assert first[first["metric"] == "accuracy"]["attack"].to_dict() == felled
        distance = first[first["metric"] == "distance"]["value"].reindex(numbers.tolist())
        assert np.allclose(distance, found.distance, equal_nan=True, rtol=1e-5)
        assert (distance.dropna() <= 0.7 + 1e-5).all()
        _counted_anew(ours, images[images["metric"] == "accuracy"], cascade)
    assert manifest(out)["complete"]
    assert not (out / ".tiles").exists()


def _counted_anew(rows: pd.DataFrame, images: pd.DataFrame, cascade: bool) -> None:
    """Every share from the images' own rows, with nothing of gradscope's but the interval."""
    right = images.pivot_table(index="index", columns="attack", values="value")
    assert len(right) == 40
    stands = right["none"] == 1
    for name in NAMES:
        of = rows[rows["attack"] == name].set_index(["metric", "subset"])
        tried = right[name].notna()
        assert tried.equals(stands if cascade else right["none"] == 1), "who was attacked"
        stands = stands & (right[name] == 1)
        shares = {
            ("accuracy", "attacked"): (int((right[name] == 1).sum()), int(tried.sum())),
            ("robust-accuracy", "all"): (int(stands.sum()), 40),
        }
        for key, (count, n) in shares.items():
            low, high = wilson_interval(count, n)
            row = of.loc[key]
            assert (row["value"], row["n"]) == (pytest.approx(count / n), n)
            assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low), pytest.approx(high))


def test_at_every_radius(trained: list[str], tmp_path: Path) -> None:
    shared: dict[str, Any] = {"norm": "linf", "attacks": ("pgd",), "samples": 20}
    out = attacked(trained[:1], tmp_path / "out", epsilons=("1/16", "0.25"), epsilon="0.125", **shared)
    rows, samples = tables(out)
    assert rows["epsilon"].unique().tolist() == samples["epsilon"].unique().tolist() == [0.0625, 0.125, 0.25]
    robust = rows[rows["metric"] == "robust-accuracy"]["value"]
    assert robust.is_monotonic_decreasing
    assert robust.iloc[0] > robust.iloc[-1]
    alone = attacked(trained[:1], tmp_path / "one", epsilon=0.25, **shared)
    several = samples[samples["epsilon"] == 0.25].reset_index(drop=True)
    pd.testing.assert_frame_equal(several, tables(alone)[1])


def test_an_interrupted_run_is_resumed_to_the_same_files(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "save_images": True, "epsilon": None, "epsilons": (0.4, 0.8)}
    whole = attacked(trained, tmp_path / "whole", **options)
    get, made = PartialResults.get, []

    def interrupted(self: Any, name: str, make: Any) -> Any:
        def counted() -> Any:
            made.append(name)
            if len(made) == 20:
                raise KeyboardInterrupt
            return make()

        return get(self, name, counted)

    monkeypatch.setattr(PartialResults, "get", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        attacked(trained, out, **options)
    assert len(list((out / ".tiles").glob("*.pt"))) == 19
    with pytest.raises(GradscopeError, match=r"unfinished attack; `resume` continues it, `overwrite` drops it"):
        attacked(trained, out, **options)
    for change, what in (({"samples": 39}, "image"), ({"seed": 1}, "seed"), ({"attacks": NAMES[:2]}, "attack")):
        with pytest.raises(GradscopeError, match=rf"resume: .* was begun with another .*{what}"):
            attacked(trained, out, resume=True, **options | change)
    attacked(trained, out, resume=True, **options)
    assert len(made) == len(set(made)) + 1, "what was kept is not made again"
    for ours, theirs in zip(tables(out), tables(whole), strict=True):
        pd.testing.assert_frame_equal(ours[ours["metric"] != "seconds"], theirs[theirs["metric"] != "seconds"])
    assert (out / "samples.csv").read_bytes() == (whole / "samples.csv").read_bytes()
    with np.load(out / "adversarial.npz") as ours, np.load(whole / "adversarial.npz") as theirs:
        assert ours.files == theirs.files
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours.files)
    assert not (out / ".tiles").exists()


def test_saved_images_fool_the_checkpoint_when_it_is_loaded_anew(
    trained: list[str], tmp_path: Path, digits: Splits
) -> None:
    out = attacked(trained, tmp_path / "out", save_images=True)
    samples = tables(out)[1]
    with np.load(out / "adversarial.npz") as kept:
        saved = {key: kept[key] for key in kept.files}
    assert saved["images"].dtype == np.float32
    for text, entry in zip(trained, manifest(out)["checkpoints"], strict=True):
        mine = saved["checkpoint"] == entry["label"]
        points, numbers = torch.from_numpy(saved["images"][mine]), torch.from_numpy(saved["index"][mine])
        images, labels = digits.test.batch(numbers, "cpu")
        with torch.no_grad():
            assert (checkpoints.load(Path(text)).build()(points).argmax(dim=1) != labels).all()
        assert (points - images).flatten(1).norm(dim=1).max() <= 0.7 + 1e-5
        assert 0 <= points.min() <= points.max() <= 1
        felled = samples[(samples["checkpoint"] == entry["label"]) & (samples["first"] == 1)]
        named = felled.drop_duplicates("index").set_index("index")["attack"].to_dict()
        assert dict(zip(numbers.tolist(), saved["attack"][mine].tolist(), strict=True)) == named
        assert entry["rescored"] == {"images": int(mine.sum()), "disagreeing": 0, "batch_size": 257}


def test_a_disagreement_is_counted(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = attack.write_images

    def blank(path: Path, parts: Any) -> None:
        write(path, [part | {"images": part["images"] * 0} for part in parts])

    monkeypatch.setattr(attack, "write_images", blank)
    out = attacked(trained[:1], tmp_path / "out", save_images=True)
    again = manifest(out)["checkpoints"][0]["rescored"]
    assert 0 < again["disagreeing"] < again["images"]


def test_a_model_without_gradients_is_attacked_by_queries(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cut_model.py").write_text(CUT)
    given: dict[str, Any] = {"trust_code": True, "dataset": "digits", "surrogate": (trained[0],)}
    out = attacked(["cut_model:Cut"], tmp_path / "out", attacks=("pgd", "square", "transfer"), **given)
    entry = manifest(out)["checkpoints"][0]
    assert list(entry["skipped"]) == ["pgd"]
    assert "needs a gradient" in entry["skipped"]["pgd"]
    rows = tables(out)[0]
    assert rows["attack"].unique().tolist() == ["none", "square", "transfer"]
    assert set(rows["mode"]) == {"foreign"}
    assert manifest(out)["surrogates"][0]["label"] == "sl"


def test_examples_of_a_surrogate_reach_the_attack(trained: list[str], tmp_path: Path) -> None:
    out = attacked(trained[1:], tmp_path / "out", attacks=("transfer", "pgd-from"), surrogate=(trained[0],))
    rows = tables(out)[0].set_index(["attack", "metric"])
    assert rows.loc[("transfer", "robust-accuracy"), "value"].item() < rows.loc[("none", "accuracy"), "value"].item()
    assert rows.loc[("transfer", "forward"), "value"].item() >= 1
    out = attacked(trained[1:], tmp_path / "none", attacks=("noise", "transfer"), samples=5)
    assert "made on another model" in manifest(out)["checkpoints"][0]["skipped"]["transfer"]
    with pytest.raises(
        GradscopeError,
        match=r"surrogate must be left out unless one of .*, got fgsm",
    ):
        attacked(trained[1:], tmp_path / "bad", attacks=("fgsm",), surrogate=(trained[0],))
    out = attacked(trained, tmp_path / "both", attacks=("transfer",), surrogate=(trained[0],), samples=5)
    skipped = [entry["skipped"] for entry in manifest(out)["checkpoints"]]
    assert [list(names) for names in skipped] == [["transfer"], []], "no model is its own surrogate"
    with pytest.raises(GradscopeError, match="attacks must not be transfer alone"):
        attacked(trained[1:], tmp_path / "bad", attacks=("transfer",))
    assert not (tmp_path / "bad").exists()


def test_a_curve_agrees_with_the_attacks_at_their_radii(trained: list[str], tmp_path: Path) -> None:
    """And its distances are those of the images, whatever radii were asked for."""
    out = attacked(trained, tmp_path / "out", curve=True, attacks=("fmn",), epsilons=(0.4, 0.9), steps=20, targets=2)
    rows, samples = tables(out)
    curve = read_table(out / CURVE.file, CURVE)
    for label in ("sl", "rl"):
        line, ours = curve[curve["checkpoint"] == label], rows[rows["checkpoint"] == label]
        clean = ours[(ours["attack"] == "none") & (ours["metric"] == "accuracy")]["value"]
        assert (clean == line["value"].iloc[0]).all()
        for epsilon in (0.4, 0.7, 0.9):
            stands = ours[(ours["epsilon"] == epsilon) & (ours["metric"] == "robust-accuracy")]["value"].item()
            assert line[line["epsilon"] <= epsilon]["value"].iloc[-1] == stands
        own = samples[(samples["checkpoint"] == label) & (samples["point"] == "nearest")]
        assert len(own) == 40
        assert own["epsilon"].isna().all()
        assert (own["value"] > 0.7).mean() == line[line["epsilon"] <= 0.7]["value"].iloc[-1]
    result = gradscope.read(out)
    assert isinstance(result, Attacks)
    assert result.distances.shape == (40, 2)
    assert "attacks-curve" in result.plots
    said = console.attack_lines(out)
    assert said.count("median distance of all images (0 if wrong when clean): 0.") == 2
    run, by_curve = (
        re.findall(r"right, (\S+ %) of all so far", said),
        re.findall(r"(\S+ %) of all stay right by the curve alone", said),
    )
    assert len(run) == 6
    assert by_curve == run


def test_without_a_curve_there_are_no_distances(trained: list[str], tmp_path: Path) -> None:
    out = attacked(trained[:1], tmp_path / "out", attacks=("fgsm",))
    assert not (out / CURVE.file).exists()
    assert "curve" not in manifest(out)
    result = gradscope.read(out)
    assert isinstance(result, Attacks)
    with pytest.raises(GradscopeError, match="curve must be True"):
        _ = result.median_distance


def test_a_model_without_a_gradient_has_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut_off.py").write_text(CUT)
    monkeypatch.syspath_prepend(tmp_path)
    given: dict[str, Any] = {"trust_code": True, "dataset": "digits", "curve": True, "attacks": ("square",)}
    out = attacked(["cut_off:Cut"], tmp_path / "out", **given)
    assert not (out / CURVE.file).exists()
    assert "its logits are cut off from the image" in manifest(out)["checkpoints"][0]["skipped"]["fmn"]

"""Audits as a request asks for them; their files against the audit itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.verdict import examine
from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure.audit import AuditMeasurement
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.result import read
from gradscope.models import checkpoint as checkpoints
from gradscope.results.audits import EXAMPLE_ARRAYS
from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS, AUDIT, AUDIT_JSON, EXAMPLE_IMAGES, SCALE
from gradscope.results.tables import read_table
from tests.measure.requests import measured

MODELS = """
import torch
from gradscope.models import checkpoint
from pathlib import Path


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = checkpoint.load(Path({text!r})).build()

    def forward(self, images):
        return 1000 * self.model(images)


class Cut(Scaled):
    def forward(self, images):
        return self.model(images).detach()


class Holes(Scaled):
    def forward(self, images):
        logits = self.model(images)
        return torch.where(images.mean(dim=(1, 2, 3)).unsqueeze(1) > 0.3, torch.nan, logits)


class Seven(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(64, 7)

    def forward(self, images):
        return self.line(images.flatten(1))
"""
FOREIGN: dict[str, Any] = {"trust_code": True, "dataset": "digits"}


@pytest.fixture
def outsiders(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of foreign models around ``sl.pt``."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outsiders.py").write_text(MODELS.format(text=trained[0]))
    monkeypatch.delitem(__import__("sys").modules, "outsiders", raising=False)
    return "outsiders"


def audited(texts: list[str], out: Path, **given: Any) -> Path:
    return measured(
        "audit",
        texts,
        out,
        **{"norm": "linf", "epsilon": 0.1, "budget": "quick", "samples": 40, "allow_inconclusive": True, **given},
    )


def document(out: Path) -> list[dict[str, Any]]:
    content = json.loads((out / AUDIT_JSON).read_text())
    assert content["schema"] == 1
    found: list[dict[str, Any]] = content["audits"]
    return found


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


@pytest.mark.usefixtures("little_work")
def test_the_files_say_what_the_audit_found(trained: list[str], tmp_path: Path, digits: Splits) -> None:
    out = audited(trained, tmp_path / "out")
    rows, attacks = read_table(out / AUDIT.file, AUDIT), read_table(out / ATTACKS.file, ATTACKS)
    samples = read_table(out / ATTACK_SAMPLES.file, ATTACK_SAMPLES)
    for text, entry in zip(trained, document(out), strict=True):
        ours = samples[(samples["checkpoint"] == entry["checkpoint"]) & (samples["attack"] == "none")]
        numbers = torch.tensor(ours["index"].tolist())
        model = checkpoints.load(Path(text)).build()
        found = examine(model, digits.test.subset(numbers), numbers, ThreatModel("linf", 0.1), "quick")
        whose = ("checkpoint", "mode", "dataset", "arch", "seed")
        assert {key: value for key, value in entry.items() if key not in whose} == found.to_json()
        assert (entry["mode"], entry["dataset"], entry["arch"], entry["seed"]) == (Path(text).stem, "digits", "cnn2", 0)
        checks = rows[rows["checkpoint"] == entry["checkpoint"]]
        assert checks["check"].tolist() == [made["id"] for made in entry["checks"]]
        assert set(checks["verdict"]) == {entry["verdict"]}
        clean = attacks[(attacks["checkpoint"] == entry["checkpoint"]) & (attacks["attack"] == "none")]
        assert clean["value"].iloc[0] == entry["clean_accuracy"]["value"]
        curve = read_table(out / SCALE.file, SCALE)
        curve = curve[(curve["checkpoint"] == entry["checkpoint"]) & (curve["metric"] == "robust-accuracy")]
        shown = curve[curve["attack"] == "pgd"]
        wanted = [float(stands.double().mean()) for stands in found.evidence.scale.standing["pgd"].values()]
        assert shown["value"].tolist() == wanted
    assert manifest(out)["complete"]
    assert not (out / ".tiles").exists()
    assert read(out).plot("scale").axes


def test_the_pictures_are_of_the_images_that_fell(trained: list[str], outsiders: str, tmp_path: Path) -> None:
    out = audited([f"{outsiders}:Scaled", trained[0]], tmp_path / "out", **FOREIGN)
    masked, honest = document(out)
    assert (masked["verdict"], masked["causes"][0]) == ("masking found", "saturation")
    assert honest["verdict"] == "none found within this budget"
    images_of = {made["id"]: set(made["images"]) for made in masked["checks"] if made["accuses"]}
    with np.load(out / EXAMPLE_IMAGES, allow_pickle=False) as kept:
        shown = {key: kept[key] for key in kept.files}
    assert set(shown) == set(EXAMPLE_ARRAYS)
    model = checkpoints.load(Path(trained[0])).build()
    with torch.no_grad():
        before, after = (model(torch.from_numpy(shown[key])).argmax(dim=1) for key in ("clean", "adversarial"))
    assert before.tolist() == shown["clean_predicted"].tolist() == shown["label"].tolist()
    assert after.tolist() == shown["adversarial_predicted"].tolist()
    assert np.abs(shown["adversarial"] - shown["clean"]).max() <= 0.1 + 1e-6
    mine = shown["checkpoint"] == masked["checkpoint"]
    assert mine.any()
    assert all(
        index in images_of[check] for index, check in zip(shown["index"][mine], shown["check"][mine], strict=True)
    )
    assert (shown["label"] != shown["adversarial_predicted"])[mine].all()
    assert set(shown["check"][~mine]) == {""}
    assert shown["label_name"].tolist() == [str(label) for label in shown["label"]]


@pytest.mark.usefixtures("little_work")
def test_an_interrupted_audit_is_resumed_to_the_same_files(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 20, "surrogate": tuple(trained)}
    whole = audited(trained, tmp_path / "whole", **options)
    get, made = PartialResults.get, []

    def interrupted(self: Any, name: str, make: Any) -> Any:
        def counted() -> Any:
            made.append(name)
            if len(made) == 40:
                raise KeyboardInterrupt
            return make()

        return get(self, name, counted)

    monkeypatch.setattr(PartialResults, "get", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        audited(trained, out, **options)
    with pytest.raises(GradscopeError, match=r"unfinished audit; `resume` continues it, `overwrite` drops it"):
        audited(trained, out, **options)
    for change, what in (({"samples": 19}, "image"), ({"seed": 1}, "seed"), ({"budget": "full"}, "budget")):
        with pytest.raises(GradscopeError, match=rf"resume: .* was begun with another .*{what}"):
            audited(trained, out, resume=True, **options | change)
    audited(trained, out, resume=True, **options)
    assert len(made) == len(set(made)) + 1, "what was kept is not made again"
    for name in (AUDIT.file, AUDIT_JSON, "samples.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (read_table(folder / ATTACKS.file, ATTACKS) for folder in (out, whole))
    pd.testing.assert_frame_equal(ours[ours["metric"] != "seconds"], theirs[theirs["metric"] != "seconds"])
    with np.load(out / EXAMPLE_IMAGES) as ours, np.load(whole / EXAMPLE_IMAGES) as theirs:
        assert all(np.array_equal(ours[key], theirs[key]) for key in EXAMPLE_ARRAYS)


@pytest.mark.usefixtures("little_work")
def test_surrogates_are_tried_on_every_model_but_themselves(trained: list[str], tmp_path: Path) -> None:
    out = audited(trained, tmp_path / "out", surrogate=(trained[0],))
    first, second = document(out)
    # X2 judges the second only where images stand that it could fool, which is another matter.
    tried = read_table(out / ATTACKS.file, ATTACKS).query("attack == 'transfer'")["checkpoint"]
    assert set(tried) == {"rl"}
    assert {made["id"]: made["state"] for made in first["checks"]}["X2"] == "abstained"
    assert first["left_out"]["transfer"] == "the surrogate given is this model itself"
    assert "transfer" not in second["left_out"]
    assert [entry["label"] for entry in manifest(out)["surrogates"]] == ["sl"]


def test_a_model_that_is_not_differentiable_is_attacked_by_query_alone(outsiders: str, tmp_path: Path) -> None:
    (entry,) = document(audited([f"{outsiders}:Cut"], tmp_path / "out", **FOREIGN))
    assert entry["verdict"] == "inconclusive"
    assert entry["causes"] == ["missing gradient"]
    assert "only attacks by query" in entry["reason"]
    attacks = read_table(tmp_path / "out" / ATTACKS.file, ATTACKS)
    assert attacks["attack"].unique().tolist() == ["none", "square", "noise"]
    assert entry["robust_accuracy"]["upper_bound"] < entry["clean_accuracy"]["value"]


@pytest.mark.usefixtures("little_work")
def test_a_model_that_is_not_defined_on_some_images_is_audited_on_the_others(outsiders: str, tmp_path: Path) -> None:
    (entry,) = document(audited([f"{outsiders}:Holes"], tmp_path / "out", **FOREIGN))
    assert "not finite on some images" in entry["checks"][0]["cause"]
    assert 0 < entry["clean_accuracy"]["value"] < 0.9
    assert entry["verdict"] != "none found within this budget"


def test_what_cannot_be_is_refused_before_anything_is_attacked(
    trained: list[str], outsiders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditMeasurement, "_audit", None)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"budget": "quik"}, "budget: 'quik' is unknown; did you mean 'quick'"),
        (
            {"surrogate": (f"{outsiders}:Seven",)},
            "surrogate: .*:Seven must have the data's 10 classes, got 7",
        ),
        ({"surrogate": (f"{outsiders}:Cut",)}, "surrogate: .* must have a gradient"),
        ({"samples": 100_000}, "samples must be from 1 to 359"),
    ]
    for change, message in cases:
        with pytest.raises(GradscopeError, match=message):
            audited(trained[:1], tmp_path / "bad", trust_code=True, **change)
        assert not (tmp_path / "bad").exists()

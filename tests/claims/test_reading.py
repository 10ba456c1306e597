import json
import math
from dataclasses import replace

import pytest

from gradscope.claims.measured import Ball, MeasuredModel
from gradscope.claims.reading import read_study
from gradscope.errors import GradscopeError

CLEAN = {("sl", "pgd", "accuracy", "clean"): [1, 1, 0], ("rl", "pgd", "accuracy", "clean"): [1, 0, 0]}


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_analysis_by_image(directories):
    made = directories()
    made.analysis({("sl", "pgd-paper", "norm", "clean"): [0.5, math.nan, 0.0]})
    study = read_study(made.all)
    (model,) = study.models
    (found,) = study.measured
    assert (model.dataset, model.arch, model.mode, model.seed, model.file) == ("cifar10", "cnn4", "sl", 0, "file of sl")
    assert (found.kind, found.attack, found.ball) == ("analysis", "pgd-paper", Ball("l2", 1.0))
    assert found.of_images.to_dict() == pytest.approx({0: 0.5, 10: math.nan, 20: 0.0}, nan_ok=True)
    assert found.labels.to_dict() == {0: 0, 10: 1, 20: 2}
    assert found.floor == pytest.approx(1.28e-4)
    assert not found.boxed


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "pgd"),
        ({"steps": 7, "restarts": 3}, "pgd"),
        ({"loss": "margin"}, "pgd-margin"),
        ({"loss": "log-odds"}, "pgd-log-odds"),
        ({"loss": "rescaled-cross-entropy"}, "pgd-rescaled"),
        ({"precision": "float64"}, "pgd-float64"),
        ({"box": False}, "pgd (changed)"),
        ({"smoothing": 8}, "pgd (changed)"),
        ({"box": False, "reduction": "mean", "norm_floor": 1e-6}, "pgd-paper"),
        ({"norm_floor": 1e-6}, "pgd (changed)"),
    ],
)
def test_an_attack_is_what_its_settings_say(directories, changes, name):
    """`analyze --loss margin` calls its attack pgd, and it is none that may be compared with pgd."""
    made = directories()
    pgd = {"norm": "l2", "epsilon": 1.0, "loss": "cross-entropy"} | changes
    made.analysis({("sl", "pgd", "accuracy", "final"): [1]}, settings={"pgd": pgd})
    assert read_study(made.all).measured[0].attack == name


def test_a_battery_counts_images_wrong_when_clean_as_wrong(directories):
    """rl: image 0 wrong when clean, 10 felled by pgd, 20 stands under pgd and falls to square, which had it alone."""
    made = directories()
    made.battery({("rl", "none"): [0, 1, 1, 1], ("rl", "pgd"): [None, 0, 1, 1], ("rl", "square"): [None, None, 0, 1]})
    found = {one.attack: one for one in read_study(made.all).measured}
    assert found["none"].of_images.tolist() == [0, 1, 1, 1]
    assert found["pgd"].of_images.tolist() == [0, 0, 1, 1]
    assert found["pgd"].whole
    assert found["square"].of_images.tolist() == pytest.approx([0, math.nan, 0, 1], nan_ok=True)
    assert not found["square"].whole


def test_a_battery_that_left_nothing_was_finished(directories):
    """sl had fallen before square's turn: it has no rows there, and square would have changed nothing."""
    made = directories()
    cells = {("sl", "none"): [1, 0], ("sl", "pgd"): [0, None], ("rl", "none"): [1, 1], ("rl", "pgd"): [1, 0]}
    made.battery(cells | {("rl", "square"): [0, None]})
    found = {(one.model.mode, one.attack): one for one in read_study(made.all).measured}
    assert ("sl", "square") in found
    assert not found["sl", "square"].whole
    assert found["sl", "square"].of_images.tolist() == pytest.approx([math.nan, 0], nan_ok=True)


def test_undefined_outputs_are_wrong(directories):
    made = directories()
    made.analysis({("sl", "pgd", "accuracy", "clean"): [1, math.nan]})
    assert read_study(made.all).measured[0].of_images.tolist() == [1, 0]


def test_transfers_know_their_source(directories):
    made = directories()
    made.transfer({("", "sl"): [1, 1], ("rl", "sl"): [1, 0], ("gone", "sl"): [0, 0], ("", "rl"): [1, 0]})
    found = [one for one in read_study(made.all).measured if one.model.mode == "sl"]
    assert [(one.source.mode if one.source else None, one.point) for one in found] == [(None, "clean"), ("rl", "final")]


def test_one_file_under_two_names_is_one_model(directories):
    """And two files under one name are two."""
    made = directories()
    first = made.analysis(CLEAN)
    second = made.analysis(CLEAN, name="again")
    manifest = json.loads((second / "manifest.json").read_text())
    manifest["checkpoints"][0]["sha256"] = "another"
    (second / "manifest.json").write_text(json.dumps(manifest))
    assert [(one.name, one.file) for one in read_study([first, second]).models] == [
        ("sl", "file of sl"),
        ("rl", "file of rl"),
        ("sl", "another"),
    ]


def test_how_a_model_was_trained(directories):
    made = directories()
    phases = [{"epochs": 2, "adversary": None}, {"epochs": 1, "adversary": {"method": "fgsm"}}]
    made.configs = {"sl": {"mode": "sl", "phases": phases, "logit_factor": 10.0}}
    made.analysis(CLEAN)
    made.history("sl", [0.1, 0.2, 0.3])
    made.history("rl", [0.1])
    study = read_study(made.all)
    (course,) = study.courses.values()
    assert (course.epochs, course.adversarial, course.share) == (3, 1, 0.9)
    assert (course.mode, course.logit_factor) == ("sl", 10.0)
    assert course.history["validation_accuracy"].tolist() == [0.1, 0.2, 0.3]


def test_a_history_of_other_length_is_another_runs(directories):
    made = directories()
    made.configs = {"sl": {"phases": [{"epochs": 2}]}}
    made.analysis(CLEAN)
    made.history("sl", [0.1, 0.2, 0.3])
    assert next(iter(read_study(made.all).courses.values())).history is None


def test_what_is_missing_is_noted(directories, tmp_path):
    made = directories()
    path = made.analysis(CLEAN)
    (path / "samples.csv").unlink()
    (tmp_path / "empty").mkdir()
    study = read_study([path, tmp_path / "empty", tmp_path / "absent"])
    assert study.measured == []
    assert study.notes == [
        "analysis was left out, as it has no samples.csv",
        "empty was left out, as it has no manifest.json",
        "absent was left out, as it has no manifest.json",
    ]


def test_weight_landscapes_and_later_kinds_are_left_alone(directories, tmp_path):
    made = directories()
    made.manifest(made.new("weights"), kind="landscape", landscape={"space": "weights"})
    made.manifest(made.new("later"), kind="something new")
    assert read_study(made.all).measured == read_study(made.all).notes == []


def test_planes_of_two_attacks_are_not_compared_with_others(directories):
    made = directories()
    path = made.landscape({(next(iter(made.models)), "roughness"): [1.0, 2.0]})
    assert len(read_study(made.all).measured) == 1
    content = json.loads((path / "manifest.json").read_text())
    content["landscape"]["versus"] = "pgd-paper"
    (path / "manifest.json").write_text(json.dumps(content))
    assert read_study(made.all).measured == []


def damage_json(path):
    (path / "manifest.json").write_text('{"kind": "analysis"')


def damage_manifest(path):
    (path / "manifest.json").write_text('{"kind": "analysis", "attacks": [1]}')


def damage_list(path):
    (path / "manifest.json").write_text("[]")


def damage_columns(path):
    (path / "samples.csv").write_text("checkpoint,mode\nsl,sl\n")


def damage_twice(path):
    text = (path / "samples.csv").read_text()
    (path / "samples.csv").write_text(text + text.splitlines()[-1] + "\n")


def damage_twice_under_another_seed(path):
    text = (path / "samples.csv").read_text()
    *cells, last = text.splitlines()[-1].split(",")
    cells[text.splitlines()[0].split(",").index("seed")] = "7"
    (path / "samples.csv").write_text(text + ",".join([*cells, last]) + "\n")


def damage_share(path):
    file = path / "samples.csv"
    file.write_text(file.read_text().replace("-,1", "-,0.5", 1))


def damage_text(path):
    file = path / "samples.csv"
    file.write_text(file.read_text().replace("-,1", "-,many", 1))


def damage_audit(path):
    (path / "audit.json").write_text('{"schema": 9}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_json, "manifest.json is not JSON"),
        (damage_manifest, "manifest.json is damaged or of another version of gradscope: attacks"),
        (damage_list, "manifest.json is damaged"),
        (damage_columns, "samples.csv lacks the columns"),
        (damage_twice, "must hold each value once, got two rows of rl, accuracy, image 20"),
        (damage_twice_under_another_seed, "must hold each value once, got two rows of rl, accuracy, image 20"),
        (damage_share, "accuracy of an image must be 0 or 1, got 0.5"),
        (damage_text, "must hold numbers in"),
        (damage_audit, "audit.json is damaged or of another version"),
    ],
)
def test_damage_is_said_in_one_line(directories, damage, words):
    made = directories()
    path = made.analysis(CLEAN)
    damage(path)
    with pytest.raises(GradscopeError) as caught:
        read_study(made.all)
    assert words in one_line(caught)


def test_a_damaged_history_is_said_in_one_line(directories):
    made = directories()
    path = made.history("sl", [0.1])
    (path / "sl.history.csv").write_text("epoch\n1\n")
    with pytest.raises(GradscopeError, match=r"lacks the columns"):
        read_study(made.all)


def test_a_model_is_the_same_by_its_file_or_its_weights():
    one = MeasuredModel("d", "a", "rl", 0, "rl", "file", "weights")
    assert one.is_same(replace(one, file="another"))
    assert one.is_same(replace(one, fingerprint=""))
    assert not one.is_same(replace(one, file="another", fingerprint="other"))
    assert not replace(one, fingerprint="").is_same(replace(one, file="another", fingerprint=""))
    assert not one.is_same(replace(one, seed=1))

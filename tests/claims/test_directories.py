"""Results from several places, judged together."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from gradscope.claims.directories import read_directories
from gradscope.claims.reading import read_study
from gradscope.claims.table import claim_rows, judge
from gradscope.errors import GradscopeError
from gradscope.results.schemas import CLAIMS
from gradscope.results.tables import read_table
from tests.claims.conftest import Directories

PHASES = [{"epochs": 2}]


def cells(*labels, attack="pgd", point="final", values=(1, 0, 0)):
    return {(label, attack, "accuracy", point): values for label in labels}


def machine(root, name, models, **results):
    """A study's output in ``root/name``: ``results`` are cells by folder; each model has a history of two epochs."""
    made = Directories(root / name / "reports" / "small", models)
    made.root.mkdir(parents=True)
    for label in models:
        made.configs[label] = {"mode": models[label][0], "phases": PHASES}
    for folder, of in results.items():
        made.analysis(of, name=folder)
    stages = [{"kind": "measure", "place": f"results/{folder}"} for folder in results]
    (made.root / "manifest.json").write_text(json.dumps({"kind": "study", "stages": stages}))
    trained = Directories(root / name / "checkpoints", models)
    trained.root.mkdir()
    for at, label in enumerate(models):
        trained.history(label, [0.1, 0.2], seconds=float(len(name) + at), name="small")
    return root / name


def change(directory, label, **content):
    """Change the manifest's entry of a model."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["checkpoints"]:
        entry.update(content if entry["label"] == label else {})
    path.write_text(json.dumps(manifest))


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def measured(study):
    return sorted((one.model.mode, one.model.seed, one.attack) for one in study.measured)


def test_two_machines_make_one_table(tmp_path, one):
    """Other seeds, and other modes of the same seed, join."""
    first = machine(tmp_path, "one", {"sl": ("sl", 0), "rl": ("rl", 0)}, pgd=cells("sl", "rl"))
    second = machine(tmp_path, "second", {"sl-1": ("sl", 1), "rl-1": ("rl", 1)}, pgd=cells("sl-1", "rl-1"))
    third = machine(tmp_path, "3", {"sl-adv": ("sl-adv", 0)}, pgd=cells("sl-adv"))
    study = read_directories([first, second, third])
    assert [(model.mode, model.seed) for model in study.models] == [
        *(("sl", 0), ("rl", 0), ("sl", 1), ("rl", 1), ("sl-adv", 0))
    ]
    rows = read_table(judge([first, second, third], tmp_path / "both"), CLAIMS).to_dict("records")
    assert one(rows, "C1", "exact PGD")["seeds"] == 2
    assert one(rows, "C9", "seconds")["value"] == pytest.approx(((4 / 3) * (7 / 6)) ** 0.5)


def test_a_study_is_judged_as_its_own_last_stage_does(tmp_path):
    """Directories in the recipe's order; what the study's manifest does not name is left out."""
    root = machine(tmp_path, "a", {"sl": ("sl", 0), "rl": ("rl", 0)}, z=cells("sl", "rl"), b=cells("sl", attack="x"))
    stale = Directories(root / "reports" / "small", {"sl": ("sl", 0), "rl": ("rl", 0)})
    stale.analysis(cells("sl", values=(0, 0, 0)), name="stale")
    results = [root / "reports" / "small" / name for name in ("z", "b")]
    path = judge([root], tmp_path / "claims.csv")
    assert path == tmp_path / "claims.csv"
    expected = claim_rows([*results, root / "checkpoints" / "small"])
    assert [row["why"] for row in read_table(path, CLAIMS).to_dict("records")] == [row["why"] for row in expected]
    assert read_directories([root]).measured[0].attack == "pgd"
    assert len(read_directories([root]).measured) == len(read_study(results).measured)


def test_one_file_measured_in_two_places_is_one_model(tmp_path):
    models = {"sl": ("sl", 0), "rl": ("rl", 0)}
    first = machine(tmp_path, "a", models, pgd=cells("sl", "rl"))
    second = machine(tmp_path, "b", models, paper=cells("sl", attack="pgd-paper"))
    study = read_directories([first, second])
    assert len(study.models) == 2
    assert measured(study) == [("rl", 0, "pgd"), ("sl", 0, "pgd"), ("sl", 0, "pgd-paper")]
    assert {one.model for one in study.measured} == set(study.models)


def test_two_models_of_one_mode_and_seed_are_refused(tmp_path):
    models = {"sl": ("sl", 0), "rl": ("rl", 0)}
    first, second = (machine(tmp_path, name, models, pgd=cells("sl", "rl")) for name in "ab")
    change(second / "reports" / "small" / "pgd", "rl", sha256="another file")
    with pytest.raises(GradscopeError, match="hold different models of cifar10, cnn4, mode rl, seed 0") as caught:
        read_directories([first, second])
    assert "a/reports/small and " in one_line(caught)
    with pytest.raises(GradscopeError, match="different models"):
        read_directories([tmp_path])
    assert read_directories([second]).models[1].file == "another file"


def test_of_two_models_alike_in_one_place_both_are_known_elsewhere(tmp_path):
    first = machine(tmp_path, "a", {"rl": ("rl", 0), "rl-long": ("rl", 0)}, pgd=cells("rl", "rl-long"))
    second = machine(tmp_path, "b", {"rl-long": ("rl", 0)}, paper=cells("rl-long", attack="pgd-paper"))
    found = [(one.model.name, one.attack) for one in read_directories([first, second]).measured]
    assert found == [("rl", "pgd"), ("rl-long", "pgd"), ("rl-long", "pgd-paper")]


@pytest.mark.parametrize("other", ["1,accuracy,final,-,1", "2,accuracy,final,-,0"])
def test_one_measurement_made_twice_is_joined_where_it_is_equal(tmp_path, other):
    models = {"sl": ("sl", 0), "rl": ("rl", 0)}
    first, second = (machine(tmp_path, name, models, pgd=cells("sl", "rl")) for name in "ab")
    once, twice = read_directories([first]), read_directories([first, second])
    assert measured(twice) == measured(once)
    table = second / "reports" / "small" / "pgd" / "samples.csv"
    assert "1,accuracy,final,-,0" in table.read_text()
    table.write_text(table.read_text().replace("1,accuracy,final,-,0", other, 1))
    if other.startswith("2"):
        # Another class: another test set, nothing of which is compared with the first.
        assert len(read_directories([first, second]).measured) == len(once.measured) + 1
        return
    with pytest.raises(GradscopeError, match="different values of one measurement of sl") as caught:
        read_directories([first, second])
    assert "(accuracy under pgd, final); leave one of them out" in one_line(caught)


def test_a_directory_given_twice_counts_once(tmp_path):
    root = machine(tmp_path, "a", {"sl": ("sl", 0)}, pgd=cells("sl"))
    once = read_directories([root])
    for again in ([root, root], [root, root / "reports" / "small" / "pgd"], [root / "checkpoints", root, root]):
        assert len(read_directories(again).measured) == len(once.measured)


def test_a_folder_that_leads_back_to_itself_ends(tmp_path):
    root = machine(tmp_path, "a", {"sl": ("sl", 0)}, pgd=cells("sl"))
    (root / "back").symlink_to(tmp_path)
    assert len(read_directories([root]).measured) == 1


def test_histories_may_lie_apart_and_be_compressed(tmp_path):
    root = machine(tmp_path, "a", {"sl": ("sl", 0)}, pgd=cells("sl"))
    results, apart = root / "reports" / "small", root / "checkpoints" / "small"
    path = apart / "sl.history.csv"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    for directories in ([results, apart], [apart, results / "pgd"], [root]):
        (course,) = read_directories(directories).courses.values()
        assert course.history["seconds"].tolist() == [1.0, 1.0]
    assert next(iter(read_directories([results]).courses.values())).history is None


def test_of_histories_of_one_name_that_beside_the_checkpoint_is_taken(tmp_path):
    root = machine(tmp_path, "a", {"sl": ("sl", 0)}, pgd=cells("sl"))
    folders = root / "checkpoints"
    shutil.copytree(folders / "small", folders / "large")
    path = folders / "large" / "sl.history.csv"
    path.write_text(path.read_text().replace("1.0", "7.0"))
    with pytest.raises(GradscopeError, match="different histories of the name sl") as caught:
        read_directories([root])
    assert all(f"{name}/sl.history.csv" in one_line(caught) for name in ("large", "small"))
    for name, seconds in (("large", 7.0), ("small", 1.0)):
        change(root / "reports" / "small" / "pgd", "sl", source=f"/elsewhere/checkpoints/{name}/sl.pt")
        (course,) = read_directories([root]).courses.values()
        assert course.history["seconds"].tolist() == [seconds, seconds]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schema": 2}, r"manifest\.json must be of schema 1, got 2"),
        ({"kind": "spectra"}, r"must be of a kind of analysis, .*, study, got 'spectra'"),
        ({"kind": "landscape", "landscape": {"space": "weights"}}, "must hold values of each image"),
    ],
)
def test_what_is_not_known_is_refused(directories, content, words):
    made = directories()
    path = made.manifest(made.new("later"), **content)
    with pytest.raises(GradscopeError, match=words) as caught:
        read_directories([path])
    assert str(path) in one_line(caught)


def test_a_directory_without_results_is_refused(tmp_path, directories):
    made = directories()
    results = made.analysis(cells("sl"))
    (tmp_path / "none" / "below").mkdir(parents=True)
    (tmp_path / "none" / "manifest.json").write_text('{"name": "of something else"}')
    for bad, words in (
        (tmp_path / "none", "must hold results, itself or below"),
        (tmp_path / "gone", "be a directory"),
    ):
        with pytest.raises(GradscopeError, match=words) as caught:
            read_directories([results, bad])
        assert str(bad) in one_line(caught)
    (results / "samples.csv").unlink()
    with pytest.raises(GradscopeError, match=r"\(analysis was left out, as it has no samples\.csv\)"):
        read_directories([results])


def test_a_table_cut_in_half_is_refused(directories, tmp_path):
    made = directories()
    path = made.analysis(cells("sl", values=range(2)) | cells("rl", values=[0, 1] * 500)) / "samples.csv"
    raw = gzip.compress(path.read_bytes())
    Path(f"{path}.gz").write_bytes(raw)
    path.unlink()
    assert judge([tmp_path], tmp_path / "out") == tmp_path / "out" / "claims.csv"
    Path(f"{path}.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(GradscopeError, match=r"samples\.csv\.gz is damaged") as caught:
        judge([tmp_path], tmp_path / "again")
    one_line(caught)
    assert not (tmp_path / "again").exists()

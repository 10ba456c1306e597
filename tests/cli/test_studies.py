"""``gradscope study``, as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradscope.study.engines.workers import cores

Done = Callable[..., str]
Run = Callable[..., tuple[int, str, str]]
Content = Callable[[Path], dict[str, bytes]]
RECIPE = """
[grid]
modes = ["sl"]
[training]
epochs = 1
[[measure]]
command = "analyze"
metrics = "accuracy"
steps = 2
samples = 6
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def places(tmp_path: Path) -> tuple[object, ...]:
    return ("--out", tmp_path / "results", "--checkpoints", tmp_path / "checkpoints", "--device", "cpu")


def test_a_study_is_run_told_and_kept(
    recipe: Path, places: tuple[object, ...], tmp_path: Path, done: Done, content: Content
) -> None:
    before = content(tmp_path)
    foreseen = done("study", recipe, *places, "--dry-run").splitlines()
    assert content(tmp_path) == before, "a dry run touches nothing"
    stages = ["model-sl-s0", "measure-analyze", "claims", "report"]
    assert [line.split()[0] for line in foreseen[:-1]] == stages
    assert "from a few timed passes" in foreseen[0]
    assert foreseen[1].endswith("(needs sl-s0)")
    assert foreseen[2].endswith("(needs all other stages that there are)")
    assert foreseen[-1].startswith("4 stages, 0 done; the rest takes about ")

    told = done("study", recipe, *places).splitlines()
    page = str(tmp_path / "results" / "report.html")
    assert [line.split(": ")[0] for line in told if ": done in " in line] == stages
    assert told[1].startswith("  1 epoch, validation accuracy ")
    assert told[-1] == page
    results = content(tmp_path / "results")
    assert {"analyze/summary.csv", "analyze/figures/steps-accuracy.pdf", "manifest.json"} <= set(results)
    assert {"claims.csv", "report.html", "paper/analyze-steps-accuracy.pdf", "paper/claims.tex"} <= set(results)
    assert b"Whole manifest: study" in results["report.html"]
    assert b"sl-s0" in results["report.html"]

    assert done("study", recipe, *places, "--dry-run").splitlines()[-1] == "4 stages, all done"
    assert content(tmp_path / "results") == results
    assert done("study", recipe, *places).splitlines() == [*(f"{stage}: done before" for stage in stages), page]
    assert content(tmp_path / "results") == results
    done("report", tmp_path / "results")
    assert content(tmp_path / "results") == results, "made by hand it is the same"
    changed = done("study", recipe, *places, "--set", "training.epochs=2", "--dry-run").splitlines()
    assert all(line.partition("  (")[0].endswith(", replaces existing results") for line in changed[:-1])
    more = done("study", recipe, *places, "--seeds", "0,1", "--dry-run").splitlines()
    assert [line.split()[:2] for line in more[:2]] == [["model-sl-s0", "done"], ["model-sl-s1", more[1].split()[1]]]
    assert "from similar stages on this machine" in more[1]


def test_a_study_is_found_by_its_name(
    recipe: Path, tmp_path: Path, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text().partition("[[measure]]")[0]
    recipe.write_text(text)
    assert done("study", recipe).splitlines()[-1] == str(tmp_path / "reports" / "tiny")
    assert (tmp_path / "checkpoints" / "tiny" / "sl-s0.pt").exists()


def test_missing_images_and_failures_end_with_1(
    recipe: Path, places: tuple[object, ...], tmp_path: Path, run: Run
) -> None:
    recipe.write_text(
        '[grid]\ndata = ["digits", "npz"]\nmodes = ["sl"]\n[training]\nepochs = 1\n'
        '[models.still]\nmode = "sl"\nset = ["phases.0.learning_rate=20", "phases.0.warmup_epochs=0"]\n'
        '[models.blown]\nmode = "sl"\nset = ["phases.0.learning_rate=1e37", "phases.0.warmup_epochs=0"]\n'
        '[[measure]]\ncommand = "transfer"\nsteps = 2\nsamples = 6\n'
    )
    code, out, err = run("study", recipe, *places)
    assert code == 1
    assert err.splitlines() == [
        f"figures: {tmp_path / 'results' / 'paper'}",
        f"next:    open {tmp_path / 'results' / 'report.html'} in a browser",
        "         the same command again, which runs only the missing stages",
    ]
    lines = out.splitlines()
    still = lines.index(next(line for line in lines if line.startswith("model-digits-still-s0: done in")))
    assert lines[still + 2].startswith("  caution: ")
    assert "no more than guessing among 10 classes" in lines[still + 2]
    assert any(line.startswith("model-digits-sl-s0: done in") for line in lines)
    failed = next(line for line in lines if line.startswith("model-digits-blown-s0: failed, see "))
    assert (tmp_path / "results" / failed.split("see ")[1].split(":")[0]).exists()
    assert "measure-transfer-digits: not begun, because it needs model-digits-blown-s0" in lines
    assert any(line.startswith("npz is absent, so 4 stages are left out: data_root must") for line in lines)
    assert lines[-1] == str(tmp_path / "results" / "report.html")
    page = (tmp_path / "results" / "report.html").read_text()
    assert "Stages that did not run: model-npz-sl-s0, " in page
    assert "model-digits-blown-s0 failed: " in page
    assert "measure-transfer-digits did not start: it needs model-digits-blown-s0." in page
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert manifest["absent"]["stages"] == [
        "model-npz-sl-s0",
        "model-npz-still-s0",
        "model-npz-blown-s0",
        "measure-transfer-npz",
    ]
    code, out, _ = run("study", recipe, *places)
    assert code == 1
    assert "model-digits-sl-s0: done before" in out
    assert "model-digits-blown-s0: failed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "--seeds must be whole numbers separated by commas, got '0,x'"),
        (["--seeds", "0,0"], "grid.seeds: names must be distinct, got 0 twice"),
        (["--set", "training.epoch=1"], "'epoch' is unknown; did you mean 'epochs'?"),
        (["--engine", "lokal"], "--engine: 'lokal' is unknown; did you mean 'local'?"),
        (["--address", "auto"], "--address must be left out if engine is 'local'"),
        (["--device", "tpu"], "--device: 'tpu' is unknown; did you mean 'cpu'?"),
        (["--jobs", "1.5"], "--jobs must be a whole number, got 1.5"),
        (["--jobs", "two"], "--jobs must be a whole number, got 'two'"),
        (["--until", "soon"], "--until must be a number, got 'soon'"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--jobs", "2", "--engine", "ray"], "--jobs must be 1 if --engine is 'ray', got 2"),
    ],
)
def test_what_is_refused_leaves_nothing(
    recipe: Path, tmp_path: Path, run: Run, arguments: list[str], message: str
) -> None:
    code, out, err = run("study", recipe, "--out", tmp_path / "r", "--checkpoints", tmp_path / "c", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


def test_more_jobs_than_cores_are_estimated_as_cores(recipe: Path, places: tuple[object, ...], run: Run) -> None:
    many = cores() + 1
    code, out, err = run("study", recipe, *places, "--jobs", many, "--dry-run")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"gradscope: caution: --jobs {many} needs {many} cores, this machine has {cores()}: ")
    at_once = f" with {cores()} at once if they do not slow each other" if cores() > 1 else " one after the other"
    assert at_once in out.splitlines()[-1]


def test_a_recipe_that_is_not_there(tmp_path: Path, run: Run) -> None:
    code, _, err = run("study", tmp_path / "none.toml")
    assert code == 2
    assert "RECIPE: " in err


def test_a_foreign_model_needs_trust_and_trains_nothing(
    recipe: Path, places: tuple[object, ...], tmp_path: Path, done: Done, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study_nets.py").write_text(
        "import torch\n\n\ndef make(width):\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    measure = RECIPE[RECIPE.index("[[measure]]") :]
    recipe.write_text(f'[foreign.theirs]\nmodel = "study_nets:make(width=3)"\n{measure}')
    code, out, err = run("study", recipe, *places)
    assert (code, out) == (2, "")
    assert "measure analyze: model: study_nets:make(width=3) runs the code of study_nets" in err
    told = done("study", recipe, *places, "--trust-code").splitlines()
    assert [line.split(": ")[0] for line in told if ": done in " in line] == ["measure-analyze", "claims", "report"]
    manifest = json.loads((tmp_path / "results" / "analyze" / "manifest.json").read_text())
    assert [entry["source"] for entry in manifest["checkpoints"]] == ["study_nets:make(width=3)"]
    assert done("study", recipe, *places, "--trust-code").splitlines()[0] == "measure-analyze: done before"

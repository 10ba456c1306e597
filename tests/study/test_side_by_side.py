"""Stages side by side: the same files as one after the other, whatever fails, dies or is interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gradscope.errors import GradscopeError
from gradscope.figures import background
from gradscope.models.checkpoint import load
from gradscope.study.engines.local import LocalEngine
from gradscope.study.engines.workers import LOADED, cores
from gradscope.study.order import span
from gradscope.study.runner import Ended, run_plan
from gradscope.study.state import Record
from gradscope.study.studies import StudyRequest, crowding, plan_study, run_study
from gradscope.study.tasks import Job
from tests.study.contents import content

RECIPE = """
[grid]
modes = ["sl", "rl"]
[training]
epochs = 2
[models.longer]
mode = "sl"
from = "sl"
[[measure]]
command = "transfer"
steps = 2
samples = 10
[[measure]]
command = "analyze"
models = "longer"
steps = 2
samples = 10
[resources]
cpus = 1
"""
#: Trainings that take seconds, so that something can happen to them.
LONG = '[grid]\nmodes = ["sl", "rl"]\n[training]\nepochs = 10\n[resources]\ncpus = 1\n'
PATIENCE = 60.0


def request_in(folder: Path, text: str = RECIPE, **changes: Any) -> StudyRequest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text)
    asked = {"out": folder / "results", "checkpoints": folder / "checkpoints", "jobs": 2, "figures": False}
    return StudyRequest(recipe=folder / "tiny.toml", device="cpu", **asked | changes)


def run(request: StudyRequest) -> Ended:
    return run_study(plan_study(request), request)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with one job."""
    folder = tmp_path_factory.mktemp("alone")
    assert not run(request_in(folder, jobs=1)).failed
    return folder


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("side-by-side")
    ended = run(request_in(folder))
    assert {record.state for record in ended.records.values()} == {"done"}
    return folder


def processes(folder: Path) -> dict[str, int]:
    """Of each stage the process that was the last to run it."""
    logs = (folder / "results" / ".stages").glob("*.log")
    found = {log.stem: re.findall(r"process (\d+) on", log.read_text()) for log in logs}
    return {stage: int(numbers[-1]) for stage, numbers in found.items() if numbers}


def test_the_files_are_those_of_one_job(alone: Path, side_by_side: Path) -> None:
    assert content(side_by_side) == content(alone)
    ran = processes(side_by_side)
    assert ran["claims"] == os.getpid()
    assert ran["model-sl-s0"] != ran["model-rl-s0"]
    assert len(set(ran.values())) == 3, "two processes run all stages but the claims"


def test_seconds_are_marked_and_not_compared(alone: Path, side_by_side: Path) -> None:
    for folder, jobs in ((alone, 1), (side_by_side, 2)):
        records = [json.loads(path.read_text()) for path in (folder / "results" / ".stages").glob("m*.json")]
        assert {(record["where"]["jobs"], record["where"]["threads"]) for record in records} == {(jobs, 1)}
        assert load(folder / "checkpoints" / "rl-s0.pt").provenance["jobs"] == jobs
        (seconds,) = (
            line for line in (folder / "results" / "claims.csv").read_text().splitlines() if "seconds of tr" in line
        )
        assert ("2 stages at a time; train the models again, one after the other" in seconds) == (jobs == 2)


def test_what_was_begun_side_by_side_stays_marked(tmp_path: Path) -> None:
    text = RECIPE.partition("[models")[0]
    run(request_in(tmp_path, text, jobs=1))
    path = tmp_path / "results" / ".stages" / "model-sl-s0.json"
    found = json.loads(path.read_text())
    (tmp_path / "checkpoints" / "sl-s0.pt").unlink()
    path.write_text(json.dumps(found | {"state": "begun", "where": found["where"] | {"jobs": 2}}))
    run(request_in(tmp_path, text, jobs=1))
    assert json.loads(path.read_text())["where"]["jobs"] == 2
    assert load(tmp_path / "checkpoints" / "sl-s0.pt").provenance["jobs"] == 2


def test_a_study_that_is_done_stays_as_it_is(alone: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*.*") if path.is_file()}
    request = request_in(alone)
    ended = run(request)
    assert set(ended.kept) == set(ended.records)
    del before[request.recipe]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_study_that_is_done_starts_no_process(alone: Path) -> None:
    request = request_in(alone)
    command = ["study", str(request.recipe), "--device", "cpu", "--no-figures", "--jobs", "2"]
    command += ["--out", str(request.out), "--checkpoints", str(request.checkpoints)]
    program = f"""if True:
        import os
        from gradscope.cli import main
        try:
            main({command})
        finally:
            os.waitpid(-1, os.WNOHANG)
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert ran.stdout.count(": done before\n") == 6, ran.stderr
    assert "ChildProcessError: [Errno 10] No child processes" in ran.stderr


def test_after_a_failure_the_rest_goes_on_and_it_alone_is_retried(tmp_path: Path) -> None:
    broken = 'mode = "sl"\nset = ["phases.0.learning_rate=1e37", "phases.0.warmup_epochs=0"]\n'
    text = RECIPE.replace("[models.longer]", f"[models.blown]\n{broken}[models.longer]")
    for kept in ([], ["model-sl-s0", "model-rl-s0", "model-longer-s0", "measure-analyze"]):
        ended = run(request_in(tmp_path, text))
        assert [record.label for record in ended.failed] == ["model-blown-s0"]
        assert "loss must be finite" in str(ended.failed[0].error)
        assert ended.blocked == {"measure-transfer": ["model-blown-s0"]}
        assert ended.records["measure-analyze"].state == "done"
        assert set(ended.kept) - {"claims"} == set(kept)


@contextmanager
def once_it_trains(folder: Path, act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` with the process that trains sl, a moment after both trainings have begun."""

    def watch() -> None:
        deadline = time.monotonic() + PATIENCE
        while len(processes(folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        act(processes(folder)["model-sl-s0"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_process_that_is_killed_fails_its_stage_alone(tmp_path: Path) -> None:
    request = request_in(tmp_path / "killed", LONG)
    with once_it_trains(tmp_path / "killed", lambda process: os.kill(process, signal.SIGKILL)):
        ended = run(request)
    assert [(one.label, one.error) for one in ended.failed] == [("model-sl-s0", "its process died (SIGKILL)")]
    assert ended.records["model-rl-s0"].state == "done"
    again = run(request)
    assert again.kept == ["model-rl-s0"]
    log = (tmp_path / "killed" / "results" / ".stages" / "model-sl-s0.log").read_text()
    assert len(re.findall(r"process \d+ on", log)) == 2
    run(request_in(tmp_path / "whole", LONG, jobs=1))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "code", "ctrl_c"),
    [
        pytest.param(signal.SIGINT, 130, signal.SIG_DFL, marks=pytest.mark.slow),
        (signal.SIGTERM, 143, signal.SIG_IGN),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, signal.SIG_IGN, marks=pytest.mark.slow),
    ],
)
def test_the_processes_end_with_the_command(
    how: signal.Signals, code: int, ctrl_c: signal.Handlers, tmp_path: Path
) -> None:
    """Ctrl-C, the end that a queue asks for, or a death that the command cannot see coming.

    What a script runs in the background ignores Ctrl-C, and so do the processes it starts.
    """
    request = request_in(tmp_path, LONG)
    command = [sys.executable, "-m", "gradscope", "study", str(request.recipe), "--device", "cpu", "--no-figures"]
    command += ["--jobs", "2", "--out", str(request.out), "--checkpoints", str(request.checkpoints)]
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        ran = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with once_it_trains(tmp_path, lambda process: ran.send_signal(how)):
        _, said = ran.communicate(timeout=2 * PATIENCE)
    assert ran.returncode == code
    told = "gradscope: interrupted; results so far are kept, and the same command continues" in said
    assert told == (how is not signal.SIGKILL)
    assert "Traceback" not in said
    at_work = processes(tmp_path)
    assert set(at_work) == {"model-sl-s0", "model-rl-s0"}
    deadline = time.monotonic() + (PATIENCE if how is signal.SIGKILL else 0)
    while any(is_alive(process) for process in at_work.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [stage for stage, process in at_work.items() if is_alive(process)]
    if how is signal.SIGTERM:
        assert {record.state for record in run(request).records.values()} == {"done"}


def test_an_engine_may_end_jobs_in_any_order(alone: Path, tmp_path: Path) -> None:
    class Backwards(LocalEngine):
        slots = 9

        def wait(self) -> Record:
            self._waiting.rotate(1)
            return super().wait()

    request = request_in(tmp_path)
    ended = run_plan(plan_study(request), request.places, Backwards(), work={}, device="cpu", figures=False)
    assert [*ended.records] == [
        *("model-rl-s0", "model-sl-s0", "model-longer-s0", "measure-analyze", "measure-transfer", "claims")
    ]
    assert content(tmp_path) == content(alone)


def test_what_most_depends_on_is_begun_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short model on which a long measurement waits goes before a longer one."""

    begun = []

    class Order(LocalEngine):
        def submit(self, job: Job) -> None:
            begun.append(job.stage.label)
            super().submit(job)

    monkeypatch.setattr(background.Drawer, "draw", lambda drawer, directory: None)
    request = request_in(tmp_path)
    plan = plan_study(request)
    seconds = {"model-rl-s0": 3.0, "model-sl-s0": 1.0, "measure-analyze": 9.0, "measure-transfer": 2.0}
    run_plan(plan, request.places, Order(), work={}, seconds=seconds, device="cpu", figures=False)
    assert begun == [
        *("model-sl-s0", "model-longer-s0", "measure-analyze", "model-rl-s0", "measure-transfer", "claims")
    ]


def test_how_long_all_take_side_by_side(tmp_path: Path) -> None:
    stages = plan_study(request_in(tmp_path)).stages
    seconds = {"model-rl-s0": 3.0, "model-sl-s0": 1.0, "model-longer-s0": 1.0, "measure-analyze": 9.0}
    seconds |= {"measure-transfer": 2.0, "claims": 1.0}
    assert span(stages, seconds, 1) == 17
    assert span(stages, seconds, 2) == 1 + 1 + 9 + 1
    assert span(stages, seconds, 9) == span(stages, seconds, 2)
    for done in ("model-sl-s0", "model-longer-s0"):
        del seconds[done]
    assert span(stages, seconds, 2) == 9 + 1
    assert span(stages, {}, 2) == 0


def test_figures_are_drawn_by_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(background.Drawer, "draw", lambda drawer, directory: drawn.append(directory.name))
    monkeypatch.setattr("gradscope.reporting.page.write_report", lambda directory: directory)
    text = RECIPE.replace('"sl", "rl"', '"sl"').partition("[models.longer]")[0]
    measure = '[[measure]]\ncommand = "analyze"\nsteps = 1\nsamples = 2\n'
    ended = run(request_in(tmp_path, text + measure, figures=True))
    assert not ended.failed
    assert drawn == ["analyze"]


@pytest.mark.parametrize("module", LOADED)
def test_what_the_server_loads_is_there(module: str) -> None:
    """It would say nothing of a module that is not."""
    assert find_spec(module)


@pytest.mark.parametrize("jobs", [0, -2])
def test_jobs_must_be_positive(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(GradscopeError, match=f"^jobs must be at least 1, got {jobs}$"):
        plan_study(request_in(tmp_path, jobs=jobs))


def test_a_cluster_decides_itself(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"^jobs must be 1 if `engine` is 'ray', got 2$"):
        plan_study(request_in(tmp_path, engine="ray"))


def test_more_jobs_than_cores_are_said(tmp_path: Path) -> None:
    many = request_in(tmp_path, jobs=cores() + 1)
    plan = plan_study(many)
    assert [*crowding(plan, replace(many, jobs=1))] == []
    (said,) = crowding(plan, many)
    assert said.startswith(f"--jobs {cores() + 1} needs {cores() + 1} cores, this machine has {cores()}: ")

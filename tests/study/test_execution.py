"""A study carried out: what is done stays, what is not is done, whatever happens in between."""

import gzip
import hashlib
import json
import multiprocessing
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from gradscope.errors import GradscopeError
from gradscope.figures import background
from gradscope.models.checkpoint import load
from gradscope.reporting import page
from gradscope.results.files import exclusive
from gradscope.results.schemas import TRANSFER
from gradscope.study import model_tasks, state
from gradscope.study.runner import Ended
from gradscope.study.state import Places, disk_refusal
from gradscope.study.studies import StudyRequest, foresee, plan_study, run_study
from tests.study.contents import content

RECIPE = """
[grid]
modes = ["sl", "rl-adv"]
[training]
epochs = 2
[models.longer]
mode = "sl"
from = "sl"
[[scale]]
models = "sl"
factors = [10]
[[measure]]
command = "attack"
attacks = "pgd,transfer,square"
models = "sl*"
surrogate = "rl-adv"
steps = 2
queries = 5
samples = 10
[[measure]]
command = "transfer"
steps = 2
samples = 10
[[measure]]
command = "landscape"
models = "rl-adv"
images = 2
points = 5
steps = 2
[[measure]]
command = "analyze"
models = "longer"
steps = 2
samples = 10
"""
MODELS = ("model-sl-s0", "model-rl-adv-s0", "model-longer-s0", "model-sl-x10-s0")
MEASURES = ("measure-attack", "measure-transfer", "measure-landscape", "measure-analyze")
CONCLUSIONS = ("claims", "report")


def list_results(directory: Path) -> Path:
    """In place of the page a list of what it would be made from."""
    path = directory / "report.html"
    path.write_text("\n".join(str(found.relative_to(directory)) for found in sorted(directory.rglob("*.csv"))))
    return path


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here, and is tested with the command."""
    patch.setattr(background.Drawer, "draw", lambda drawer, directory: None)
    patch.setattr(page, "write_report", list_results)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def request_in(folder: Path, text: str = RECIPE, **changes: Any) -> StudyRequest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text)
    places = {"out": folder / "results", "checkpoints": folder / "checkpoints"}
    return StudyRequest(recipe=folder / "tiny.toml", device="cpu", **places | changes)


def run(request: StudyRequest) -> Ended:
    return run_study(plan_study(request), request)


def redone(ended: Ended) -> set[str]:
    """The stages that were run, but for the conclusions, which are drawn anew where anything else is."""
    found = set(ended.records) - set(ended.kept)
    assert "report" in found if found else not found
    return found - set(CONCLUSIONS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A study that nothing happened to, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        started = time.perf_counter()
        ended = run(request_in(folder))
    assert {record.state for record in ended.records.values()} == {"done"}
    return folder, time.perf_counter() - started


@pytest.fixture
def done(undisturbed: tuple[Path, float], tmp_path: Path) -> StudyRequest:
    """A copy of the undisturbed study, to be disturbed."""
    for path in undisturbed[0].rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(undisturbed[0])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return request_in(tmp_path)


def test_what_is_done_and_intact_is_never_done_again(done: StudyRequest, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    ended = run(done)
    assert set(ended.kept) == {*MODELS, *MEASURES, *CONCLUSIONS} == set(ended.records)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_table_that_was_compressed_since_is_intact(done: StudyRequest, tmp_path: Path) -> None:
    """What is in it decides: cut in half, its stage is done again."""
    tables = [*(tmp_path / "results").glob("*/*.csv"), *(tmp_path / "checkpoints").glob("*.csv")]
    for path in tables:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert redone(run(done)) == set()
    path = tmp_path / "results" / "transfer" / f"{TRANSFER.file}.gz"
    path.write_bytes(path.read_bytes()[:40])
    assert redone(run(done)) == {"measure-transfer"}
    assert not path.exists()


def test_every_stage_leaves_a_record(done: StudyRequest, tmp_path: Path) -> None:
    places = Places(tmp_path / "checkpoints", tmp_path / "results")
    record = places.read("measure-transfer")
    assert record is not None
    assert (record.state, record.kind, record.error) == ("done", "measure", None)
    path = tmp_path / "results" / "transfer" / TRANSFER.file
    assert record.files["results/transfer/transfer.csv"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.inputs["checkpoints/sl-s0.pt"] == load(tmp_path / "checkpoints" / "sl-s0.pt").fingerprint
    assert record.seconds is not None
    assert record.seconds > 0
    assert record.where["device"] == "cpu"
    log = tmp_path / "results" / str(record.log)
    assert "measure-transfer" in log.read_text()


def test_the_manifest_names_every_stage(done: StudyRequest, tmp_path: Path) -> None:
    run(done)
    found = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert (found["kind"], found["study"], found["complete"]) == ("study", "tiny", True)
    stages = (*MODELS, *MEASURES, "claims")  # the report is made from the manifest
    assert {stage["label"]: stage["state"] for stage in found["stages"]} == dict.fromkeys(stages, "done")
    assert found["recipe"]["models"]["longer"]["from"] == "sl"
    assert all(stage["seconds"] > 0 and stage["where"] and stage["files"] for stage in found["stages"])
    assert {stage["where"]["torch"] for stage in found["stages"]} == {torch.__version__}


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_figures_are_drawn_while_the_study_goes_on(
    done: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage is done when its tables are; the report waits for the figures, and says which could not be drawn."""
    events: list[str] = []

    def wait(drawer: background.Drawer) -> list[str]:
        events.append("wait")
        return ["transfer: its figures could not be drawn: no memory"] if len(events) < 4 else []

    monkeypatch.setattr(background.Drawer, "draw", lambda drawer, directory: events.append(directory.name))
    monkeypatch.setattr(background.Drawer, "wait", wait)
    for name in ("transfer", "landscape"):
        (tmp_path / "results" / name / "manifest.json").unlink()
    ended = run(done)
    assert events == ["transfer", "landscape", "wait", "wait"]
    assert {record.state for record in ended.records.values()} == {"done"}
    assert ended.records["report"].printed == "transfer: its figures could not be drawn: no memory"


def test_a_damaged_checkpoint_is_made_again_alone(done: StudyRequest, tmp_path: Path) -> None:
    """Its weights are the same, so what was made from them stays."""
    whole = content(tmp_path)
    damage(tmp_path / "checkpoints" / "longer-s0.pt")
    assert redone(run(done)) == {"model-longer-s0"}
    assert content(tmp_path) == whole
    assert redone(run(done)) == set()


def test_what_was_measured_of_checkpoints_that_have_gone_stays(done: StudyRequest, tmp_path: Path) -> None:
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        path.unlink()
    assert set(run(done).kept) == {*MODELS, *MEASURES, *CONCLUSIONS}
    assert all(one.done for one in foresee(plan_study(done), done))
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_checkpoints_that_have_gone_are_made_again_where_they_are_needed(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        path.unlink()
    (tmp_path / "results" / "analyze" / "steps.csv").unlink()
    # The longer one begins with the weights of sl; the other two models are not needed.
    expected = {"model-sl-s0", "model-longer-s0", "measure-analyze"}
    assert {one.stage.label for one in foresee(plan_study(done), done) if not one.done} - set(CONCLUSIONS) == expected
    assert redone(run(done)) == expected
    (tmp_path / "results" / "landscape" / "summary.csv").unlink()
    assert redone(run(done)) == {"model-rl-adv-s0", "measure-landscape"}
    (tmp_path / "results" / "attack" / "attacks.csv").unlink()
    assert redone(run(done)) == {"model-sl-x10-s0", "measure-attack"}
    assert content(tmp_path) == whole


def test_a_model_that_has_gone_is_left_where_there_is_no_time_for_what_needs_it(
    done: StudyRequest, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "rl-adv-s0.pt").unlink()
    (tmp_path / "results" / "landscape" / "summary.csv").unlink()
    ended = run(replace(done, until=1e-6, began=time.time()))
    assert "measure-landscape" in ended.postponed
    assert "model-rl-adv-s0" in ended.kept


def test_a_model_that_is_trained_again_does_not_undo_what_was_measured(done: StudyRequest, tmp_path: Path) -> None:
    """Its training was begun anew and stopped for lack of time."""
    record = tmp_path / "results" / ".stages" / "model-rl-adv-s0.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "begun", "files": {}}))
    (tmp_path / "checkpoints" / "rl-adv-s0.pt").unlink()
    ended = run(replace(done, until=1e-6, began=time.time()))
    assert "model-rl-adv-s0" in ended.postponed
    assert set(ended.kept) >= set(MEASURES)
    assert not ended.blocked


@pytest.mark.parametrize("label", ["claims", "measure-transfer", "model-sl-s0"])
def test_a_folder_in_the_place_of_a_record_is_refused(done: StudyRequest, tmp_path: Path, label: str) -> None:
    record = tmp_path / "results" / ".stages" / f"{label}.json"
    record.unlink()
    record.mkdir()
    with pytest.raises(GradscopeError, match=rf"^out must hold records as files, got the folder .*{label}.json"):
        run(done)


def test_a_changed_result_is_made_again_alone(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    path = tmp_path / "results" / "transfer" / TRANSFER.file
    path.write_text(path.read_text().replace("rl-adv", "RL-ADV"))
    assert redone(run(done)) == {"measure-transfer"}
    assert content(tmp_path) == whole


def test_a_changed_recipe_redoes_what_it_changes(done: StudyRequest, tmp_path: Path) -> None:
    ended = run(request_in(tmp_path, RECIPE + "epsilon = 0.5\n"))
    assert redone(ended) == {"measure-analyze"}
    ended = run(request_in(tmp_path, RECIPE.replace('from = "sl"', 'from = "sl"\nepochs = 3')))
    assert redone(ended) == {"model-longer-s0", "measure-transfer", "measure-analyze"}


def test_killed_at_random_moments_it_ends_with_the_same_files(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """SIGKILL; a fork, so that what is killed is at work and does not still import torch."""
    folder, seconds = undisturbed
    moments = random.Random(time.time_ns())
    request = request_in(tmp_path)
    fork = multiprocessing.get_context("fork")
    killed = 0
    while killed < 3:
        process = fork.Process(target=run, args=(request,))
        process.start()
        process.join(moments.uniform(0.02, 0.5) * seconds)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    assert killed
    ended = run(request)
    assert not ended.failed
    assert content(tmp_path) == content(folder)
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".stages"]


def test_locks_of_killed_processes_go_though_their_stages_are_done(done: StudyRequest, tmp_path: Path) -> None:
    for place in ("checkpoints/.sl-s0.pt.lock", "results/transfer/.gradscope.lock"):
        (tmp_path / place).touch()
    assert redone(run(done)) == set()
    assert not list(tmp_path.rglob(".*.lock"))


def test_a_stage_that_was_killed_just_after_its_last_write_is_adopted(done: StudyRequest, tmp_path: Path) -> None:
    """Its record says begun; what it wrote is complete, and is not trained again."""
    record = tmp_path / "results" / ".stages" / "model-sl-s0.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"state": "begun", "files": {}}))
    path = tmp_path / "checkpoints" / "sl-s0.pt"
    before = path.read_bytes()
    assert redone(run(done)) == {"model-sl-s0"}
    assert path.read_bytes() == before


def test_checkpoints_whose_records_are_lost_are_adopted_only_where_they_are_the_same(
    done: StudyRequest, tmp_path: Path
) -> None:
    for path in (tmp_path / "results" / ".stages").glob("model-sl-s0.*"):
        path.unlink()
    assert redone(run(done)) == {"model-sl-s0"}
    for path in (tmp_path / "results" / ".stages").glob("model-sl-s0.*"):
        path.unlink()
    before = (tmp_path / "checkpoints" / "sl-s0.pt").read_bytes()
    ended = run(request_in(tmp_path, RECIPE + "[modes.sl]\nepochs = 3\n"))
    assert [(one.label, one.state) for one in ended.failed] == [("model-sl-s0", "failed")]
    assert "exists and is not of this study; remove it" in str(ended.failed[0].error)
    assert (tmp_path / "checkpoints" / "sl-s0.pt").read_bytes() == before


def test_a_copy_whose_record_is_lost_is_made_anew(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    for path in (tmp_path / "results" / ".stages").glob("model-sl-x10-s0.*"):
        path.unlink()
    assert redone(run(done)) == {"model-sl-x10-s0"}
    assert content(tmp_path) == whole
    for path in (tmp_path / "results" / ".stages").glob("model-sl-x10-s0.*"):
        path.unlink()
    (tmp_path / "checkpoints" / "sl-x10-s0.pt").write_bytes((tmp_path / "checkpoints" / "sl-s0.pt").read_bytes())
    ended = run(done)
    assert [one.label for one in ended.failed] == ["model-sl-x10-s0"], "what is no copy is somebody's"


def test_after_a_failure_the_rest_goes_on_and_it_alone_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = model_tasks.run_training
    trained = []

    def fail(training: Any, *arguments: Any, **options: Any) -> Any:
        trained.append(training.mode)
        if training.mode == "rl-adv":
            raise RuntimeError("no luck\ntoday")
        return train(training, *arguments, **options)

    monkeypatch.setattr(model_tasks, "run_training", fail)
    request = request_in(tmp_path)
    ended = run(request)
    assert [(one.label, one.error) for one in ended.failed] == [("model-rl-adv-s0", "RuntimeError: no luck today")]
    assert set(ended.blocked) == {"measure-attack", "measure-transfer", "measure-landscape"}
    log = (tmp_path / "results" / str(ended.failed[0].log)).read_text()
    assert "Traceback" in log
    assert "no luck" in log
    found = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert found["complete"] is False
    states = {stage["label"]: stage["state"] for stage in found["stages"]}
    assert states["model-rl-adv-s0"] == "failed"
    assert states["measure-attack"] == "blocked"
    assert states["measure-analyze"] == states["claims"] == "done"
    assert ended.records["report"].state == "done"
    monkeypatch.setattr(model_tasks, "run_training", train)
    trained.clear()
    again = run(request)
    assert redone(again) == {"model-rl-adv-s0", "measure-attack", "measure-transfer", "measure-landscape"}
    assert not again.failed
    assert not again.blocked


def test_a_full_disk_is_one_line_and_nothing_is_damaged(
    done: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(tmp_path)
    damage(tmp_path / "checkpoints" / "longer-s0.pt")
    run_training = model_tasks.run_training

    def full(*arguments: Any, **options: Any) -> Any:
        raise GradscopeError("--out: c.pt cannot be written: No space left on device") from OSError(28, "No space left")

    monkeypatch.setattr(model_tasks, "run_training", full)
    with pytest.raises(GradscopeError, match=r"the disk of .* is full: .*run the same command again$") as raised:
        run(done)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(model_tasks, "run_training", run_training)
    run(done)
    assert content(tmp_path) == whole


def limited(request: StudyRequest, size: int) -> None:
    """A study where no file may grow past ``size`` bytes, which is how a disk that is full looks from inside."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with pytest.raises(GradscopeError, match=r"the disk of .* is full: File too large; finished stages are kept"):
        run(request)


def test_a_disk_that_fills_while_a_checkpoint_is_written(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    damage(tmp_path / "checkpoints" / "longer-s0.pt")
    process = multiprocessing.get_context("fork").Process(target=limited, args=(done, 100_000))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert redone(run(done)) == {"model-longer-s0"}
    assert content(tmp_path) == whole


def test_the_disks_errors_are_known_wherever_they_come_from() -> None:
    assert disk_refusal(OSError(28, "No space left on device")) == "No space left on device"
    wrapped = RuntimeError("write failed")
    wrapped.__context__ = OSError(122, "Disk quota exceeded")
    assert disk_refusal(wrapped) == "Disk quota exceeded"
    assert disk_refusal(OSError(13, "Permission denied")) is None


@pytest.mark.parametrize("file", ["model-longer-s0.json", "measure-analyze.json"])
def test_a_damaged_record_redoes_its_stage(done: StudyRequest, tmp_path: Path, file: str) -> None:
    whole = content(tmp_path)
    (tmp_path / "results" / ".stages" / file).write_text("{")
    assert file.removesuffix(".json") in redone(run(done))
    assert content(tmp_path) == whole


@pytest.mark.parametrize("name", ["che#kpoints/sl-s0.pt", "checkpoints/sl\0s0.pt", "checkpoints/../sl-s0.pt"])
def test_a_record_that_names_another_file_redoes_its_stage(done: StudyRequest, tmp_path: Path, name: str) -> None:
    """As after a flipped bit."""
    whole = content(tmp_path)
    record = tmp_path / "results" / ".stages" / "model-sl-s0.json"
    found = json.loads(record.read_text())
    known = found["files"].pop("checkpoints/sl-s0.pt")
    record.write_text(json.dumps(found | {"files": found["files"] | {name: known}}))
    assert "model-sl-s0" in redone(run(done))
    assert content(tmp_path) == whole


def test_the_state_of_an_unfinished_run_that_cannot_be_read_is_no_obstacle(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    record = tmp_path / "results" / ".stages" / "model-longer-s0.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "begun"}))
    (tmp_path / "checkpoints" / "longer-s0.pt.resume").write_bytes(b"PK\x03\x04 and no more")
    assert not run(done).failed
    assert content(tmp_path) == whole


@pytest.mark.parametrize(("argument", "place"), [("out", "results/.stages"), ("checkpoints", "checkpoints")])
def test_two_studies_do_not_write_to_one_place(argument: str, place: str, done: StudyRequest, tmp_path: Path) -> None:
    """Of two that train the same model each would take the other's for its own, and train over it."""
    with (
        exclusive(tmp_path / place, directory=True),
        pytest.raises(GradscopeError, match=f"^{argument}: another gradscope is writing to {tmp_path / place}"),
    ):
        run(done)


def linger(places: Places, label: str, begun: Any, seconds: float, complete: Callable[[], None]) -> None:
    """A worker that its driver has lost, and that is still at a stage."""
    with places.held(label):
        begun.set()
        time.sleep(seconds)
        complete()


@contextmanager
def lingering(folder: Path, seconds: float, complete: Callable[[], None] = lambda: None) -> Iterator[None]:
    fork = multiprocessing.get_context("fork")
    places = Places(folder / "checkpoints", folder / "results")
    begun = fork.Event()
    process = fork.Process(target=linger, args=(places, "model-longer-s0", begun, seconds, complete))
    process.start()
    assert begun.wait(10)
    try:
        yield
    finally:
        process.kill()
        process.join()


def test_a_stage_that_a_lost_worker_is_at_waits_for_its_end(done: StudyRequest, tmp_path: Path) -> None:
    whole = content(tmp_path)
    damage(tmp_path / "checkpoints" / "longer-s0.pt")
    started = time.perf_counter()
    with lingering(tmp_path, 2.0):
        assert redone(run(done)) == {"model-longer-s0"}
    assert time.perf_counter() - started > 2
    assert content(tmp_path) == whole


def test_what_a_lost_worker_completes_is_kept(done: StudyRequest, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "longer-s0.pt"
    before = path.read_bytes()
    damage(path)
    with lingering(tmp_path, 0.5, partial(path.write_bytes, before)):
        assert redone(run(done)) == {"model-longer-s0"}
    assert path.read_bytes() == before


def test_a_lost_worker_that_does_not_end(done: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PATIENCE", 0.3)
    damage(tmp_path / "checkpoints" / "longer-s0.pt")
    record = tmp_path / "results" / ".stages" / "model-longer-s0.json"
    before = record.read_bytes()
    with lingering(tmp_path, 60):
        (failed,) = run(done).failed
    assert re.fullmatch(r"out: another process runs model-longer-s0 and still holds .* after 0.3 s", failed.error)
    assert record.read_bytes() == before


def test_a_machine_that_does_not_see_the_study(done: StudyRequest, tmp_path: Path) -> None:
    places = Places(tmp_path / "elsewhere", tmp_path / "elsewhere")
    with pytest.raises(GradscopeError, match=r"out: every machine must see .*elsewhere"), places.held("model-sl-s0"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_another_version_redoes_everything(done: StudyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradscope.__version__", "9.9.9")
    assert redone(run(done)) == {*MODELS, *MEASURES}


def seconds_of_an_epoch(folder: Path) -> float:
    history = pd.read_csv(folder / "checkpoints" / "sl-s0.history.csv")
    return float(history["seconds"].max())


def test_a_study_with_little_time_stops_and_goes_on_to_the_same_files(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    whole = content(undisturbed[0])
    postponed: dict[str, str] = {}
    for _ in range(40):
        ended = run(request_in(tmp_path, until=2.5))
        assert not ended.failed
        postponed |= ended.postponed
        if not any(why.startswith("stopped") for why in ended.postponed.values()) and set(ended.kept) == set(
            ended.records
        ):
            break
        assert set(ended.postponed) | set(ended.blocked) | set(ended.records) == {*MODELS, *MEASURES, *CONCLUSIONS}
    # A measurement is thought to take three seconds and more; two and a half are never enough for it.
    assert set(ended.postponed) == {*MEASURES, *CONCLUSIONS}
    assert re.fullmatch(r"not begun: it takes about \d+\.\d s, \d\.\d s are left", postponed["measure-attack"])
    run(request_in(tmp_path))
    assert content(tmp_path) == whole


def test_a_training_stops_after_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[grid]\nmodes = ["sl"]\n[training]\nepochs = 16\n'
    ended = run(request_in(tmp_path / "stopped", text, until=1))
    (label, why), *_ = ended.postponed.items()
    assert label == "model-sl-s0"
    assert re.fullmatch(r"stopped after \d+ of 16 epochs", why)
    stopped = load(tmp_path / "stopped" / "checkpoints" / "sl-s0.pt")
    assert 0 < stopped.epochs < stopped.planned_epochs == 16
    run(request_in(tmp_path / "stopped", text))
    run(request_in(tmp_path / "whole", text))
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert load(tmp_path / "stopped" / "checkpoints" / "sl-s0.pt").epochs == 16


def test_too_little_time_for_an_epoch_does_nothing(tmp_path: Path) -> None:
    ended = run(request_in(tmp_path, until=1e-6))
    assert not ended.records
    assert ended.postponed["model-sl-s0"].startswith("not begun: one epoch takes about ")
    assert not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.parametrize("until", [0, -1, float("nan"), float("inf")])
def test_time_must_be_positive(tmp_path: Path, until: float) -> None:
    with pytest.raises(GradscopeError, match=r"until must be a positive number of seconds, got (0|-1|nan|inf)"):
        run(request_in(tmp_path, until=until))

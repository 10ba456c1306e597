"""The engine on Ray: the same files as the local one, whatever dies; addresses that do not answer."""

import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gradscope.errors import GradscopeError
from gradscope.study.engines import ray as engines
from gradscope.study.engines.ray import RayEngine
from gradscope.study.runner import Ended
from gradscope.study.studies import StudyRequest, plan_study, run_study
from tests.study.contents import content

RECIPE = """
[grid]
modes = ["sl", "rl"]
[training]
epochs = 15
[[measure]]
command = "transfer"
steps = 2
samples = 10
[resources]
cpus = 1
"""
MODELS = ("model-sl-s0", "model-rl-s0")
#: Seconds in which a study is at work or ended, on a machine that has much else to do.
PATIENCE = 180
#: Files that hold times, or pictures: another process drew them.
BY_NAME = (".html", ".pdf", ".png", ".svg", ".tex")


def request_in(folder: Path, engine: str, text: str = RECIPE, **changes: Any) -> StudyRequest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text)
    places = {"out": folder / "results", "checkpoints": folder / "checkpoints"}
    return StudyRequest(recipe=folder / "tiny.toml", device="cpu", engine=engine, **places | changes)


def run(request: StudyRequest) -> Ended:
    return run_study(plan_study(request), request)


def stages(folder: Path) -> dict[str, tuple[str, str]]:
    """What the study's manifest says: the name and the state of every stage."""
    found = json.loads((folder / "results" / "manifest.json").read_text())
    assert found["complete"]
    return {stage["label"]: (stage["name"], stage["state"]) for stage in found["stages"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study under the engine local."""
    folder = tmp_path_factory.mktemp("alone")
    assert not run(request_in(folder, "local")).failed
    return folder


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with a token of the tests' own, as it reads it when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield pytest.importorskip("ray")


def same_as(alone: Path, folder: Path) -> bool:
    assert content(folder, BY_NAME) == content(alone, BY_NAME)
    assert stages(folder) == stages(alone)
    return not [path for path in folder.rglob(".*") if path.name != ".stages"]


class Watch(threading.Thread):
    """Follows the logs of a study: which processes were at a stage, and whose children they are.

    ``act(stage, process, parent)`` is called while a process trains a model and has done so for an epoch.
    """

    def __init__(self, folder: Path, act: Callable[[str, int, int], None]) -> None:
        super().__init__(daemon=True)
        self.folder, self.act = folder, act
        self.ended = threading.Event()
        self.processes: dict[str, dict[int, int]] = {}

    def run(self) -> None:
        while not self.ended.wait(0.02):
            for log in (self.folder / "results" / ".stages").glob("*.log"):
                self._look_at(log)

    def _look_at(self, log: Path) -> None:
        known = self.processes.setdefault(log.stem, {})
        for found in re.findall(r"process (\d+) on", log.read_text()):
            if int(found) not in known and (parent := parent_of(int(found))) is not None:
                known[int(found)] = parent
        state = self.folder / "checkpoints" / f"{log.stem.removeprefix('model-')}.pt.resume"
        if log.stem in MODELS and known and state.exists():
            self.act(log.stem, *list(known.items())[-1])

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join()


def parent_of(process: int) -> int | None:
    """The parent of a process that is at work; None of one that has ended."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.fixture
def nodes(ray: Any) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, both on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_worker_is_killed_and_a_node_is_lost(nodes: Any, alone: Path, tmp_path: Path) -> None:
    """Each while it trains one of the two models; the node loses its raylet, and its worker writes a while more."""
    (second,) = nodes.worker_nodes
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in (nodes.head_node, second)}
    struck: dict[Any, str] = {}

    def strike(stage: str, process: int, parent: int) -> None:
        node = raylets[parent]
        if node not in struck and stage not in struck.values():
            struck[node] = stage
            if node is second:
                nodes.remove_node(second, allow_graceful=False)
            else:
                os.kill(process, signal.SIGKILL)

    with Watch(tmp_path, strike) as watch:
        ended = run(request_in(tmp_path, "ray", address=nodes.address))
    assert not ended.failed
    where = {stage: [raylets[parent] for parent in found.values()] for stage, found in watch.processes.items()}
    assert where[struck[second]] == [second, nodes.head_node], "begun on one node, and again on the other"
    assert where[struck[nodes.head_node]][0] is nodes.head_node
    assert len(where[struck[nodes.head_node]]) > 1, "begun again by another worker"
    assert same_as(alone, tmp_path)


def command(folder: Path, *more: str) -> list[str]:
    request_in(folder, "ray")
    places = ["--out", str(folder / "results"), "--checkpoints", str(folder / "checkpoints")]
    study = [sys.executable, "-m", "gradscope", "study", str(folder / "tiny.toml"), "--engine", "ray"]
    return [*study, "--device", "cpu", *places, *more]


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def has_begun(process: subprocess.Popen[bytes], folder: Path, since: float) -> bool:
    """Whether a stage has begun, or the process has ended."""
    logs = (folder / "results" / ".stages").glob("*.log")
    return process.poll() is not None or any(log.stat().st_mtime > since for log in logs)


def test_the_command_is_killed_at_random_moments(ray: Any, alone: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver alone: its own cluster, and workers that write for seconds more, are left to Ray.

    First while stages run; then at any moment, such as before the new cluster is there.
    """
    moments = random.Random(time.time_ns())
    longest, killed = 0.0, 0
    while killed < 3:
        started = time.time()
        process = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
        try:
            if killed:
                time.sleep(moments.uniform(0, longest))
            else:
                assert wait_until(partial(has_begun, process, tmp_path, started), PATIENCE)
                longest = 1.5 * (time.time() - started)
                time.sleep(moments.uniform(0, 2))
            if process.poll() is not None:
                assert process.returncode == 0
                break
        finally:
            process.kill()
            process.wait()
        killed += 1
    assert killed
    assert subprocess.run(command(tmp_path), stdout=subprocess.DEVNULL, timeout=2 * PATIENCE).returncode == 0
    assert same_as(alone, tmp_path)


def marked(mark: str) -> list[str]:
    """The processes of this machine that have ``mark`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"GRADSCOPE_TEST={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_ctrl_c_leaves_no_worker(ray: Any, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"GRADSCOPE_TEST": str(tmp_path), "HOME": str(tmp_path)}
    process = subprocess.Popen(
        command(tmp_path, "--set", "training.epochs=1000"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: any(tmp_path.glob("checkpoints/*.resume")), PATIENCE)
        assert len(marked(str(tmp_path))) > 1
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, complaint = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert re.fullmatch(r"gradscope: interrupted; .*the same command\)\n", complaint)
    assert wait_until(lambda: not marked(str(tmp_path)), 30), marked(str(tmp_path))
    assert not (tmp_path / ".ray").exists(), "a token that would be asked for by other clusters of the user's"


def test_what_no_machine_of_the_cluster_has(ray: Any, tmp_path: Path) -> None:
    text = RECIPE.replace("cpus = 1", "cpus = 500\ndevices = 2")
    with pytest.raises(GradscopeError, match="model-sl-s0 needs 1000 CPUs and 0 GPUs on one machine, the cluster's"):
        run(request_in(tmp_path, "ray", text))
    assert not ray.is_initialized()


def test_ray_that_does_not_start(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(GradscopeError, match=r"^engine: starting Ray on this machine failed: .* timed out during s"):
        RayEngine(None, "cpu")


def test_an_address_where_nothing_listens(ray: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = request_in(tmp_path, "ray", address=f"127.0.0.1:{port}")
    plan = plan_study(request)
    with pytest.raises(GradscopeError, match=rf"^address: no Ray cluster at '127.0.0.1:{port}' answers: .*refused$"):
        run_study(plan, request)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_an_address_where_something_else_listens(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LONG_PATIENCE", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(
            GradscopeError, match=f"no Ray cluster at '{address}' answers: no answer from Ray within 3 s$"
        ):
            RayEngine(address, "cpu")


@pytest.mark.parametrize(
    ("end", "patience"), [("print('Failed to connect')", 60.0), ("import time; time.sleep(60)", 10.0)]
)
def test_a_cluster_that_asks_for_a_token(ray: Any, monkeypatch: pytest.MonkeyPatch, end: str, patience: float) -> None:
    """Ray logs that at once, and tries for half a minute more."""
    question = f"import sys; print('RPC error: InvalidAuthToken: missing', file=sys.stderr, flush=True); {end}"
    monkeypatch.setattr(engines, "_QUESTION", question)
    monkeypatch.setattr(engines, "_LONG_PATIENCE", patience)
    with pytest.raises(GradscopeError, match=r"it requires a token; set RAY_AUTH_MODE=token, .*~/\.ray/auth_token$"):
        RayEngine("auto", "cpu")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            "ray://127.0.0.1:10001",
            "address must be HOST:PORT of a cluster that this machine belongs to, or auto, got 'ray:",
        ),
        ("127.0.0.1:nought", "no Ray cluster at '127.0.0.1:nought' answers: .*"),
    ],
)
def test_what_is_no_address(ray: Any, address: str, reason: str) -> None:
    with pytest.raises(GradscopeError, match=f"^address: {reason}") as raised:
        RayEngine(address, "cpu")
    assert "\n" not in str(raised.value)


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GradscopeError, match=r"ray is not installed; pip install 'gradscope\[cluster\]'"):
        RayEngine(None, "cpu")

"""The engine on Ray: the same files as the local one, a worker that is killed, addresses that do not answer."""

import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.results.rows import TRANSFER
from gradscope.results.tables import read_table
from gradscope.study.cluster import RayEngine
from gradscope.study.execution import Ended
from gradscope.study.studies import StudyRequest, plan_study, run_study

RECIPE = """
[grid]
modes = ["sl", "rl"]
[training]
epochs = 2
[models.slow]
mode = "sl"
epochs = 60
[[measure]]
command = "transfer"
models = ["sl", "rl"]
steps = 2
samples = 10
[resources]
cpus = 1
"""


def request_in(folder: Path, engine: str, **changes: Any) -> StudyRequest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(RECIPE)
    places = {"out": folder / "results", "checkpoints": folder / "checkpoints"}
    return StudyRequest(recipe=folder / "tiny.toml", device="cpu", engine=engine, **places | changes)


def run(request: StudyRequest) -> Ended:
    return run_study(plan_study(request), request)


def kill_the_worker(log: Path, killed: list[int]) -> None:
    """SIGKILL to the process that says in ``log`` that it has begun, once it has trained for an epoch."""
    state = log.parents[2] / "checkpoints" / "slow-s0.pt.resume"
    while not killed:
        time.sleep(0.05)
        if log.exists() and state.exists() and (found := re.search(r"process (\d+) on", log.read_text())):
            os.kill(int(found[1]), signal.SIGKILL)
            killed.append(int(found[1]))


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_files_though_a_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    log = tmp_path / "ray" / "results" / ".stages" / "model-slow-s0.log"
    killed: list[int] = []
    threading.Thread(target=kill_the_worker, args=(log, killed), daemon=True).start()
    spread = run(request_in(tmp_path / "ray", "ray"))
    assert killed
    assert len(re.findall(r"process \d+ on", log.read_text())) == 2, "begun again by another worker"
    alone = run(request_in(tmp_path / "local", "local"))
    assert not spread.failed
    assert {label: one.name for label, one in spread.records.items()} == {
        label: one.name for label, one in alone.records.items()
    }
    for model in ("sl-s0", "rl-s0", "slow-s0"):
        here, there = (checkpoints.load(tmp_path / where / "checkpoints" / f"{model}.pt") for where in ("local", "ray"))
        assert all((value == there.state_dict[name]).all() for name, value in here.state_dict.items())
    tables = [
        read_table(tmp_path / where / "results" / "transfer" / TRANSFER.file, TRANSFER) for where in ("local", "ray")
    ]
    assert tables[0].equals(tables[1])
    assert {path.relative_to(tmp_path / "ray") for path in (tmp_path / "ray").rglob("*")} == {
        path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*")
    }


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(GradscopeError, match=f"--address: no Ray cluster at '{address}' answers: .*refused"):
            RayEngine(address, "cpu")
    request = request_in(tmp_path, "ray", address=f"127.0.0.1:{port}")
    plan = plan_study(request)
    with pytest.raises(GradscopeError, match="no Ray cluster"):
        run_study(plan, request)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GradscopeError, match=r"ray is not installed; pip install 'gradscope\[cluster\]'"):
        RayEngine(None, "cpu")

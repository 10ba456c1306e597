"""Figures drawn in a process of their own: the same files, no torch, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gradscope
from gradscope.figures import background
from gradscope.figures.background import in_background
from gradscope.figures.draw import draw

ONE_FIGURE = {"checkpoints": (("sl-0", "sl"),), "attacks": ("pgd",), "step_metrics": ("norm",), "sample_metrics": ()}


def drawn(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "figures").iterdir()}


def test_the_files_are_those_drawn_here(make_results):
    first, second = (make_results(**ONE_FIGURE, name=name) for name in ("first", "second"))
    with in_background() as drawer:
        background.draw(first)
        background.draw(second)
        assert drawer.pid is not None
        assert background.wait() == []
        assert drawn(first) == drawn(second)
        maps = Path(f"/proc/{drawer.pid}/maps")
        if maps.exists():
            loaded = maps.read_text()
            assert "ft2font" in loaded
            assert "libtorch" not in loaded
    before = drawn(first)
    draw(first)
    assert drawn(first) == before


def test_outside_of_the_block_figures_are_drawn_at_once(make_results, monkeypatch):
    directory = make_results(**ONE_FIGURE)
    background.draw(directory)
    assert "steps-norm.pdf" in drawn(directory)
    with in_background() as drawer:
        monkeypatch.setattr(drawer, "owner", os.getppid())  # what a process forked here would see
        (directory / "figures" / "steps-norm.pdf").unlink()
        background.draw(directory)
        assert "steps-norm.pdf" in drawn(directory)
        assert drawer.pid is None


def test_the_end_of_the_block_waits_and_ends_the_process(make_results):
    directory = make_results(**ONE_FIGURE)
    with in_background() as drawer:
        background.draw(directory)
        pid = drawer.pid
    assert "captions.json" in drawn(directory)
    assert not is_running(pid)


def test_a_failure_is_one_line_and_the_rest_is_drawn(make_results, tmp_path, caplog):
    directory = make_results(**ONE_FIGURE)
    broken = make_results(**ONE_FIGURE, name="broken")
    (broken / "steps.csv").write_text("step\n1\n")
    (tmp_path / "empty").mkdir()
    with in_background():
        for one in (broken, tmp_path / "empty", directory):
            background.draw(one)
        damaged, empty = background.wait()
        background.draw(broken)
    assert damaged.startswith(f"{broken}: its figures could not be drawn: directory: {broken / 'steps.csv'} lacks ")
    assert "\n" not in damaged
    assert str(tmp_path / "empty") in empty
    assert "captions.json" in drawn(directory)
    assert caplog.messages == [damaged], "what nobody has waited for is logged"


def test_a_process_that_dies_costs_one_directory(make_results):
    directories = [make_results(**ONE_FIGURE, name=name) for name in ("first", "second", "third")]
    with in_background() as drawer:
        for directory in directories[:2]:
            background.draw(directory)
        os.kill(drawer.pid, signal.SIGKILL)
        time.sleep(0.1)
        background.draw(directories[2])
        assert background.wait() == [f"{directories[0]}: the process that drew its figures died (SIGKILL)"]
    assert drawn(directories[1]) == drawn(directories[2]) != {}


def test_an_error_in_the_block_ends_the_process_at_once(make_results):
    directory = make_results()
    with pytest.raises(KeyboardInterrupt), in_background() as drawer:  # noqa: PT012
        background.draw(directory)
        pid = drawer.pid
        raise KeyboardInterrupt
    assert not is_running(pid)
    assert not (directory / "figures" / "captions.json").exists()


def test_killed_it_leaves_no_process(make_results):
    program = (
        "import sys, time; from pathlib import Path; from gradscope.figures import background\n"
        "with background.in_background() as drawer:\n"
        "    background.draw(Path(sys.argv[1])); print(drawer.pid, flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", program, make_results(**ONE_FIGURE)]
    environment = {**os.environ, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE) as caller:
        pid = int(caller.stdout.readline())
        assert is_running(pid)
        caller.kill()
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether the process is at work; one that has ended but was not reaped yet is not."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return status[:1] not in ("", "Z")

"""Several processes that carry out one study on storage that they share."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.soak.kills import RECIPE


def start(folder: Path, name: str) -> "subprocess.Popen[str]":
    """A driver of the study in ``folder``, with a folder of temporary files of its own."""
    (folder / name).mkdir()
    places = ["--out", folder / "results", "--checkpoints", folder / "checkpoints"]
    command = [sys.executable, "-m", "gradscope", "study", folder / "tiny.toml", *places, "--no-figures"]
    environment = os.environ | {"TMPDIR": str(folder / name), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_one_of_two_drivers_goes_on_after_a_third_was_killed(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 2\n", "epochs = 80\n"))
    killed, state = start(tmp_path, "killed"), tmp_path / "checkpoints" / "sl-s0.pt.resume"
    while not state.exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    drivers = [start(tmp_path, name) for name in ("one", "other")]
    ended = {driver.wait(): driver.communicate() for driver in drivers}
    assert set(ended) == {0, 2}
    refusal = ended[2][1].splitlines()
    assert len(refusal) == 1
    assert refusal[0].startswith("gradscope: --out: another gradscope is writing to ")
    done = [line.partition(":")[0] for line in ended[0][0].splitlines() if ": done in" in line]
    assert done == [
        "model-sl-s0",
        "model-longer-s0",
        "measure-transfer",
        "measure-analyze",
        "model-sl-x10-s0",
        "claims",
    ]
    assert not list(tmp_path.rglob(".*.lock"))

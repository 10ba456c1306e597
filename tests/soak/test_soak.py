"""A few seconds of hostile inputs and kills, others each time; `make soak` goes on for longer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 8


@pytest.mark.slow
def test_no_hostile_input_and_no_kill_breaks_a_command(tmp_path: Path) -> None:
    command, root = [sys.executable, "-m", "tests.soak", "--seconds", f"{SECONDS}", "--keep"], Path(__file__).parents[2]
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, tmp_path], cwd=root, env=alone, capture_output=True, text=True, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    row = r"^all +(\d+) +\d+ +\d+ +(\d+) +(\d+%|-)"
    ((tried, failed, opened),) = re.findall(row, ended.stdout, re.MULTILINE)
    (kills,) = re.findall(r"^all +(\d+) +\d+ +\d+ +[\d.]+$", ended.stdout, re.MULTILINE)
    assert int(tried) + int(kills) > 1
    assert int(failed) == 0
    assert int(tried) < 50 or int(opened.removesuffix("%")) > 33  # of a few, fewer may open by chance

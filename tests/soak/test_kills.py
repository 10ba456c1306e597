"""A training that is killed before any of its file operations is resumed to the files of an undisturbed one.

The other commands are killed in ``make soak``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.kills import Kills


def kill_everywhere(folder: Path) -> None:
    """Print a line for every failure, then how many kills there were."""
    training = Kills("train", folder / "material")
    (folder / "train").mkdir()
    for failure in training.everywhere(folder / "train"):
        print(failure)
    print(training.kills)


@pytest.mark.slow
def test_a_training_killed_before_any_file_operation_is_resumed_to_the_same_files(tmp_path: Path) -> None:
    # In a process without threads, which can fork.
    script = "import sys, pathlib; from tests.soak.test_kills import *; kill_everywhere(pathlib.Path(sys.argv[1]))"
    command, root = [sys.executable, "-c", script, tmp_path], Path(__file__).parents[2]
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    *failures, kills = ended.stdout.splitlines()
    assert failures == []
    assert int(kills) > 30

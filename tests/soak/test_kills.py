"""Commands that are killed again and again are resumed to the files of an undisturbed run."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.soak.kills import COMMANDS, Kills

#: How often each command but train is tried, with up to three kills each time.
TRIALS = 1


def kill_all(folder: Path) -> None:
    """Print a line for every failure, then how many kills there were of train, and of the others."""
    training = Kills("train", folder / "material")
    (folder / "train").mkdir()
    for failure in training.everywhere(folder / "train"):
        print(failure)
    seed, kills = time.time_ns(), 0
    numbers = random.Random(seed)
    for command in COMMANDS[1:]:
        tried = Kills(command, folder / "material")
        for trial in range(TRIALS):
            if failure := tried.kill(numbers, folder / f"{command}-{trial}"):
                print(f"seed {seed}: {failure}")
        kills += tried.kills
    print(training.kills, kills)


def test_killed_commands_are_resumed_to_the_files_of_an_undisturbed_run(tmp_path: Path) -> None:
    # In a process without threads, which can fork.
    script = "import sys, pathlib; from tests.soak.test_kills import *; kill_all(pathlib.Path(sys.argv[1]))"
    command, root = [sys.executable, "-c", script, tmp_path], Path(__file__).parents[2]
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    *failures, last = ended.stdout.splitlines()
    assert failures == []
    training, others = map(int, last.split())
    assert training > 30
    assert others > TRIALS * (len(COMMANDS) - 1) / 2

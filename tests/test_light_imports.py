"""What the command line reads to refuse a mistake imports no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope

LIGHT = (
    "gradscope.auditing.budgets",
    "gradscope.cli",
    "gradscope.data.names",
    "gradscope.measure.directory",
    "gradscope.measure.options",
    "gradscope.measure.refusals",
    "gradscope.models.names",
    "gradscope.models.references",
    "gradscope.study.recipe",
    "gradscope.training.request",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_module_of_names_does_not_load_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Stages run at once in processes forked from a server, which must not touch the GPU."""

import json

import pytest

from gradscope.distributed.processes import device_name
from gradscope.study.studies import StudyRequest, plan_study, run_study

pytestmark = pytest.mark.cuda

RECIPE = """
[grid]
modes = ["sl", "rl"]
[training]
epochs = 1
[[measure]]
command = "transfer"
steps = 2
samples = 10
"""


def test_stages_run_side_by_side_on_the_device(device, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    places = {"out": tmp_path / "results", "checkpoints": tmp_path / "checkpoints"}
    request = StudyRequest(recipe=recipe, device=device.type, jobs=2, figures=False, **places)
    ended = run_study(plan_study(request), request)
    assert {label: record.error for label, record in ended.records.items() if record.state != "done"} == {}
    for label in ("model-sl-s0", "model-rl-s0", "measure-transfer"):
        record = json.loads((tmp_path / "results" / ".stages" / f"{label}.json").read_text())
        assert (record["where"]["device"], record["where"]["jobs"]) == (device_name(device), 2)

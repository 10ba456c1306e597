"""The kit for CI under examples/ci: files that GitHub would accept, and commands in them that work."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_jsonschema.builtin_schemas
import jsonschema
import pytest
import torch
import typer
from ruamel.yaml import YAML
from torch import nn

import gradscope
from gradscope.cli import app, main, measuring
from gradscope.measure.options import AuditOptions, Request

KIT = Path(__file__).parents[1] / "examples" / "ci"
ROOT = Path(gradscope.__file__).parents[1]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(KIT / name)
    return found


ACTION = read("action.yml")
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def run_step(name: str, folder: Path, program: str, **inputs: str) -> tuple[int, dict[str, str]]:
    """Run a step's shell as GitHub does, ``gradscope`` being the ``program``; its exit code and outputs."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "gradscope"
    command.write_text(program)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    given = {key: one.get("default", "") for key, one in ACTION["inputs"].items()} | inputs
    values = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], text)
        for key, text in STEPS[name]["env"].items()
    }
    files = {key: folder / key.lower() for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.touch()
    environment = {**os.environ, **values, **{key: str(file) for key, file in files.items()}}
    environment |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    return done.returncode, dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize(("name", "schema"), [("action.yml", "actions"), ("robustness.yml", "workflows")])
def test_github_would_accept_the_files(name: str, schema: str) -> None:
    schemas = check_jsonschema.builtin_schemas
    jsonschema.Draft7Validator(schemas.get_builtin_schema(f"vendor.github-{schema}")).validate(read(name))


def test_the_workflow_gives_inputs_that_the_action_has() -> None:
    (job,) = read("robustness.yml")["jobs"].values()
    assert set(job["steps"][-1]["with"]) <= set(ACTION["inputs"])
    assert {name for name, one in ACTION["inputs"].items() if one.get("required")} <= set(job["steps"][-1]["with"])


def test_every_input_reaches_a_step() -> None:
    text = (KIT / "action.yml").read_text()
    assert {name for name in ACTION["inputs"] if text.count(f"inputs.{name} ") == 0} == set()
    table = (KIT / "README.md").read_text()
    assert [name for name in ACTION["inputs"] if f"`{name}`" not in table] == []


ECHO = '#!/bin/sh\nprintf "%s\\n" "$@" > arguments\nexit ${CODE:-0}\n'


def test_the_audit_of_the_action_is_one_that_the_command_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"checkpoint": "a b.pt\nrl.pt\n", "norm": "linf", "epsilon": "8/255", "samples": "40", "claim": "0.4"}
    given |= {"dataset": "npz", "data-root": "images here.npz", "arguments": "--seed 3 --no-figures"}
    given |= {"allow-inconclusive": "true", "out": "some where"}
    code, outputs = run_step("Audit", tmp_path, ECHO, **given)
    assert (code, outputs) == (0, {"results": "some where"})
    requests: list[tuple[Request, Path]] = []
    monkeypatch.setattr(measuring, "refuse", lambda *request: requests.append(request))
    monkeypatch.setattr(measuring, "_measure", lambda *_: None)
    monkeypatch.setattr(measuring, "_write_sarif", lambda *_: None)
    monkeypatch.setattr(measuring, "_pass_audits", lambda *_, on_masking, allowing: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main((tmp_path / "arguments").read_text().splitlines())
    assert not left.value.code
    ((request, out),) = requests
    assert (request.models, out) == (("a b.pt", "rl.pt"), Path("some where"))
    assert (request.data.dataset, request.data.data_root) == ("npz", Path("images here.npz"))
    assert request.where.overwrite
    assert request.where.no_figures
    options = {"norm": "linf", "epsilon": "8/255", "samples": 40, "claim": 0.4, "seed": 3, "budget": "quick"}
    assert request.options == AuditOptions.parse(options | {"allow_inconclusive": True})


@pytest.mark.parametrize(("code", "shown"), [(0, True), (3, True), (4, True), (2, False), (1, False)])
def test_the_action_ends_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, shown: bool
) -> None:
    monkeypatch.setenv("CODE", str(code))
    found, outputs = run_step("Audit", tmp_path, ECHO, checkpoint="sl.pt")
    assert (found, bool(outputs)) == (code, shown)
    given = (tmp_path / "arguments").read_text().splitlines()
    gated, _ = run_step("Audit", tmp_path, ECHO, checkpoint="sl.pt", **{"fail-on-masking": "false"})
    assert "--fail-on-masking" in given
    assert gated == code
    assert "--fail-on-masking" not in (tmp_path / "arguments").read_text()


@pytest.mark.slow
def test_the_action_audits_and_reports(tmp_path: Path, trained: list[str]) -> None:
    program = f'#!/bin/sh\nexec {sys.executable} -m gradscope "$@"\n'
    given = {"checkpoint": trained[0], "norm": "linf", "epsilon": "0.1", "samples": "60", "out": "results"}
    code, outputs = run_step("Audit", tmp_path, program, **given, claim="0.99")
    assert (code, outputs) == (3, {"results": "results"})
    assert (tmp_path / "results" / "audit.sarif").exists()
    assert run_step("Report", tmp_path, program, **given)[0] == 0
    assert (tmp_path / "results" / "report.html").exists()
    summary = (tmp_path / "github_step_summary").read_text()
    assert summary.lstrip().startswith("# Robustness card")
    assert "Claim of 99 % refuted" in summary


def test_commands_in_the_readme_have_options_that_exist() -> None:
    commands: Any = typer.main.get_command(app)
    lines = re.findall(r"^gradscope .*$", (KIT / "README.md").read_text(), re.M)
    assert len(lines) == 3
    for line in lines:
        _, name, *rest = line.split()
        known = {flag for one in commands.commands[name].params for flag in one.opts}
        assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.usefixtures("little_work")
def test_the_assertion_in_the_readme_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (KIT / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    x = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    names["test_the_model_is_robust"](nn.Flatten().eval(), x, x.flatten(1).argmax(dim=1))

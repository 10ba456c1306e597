"""What is published: the wheel's files, its metadata, and versions that agree."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import check_jsonschema.builtin_schemas
import jsonschema
import pytest
import typer
from ruamel.yaml import YAML

import gradscope
from gradscope.cli import app
from tests.distribution.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = YAML(typ="safe").load(ROOT / "CITATION.cff")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the tree, in this environment."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "gradscope", tree / "gradscope", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    program = "import sys, setuptools.build_meta; print(setuptools.build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, tree], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(tree / done.stdout.splitlines()[-1])


def test_the_wheel_holds_the_package_and_its_licence(wheel: zipfile.ZipFile) -> None:
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gradscope").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"gradscope/py.typed", "gradscope/reporting/templates/page.html"} < tracked
    names = set(wheel.namelist())
    assert {name for name in names if name.startswith("gradscope/")} == tracked
    folder = f"gradscope-{gradscope.__version__}.dist-info"
    assert f"{folder}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {"gradscope", folder}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    folder = f"gradscope-{gradscope.__version__}.dist-info"
    metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Version"] == gradscope.__version__
    urls = dict(text.split(", ") for text in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Repository", "Changelog", "Issues"}
    assert "gradscope = gradscope.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


@pytest.mark.slow
def test_a_type_checker_of_somebody_else_sees_types(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    wheel.extractall(packages)
    program = (
        "import gradscope as gs\nfrom gradscope.testing import assert_not_masked\n\n"
        "report = gs.read('results')\nreveal_type(gs.GradscopeError('x').argument)\nreveal_type(gs.__version__)\n"
        "reveal_type(report.models)\nreveal_type(assert_not_masked)\n"
    )
    (tmp_path / "user.py").write_text(program)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--config-file=", "--python-executable", python, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == 4
    assert "Any" not in revealed[:3], revealed


def test_the_citation_is_valid_and_of_this_version() -> None:
    schema = check_jsonschema.builtin_schemas.get_builtin_schema("vendor.citation-file-format")
    jsonschema.Draft7Validator(schema).validate(CITATION)
    assert CITATION["version"] == gradscope.__version__
    assert (CITATION["license"], PROJECT["license"]) == ("MIT", "MIT")
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the gradscope authors\n")


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [heading.split()[0] for heading in headings if heading != "Unreleased"]
    assert headings[0] == "Unreleased" or released[0] == gradscope.__version__
    assert released == sorted(released, reverse=True)


def test_the_commands_that_try_the_wheel_exist() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert {command.split()[0] for command, _ in COMMANDS} - {"--version"} <= known


def test_the_files_that_contributing_names_are_there() -> None:
    named = re.findall(r"`((?:gradscope|tests|docs)/[\w./]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []

"""The pages that are made from the code are those of this code; every option is in the reference."""

import importlib.util
import re
from types import ModuleType

import pytest

import gradscope as gs
from gradscope.auditing.budgets import BUDGETS
from gradscope.auditing.checks import CHECKS
from gradscope.measure.options import COMMANDS
from gradscope.results import schemas
from gradscope.results.schemas import Table
from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["files.md", "commands.md", "api.md"])
def test_a_page_is_what_the_code_says(generate: ModuleType, name: str) -> None:
    written = (ROOT / "docs" / name).read_text()
    assert generate.PAGES[name]() == written, f"docs/{name} is old: make docs-pages"


def test_every_table_is_shown(generate: ModuleType) -> None:
    tables = {name for name, value in vars(schemas).items() if isinstance(value, Table)}
    assert set(generate.TABLES) == tables


def test_every_public_name_is_shown(generate: ModuleType) -> None:
    assert sorted(name for names in generate.NAMES.values() for name in names) == sorted(gs.__all__)


def test_every_check_has_a_section() -> None:
    """Whose anchor is the check's short name, as `audit.md#n1`."""
    text = (ROOT / "docs" / "audit.md").read_text()
    assert re.findall(r"^### ([A-Z]\d)$", text, re.MULTILINE) == list(CHECKS)
    for identifier in CHECKS:
        assert f"| [{identifier}](#{identifier.lower()}) " in text


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_are_those_of_the_code(name: str) -> None:
    budget = BUDGETS[name]
    said = f"| `{name}` | {budget.images:,} | {budget.attacks.steps} |"
    assert said in (ROOT / "docs" / "audit.md").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_reference(command: str) -> None:
    """With its help text, its default in words or as a value, and its bounds."""
    section = (ROOT / "docs" / "api.md").read_text()
    function = {"analyze": "trace"}.get(command, command)
    own = section.split(f"\n### gs.{function}\n")[1].split("\n### ")[0]
    shared = section.split("### gs.")[0]
    for name, field in COMMANDS[command].model_fields.items():
        rows = [line for line in (own + shared).splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        if field.default not in (None, (), ...) and name != "attack":
            said = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
            assert f"| {said} |" in rows[0], name
        for limit in field.metadata:
            for attribute, words in (("ge", "at least"), ("le", "at most")):
                if (bound := getattr(limit, attribute, None)) is not None:
                    assert f"{words} {bound:,}" in rows[0], name

"""The floors of the house: imports only run downward, results and reports need no torch, only the CLI prints."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope

PACKAGE = Path(gradscope.__file__).parent
GROUND, ROOF = 0, 8
FLOORS = {
    **dict.fromkeys(
        [
            "errors",
            "limits",
            "reading",
            "validation",
            "config",
            "options",
            "seeding",
            "functional",
            "losses",
            "vision",
            "process",
            "progress",
            "distributed",
            "results",
            "claims",
        ],
        GROUND,
    ),
    "data": 1,
    "models": 1,
    "attacks": 2,
    "training": 3,
    "probes": 3,
    "auditing": 4,
    "judging": 4,
    "figures": 5,
    "reporting": 5,
    "measure": 6,
    "api": 7,
    "study": 7,
    "testing": 7,
    "cli": ROOF,
    "__main__": ROOF,
}
#: Rooms that see less than their floor does.
NARROW = {
    "errors": set(),
    "process": set(),
    "limits": {"errors"},
    "reading": {"errors", "limits"},
    "results": {"errors", "limits", "reading", "config"},
    "claims": {"results", "reading", "config", "errors"},
    "validation": {"errors"},
    "config": {"errors", "limits", "reading", "validation"},
    "options": {"config", "validation"},
    "figures": {"results", "reading", "config", "errors"},
    "reporting": {"figures", "results", "reading", "config", "errors"},
}
#: Rooms that read files and need no torch.
READERS = ("errors", "limits", "reading", "validation", "config", "results", "claims", "figures", "reporting")
#: What takes seconds to load, or is not installed where results are only read.
HEAVY = {"torch", "torchvision", "lightning_fabric", "torchattacks", "loss_landscapes", "timm", "ray"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Every module that ``module`` imports, wherever in it; ``from a import b`` is a.b where that is a module.

    The package itself imports nothing before a name is asked for; what it shows to type checkers does not count.
    """
    found: set[str] = set()
    if module == "gradscope":
        return found
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
    return found


def room(module: str) -> str | None:
    """The room a module of the package is in; None for the package itself, which holds only the version."""
    return module.split(".")[1] if "." in module else None


LIGHT = [module for module in MODULES if room(module) in READERS]


def may_import(source: str, target: str) -> bool:
    if source == target:
        return True
    if source in NARROW:
        return target in NARROW[source]
    return FLOORS[target] <= FLOORS[source]


def test_every_module_has_a_floor():
    assert {room(module) for module in MODULES} - {None} <= set(FLOORS)


def rooms_imported(module: str) -> set[str]:
    return {str(room(name)) for name in imports(module) if name.split(".")[0] == "gradscope" and room(name)}


@pytest.mark.parametrize("module", [module for module in MODULES if room(module)])
def test_imports_run_downward(module):
    upward = sorted(target for target in rooms_imported(module) if not may_import(str(room(module)), target))
    assert not upward, f"{module} imports from {', '.join(upward)}"


def test_rooms_of_one_floor_do_not_import_each_other():
    """One of two neighbours may use the other; then it stands above it."""
    edges = {(room(module), target) for module in MODULES for target in rooms_imported(module)}
    assert not [(one, other) for one, other in edges if one != other and (other, one) in edges]


def test_the_package_itself_imports_nothing():
    assert imports("gradscope") == set()


def test_the_walk_sees_every_form_of_import(tmp_path, monkeypatch):
    inner = tmp_path / "inner.py"
    inner.write_text(
        "import a.b\nfrom gradscope import vision\nfrom . import tables\nfrom .schemas import STEPS\n"
        "from ..errors import lookup\n\n\n"
        "def f():\n    from gradscope.models import checkpoint\n    import torchvision\n"
    )
    monkeypatch.setitem(MODULES, "gradscope.results.inner", inner)
    monkeypatch.setitem(MODULES, "gradscope.results.tables", tmp_path / "tables.py")
    assert imports("gradscope.results.inner") - {"gradscope.models", "gradscope.models.checkpoint"} == {
        "a.b",
        "gradscope.vision",
        "gradscope.results.tables",
        "gradscope.results.schemas",
        "gradscope.errors",
        "torchvision",
    }
    assert not may_import("results", "models")
    assert not may_import("reporting", "functional")
    assert not may_import("data", "attacks")
    assert may_import("models", "losses")
    assert may_import("cli", "reporting")


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_has_one_door(module):
    if module != "gradscope.vision":
        assert "torchvision" not in {name.split(".")[0] for name in imports(module)}


@pytest.mark.parametrize("module", MODULES)
def test_only_the_cli_prints(module):
    if room(module) != "cli":
        tree = ast.parse(MODULES[module].read_text())
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def reached(module: str) -> set[str]:
    """``module`` and whatever of the package it imports, when it is loaded or later, itself or through others."""
    found, left = set(), [module]
    while left:
        name = left.pop()
        if name in MODULES and name not in found:
            found.add(name)
            left += [*imports(name), name.rpartition(".")[0]]
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_what_reads_files_reaches_no_torch(module):
    """Not even when a function is called: results are read, judged and drawn where torch is not installed."""
    found = {name.partition(".")[0] for one in reached(module) for name in imports(one)}
    assert not found & HEAVY


def test_what_reads_files_loads_no_torch():
    """Nor do the libraries that they import."""
    program = f"import sys, {', '.join(LIGHT)}; sys.exit(', '.join({HEAVY} & set(sys.modules)) or None)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stderr.strip(), done.returncode) == ("", 0)


def test_measuring_loads_no_compiler():
    """Nor do plans of studies: torch's compiler takes as long to load as torch, and Fabric and torchvision load it."""
    measuring = [module for module in MODULES if room(module) in ("api", "measure", "study")]
    slow = {"torch._dynamo", "torchvision", "lightning_fabric"}
    program = f"import sys, {', '.join(measuring)}; sys.exit(', '.join({slow} & set(sys.modules)) or None)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stderr.strip(), done.returncode) == ("", 0)

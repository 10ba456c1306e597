import json
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

import gradscope
from gradscope.results import provenance as module
from gradscope.results.provenance import PACKAGES, provenance


@pytest.fixture(autouse=True)
def _fresh_commit() -> Iterator[None]:
    module._commit.cache_clear()
    yield
    module._commit.cache_clear()


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", tree, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A source tree that gradscope seems to run from."""
    (tmp_path / "gradscope").mkdir()
    (tmp_path / "gradscope" / "__init__.py").touch()
    monkeypatch.setattr(gradscope, "__file__", str(tmp_path / "gradscope" / "__init__.py"))
    return tmp_path


def test_versions_and_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/gradscope", "audit", "x.pt"])
    facts = provenance("cpu")
    assert facts["gradscope"] == gradscope.__version__
    assert facts["python"] == platform.python_version()
    assert facts["device"] == "cpu"
    assert facts["command"] == ["gradscope", "audit", "x.pt"]
    assert set(facts["packages"]) == set(PACKAGES)
    assert facts["packages"]["numpy"] == metadata.version("numpy")
    assert facts["processor"]
    assert json.loads(json.dumps(facts)) == facts


def test_time_is_now_and_utc():
    time = datetime.fromisoformat(provenance("cpu")["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=1)


def test_a_package_that_is_not_there_is_null(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    assert provenance("cpu")["packages"] == {"no-such-package": None}


def test_commit_is_the_trees_and_says_whether_it_differs(tree):
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "one")
    head = git(tree, "rev-parse", "HEAD")
    assert provenance("cpu")["commit"] == head
    module._commit.cache_clear()
    (tree / "new").touch()
    assert provenance("cpu")["commit"] == f"{head}+changes"


def test_commit_is_null_outside_a_tree(tree):
    assert provenance("cpu")["commit"] is None


def test_commit_is_null_before_the_first(tree):
    git(tree, "init", "-q")
    assert provenance("cpu")["commit"] is None


def test_commit_is_null_without_git(tree, monkeypatch):
    git(tree, "init", "-q")
    monkeypatch.setenv("PATH", "")
    assert provenance("cpu")["commit"] is None


def test_a_copy_has_the_commit_that_the_variable_names(tree, monkeypatch):
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first")
    monkeypatch.setenv("GRADSCOPE_COMMIT", "0123abc")
    assert provenance("cpu")["commit"] == "0123abc"
    module._commit.cache_clear()
    monkeypatch.delenv("GRADSCOPE_COMMIT")
    assert provenance("cpu")["commit"] == git(tree, "rev-parse", "HEAD")

"""How a result was made: versions, commit, machine. Every manifest and every checkpoint holds it."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import gradscope

PACKAGES = (
    "torch",
    "torchvision",
    "lightning-fabric",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "seaborn",
    "plotly",
    "torchattacks",
    "loss-landscapes",
)


#: Set while several stages of a study run at once; child processes inherit it.
_JOBS = "GRADSCOPE_JOBS"


@contextmanager
def side_by_side(jobs: int) -> Iterator[None]:
    """Record in the provenance of results made in the block that ``jobs`` stages shared the machine."""
    before = os.environ.get(_JOBS)
    os.environ[_JOBS] = str(jobs)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_JOBS]
        else:
            os.environ[_JOBS] = before


def provenance(device: str) -> dict[str, Any]:
    """Collect versions of gradscope and its packages, git commit, machine, concurrent stages, and the time (UTC)."""
    return {
        "gradscope": gradscope.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
        "jobs": int(os.environ.get(_JOBS, 1)),
        "command": ["gradscope", *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """Return the commit of the source tree, with "+changes" if files differ; None if gradscope runs as a package.

    Set the variable GRADSCOPE_COMMIT for a copy of the tree that lacks its own ``.git``.
    """
    if commit := os.environ.get("GRADSCOPE_COMMIT"):
        return commit
    tree = Path(gradscope.__file__).parent.parent
    if not (tree / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "-C", tree, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


@cache
def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""What a study leaves, without what depends on the clock, so that two runs can be compared."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from gradscope.models import checkpoint as checkpoints


def weights(path: Path) -> str:
    """A checkpoint without when it was made and how long that took."""
    found = checkpoints.load(path)
    digest = hashlib.sha256(repr((found.spec, found.mode, found.classes, found.data_fingerprint)).encode())
    config = {key: value for key, value in found.config.items() if key != "initial"}
    rows = [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in found.history]
    digest.update(json.dumps([config, rows]).encode())
    for name, value in found.state_dict.items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def table(path: Path) -> str:
    """A CSV without seconds."""
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    kept = [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
        for row in rows
        if row.get("metric") != "seconds" and not str(row.get("statistic")).startswith("seconds ")
    ]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def manifest(path: Path) -> str:
    """A manifest without times, and digests of checkpoints, which hold times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            skipped = ("seconds", "provenance", "trained", "sha256", "source", "initial")
            return {key: timeless(one) for key, one in value.items() if key not in skipped}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(timeless(json.loads(path.read_text()))).encode()).hexdigest()


def digest(path: Path) -> str:
    """Every byte of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder: Path, by_name: Container[str] = ()) -> dict[str, str]:
    """Every file that a study leaves, but for its own books, and a digest of what does not depend on the clock.

    Files whose suffix is in ``by_name`` have no digest.
    """
    kinds: dict[str, Callable[[Path], str]] = {
        ".pt": weights,
        ".csv": table,
        ".json": manifest,
        ".html": Path.read_text,
    }
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and ".stages" not in name and name not in ("tiny.toml", "results/manifest.json"):
            found[name] = "" if path.suffix in by_name else kinds.get(path.suffix, digest)(path)
    return found

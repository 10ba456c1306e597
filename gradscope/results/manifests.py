"""``manifest.json`` as typed entries: how a result was made, read back. What a manifest lacks is None or empty."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gradscope.errors import GradscopeError

MANIFEST = "manifest.json"


class _Entry(BaseModel):
    """A part of the manifest; keys that it does not know are left for later versions."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImagesOf(_Entry):
    """Which images of a data set were examined."""

    name: str = ""
    split: str = ""
    images: int | None = None
    of: int | None = None
    fingerprint: str | None = None


class Provenance(_Entry):
    """Versions, machine and time."""

    gradscope: str | None = None
    commit: str | None = None
    python: str | None = None
    packages: dict[str, str | None] = {}
    platform: str | None = None
    processor: str | None = None
    device: str | None = None
    command: tuple[str, ...] = ()
    time: str | None = None


class Examined(_Entry):
    """A checkpoint that was examined, as the manifest has it."""

    label: str = ""
    source: str | None = None
    sha256: str | None = None
    config: dict[str, Any] | None = None
    trained: Provenance | None = None
    data: ImagesOf | None = None
    seconds: float | dict[str, float] | None = None
    skipped: dict[str, str] = {}

    @property
    def epochs(self) -> int | None:
        """Epochs of training of all phases together; None where the manifest does not say."""
        phases = (self.config or {}).get("phases")
        if not isinstance(phases, list) or not phases:
            return None
        epochs = [phase.get("epochs") for phase in phases if isinstance(phase, Mapping)]
        counts = [count for count in epochs if isinstance(count, int)]
        return sum(counts) if len(counts) == len(phases) else None

    @property
    def total_seconds(self) -> float | None:
        """Seconds that examining it took; None where the manifest does not say."""
        if isinstance(self.seconds, dict):
            return sum(self.seconds.values()) if self.seconds else None
        return self.seconds


class Manifest(_Entry):
    """The manifest of one command's results; ``complete`` is None where it does not say."""

    kind: str = ""
    complete: bool | None = None
    seed: int | None = None
    attacks: dict[str, Any] = {}
    checkpoints: tuple[Examined, ...] = ()
    provenance: Provenance | None = None

    def ball(self, attack: str) -> str:
        """Norm and radius of one of its attacks in words; empty where it does not say."""
        settings = self.attacks.get(attack)
        if not isinstance(settings, Mapping) or not isinstance(settings.get("epsilon"), int | float):
            return ""
        return f"{settings.get('norm', '')} {settings['epsilon']:.4g}".strip()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; :class:`GradscopeError` where it cannot be read or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GradscopeError(f"DIR: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise GradscopeError(f"DIR: {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise GradscopeError(f"DIR: {path} is damaged: an object is allowed, got {type(content).__name__}")
    return content


def read_manifest(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """The manifest in ``path``, typed and as it is; :class:`GradscopeError` where it is damaged."""
    content = read_object(path)
    try:
        return Manifest.model_validate(content), content
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise GradscopeError(f"DIR: {path} is damaged: {where}: {' '.join(first['msg'].split())}") from None

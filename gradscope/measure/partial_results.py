"""Keep finished pieces of a long measurement on disk, so that an interrupted one resumes where it stopped.

A run may resume with another number of processes.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from gradscope.distributed.units import Team, Unit, Values
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.measure.directory import PARTIAL
from gradscope.models.checkpoint import are_whole, digest_of, load_weights_only, save_tensors
from gradscope.reading import parse_json, read_bytes
from gradscope.results.files import write_json


class PartialResults:
    """The pieces of one measurement, each a file; ``depends`` is everything that their values depend on.

    The ranks of ``team`` share the pieces and see the same folder.

    Without ``resume``, earlier pieces are removed. With ``resume``, pieces of another measurement raise
    :class:`GradscopeError` that names the differences. Pieces without readable dependencies, and damaged pieces, are
    computed again.
    """

    def __init__(self, out: Path, depends: Mapping[str, Any], team: Team, *, resume: bool) -> None:
        self.folder, self.team = out / PARTIAL, team
        self.named = self.folder / "depends.json"
        if team.is_first:
            self._begin(out, depends, resume)
        # No rank writes a piece before the first rank has removed those of an earlier run.
        team.meet()

    def _begin(self, out: Path, depends: Mapping[str, Any], resume: bool) -> None:
        wanted = json.loads(json.dumps(depends, default=str))
        existing = self._existing() if resume else None
        if existing is None:
            self.remove()
            existing = wanted
        changed = sorted(key for key in wanted.keys() | existing.keys() if wanted.get(key) != existing.get(key))
        if changed:
            raise CannotResumeError(
                f"resume: {out} was begun with another {', '.join(changed)}; pass the same, or `overwrite`"
            )
        write_json(self.named, wanted)

    def _existing(self) -> dict[str, Any] | None:
        """Read the dependencies of the existing pieces; None if they cannot be read."""
        try:
            depends = parse_json(read_bytes(self.named))
        except (OSError, ValueError):
            return None
        return depends if isinstance(depends, dict) else None

    def each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """Yield the named units in order. Each rank computes or loads its share and receives the rest."""
        return self.team.each([(name, partial(self.get, name, make)) for name, make in units])

    def get(self, name: str, make: Callable[[], Values]) -> Values:
        """Load the piece ``name`` from its file, or compute and save it; its tensors are on the CPU."""
        saved = self.read(name)
        if saved is not None:
            return saved
        values = {key: value.cpu() for key, value in make().items()}
        self.write(name, values)
        return values

    def read(self, name: str) -> Values | None:
        """Read the piece ``name``; None if it is missing or damaged. A damaged piece is removed."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        with suppress(GradscopeError):
            content = load_weights_only(path, "resume")
            values = content.get("values") if isinstance(content, dict) else None
            if are_whole(values) and content.get("sha256") == digest_of(name, values):
                return values
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None

    def write(self, name: str, values: Values) -> None:
        """Save ``values``, which are on the CPU, as the piece ``name``."""
        save_tensors(self.folder / f"{name}.pt", {"sha256": digest_of(name, values), "values": dict(values)})

    def remove(self) -> None:
        """Remove all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)

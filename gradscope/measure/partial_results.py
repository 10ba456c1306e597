"""Finished pieces of a long measurement, kept on disk so that an interrupted one goes on where it stopped.

How many processes share the measurement may differ from one time to the next.
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

    The ranks of ``team`` divide them, and see the same folder.

    Where ``resume`` is not set, earlier pieces are removed. Where it is, pieces of another measurement raise
    :class:`GradscopeError` that names what differs; pieces of an unknown one, and a damaged piece, are made anew.
    """

    def __init__(self, out: Path, depends: Mapping[str, Any], team: Team, *, resume: bool) -> None:
        self.folder, self.team = out / PARTIAL, team
        self.named = self.folder / "depends.json"
        if team.is_first:
            self._begin(out, depends, resume)
        # No rank keeps a piece before the first has removed those of an earlier run.
        team.meet()

    def _begin(self, out: Path, depends: Mapping[str, Any], resume: bool) -> None:
        wanted = json.loads(json.dumps(depends, default=str))
        found = self._found() if resume else None
        if found is None:
            self.remove()
            found = wanted
        changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if changed:
            raise CannotResumeError(
                f"resume: {out} was begun with another {', '.join(changed)}; pass the same, or `overwrite`"
            )
        write_json(self.named, wanted)

    def _found(self) -> dict[str, Any] | None:
        """What the pieces that are there depend on; None where nothing can be read that says so."""
        try:
            found = parse_json(read_bytes(self.named))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def each(self, units: Sequence[Unit]) -> Iterator[Values]:
        """The pieces called so, in order. A rank reads or makes its own, and has the others from theirs."""
        return self.team.each([(name, partial(self.get, name, make)) for name, make in units])

    def get(self, name: str, make: Callable[[], Values]) -> Values:
        """The piece called ``name``: from its file, or made and kept; its tensors are on the CPU."""
        kept = self.read(name)
        if kept is not None:
            return kept
        made = {key: value.cpu() for key, value in make().items()}
        self.write(name, made)
        return made

    def read(self, name: str) -> Values | None:
        """The piece called ``name``, if there is one; one that is damaged is removed."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        with suppress(GradscopeError):
            kept = load_weights_only(path, "resume")
            values = kept.get("values") if isinstance(kept, dict) else None
            if are_whole(values) and kept.get("sha256") == digest_of(name, values):
                return values
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None

    def write(self, name: str, values: Values) -> None:
        """Keep ``values``, which are on the CPU, in the place of what was called ``name``."""
        save_tensors(self.folder / f"{name}.pt", {"sha256": digest_of(name, values), "values": dict(values)})

    def remove(self) -> None:
        """Remove all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)

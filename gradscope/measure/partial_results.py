"""Finished pieces of a long measurement, kept on disk so that an interrupted one goes on where it stopped.

How many processes share the measurement may differ from one time to the next.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradscope.distributed.units import Team, Unit, Values
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.measure.directory import PARTIAL
from gradscope.models.checkpoint import load_weights_only, require_checksums, save_tensors
from gradscope.reading import parse_json, read_bytes
from gradscope.results.files import write_json


class PartialResults:
    """The pieces of one measurement, each a file; ``depends`` is everything that their values depend on.

    The ranks of ``team`` divide them, and see the same folder.

    Where ``resume`` is not set, earlier pieces are removed. Where it is, pieces of another measurement raise
    :class:`GradscopeError` that names what differs; a piece that is damaged is made anew.
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
        if resume:
            found = self._found()
            changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            if found and changed:
                raise CannotResumeError(
                    f"resume: {out} was begun with another {', '.join(changed)}; pass the same, or `overwrite`"
                )
        else:
            self.remove()
        write_json(self.named, wanted)

    def _found(self) -> dict[str, Any]:
        try:
            found = parse_json(read_bytes(self.named))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

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
        try:
            require_checksums(path, "resume")
            kept: Values = load_weights_only(path, "resume")
            return kept
        except GradscopeError:
            path.unlink()
            return None

    def write(self, name: str, values: Values) -> None:
        """Keep ``values``, which are on the CPU, in the place of what was called ``name``."""
        save_tensors(self.folder / f"{name}.pt", values)

    def remove(self) -> None:
        """Remove all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)

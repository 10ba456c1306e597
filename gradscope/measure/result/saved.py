"""Read back the results of one measurement."""

import os
from pathlib import Path

from gradscope.errors import GradscopeError, first_of, reason_of
from gradscope.limits import require_memory
from gradscope.measure.directory import FILES
from gradscope.measure.result.attacks import Attacks, TransferMatrix
from gradscope.measure.result.base import Result
from gradscope.measure.result.paths import Landscape, Spectrum, Trace
from gradscope.measure.result.verdicts import AuditReport, JudgeReport
from gradscope.reading import open_file, parse_json, read_bytes, read_json
from gradscope.results.audits import Audits, read_example_images
from gradscope.results.manifest import MANIFEST, read_manifest
from gradscope.results.schemas import AUDIT_JSON, EXAMPLE_IMAGES
from gradscope.results.tables import file_content, find_table, tell_changes
from gradscope.validation import given_path


def _below(folder: Path) -> list[str]:
    """List the sub-directories with results."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


#: The class of each kind of result.
KINDS: dict[str, type[Result]] = {
    kind.kind: kind for kind in (Trace, Landscape, Spectrum, Attacks, TransferMatrix, AuditReport, JudgeReport)
}


def _content(path: Path) -> bytes:
    """Read the bytes of a file other than a table; raises :class:`GradscopeError` if its content is damaged."""
    if path.name == AUDIT_JSON:
        Audits.parse(read_json(path))
    if path.name == EXAMPLE_IMAGES:
        read_example_images(path)
    try:
        with open_file(path) as file:
            require_memory(os.fstat(file.fileno()).st_size)
            return file.read()
    except (OSError, ValueError) as error:
        raise GradscopeError(f"directory: {path} cannot be read: {reason_of(error)}") from None


def read(directory: str | Path) -> Result:
    """Read back the files of a command or of :meth:`Result.save`; tables may be compressed.

    Raises :class:`GradscopeError` if ``directory`` does not hold the results of one measurement.
    """
    folder = given_path(directory, "directory")
    try:
        content = read_bytes(folder / MANIFEST)
        kind = parse_json(content)["kind"]
    except OSError as error:
        below = first_of(_below(folder))
        hint = f"; read the results of its sub-directories one by one: {below}" if below else ""
        raise GradscopeError(
            f"directory must hold {MANIFEST}, got {folder}: {error.strerror}{hint}", "directory"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GradscopeError(f"directory must hold a {MANIFEST} of gradscope, got {folder}", "directory") from None
    if not isinstance(kind, str) or kind not in KINDS:
        below = first_of(_below(folder))
        hint = f"; the results of a study are in {below}" if below else ""
        raise GradscopeError(f"directory must hold one measurement, got a {kind!s:.50}{hint}", "directory")
    tell_changes(folder, read_manifest(folder / MANIFEST)[1])
    files = {MANIFEST: content}
    for name in FILES:
        path = folder / name
        if name.endswith(".csv"):
            table = find_table(path)
            if table is not None:
                files[name] = file_content(table)
        elif not name.endswith(".gz") and path.exists():
            files[name] = _content(path)
    return KINDS[kind](files)

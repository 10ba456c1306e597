"""Audits as SARIF 2.1.0, which code scanning reads: what fired, on which model, and on what evidence.

The errors of a log are those that shut a gate: masking that was found, a set-up that is invalid, a claim that is
refuted. Checks that fired are warnings, what could not be decided is a note. A model of which nothing speaks against
its robustness has no result; its bound is in the properties of the run.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradscope
from gradscope.errors import GradscopeError
from gradscope.reading import read_json
from gradscope.results.audits import NONE_FOUND, AuditOf, Audits, MadeCheck
from gradscope.results.checks import MEANINGS, Meaning
from gradscope.results.files import write_json
from gradscope.results.manifest import MANIFEST, Examined, Manifest, read_manifest
from gradscope.results.schemas import AUDIT_JSON

Row = dict[str, Any]

#: The schema of the standard, with its errata.
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
#: What relative paths are relative to: the root of the repository, where the command ran.
ROOT = "%SRCROOT%"
VERDICT, CLAIM = "verdict", "claim"
_RULES = {
    VERDICT: Meaning("model", "the audit finds masking, cannot decide, or the set-up is invalid"),
    CLAIM: Meaning("claim", "the interval of the lowest robust accuracy lies below the one that is claimed"),
    **MEANINGS,
}
#: The level of a rule's results unless they say another.
_LEVELS = {VERDICT: "error", CLAIM: "error"}


class _Audited(NamedTuple):
    """One directory of an audit's results."""

    directory: Path
    manifest: Manifest
    audits: tuple[AuditOf, ...]


def write_sarif(directory: Path, path: Path) -> None:
    """Write the audits in ``directory`` and in its sub-directories to ``path`` as one SARIF log.

    Raises :class:`GradscopeError` where there is none, one is damaged, or ``path`` cannot be written.
    """
    write_json(path, sarif_log(audited_directories(directory)))


def audited_directories(directory: Path) -> list[Path]:
    """``directory`` and its sub-directories, those that hold an audit, by name."""
    folders = [directory, *(path.parent for path in sorted(directory.glob(f"[!.]*/{AUDIT_JSON}")))]
    found = [folder for folder in folders if (folder / AUDIT_JSON).exists()]
    if not found:
        raise GradscopeError(f"directory must hold an audit ({AUDIT_JSON}), or have sub-directories that do, got none")
    return found


def sarif_log(directories: Sequence[Path]) -> Row:
    """The audits in ``directories`` as one SARIF log with one run."""
    found = [_read(directory) for directory in directories]
    artifacts: dict[str, Row] = {}
    results = [result for one in found for result in _results(one, artifacts)]
    run = {
        "tool": {"driver": _driver()},
        "invocations": [_invocation(one.manifest) for one in found],
        "artifacts": list(artifacts.values()),
        "results": results,
        "properties": {"audits": [_summary(audit) for one in found for audit in one.audits]},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _read(directory: Path) -> _Audited:
    path = directory / MANIFEST
    manifest = read_manifest(path)[0] if path.exists() else Manifest()
    return _Audited(directory, manifest, Audits.parse(read_json(directory / AUDIT_JSON)).audits)


def _driver() -> Row:
    return {
        "name": "gradscope",
        "version": gradscope.__version__,
        "rules": [_rule(identifier, meaning) for identifier, meaning in _RULES.items()],
    }


def _rule(identifier: str, meaning: Meaning) -> Row:
    is_check = identifier in MEANINGS
    title = (
        f"Check {identifier} of the audit: {meaning.name}" if is_check else f"Verdict of the audit on a {meaning.name}"
    )
    fires = f"{identifier} fires when {meaning.fires}" if is_check else f"Reported when {meaning.fires}"
    return {
        "id": identifier,
        "name": "".join(word.capitalize() for word in meaning.name.replace("-", " ").split()),
        "shortDescription": {"text": title},
        "fullDescription": {"text": f"{fires}."},
        "help": {"text": f"{fires}. Each result says what to do next. `gradscope report` shows the evidence."},
        "defaultConfiguration": {"level": _LEVELS.get(identifier, "warning")},
        "properties": {"tags": ["adversarial-robustness"]},
    }


def _invocation(manifest: Manifest) -> Row:
    made = manifest.provenance
    found: Row = {"executionSuccessful": manifest.complete is not False}
    if made is not None and made.shell_command:
        found["commandLine"] = made.shell_command
    if made is not None and made.time:
        found["startTimeUtc"] = made.time.replace("+00:00", "Z")
    return found


def _summary(audit: AuditOf) -> Row:
    """What a gate reads of an audit without its checks."""
    whole = audit.model_dump(mode="json", include={"checkpoint", "verdict", "causes", "claim", "budget", "threat"})
    return whole | {
        "robustAccuracy": audit.robust_accuracy.model_dump(),
        "cleanAccuracy": audit.clean_accuracy.model_dump(),
    }


def _results(one: _Audited, artifacts: dict[str, Row]) -> Iterator[Row]:
    entries = {entry.label: entry for entry in one.manifest.checkpoints}
    for audit in one.audits:
        entry = entries.get(audit.checkpoint, Examined(label=audit.checkpoint))
        location = _location(one, entry, artifacts)
        for rule, level, text, properties in _findings(audit):
            yield {
                "ruleId": rule,
                "ruleIndex": list(_RULES).index(rule),
                "level": level,
                "message": {"text": text},
                "locations": [location],
                "partialFingerprints": {"primaryLocationLineHash": _fingerprint(rule, location, audit)},
                "properties": properties,
            }


def _findings(audit: AuditOf) -> Iterator[tuple[str, str, str, Row]]:
    """Rule, level, message and properties of everything that speaks against an audit's robust accuracy."""
    bound = _summary(audit)
    share = f"{_percent(audit.robust_accuracy.upper_bound)} {_interval(audit)} of {audit.robust_accuracy.n} images"
    most = f"At most {share} stay right ({audit.ball}, budget {audit.budget})."
    if audit.claim is not None and audit.claim.verdict != "not refuted within this budget":
        level = "error" if audit.refuted else "note"
        yield CLAIM, level, f"{audit.checkpoint}: {audit.of_claim}.", bound
    if audit.verdict != NONE_FOUND:
        level = "error" if audit.blocks else "note"
        yield VERDICT, level, f"{audit.checkpoint}: {audit.verdict_and_cause}. {_sentence(audit.reason)} {most}", bound
    for made in audit.checks:
        if made.state == "fired" and made.id in _RULES:
            yield made.id, "warning", f"{audit.checkpoint} ({audit.ball}): {_fired(made)}", _evidence(made)


def _fired(made: MadeCheck) -> str:
    """What a check that fired says: its numbers, what it saw, and what to do next."""
    numbers = [f"{made.value:.3g} {made.sign} {made.threshold:.3g}"] if None not in (made.value, made.threshold) else []
    numbers += [] if made.p_value is None else [f"p = {made.p_value:.2g}"]
    said = f"{made.id} {made.name} fired and {'accuses' if made.accuses else 'does not accuse'}"
    said += f" ({', '.join(numbers)})" if numbers else ""
    return f"{said}. {_sentence(made.cause)} Next: {_sentence(made.next_step)}"


def _evidence(made: MadeCheck) -> Row:
    return {
        "accuses": made.accuses,
        "value": made.value,
        "threshold": made.threshold,
        "firesBelow": made.sign == "<",
        "interval": None if made.ci_low is None else [made.ci_low, made.ci_high],
        "pValue": made.p_value,
        "n": made.n,
        "images": list(made.images),
    }


def _location(one: _Audited, entry: Examined, artifacts: dict[str, Row]) -> Row:
    """Where a model is: its file, or a foreign model's weights; of a model without a file the audit that found it.

    Code scanning shows a result on a line, so it is the first, though the file is binary.
    """
    file = entry.source if entry.config is not None else entry.weights
    uri = _uri(file or str(one.directory / AUDIT_JSON))
    digest = {"hashes": {"sha-256": entry.sha256}} if file and entry.sha256 else {}
    artifacts.setdefault(uri, {"location": {"uri": uri, "uriBaseId": ROOT}, "roles": ["analysisTarget"], **digest})
    whole = entry.source if entry.source and entry.config is None else entry.label
    place = {"uri": uri, "uriBaseId": ROOT, "index": list(artifacts).index(uri)}
    return {
        "physicalLocation": {"artifactLocation": place, "region": {"startLine": 1}},
        "logicalLocations": [{"name": entry.label, "fullyQualifiedName": whole, "kind": "module"}],
    }


def _uri(file: str) -> str:
    """The path relative to the working directory; of a file outside of it the name alone."""
    here = Path.cwd()
    path = Path(os.path.normpath(here / file))
    return quote((path.relative_to(here) if path.is_relative_to(here) else Path(path.name)).as_posix())


def _fingerprint(rule: str, location: Mapping[str, Any], audit: AuditOf) -> str:
    """The same for the same finding on the same model in every run, whatever the numbers are."""
    uri = location["physicalLocation"]["artifactLocation"]["uri"]
    whole = "\0".join((rule, uri, audit.checkpoint, audit.ball))
    return f"{hashlib.sha256(whole.encode()).hexdigest()[:16]}:1"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(audit: AuditOf) -> str:
    bound = audit.robust_accuracy
    return f"[{100 * bound.ci_low:.1f}, {100 * bound.ci_high:.1f}]"

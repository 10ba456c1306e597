"""Write audits as SARIF 2.1.0, which code scanning reads: the checks that fired, their models and their evidence.

Errors are the findings that make a gate fail: masking found, an invalid set-up, a refuted claim. Checks that fired are
warnings; an inconclusive verdict is a note. A model without a finding has no result; its bound is in the properties of
the run.
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
#: The base of relative paths: the root of the repository, where the command ran.
ROOT = "%SRCROOT%"
VERDICT, CLAIM = "verdict", "claim"
_RULES = {
    VERDICT: Meaning("model", "the audit finds masking, cannot decide, or the set-up is invalid"),
    CLAIM: Meaning("claim", "the interval of the lowest robust accuracy lies below the one that is claimed"),
    **MEANINGS,
}
#: The default level of a rule's results.
_LEVELS = {VERDICT: "error", CLAIM: "error"}


class _Audited(NamedTuple):
    """One directory of an audit's results."""

    directory: Path
    manifest: Manifest
    audits: tuple[AuditOf, ...]


def write_sarif(directory: Path, path: Path) -> None:
    """Write the audits in ``directory`` and in its sub-directories to ``path`` as one SARIF log.

    Raises :class:`GradscopeError` if there is none, one is damaged, or ``path`` cannot be written.
    """
    write_json(path, sarif_log(audited_directories(directory)))


def audited_directories(directory: Path) -> list[Path]:
    """List ``directory`` and its sub-directories that hold an audit, by name."""
    folders = [directory, *(path.parent for path in sorted(directory.glob(f"[!.]*/{AUDIT_JSON}")))]
    audited = [folder for folder in folders if (folder / AUDIT_JSON).exists()]
    if not audited:
        raise GradscopeError(f"directory must hold an audit ({AUDIT_JSON}), or have sub-directories that do, got none")
    return audited


def sarif_log(directories: Sequence[Path]) -> Row:
    """Make one SARIF log, with one run, from the audits in ``directories``."""
    audited = [_read(directory) for directory in directories]
    artifacts: dict[str, Row] = {}
    results = [result for part in audited for result in _results(part, artifacts)]
    run = {
        "tool": {"driver": _driver()},
        "invocations": [_invocation(part.manifest) for part in audited],
        "artifacts": list(artifacts.values()),
        "results": results,
        "properties": {"audits": [_summary(audit) for part in audited for audit in part.audits]},
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
    origin = manifest.provenance
    invocation: Row = {"executionSuccessful": manifest.complete is not False}
    if origin is not None and origin.shell_command:
        invocation["commandLine"] = origin.shell_command
    if origin is not None and origin.time:
        invocation["startTimeUtc"] = origin.time.replace("+00:00", "Z")
    return invocation


def _summary(audit: AuditOf) -> Row:
    """Collect the facts of an audit that a gate reads, without its checks."""
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
    """Yield rule, level, message and properties of every finding against an audit's robust accuracy."""
    bound = _summary(audit)
    share = f"{_percent(audit.robust_accuracy.upper_bound)} {_interval(audit)} of {audit.robust_accuracy.n} images"
    most = f"At most {share} stay right ({audit.ball}, budget {audit.budget})."
    if audit.claim is not None and audit.claim.verdict != "not refuted within this budget":
        level = "error" if audit.refuted else "note"
        yield CLAIM, level, f"{audit.checkpoint}: {audit.of_claim}.", bound
    if audit.verdict != NONE_FOUND:
        level = "error" if audit.blocks else "note"
        yield VERDICT, level, f"{audit.checkpoint}: {audit.verdict_and_cause}. {_sentence(audit.reason)} {most}", bound
    for check in audit.checks:
        if check.state == "fired" and check.id in _RULES:
            yield check.id, "warning", f"{audit.checkpoint} ({audit.ball}): {_fired(check)}", _evidence(check)


def _fired(check: MadeCheck) -> str:
    """Write the message of a check that fired: its numbers, its finding, and what to do next."""
    value, threshold = check.value, check.threshold
    numbers = [f"{value:.3g} {check.sign} {threshold:.3g}"] if None not in (value, threshold) else []
    numbers += [] if check.p_value is None else [f"p = {check.p_value:.2g}"]
    fired = f"{check.id} {check.name} fired and {'accuses' if check.accuses else 'does not accuse'}"
    fired += f" ({', '.join(numbers)})" if numbers else ""
    return f"{fired}. {_sentence(check.cause)} Next: {_sentence(check.next_step)}"


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
    """Locate a model: its file, or a foreign model's weights, or else its audit.

    Code scanning shows a result on a line, so the location is line 1, although the file is binary.
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
    """Return the path relative to the working directory; for a file outside of it only the name."""
    here = Path.cwd()
    path = Path(os.path.normpath(here / file))
    return quote((path.relative_to(here) if path.is_relative_to(here) else Path(path.name)).as_posix())


def _fingerprint(rule: str, location: Mapping[str, Any], audit: AuditOf) -> str:
    """Compute a fingerprint that is the same for the same finding on the same model in every run, for any numbers."""
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

"""Audits as SARIF: what the standard and code scanning ask of a log, and what stands in it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import gradscope
from gradscope.errors import GradscopeError
from gradscope.results.audits import Audits
from gradscope.results.files import write_json
from gradscope.results.sarif import audited_directories, sarif_log, write_sarif
from tests.synthetic import HOSTILE

TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
TEXT["additionalProperties"] = False


def closed(required: str, optional: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these keys alone; those that are not described hold anything."""
    names = [*required.split(), *optional.split()]
    inner = {name: properties.get(name, {}) for name in names}
    return {"type": "object", "properties": inner, "required": required.split(), "additionalProperties": False}


URI = {"type": "string", "format": "uri-reference", "pattern": "^[^/\\\\ :]+(/[^/\\\\ :]+)*$"}
WHOLE = {"type": "integer", "minimum": 0}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
PLACE = closed("uri uriBaseId index", uri=URI, uriBaseId={"const": "%SRCROOT%"}, index=WHOLE)
RULE = closed(
    "id name shortDescription fullDescription help defaultConfiguration properties",
    id={"type": "string", "maxLength": 255},
    name={"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
    defaultConfiguration=closed("level", level=LEVEL),
    **dict.fromkeys(("shortDescription", "fullDescription", "help"), TEXT),
)
RESULT = closed(
    "ruleId ruleIndex level message locations partialFingerprints properties",
    ruleId={"type": "string"},
    ruleIndex=WHOLE,
    level=LEVEL,
    message=TEXT,
    locations={
        "type": "array",
        "minItems": 1,
        "items": closed(
            "physicalLocation logicalLocations",
            physicalLocation=closed(
                "artifactLocation region",
                artifactLocation=PLACE,
                region=closed("startLine", startLine={"type": "integer", "minimum": 1}),
            ),
            logicalLocations={"type": "array", "items": closed("name fullyQualifiedName kind")},
        ),
    },
    partialFingerprints=closed("primaryLocationLineHash", primaryLocationLineHash={"pattern": "^[0-9a-f]{16}:1$"}),
)
#: What of SARIF 2.1.0 a log uses, and what code scanning needs of it.
SCHEMA = closed(
    "$schema version runs",
    version={"const": "2.1.0"},
    runs={
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": closed(
            "tool invocations artifacts results properties",
            tool=closed("driver", driver=closed("name version rules", rules={"type": "array", "items": RULE})),
            invocations={
                "type": "array",
                "items": closed(
                    "executionSuccessful",
                    "commandLine startTimeUtc",
                    executionSuccessful={"type": "boolean"},
                    startTimeUtc={"pattern": "^[0-9-]{10}T[0-9:]{8}Z$"},
                ),
            },
            artifacts={
                "type": "array",
                "uniqueItems": True,
                "items": closed(
                    "location roles",
                    "hashes",
                    location=closed("uri uriBaseId", uri=URI),
                    hashes=closed("sha-256"),
                ),
            },
            results={"type": "array", "items": RESULT},
        ),
    },
)
BOUND = {"upper_bound": 0.1, "ci_low": 0.05, "ci_high": 0.2, "n": 40}
FIRED = {"id": "N3", "name": "loss", "state": "fired", "accuses": True, "value": 0.3, "threshold": 0.005}
FIRED |= {"p_value": 1e-5, "cause": "another loss fools more", "next_step": "believe the lower", "images": [3, 5]}
BELOW = FIRED | {"id": "G1", "name": "geometry", "accuses": False, "value": 0.05, "threshold": 0.1, "p_value": None}
PASSED = FIRED | {"id": "X1", "name": "query", "state": "passed", "accuses": False}


def audited(name: str, verdict: str = "masking found", **others: Any) -> dict[str, Any]:
    return {
        "checkpoint": name,
        "verdict": verdict,
        "causes": ["saturation"] if verdict == "masking found" else [],
        "reason": "N3 fired; cause: saturation",
        "robust_accuracy": BOUND,
        "clean_accuracy": {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95},
        "under": {"pgd": 0.4},
        "threat": {"norm": "linf", "epsilon": 0.1, "box": True},
        "budget": "quick",
        "left_out": {},
        "checks": [FIRED, PASSED],
        **others,
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the results of an audit below the working directory; models are ours, at ``models/NAME.pt``."""
    monkeypatch.chdir(tmp_path)

    def write(*audits: dict[str, Any], folder: str = "results", **facts: Any) -> Path:
        ours = {"config": {}, "sha256": "ab12"}
        entries = [
            {"label": one["checkpoint"], "source": f"models/{one['checkpoint']}.pt"} | ours | facts for one in audits
        ]
        made = {"command": ["gradscope", "audit", "a b.pt"], "time": "2026-11-27T10:00:00+00:00"}
        directory = tmp_path / folder
        manifest = {"kind": "audit", "complete": True, "checkpoints": entries, "provenance": made}
        write_json(directory / "manifest.json", manifest)
        write_json(directory / "audit.json", {"schema": 1, "audits": list(audits)})
        return directory

    return write


def run_of(directory: Path) -> dict[str, Any]:
    """The one run of the log that is written, which fits the schema."""
    write_sarif(directory, Path("out.sarif"))
    log = json.loads(Path("out.sarif").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(log)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        for location in result["locations"]:
            place = location["physicalLocation"]["artifactLocation"]
            assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
    found: dict[str, Any] = run
    return found


def said(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(result["ruleId"], result["level"]) for result in run["results"]]


def test_masking_is_an_error_and_a_check_a_warning(write: Write) -> None:
    run = run_of(write(audited("rl", checks=[FIRED, BELOW, PASSED])))
    assert run["tool"]["driver"]["version"] == gradscope.__version__
    assert said(run) == [("verdict", "error"), ("N3", "warning"), ("G1", "warning")]
    verdict, loss, geometry = run["results"]
    assert verdict["message"]["text"] == (
        "rl: masking found: saturation. N3 fired; cause: saturation. "
        "At most 10.0 % [5.0, 20.0] of 40 images stay right (linf, epsilon 0.1, budget quick)."
    )
    assert verdict["properties"]["robustAccuracy"] == BOUND
    assert loss["message"]["text"] == (
        "rl (linf, epsilon 0.1): N3 loss fired and accuses (0.3 > 0.005, p = 1e-05). Another loss fools more. "
        "Next: Believe the lower."
    )
    assert (loss["properties"]["value"], loss["properties"]["pValue"]) == (0.3, 1e-5)
    assert loss["properties"]["images"] == [3, 5]
    assert "G1 geometry fired and does not accuse (0.05 < 0.1)." in geometry["message"]["text"]
    (location,) = loss["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "models/rl.pt"
    assert run["artifacts"][0]["hashes"] == {"sha-256": "ab12"}
    assert run["invocations"][0]["commandLine"] == "gradscope audit 'a b.pt'"


@pytest.mark.parametrize(
    ("verdict", "claim", "expected"),
    [
        ("none found within this budget", None, []),
        ("none found within this budget", "not refuted within this budget", []),
        ("none found within this budget", "refuted", [("claim", "error")]),
        ("inconclusive", None, [("verdict", "note")]),
        ("set-up invalid", "inconclusive", [("claim", "note"), ("verdict", "error")]),
    ],
)
def test_errors_are_what_shuts_a_gate(
    write: Write, verdict: str, claim: str | None, expected: list[tuple[str, str]]
) -> None:
    judged = {"claim": {"value": 0.5, "verdict": claim}} if claim else {}
    entry = audited("sl", verdict, checks=[PASSED], **judged)
    run = run_of(write(entry))
    assert said(run) == expected
    assert run["properties"]["audits"][0]["verdict"] == verdict
    assert run["properties"]["audits"][0]["robustAccuracy"] == BOUND
    (audit,) = Audits.parse({"schema": 1, "audits": [entry]}).audits
    assert (audit.blocks or audit.refuted) == any(level == "error" for _, level in expected)


@pytest.mark.parametrize(
    ("facts", "uri"),
    [
        ({"source": "a b/ü.pt"}, "a%20b/%C3%BC.pt"),
        ({"source": "./models/../rl.pt"}, "rl.pt"),
        ({"source": "../elsewhere/rl.pt"}, "rl.pt"),
        ({"source": "/elsewhere/rl.pt"}, "rl.pt"),
        ({"source": "timm:vit", "config": None, "weights": "w/vit.safetensors"}, "w/vit.safetensors"),
        ({"source": "lib:make", "config": None, "sha256": None}, "results/audit.json"),
        ({"source": None, "config": None, "sha256": None}, "results/audit.json"),
    ],
)
def test_a_result_lies_at_the_models_file(write: Write, facts: dict[str, Any], uri: str) -> None:
    run = run_of(write(audited("rl"), **facts))
    location = run["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == uri
    foreign = facts.get("config", {}) is None and facts["source"]
    assert location["logicalLocations"][0]["fullyQualifiedName"] == (facts["source"] if foreign else "rl")


def test_a_file_in_the_working_directory_is_relative_to_it(write: Write) -> None:
    run = run_of(write(audited("rl"), source=str(Path.cwd() / "deep" / "rl.pt")))
    assert run["artifacts"][0]["location"]["uri"] == "deep/rl.pt"


def test_a_finding_keeps_its_fingerprint_and_shares_it_with_none(write: Write) -> None:
    def marks(directory: Path) -> list[str]:
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in run_of(directory)["results"]]

    first = marks(write(audited("rl")))
    again = audited("rl", robust_accuracy=BOUND | {"upper_bound": 0.15}, checks=[FIRED | {"value": 0.4, "cause": "x"}])
    assert marks(write(again)) == first
    wider = audited("rl", threat={"norm": "linf", "epsilon": 0.2})
    both = marks(write(audited("rl"), audited("sl"))) + marks(write(wider))
    assert len(set(both)) == len(both) == 6
    assert both[:2] == first


def test_audits_below_are_one_run(write: Write) -> None:
    write(audited("rl"), folder="study/audit-a")
    root = write(audited("sl"), folder="study/audit-b").parent
    run = run_of(root)
    assert [audit["checkpoint"] for audit in run["properties"]["audits"]] == ["rl", "sl"]
    assert len(run["invocations"]) == 2
    with pytest.raises(GradscopeError, match="directory must hold an audit"):
        write_sarif(root / "audit-a" / "figures", Path("out.sarif"))


def test_hostile_names_stay_text(write: Write) -> None:
    run = run_of(write(audited(HOSTILE[0], checks=[FIRED | {"cause": HOSTILE[1]}])))
    assert run["results"][0]["message"]["text"].startswith(HOSTILE[0])


def test_an_audit_without_a_manifest_is_written(write: Write) -> None:
    directory = write(audited("rl"))
    (directory / "manifest.json").unlink()
    assert run_of(directory)["artifacts"][0]["location"]["uri"] == "results/audit.json"


def test_every_log_fits_the_standards_own_schema(write: Write) -> None:
    """SARIF_SCHEMA names a copy of sarif-schema-2.1.0.json, of github.com/oasis-tcs/sarif-spec."""
    if not (path := os.environ.get("SARIF_SCHEMA")):
        pytest.skip("no schema: SARIF_SCHEMA names none")
    validator = jsonschema.Draft4Validator(json.loads(Path(path).read_text()))
    validator.validate(sarif_log(audited_directories(write(audited("rl"), audited("sl", "inconclusive")))))
    for found in Path(__file__).parents[2].glob("reports/**/audit.json"):
        validator.validate(sarif_log([found.parent]))

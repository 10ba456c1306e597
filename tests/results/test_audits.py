"""The published schema of ``audit.json``: made from the types that read it, and what audits write fits it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.auditing.checks import CHECKS
from gradscope.results.audits import Audits, json_schema
from gradscope.results.checks import MEANINGS

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path for path in ROOT.glob("reports/**/audit.json"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def keys_of(value: Any) -> set[str]:
    """Every key of the objects in ``value`` but those of the maps from an attack, or a part of a model."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    maps = ("under", "left_out", "backward")
    return set(value).union(*(keys_of(inner) for key, inner in value.items() if key not in maps))


def described() -> set[str]:
    schema = json_schema()
    return set().union(*(part["properties"] for part in (schema, *schema["$defs"].values())))


def test_the_published_copy_is_that_of_the_types() -> None:
    """`gradscope audit --schema > docs/schemas/audit.schema.json` makes it anew."""
    published = (ROOT / "docs" / "schemas" / "audit.schema.json").read_text()
    assert published == json.dumps(json_schema(), indent=2) + "\n"
    VALIDATOR.check_schema(json.loads(published))


def test_every_key_says_what_it_holds() -> None:
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["description"]
        assert [key for key, one in part["properties"].items() if not one.get("description")] == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_published_audits_fit_the_schema(path: Path) -> None:
    document = json.loads(path.read_text())
    VALIDATOR.validate(document)
    assert keys_of(document) <= described()


@pytest.mark.filterwarnings("ignore:.*the output is not random")
@pytest.mark.usefixtures("little_work")
def test_a_written_audit_fits_the_schema() -> None:
    x = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    nn.init.eye_(model[1].weight).data.mul_(5)
    adapted = {"draws": 2, "loss": lambda logits, _: -logits.amax(dim=1), "backward": {"1": "identity"}}
    given = {"norm": "linf", "epsilon": 0.1, "budget": "quick", "claim": 0.5}
    report = gs.audit(model, x, x.flatten(1).argmax(dim=1), **given, **adapted)
    document = json.loads(report.files["audit.json"])
    VALIDATOR.validate(document)
    assert keys_of(document) == described()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("audits", 0, "verdict"), "robust"),
        (("audits", 0, "robust_accuracy", "upper_bound"), 1.5),
        (("audits", 0, "robust_accuracy", "n"), 0),
        (("audits", 0, "checks", 0, "state"), "failed"),
        (("audits", 0, "under", "pgd"), -0.1),
        (("audits", 0, "reason"), None),
    ],
)
def test_what_the_reader_refuses_does_not_fit(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(PUBLISHED[0].read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(document)
    with pytest.raises(ValueError, match=r"audit\.json is damaged"):
        Audits.parse(document)


def test_every_check_has_a_meaning_and_its_name() -> None:
    assert list(MEANINGS) == list(CHECKS)
    found = {
        made["id"]: made["name"]
        for path in PUBLISHED
        for audit in json.loads(path.read_text())["audits"]
        for made in audit["checks"]
    }
    assert found
    assert {identifier: MEANINGS[identifier].name for identifier in found} == found

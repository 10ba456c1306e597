"""The robustness card: numbers of the files, text that stays text, metadata that the Hub reads."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from gradscope.errors import GradscopeError
from gradscope.reporting.card import card, write_card
from gradscope.results.audits import NO_PROOF
from gradscope.results.files import write_json
from gradscope.results.schemas import ATTACKS, SUMMARY
from gradscope.results.tables import write_table
from tests.synthetic import HOSTILE, MakeResults, write_study

ROOT = Path(__file__).parents[2]


def front(text: str) -> dict[str, Any]:
    """The metadata at the top of a card."""
    _, block, _ = text.split("---\n", 2)
    found: dict[str, Any] = YAML(typ="safe").load(block)
    return found


def rows(text: str) -> dict[str, str]:
    """The two-column rows of the card's tables."""
    return dict(re.findall(r"^\| ([^|]+) \| ((?:[^|\\]|\\.)+) \|$", text, re.M))


def audit(name: str, **others: Any) -> dict[str, Any]:
    fired = {"id": "N1", "name": "dead gradients", "state": "fired", "accuses": False, "value": 0.1, "threshold": 0.01}
    abstained = fired | {"id": "X2", "name": "transfer", "state": "abstained", "value": None}
    return {
        "checkpoint": name,
        "verdict": "none found within this budget",
        "causes": [],
        "reason": "no outcome speaks against these attacks",
        "robust_accuracy": {"upper_bound": 0.125, "ci_low": 0.05, "ci_high": 0.25, "n": 40},
        "clean_accuracy": {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95},
        "under": {"pgd": 0.4},
        "threat": {"norm": "l2", "epsilon": 1.0, "box": True},
        "budget": "quick",
        "left_out": {"fab": "costs more than this budget allows"},
        "checks": [fired | {"cause": "tiny", "next_step": "attack"}, abstained | {"cause": "none", "next_step": "-"}],
        "claim": {"value": 0.5, "verdict": "refuted"},
        **others,
    }


def identity(attack: str) -> dict[str, Any]:
    return {"checkpoint": "rl", "mode": "rl", "dataset": "digits", "arch": "cnn2", "seed": 0, "attack": attack}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Directories of an audit, an attack and an analysis of one model, in different balls and on other images."""
    config = {"mode": "rl", "architecture": "cnn2", "seed": 3, "phases": [{"epochs": 2}, {"epochs": 3}]}
    config["phases"][1]["adversary"] = {"method": "pgd", "norm": "linf", "epsilon": 0.1}
    entry = {"label": "rl", "source": "rl.pt", "config": config, "fingerprint": "f1", "sha256": "ab12"}
    entry |= {"trained": {"command": ["gradscope", "train", "--out", "a `b.pt"]}}
    parts: dict[str, dict[str, Any]] = {
        "audit": {"pgd": {"meaning": "PGD on cross-entropy"}, "fab": {"meaning": "left out"}},
        "attack": {"pgd": {"meaning": "PGD on cross-entropy"}},
        "analysis": {
            "pgd": {"norm": "l2", "epsilon": 1.0, "steps": 20, "box": True},
            "pgd-paper": {"norm": "l2", "epsilon": 1.0, "steps": 20, "box": False},
        },
    }
    for kind, attacks in parts.items():
        data = {"name": "digits", "split": "test", "images": {"audit": 40}.get(kind, 100), "of": 359}
        made = {"gradscope": "0.1.0", "python": "3.12", "command": ["gradscope", kind.replace("analysis", "analyze")]}
        manifest = {"kind": kind, "attacks": attacks, "checkpoints": [entry | {"data": data}], "provenance": made}
        write_json(tmp_path / kind / "manifest.json", manifest)
    write_json(tmp_path / "audit" / "audit.json", {"schema": 1, "audits": [audit("rl")]})
    share = {"unit": "-", "ci_low": 0.1, "ci_high": 0.3, "n": 100, "subset": "all"}
    table = [
        identity(attack) | share | {"norm": "l2", "epsilon": epsilon, "metric": metric, "value": value}
        for epsilon, left in ((1.0, 0.2), (0.5, 0.6))
        for attack, metric, value in (
            ("none", "accuracy", 0.85),
            ("fgsm", "robust-accuracy", left + 0.1),
            ("pgd", "robust-accuracy", left),
        )
    ]
    write_table(tmp_path / "attack" / ATTACKS.file, ATTACKS, table)
    ball = {"norm": "l2", "epsilon": 1.0}
    summary = [
        identity(attack) | share | ball | {"subset": subset, "metric": "accuracy", "value": value}
        for attack, subset, value in (
            ("pgd", "clean/all", 0.85),
            ("pgd", "worst/all", 0.3),
            ("pgd-paper", "worst/all", 0.01),
        )
    ]
    write_table(tmp_path / "analysis" / SUMMARY.file, SUMMARY, summary)
    return tmp_path


def test_each_ball_has_the_lowest_bound_of_all_parts(results: Path) -> None:
    """The paper's attack leaves the box, so that what it leaves is no bound in the ball."""
    text = card(results)
    found = rows(text)
    assert (
        found["Robust accuracy, l2, epsilon 1"] == "at most 12.5 % [5.0, 25.0] of 40 images under audit, budget quick"
    )
    assert found["Robust accuracy, l2, epsilon 0.5"] == "at most 60.0 % [10.0, 30.0] of 100 images under fgsm, pgd"
    assert found["Clean accuracy"] == "85.0 % [10.0, 30.0] of 100 images"
    assert found["Model"] == "cnn2, trained as rl, seed 3, 5 epochs, against PGD in linf 0.1"
    assert found["Data"] == "digits, 100 of 359 images of the test split"
    assert found["SHA-256 of the weights"] == "`ab12`"
    assert text.count("\n## rl\n") == 1


def test_the_metadata_has_the_same_numbers(results: Path) -> None:
    (model,) = front(card(results))["model-index"]
    (result,) = model["results"]
    assert model["name"] == "rl"
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    clean, narrow, wide = result["metrics"]
    assert (clean["type"], clean["value"]) == ("accuracy", 0.85)
    assert (narrow["value"], narrow["args"]) == (0.6, {"norm": "l2", "epsilon": 0.5})
    assert (wide["value"], wide["args"]) == (0.125, {"norm": "l2", "epsilon": 1})
    assert wide["name"] == "Robust accuracy, upper bound (l2, epsilon 1)"


def test_the_hub_reads_the_metadata(results: Path) -> None:
    hub = pytest.importorskip("huggingface_hub.repocard_data")
    name, found = hub.model_index_to_eval_results(front(card(results))["model-index"])
    assert name == "rl"
    assert [one.metric_value for one in found] == [0.85, 0.6, 0.125]


def test_verdict_claim_checks_and_limits_are_said(results: Path) -> None:
    text = card(results)
    assert "**Audit (l2, epsilon 1, budget quick): no masking found within this budget.** No outcome speaks" in text
    assert "**Claim of 50 % refuted: at most 12.5 % \\[5.0, 25.0\\] of 40 images " in text
    assert "- N1 dead gradients (does not accuse): Tiny. Next: Attack." in text
    assert "Checks that could not be made: X2 transfer (none)." in text
    assert "| pgd | PGD on cross-entropy | 40.0 % |" in text
    assert "| fab |" not in text
    assert "Not run: fab (costs more than this budget allows)." in text
    assert f"{NO_PROOF[:1].upper()}{NO_PROOF[1:]}." in text
    assert "```sh\ngradscope train --out 'a `b.pt'\ngradscope analyze" in text


def test_a_set_up_that_is_invalid_bounds_nothing(results: Path) -> None:
    entry = audit("rl", verdict="set-up invalid", reason="chance")
    write_json(results / "audit" / "audit.json", {"schema": 1, "audits": [entry]})
    text = card(results)
    assert "set-up invalid" in text
    assert rows(text)["Robust accuracy, l2, epsilon 1"].startswith("at most 20.0 %")


def test_an_interrupted_run_and_a_share_of_no_image_are_told(results: Path) -> None:
    path = results / "analysis" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    table = (
        (results / "attack" / "attacks.csv")
        .read_text()
        .replace("robust-accuracy,all,-,0.6,", "robust-accuracy,all,-,nan,")
    )
    (results / "attack" / "attacks.csv").write_text(table)
    text = card(results)
    assert "- Some of these results are incomplete: a run was interrupted." in text
    assert "epsilon 0.5" not in text


def test_one_name_with_two_files_is_two_models(results: Path) -> None:
    path = results / "attack" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoints"][0]["fingerprint"] = "f2"
    path.write_text(json.dumps(manifest))
    assert card(results).count("\n## rl\n") == 2


def test_what_was_measured_in_python_has_no_command(results: Path) -> None:
    path = results / "audit" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["command"] = ["gradscope", "-q", "tests/"]
    manifest["options"] = {"norm": "l2", "epsilon": 1.0, "draws": None, "budget": {"steps": 20}}
    path.write_text(json.dumps(manifest))
    text = card(results)
    assert "gradscope -q" not in text
    assert "- The audit was measured from Python with these options: norm l2, epsilon 1.0" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    text = card(write_study(tmp_path / "study"))
    names = [one["name"] for one in front(text)["model-index"]]
    assert names == list(HOSTILE)
    page = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert not re.search(r"<(script|img|!--)", page)
    assert [html.unescape(name) for name in re.findall("<h2>(.*)</h2>", page)][:2] == list(HOSTILE)
    for table in re.findall("<table>.*?</table>", page, re.S):
        assert len({row.count("</t") for row in re.findall("<tr>.*?</tr>", table, re.S)}) == 1
    assert html.escape(HOSTILE[0], quote=False) in page


def test_published_results_have_cards(tmp_path: Path) -> None:
    text = card(ROOT / "reports" / "cifar10-small")
    found = front(text)["model-index"]
    assert len(found) == 10
    audits = json.loads((ROOT / "reports" / "cifar10-small" / "audit" / "audit.json").read_text())["audits"]
    bounds = {one["checkpoint"]: one["robust_accuracy"]["upper_bound"] for one in audits}
    for model in found:
        values = [
            one["value"] for one in model["results"][0]["metrics"] if one.get("args") == {"norm": "l2", "epsilon": 1}
        ]
        assert all(value <= bounds.get(model["name"], 1.0) for value in values)
        assert bool(values) >= (model["name"] in bounds)


def test_the_card_lies_in_the_directory(results: Path, tmp_path: Path, make_results: MakeResults) -> None:
    path = write_card(results)
    assert path == results / "card.md"
    assert path.read_text() == card(results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradscopeError, match="directory must hold results of an audit, an attack or an analysis"):
        write_card(tmp_path / "empty")
    with pytest.raises(GradscopeError, match="directory must hold results"):
        write_card(make_results())

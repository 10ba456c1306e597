"""Sentences of a page: they say what the rows say."""

import json
import math

import pandas as pd
import pytest

from gradscope.reporting import sentences
from gradscope.reporting.contents import read_contents
from gradscope.reporting.headline import headline
from gradscope.reporting.sentences import claims_in_words, digits, listed, spread
from gradscope.reporting.tables import whole_percent
from gradscope.results.schemas import AUDIT_JSON, CLAIMS, CURVE, SAMPLES, SCALE, SUMMARY, TRANSFER
from gradscope.results.tables import read_table, write_table
from tests.synthetic import HOSTILE, SHARE, named

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "a", "c"], "a, b and c"),
        (list("abcdefgh"), "a, b, c, d, e, f and 2 more"),
    ],
)
def test_names_are_listed_as_in_a_sentence(names, said):
    assert listed(names) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"a": math.nan}, ""),
        ({"a": 0.5}, "0.5"),
        ({"a": 0.5, "b": 0.501}, "0.5 for every model"),
        ({"a": 0.5, "b": 0.2}, "0.2 (b) and 0.5 (a)"),
        ({"a": 0.5, "b": 0.2, "c": 300, "d": math.nan}, "0.2 (b) to 300 (c)"),
    ],
)
def test_values_of_models_are_said_by_their_ends(values, said):
    assert spread(values, digits) == said


@pytest.mark.parametrize(("value", "said"), [(0.786, "79"), (0.0, "0"), (0.004, "0.4"), (0.01, "1"), (1.0, "100")])
def test_a_share_is_whole_where_it_can_be(value, said):
    assert whole_percent(value) == f"{said}{SPACE}%"


def part_of(root, name):
    return next(part for part in read_contents(root).parts if part.name == name)


def plain(text: str) -> str:
    return text.replace(SPACE, " ")


def test_a_transfer_that_beats_a_models_own_examples_is_called_a_sign(make_study):
    root = make_study("transfer")
    path = root / "transfer" / TRANSFER.file
    rows = read_table(path, TRANSFER)
    rows.loc[rows["source"] == rows["checkpoint"], "accuracy"] = 0.3
    write_table(path, TRANSFER, rows.to_dict("records"))
    said = plain(sentences.transfer(part_of(root, "transfer")))
    assert said.endswith("Every model is fooled most by its own examples.")
    rows.loc[(rows["source"] == HOSTILE[1]) & (rows["checkpoint"] == HOSTILE[0]), "accuracy"] = 0.1
    write_table(path, TRANSFER, rows.to_dict("records"))
    said = plain(sentences.transfer(part_of(root, "transfer")))
    assert f"those of {HOSTILE[1]} on {HOSTILE[0]}: they leave 10 % right; its own leave 30 %." in said
    assert said.endswith(f"more harm than its own to {HOSTILE[0]}: a sign of masking.")


def test_scale_and_distance_say_the_largest_change_and_the_median(make_study):
    root = make_study("attack")
    common = named("sl", "pgd") | {"norm": "l2", "epsilon": 1.0}
    rows = [
        common | {"temperature": t, "fitted": 0, "steps": 5, "metric": "robust-accuracy", "unit": "-", "n": 32} | SHARE
        for t in (0.01, 1.0, 100.0)
    ]
    for row, value in zip(rows, (0.9, 0.1, 0.3), strict=True):
        row["value"] = value
    write_table(root / "attack" / SCALE.file, SCALE, rows)
    curve = [common | {"epsilon": e, "value": v, "n": 40} | SHARE for e, v in ((0.0, 0.9), (0.2, 0.5), (0.7, 0.1))]
    write_table(root / "attack" / CURVE.file, CURVE, curve)
    assert plain(sentences.scale_and_distance(part_of(root, "attack"))) == (
        "Dividing the logits of sl by 0.01 changes no prediction, yet pgd then leaves 90 % of the images right instead "
        "of 10 %. Half of the images are fooled within a distance (l2) of 0.2."
    )


def test_trajectories_say_accuracies_cosine_and_the_median_norm(make_study):
    root = make_study("analysis")
    common = {"label": 0, "metric": "norm", "point": "clean", "unit": "nats per unit pixel range"}
    norms = [
        named(name, "pgd") | common | {"index": index, "value": value}
        for name, values in zip(HOSTILE, ((1e-9, 2e-9, 4.0), (1.0, 3.0, 5.0)), strict=True)
        for index, value in enumerate(values)
    ]
    write_table(root / "analysis" / SAMPLES.file, SAMPLES, norms)
    assert plain(sentences.trajectories(part_of(root, "analysis"))) == (
        "Accuracy under pgd 2 % for every model; under pgd-paper 40 % for every model. "
        f"At the clean images the median gradient norm is 2e-09 ({HOSTILE[0]}) and 3 ({HOSTILE[1]})."
    )


def test_claims_are_counted_by_whose_they_are():
    rows = pd.DataFrame(
        [
            {"claim": "C1", "verdict": "supported", "statistic": "accuracy under the paper's attack (pgd-paper)"},
            {"claim": "C1", "verdict": "not supported", "statistic": "accuracy under exact PGD (pgd)"},
            {"claim": "C2", "verdict": "not tested", "statistic": "clean accuracy"},
            {"claim": "H1", "verdict": "supported", "statistic": "margin"},
        ]
    )
    assert claims_in_words(rows) == (
        "The paper's main claim (C1) holds under its own attack, but fails under the exact one; "
        "1 of 2 tests of the paper's claims (C) hold; 1 of 1 tests of the rival explanation, the attack's arithmetic "
        "(H), hold."
    )
    assert claims_in_words(rows[rows["claim"] == "C2"]) == "No claim was tested: measurements are missing."


def change_audits(root, change):
    path = root / "audit" / AUDIT_JSON
    content = json.loads(path.read_text())
    for audit in content["audits"]:
        change(audit)
    path.write_text(json.dumps(content))


def test_the_finding_is_masking_where_no_attack_is_compared(make_study):
    root = make_study("audit")
    found = headline(read_contents(root))
    assert plain(found.finding) == (
        f"{HOSTILE[0]} masks its gradients (saturation): at most 10 % of its images are robust, although pgd leaves "
        f"40 %. The same holds for {HOSTILE[1]}."
    )
    assert found.tone == "accuses"


def test_a_refuted_claim_is_the_finding(make_study):
    root = make_study("audit")
    change_audits(root, lambda audit: audit.update(claim={"value": 0.55, "verdict": "refuted"}))
    found = headline(read_contents(root))
    assert plain(found.finding).startswith(f"The claim that {HOSTILE[0]} keeps 55 % is refuted: at most 10 % of 40")


def test_no_masking_is_said_with_the_bound_and_no_more(make_study):
    root = make_study("audit")
    change_audits(root, lambda audit: audit.update(verdict="none found within this budget", causes=[], checks=[]))
    found = headline(read_contents(root))
    assert found.finding == (
        "No gradient masking found within this budget. At most 10.0 % [5.0, 20.0] of the images of any model stay "
        "right."
    )
    assert found.steps == [
        "Audit again with --budget standard or full before you claim robustness: a larger budget may fool more."
    ]


def test_nothing_is_found_where_the_intervals_overlap(make_study):
    root = make_study("analysis")
    path = root / "analysis" / SUMMARY.file
    rows = read_table(path, SUMMARY)
    rows.loc[(rows["attack"] == "pgd-paper") & (rows["subset"] == "worst/all"), ["value", "ci_low"]] = [0.04, 0.03]
    write_table(path, SUMMARY, rows.to_dict("records"))
    assert "arithmetic" not in headline(read_contents(root)).finding


def test_a_page_of_claims_alone_says_how_they_came_out(make_study):
    root = make_study("attack")
    table = read_table(root / CLAIMS.file, CLAIMS)
    for path in (root / "attack").iterdir():
        path.unlink()
    (root / "attack").rmdir()
    assert headline(read_contents(root)).finding == claims_in_words(table)

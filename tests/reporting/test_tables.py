"""Tables for reading: what stands in their cells, and what the cells sort by."""

import json
import math

import pandas as pd
import pytest

from gradscope.reporting.contents import read_contents
from gradscope.reporting.headline import _of_bounds, headline
from gradscope.reporting.models import Ball, Rate, ReportedModel, UnderAttack, main_ball, models, models_table
from gradscope.reporting.tables import (
    attacks_table,
    claims_table,
    count,
    number,
    share,
    similarity_table,
    statements_table,
    transfer_table,
    words,
)
from gradscope.results.schemas import ATTACKS, CLAIMS, SIMILARITY, SUMMARY, TRANSFER
from gradscope.results.tables import read_table, write_table
from tests.synthetic import HOSTILE


def texts(table):
    return [[f"{cell.text} {cell.aside}".strip() for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    ("cell", "text", "aside", "key"),
    [
        (share(0.134, 0.107, 0.167), "13.4 %", "[10.7, 16.7]", "0.134"),
        (share(0.5, math.nan, math.nan, "n = 40"), "50.0 %", "n = 40", "0.5"),
        (share(None), "\N{EN DASH}", "", ""),
        (share(math.nan), "\N{EN DASH}", "", ""),
        (
            number(-0.00123456, "nats", -0.002, 0.0),
            "\N{MINUS SIGN}0.00123 nats",
            "[\N{MINUS SIGN}0.002, 0]",
            "-0.00123456",
        ),
        (number(1234.5, "-"), "1.23e+03", "", "1234.5"),
        (number(math.inf), "inf", "", ""),
        (count(12345), "12,345", "", "12345.0"),
        (words(pd.NA), "\N{EN DASH}", "", ""),
        (words(""), "\N{EN DASH}", "", ""),
        (words("<b>"), "<b>", "", ""),
    ],
)
def test_a_cell_says_what_it_holds(cell, text, aside, key):
    assert (cell.text, cell.aside, cell.sorts_by) == (text, aside, key)


def test_the_papers_figure_stands_beside_ours(study):
    table = claims_table(read_table(study / CLAIMS.file, CLAIMS))
    names = [heading.text for heading in table.headings]
    tested, untested = (dict(zip(names, row, strict=True)) for row in texts(table))
    assert tested["Effect"] == "\N{MINUS SIGN}2.5 points [\N{MINUS SIGN}4, \N{MINUS SIGN}1]"
    assert tested["Over seeds"] == "[\N{MINUS SIGN}3, \N{MINUS SIGN}2]"
    assert tested["Paper"] == "+38.5"
    assert tested["Images"] == "40 \N{MULTIPLICATION SIGN} 3"
    assert tested["Test"] == "RL minus SL predicted above 0; digits, cnn2"
    assert {untested[name] for name in ("Effect", "Over seeds", "Paper", "p", "Images")} == {"\N{EN DASH}"}
    assert (untested["Verdict"], untested["Test"]) == ("not tested", "\N{EN DASH}")


def test_each_claim_stands_once_with_its_verdicts(study):
    claims = read_table(study / CLAIMS.file, CLAIMS)
    again = pd.concat([claims, claims.assign(verdict="supported"), claims.iloc[:1]])
    assert [row[2:] for row in texts(statements_table(again))] == [["1", "2", "0"], ["1", "0", "1"]]
    assert [row[0].text for row in statements_table(again).rows] == ["C1", "C2"]


def test_an_attack_has_its_accuracy_alone_so_far_and_its_cost(study):
    table = attacks_table(read_table(study / "attack" / ATTACKS.file, ATTACKS))
    clean, pgd, *_ = texts(table)
    assert clean[2:] == ["clean", "90.0 % [30.0, 70.0], of all", *["\N{EN DASH}"] * 5]
    assert pgd[1:] == ["linf 0.1", "pgd", "55.0 % [30.0, 70.0]", "50.0 % [30.0, 70.0]", "36", "10", "9", "\N{EN DASH}"]


def test_transfer_is_a_matrix(study):
    table = transfer_table(read_table(study / "transfer" / TRANSFER.file, TRANSFER))
    assert [row[0].text for row in table.rows] == ["clean images", *(heading.text for heading in table.headings[1:])]
    assert table.rows[1][2].text == "50.0 %"


def test_similarity_is_a_matrix_with_the_curvatures_below(study):
    table = similarity_table(read_table(study / "transfer" / SIMILARITY.file, SIMILARITY))
    assert [row[0].text for row in table.rows] == [*(one.text for one in table.headings[1:]), "relative curvature"]
    assert [row[1].text for row in table.rows] == ["1", "0.25", "12.5"]


def test_a_model_is_one_row_whatever_parts_it_is_in(study):
    found = models(read_contents(study))
    assert len(found) == 2
    table = models_table(found)
    names = [heading.text for heading in table.headings]
    assert names == ["Model", "Mode", "Clean", "Paper's attack", "Exact PGD", "At most robust", "Audit"]
    row = dict(zip(names, texts(table)[0], strict=True))
    assert row["Clean"] == "90.0 % [88.0, 92.0]"
    assert row["Paper's attack"] == "40.0 % [38.0, 42.0]"
    assert row["Exact PGD"] == "2.0 % [0.0, 4.0]"
    assert row["At most robust"] == "2.0 % [0.0, 4.0], n = 40, pgd"
    assert row["Audit"] == "masking found saturation; budget quick"


def under(attack: str, value: float, ball: Ball, *, n: int = 100, is_bound: bool = True) -> UnderAttack:
    return UnderAttack(attack, ball, "", Rate(value, max(0, value - 0.1), value + 0.1, n), is_bound)


def test_the_bound_is_the_lowest_that_holds_in_the_ball():
    ball = Ball("l2", 1.0)
    model = ReportedModel("sl", "sl", "digits", "cnn2", "0")
    model.under = [
        under("pgd", 0.3, ball),
        under("square", 0.2, Ball("l2", 0.5)),
        under("pgd", 0.0, Ball("l2", 2.0)),
        under("pgd", 0.0, Ball("linf", 1.0)),
        under("pgd-paper", 0.1, ball, is_bound=False),
    ]
    found = model.lowest(ball)
    assert found is not None
    assert (found.attack, found.rate.value) == ("square", 0.2), "an example of a smaller ball lies in the larger one"
    model.curve = [under("fmn", 0.15, Ball("l2", 0.99)), under("fmn", 0.05, Ball("l2", 1.01))]
    found = model.lowest(ball)
    assert found is not None
    assert (found.attack, found.rate.value) == ("fmn", 0.15)


def test_attacks_together_bound_with_the_papers_attack_among_them(make_study):
    """An evaluation cuts every attack's points to the box; a path of the paper's attack leaves it."""
    root = make_study("attack", "analysis")
    path = root / "attack" / ATTACKS.file
    rows = read_table(path, ATTACKS).replace({"attack": {"pgd": "pgd-paper"}})
    write_table(path, ATTACKS, rows.to_dict("records"))
    model = models(read_contents(root))[0]
    found = model.lowest(Ball("linf", 0.1))
    assert found is not None
    assert (found.attack, found.rate.value) == ("pgd-paper", 0.5)
    assert [one.is_bound for one in model.under if one.attack == "pgd-paper" and one.part == "analysis"] == [False]


def test_an_audit_of_an_invalid_set_up_bounds_nothing(make_study):
    root = make_study("audit")
    path = root / "audit" / "audit.json"
    path.write_text(path.read_text().replace("masking found", "set-up invalid"))
    contents = read_contents(root)
    assert [model.lowest(Ball("linf", 0.1)) for model in models(contents)] == [None, None]
    assert "bound nothing" in headline(contents).finding


def test_models_that_differ_in_scale_share_their_bounds(make_study):
    root = make_study("analysis")
    path = root / "analysis" / "manifest.json"
    content = json.loads(path.read_text())
    content["checkpoints"][1]["config"] |= {"logit_factor": 10.0, "mode": "rl"}
    path.write_text(json.dumps(content))
    summary = root / "analysis" / SUMMARY.file
    rows = read_table(summary, SUMMARY)
    lower = (rows["checkpoint"] == HOSTILE[0]) & (rows["subset"] == "worst/all") & (rows["attack"] == "pgd")
    rows.loc[lower, ["value", "ci_low"]] = 0.01
    write_table(summary, SUMMARY, rows.to_dict("records"))
    original, scaled = models(read_contents(root))
    ball = main_ball([original, scaled])
    assert ball is not None
    found = scaled.lowest(ball)
    assert found is not None
    assert (found.attack, found.rate.value) == (f"pgd on {HOSTILE[0]}", 0.01)
    assert HOSTILE[1] not in _of_bounds([original, scaled], ball)[0], "a scaled model is no other model"


def test_one_label_with_two_files_is_two_models(make_study):
    root = make_study("attack", "transfer")
    path = root / "transfer" / "manifest.json"
    path.write_text(path.read_text().replace("08319e5414557ab6", "feedfacefeedface"))
    found = models(read_contents(root))
    assert [model.sha256[:4] for model in found] == ["0831", "1831", "feed"]
    path.unlink()
    assert len(models(read_contents(root))) == 2

import math

import pytest

from gradscope.claims.effects import Effect
from gradscope.claims.verdicts import ABOVE, BELOW, EITHER, STATEMENTS, Direction, Finding, rows, shown
from gradscope.results.schemas import CLAIMS
from gradscope.results.stats import UNDEFINED, Interval, holm


def effect(value=0.2, low=0.1, high=0.3, p=0.001, seeds=None, n=100, undefined=0):
    return Effect(value, Interval(low, high), (value,) if seeds is None else seeds, p, n, undefined, (0.5, 0.3))


def judged(made, direction=ABOVE, **facts):
    (row,) = rows([Finding("C1", "a - b", direction, effect=made, **facts)], "d", "a")
    return row


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        (ABOVE, 0.1, 0.3, "supported"),
        (ABOVE, -0.1, 0.3, "not supported"),
        (ABOVE, 0.0, 0.3, "not supported"),
        (ABOVE, -0.3, -0.1, "not supported"),
        (BELOW, -0.3, -0.1, "supported"),
        (BELOW, -0.3, 0.1, "not supported"),
        (BELOW, 0.1, 0.3, "not supported"),
        (EITHER, 0.1, 0.3, "supported"),
        (EITHER, -0.3, -0.1, "supported"),
        (EITHER, -0.1, 0.1, "not supported"),
        (Direction("above", -0.05), -0.04, -0.01, "supported"),
        (Direction("above", -0.05), -0.06, 0.01, "not supported"),
    ],
)
def test_the_interval_decides(direction, low, high, verdict):
    assert judged(effect((low + high) / 2, low, high), direction)["verdict"] == verdict


def test_why_names_the_numbers():
    row = judged(effect(), said="rl 50.0 %, sl 30.0 %", paper="5 % -> 55 %", remarks=("of analysis",))
    assert row["paper"] == "5 % -> 55 %"
    assert row["why"] == (
        "rl 50.0 %, sl 30.0 %: +20.0 points [10.0, 30.0] over 100 images; one seed: holds for these models only; "
        "of analysis"
    )
    assert "the effect is on the other side of 0" in judged(effect(-0.2, -0.3, -0.1))["why"]
    assert "the interval reaches 0" in judged(effect(0.2, -0.1, 0.5))["why"]
    assert "3 images on which it is undefined are left out" in judged(effect(undefined=3))["why"]


def test_a_p_value_that_does_not_survive_adjustment():
    tests = [Finding("C1", "a", ABOVE, effect=effect(p=0.03)), Finding("C2", "b", ABOVE, effect=effect(p=0.5))]
    first, second = rows(tests, "d", "a")
    assert [first["p_value"], second["p_value"]] == holm([0.03, 0.5]) == [0.06, 0.5]
    assert first["verdict"] == "not supported"
    assert "adjusted over all tests is 0.06" in first["why"]
    assert rows(tests[:1], "d", "a")[0]["verdict"] == "supported"


def test_tests_without_p_take_no_part_in_the_adjustment():
    tests = [
        Finding("C1", "a", ABOVE, effect=effect(p=None)),
        Finding("C1", "b", ABOVE, effect=effect(p=0.03)),
        Finding("C1", "c", ABOVE, lacking="nothing there"),
    ]
    made = rows(tests, "d", "a")
    assert [row["p_value"] for row in made] == [None, 0.03, None]
    assert [row["verdict"] for row in made] == ["supported", "supported", "not tested"]


def test_from_three_seeds_on_they_have_to_bear_it_out():
    two = judged(effect(seeds=(0.1, 0.3)))
    assert two["verdict"] == "supported"
    assert "two seeds: holds for these models only" in two["why"]
    spread = judged(effect(seeds=(0.1, 0.01, 0.49)))
    assert spread["verdict"] == "not supported"
    assert "the interval over 3 seeds reaches 0" in spread["why"]
    assert spread["seeds_low"] < 0 < spread["seeds_high"]
    close = judged(effect(seeds=(0.19, 0.2, 0.21)))
    assert close["verdict"] == "supported"
    assert "seed" not in close["why"]
    assert (close["seeds"], math.isnan(judged(effect())["seeds_low"])) == (3, True)


def test_a_count_needs_no_interval():
    more = Direction("above", 1)
    made = [Effect(2.0, UNDEFINED, seeds, None, 0) for seeds in ((2.0,), (3.0, 1.0), (math.inf,))]
    verdicts = [judged(one, more, exact=True, unit="times")["verdict"] for one in made]
    assert verdicts == ["supported", "not supported", "supported"]
    assert judged(made[0], more, exact=True, unit="times")["why"].startswith("2 times;")
    assert judged(Effect(0.5, UNDEFINED, (0.5,), None, 0), more, exact=True)["verdict"] == "not supported"


def test_what_the_data_do_not_define_is_not_tested():
    row = judged(Effect(1.0, UNDEFINED, (1.0,), None, 1, 4))
    assert row["verdict"] == "not tested"
    assert row["why"] == "no interval from 1 image, and it is undefined on 4 more; measure more"
    assert math.isnan(row["value"])
    assert judged(Effect(math.nan, Interval(0, 1), (), 0.01, 9))["verdict"] == "not tested"


def test_rows_have_the_columns_of_the_table():
    tests = [Finding("C1", "a", ABOVE, effect=effect()), Finding("H6", "b", BELOW, lacking="none; train")]
    assert all(list(row) and set(row) == set(CLAIMS.names) for row in rows(tests, "d", "a"))
    assert [row["statement"] for row in rows(tests, "d", "a")] == [STATEMENTS["C1"], STATEMENTS["H6"]]
    assert rows([], "d", "a") == []


def test_numbers_for_people():
    assert shown(0.1234, "-") == "+12.3 points"
    assert shown(-0.1234, "-", with_unit=False) == "-12.3"
    assert shown(12.345, "nats", signed=False) == "12.3 nats"
    assert shown(-0.195, "") == "-0.195"

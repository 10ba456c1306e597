"""Units of work made here; what several processes make of them is tested with the commands they share."""

import pytest
import torch

from gradscope.errors import GradscopeError
from gradscope.sharing import Team, alone, prefixed


def units(made):
    def make(number):
        made.append(number)
        return {"number": torch.tensor(number)}

    return [(f"unit-{number}", lambda number=number: make(number)) for number in range(3)]


@pytest.mark.parametrize("each", [alone, Team(torch.device("cpu")).each])
def test_units_are_made_one_by_one_in_their_order(each):
    made = []
    found = each(units(made))
    assert made == []
    assert next(found) == {"number": torch.tensor(0)}
    assert made == [0], "one unit is in memory"
    assert [int(values["number"]) for values in found] == [1, 2]


def test_names_have_a_prefix():
    seen = []

    def each(units):
        seen.extend(name for name, _ in units)
        return alone(units)

    list(prefixed(prefixed(each, "outer"), "inner")(units([])))
    assert seen == ["outer-inner-unit-0", "outer-inner-unit-1", "outer-inner-unit-2"]


def test_a_team_of_one_is_first_and_waits_for_nobody():
    team = Team(torch.device("cpu"))
    assert team.is_first
    assert team.of_first("mine") == "mine"
    team.meet()

    def refuses(team):
        raise GradscopeError("no")

    with pytest.raises(GradscopeError, match="no") as raised:
        team.run(refuses)
    assert not raised.value.shared

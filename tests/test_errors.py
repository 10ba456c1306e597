import pytest

from gradscope.errors import GradscopeError, described, lookup, unknown_name
from gradscope.measure.options import AnalyzeOptions, LandscapeOptions
from gradscope.progress import shown

TABLE = {"pgd": 1, "square": 2, "autoattack": 3}


def test_a_known_name_is_looked_up():
    assert lookup(TABLE, "square", "--attacks") == 2


@pytest.mark.parametrize(
    ("name", "hint"), [("sqare", "did you mean 'square'? "), ("PGD", "did you mean 'pgd'? "), ("zzz", "")]
)
def test_a_miss_says_argument_what_came_the_closest_and_all(name, hint):
    with pytest.raises(GradscopeError) as caught:
        lookup(TABLE, name, "--attacks")
    assert str(caught.value) == f"--attacks: {name!r} is unknown; {hint}known: autoattack, pgd, square"


@pytest.mark.parametrize(("name", "meant"), [("eps", "epsilon"), ("step", "steps"), ("Batch", "batch_size")])
def test_a_name_that_begins_so_is_meant_first(name, meant):
    known = ("epsilon", "epsilons", "step_size", "steps", "relative_step_size", "batch_size")
    assert f"did you mean {meant!r}?" in str(unknown_name("attack()", name, known))


def test_the_message_is_one_line_whatever_came():
    assert "\n" not in str(unknown_name("--mode", "two\nlines", ["sl", "rl"]))


def test_names_may_be_any_iterable():
    assert str(unknown_name("k", "b", iter(("c", "a")))) == "k: 'b' is unknown; known: a, c"


def test_any_value_can_be_described() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    assert described(Mute()) == "Mute"
    assert described(nested) == "list"
    assert described("x" * 1000) == "'" + "x" * 199 + "..."
    with pytest.raises(GradscopeError, match="steps must be a whole number, got Mute"):
        AnalyzeOptions.parse({"steps": Mute()})
    with pytest.raises(GradscopeError, match="points must be at most 10000, got 9223372036854775808"):
        LandscapeOptions.parse({"points": 2**63})
    with pytest.raises(GradscopeError, match=r"progress must be true, false or None, got \[\]"), shown([]):
        pass

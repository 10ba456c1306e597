"""Whether like gradients explain transfer: made matrices whose rank correlation is known."""

from itertools import combinations

import pytest

from gradscope.claims.directories import read_directories
from gradscope.claims.table import claim_rows

MODES = ("sl", "rl", "sl-adv", "rl-adv", "sl-rl")


def flags(right: int, count: int = 100) -> list[float]:
    return [1.0] * right + [0.0] * (count - right)


def transferred(made, sign: int, seeds: tuple[int, ...] = (0,)) -> None:
    """Cosines that differ in every pair, and errors that rise with them, or fall where ``sign`` is -1."""
    labels = list(made.models)
    cells = {("", label): flags(95) for label in labels}
    cosines = {}
    for seed in seeds:
        of_seed = [label for label in labels if made.models[label][1] == seed]
        for rank, (one, other) in enumerate(combinations(of_seed, 2)):
            cosines[one, other] = 0.05 * rank
            for pair in ((one, other), (other, one)):
                cells[pair] = flags(60 - sign * 4 * rank)
    made.transfer(cells)
    made.similarity(cosines)


def of_seeds(*seeds: int) -> dict[str, tuple[str, int]]:
    return {f"{mode}-{seed}": (mode, seed) for seed in seeds for mode in MODES}


@pytest.mark.parametrize(("sign", "value"), [(1, 1), (-1, -1)])
def test_errors_that_rise_with_the_cosine_support_it(directories, one, sign, value):
    made = directories(**of_seeds(0, 1))
    transferred(made, sign, (0, 1))
    row = one(claim_rows(made.all), "C7", "rank correlation", "exact PGD")
    assert row["value"] == pytest.approx(value)
    assert (row["seeds"], row["n"]) == (2, 95)
    assert row["verdict"] == ("supported" if sign == 1 else "not supported")
    assert "5 and 5 models of 2 seeds: " in row["why"]
    if sign == 1:
        assert row["p_value"] < 0.05


def test_three_models_of_one_seed_say_too_little(directories, one):
    """Every sixth order of three models gives as much."""
    made = directories(**{mode: (mode, 0) for mode in MODES[:3]})
    transferred(made, 1)
    row = one(claim_rows(made.all), "C7", "rank correlation", "exact PGD")
    assert row["value"] == pytest.approx(1)
    assert row["verdict"] == "not supported"
    assert row["p_value"] >= 1 / 6 - 0.02


def test_it_is_not_tested_with_two_models_or_without_cosines(directories, one):
    made = directories()
    transferred(made, 1)
    row = one(claim_rows(made.all), "C7", "rank correlation", "exact PGD")
    assert row["verdict"] == "not tested"
    assert "it needs 3 models of a seed" in row["why"]
    (made.root / "transfer" / "similarity.csv").unlink()
    assert one(claim_rows(made.all), "C7", "rank correlation", "exact PGD")["verdict"] == "not tested"


def test_equal_cosines_are_not_tested(directories, one):
    made = directories(**of_seeds(0))
    transferred(made, 1)
    made.similarity(dict.fromkeys(combinations(made.models, 2), 0.5))
    assert one(claim_rows(made.all), "C7", "rank correlation", "exact PGD")["verdict"] == "not tested"


def test_cosines_are_kept_where_directories_are_joined(directories):
    made = directories(**of_seeds(0))
    transferred(made, 1)
    found = read_directories([made.root])
    between = {(one.name, other.name): value for (one, other), value in found.similarities.items()}
    assert between["sl-0", "sl-0"] == 1
    assert between["rl-0", "sl-0"] == between["sl-0", "rl-0"] == 0.0
    assert len(between) == 25

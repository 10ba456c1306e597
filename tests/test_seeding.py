import pytest
import torch

from gradscope.seeding import derive, generator, seeded


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "a"), 4513031048185085819),
        ((0, "a", 1), 7965780462979794708),
        ((12345, "probe", "random-start", 7), 5789645163660812023),
    ],
)
def test_derived_seeds_never_change(arguments, seed):
    assert derive(*arguments) == seed


def test_streams_differ_by_seed_by_name_and_by_how_names_are_cut():
    arguments = [(0,), (1,), (0, "a"), (1, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a", "1")]
    seeds = {derive(*each) for each in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_many_streams_do_not_meet():
    assert len({derive(0, "batch", index) for index in range(10_000)}) == 10_000


def test_generators_of_one_name_agree_and_of_two_do_not():
    one, same, other = generator(3, "noise"), generator(3, "noise"), generator(3, "start")
    drawn = torch.randn(100, generator=one)
    assert torch.equal(drawn, torch.randn(100, generator=same))
    assert abs(torch.corrcoef(torch.stack([drawn, torch.randn(100, generator=other)]))[0, 1]) < 0.3


def test_a_generator_leaves_the_global_state():
    before = torch.get_rng_state()
    torch.randn(3, generator=generator(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_decides_what_is_drawn_and_gives_the_callers_state_back():
    before = torch.get_rng_state()
    with seeded(1, "weights"):
        first = torch.nn.Linear(3, 2).weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with seeded(1, "weights"):
        assert torch.equal(torch.nn.Linear(3, 2).weight, first)
    with seeded(2, "weights"):
        assert not torch.equal(torch.nn.Linear(3, 2).weight, first)


def test_seeded_gives_the_state_back_after_an_error():
    before = torch.get_rng_state()

    def fail() -> None:
        with seeded(0, "x"):
            torch.rand(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_blocks_nest():
    with seeded(0, "outer"):
        torch.rand(1)
        expected = torch.rand(1)
    with seeded(0, "outer"):
        torch.rand(1)
        with seeded(0, "inner"):
            torch.rand(7)
        assert torch.equal(torch.rand(1), expected)

"""Units of work made here; what several processes make of them is tested with the commands they share."""

import pytest
import torch

from gradscope.distributed.units import Team, alone, halving, is_out_of_memory, prefixed
from gradscope.errors import GradscopeError


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


#: What PyTorch says where a device's memory is full, and once where it is something else.
REFUSALS = {
    "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore on this": True,
    "CUDA error: out of memory": True,
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": True,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": True,
    "GET was unable to find an engine to execute this computation": True,
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory": True,
    "CUDA error: an illegal memory access was encountered": False,
}


@pytest.mark.parametrize(("text", "full"), REFUSALS.items())
def test_full_memory_is_told_from_other_errors(text, full):
    assert is_out_of_memory(RuntimeError(text)) == full


def test_a_real_allocation_that_fails_is_full_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


def needs_at_most(limit, sizes):
    def work(size):
        sizes.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee there.")
        return size

    return work


def test_work_is_halved_until_it_fits():
    sizes = []
    assert halving(needs_at_most(5, sizes), 32) == 4
    assert sizes == [32, 16, 8, 4]
    with pytest.raises(torch.OutOfMemoryError):
        halving(needs_at_most(0, []), 32)

    def broken(size):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halving(broken, 32)


def test_full_memory_is_one_line_that_says_what_to_do():
    with pytest.raises(GradscopeError) as raised:
        Team(torch.device("cpu")).run(lambda team: needs_at_most(0, [])(1))
    assert str(raised.value) == (
        "batch_size must be smaller (for a landscape, `images`), as cpu ran out of memory: CUDA out of memory. Tried "
        "to allocate 2.00 GiB.; if a single image does not fit, use `device` cpu"
    )

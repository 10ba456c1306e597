"""What a user's code raises, told in one line; what is not its fault passes through."""

import os
import re
import signal

import pytest
import torch

from gradscope import process
from gradscope.errors import GradscopeError
from gradscope.models.failures import in_one_line


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("no luck\nand more"), SystemExit(7), StopIteration("no luck")])
def test_an_error_is_told_with_its_place(error: BaseException) -> None:
    with pytest.raises(GradscopeError) as told, in_one_line("mine raised"):
        raising(error)
    place = re.escape(f"({__file__.rpartition('/')[2]}:") + r"\d+\)"
    assert re.fullmatch(rf"mine raised {type(error).__name__}: (no luck|7) {place}", str(told.value))
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GradscopeError("of our own")])
def test_an_interrupt_and_our_own_refusal_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, in_one_line("mine raised"):
        raising(error)
    assert passed.value is error


def test_sigterm_passes() -> None:

    with pytest.raises(SystemExit) as passed, process.ending_on_sigterm(), in_one_line("mine raised"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert passed.value.code == 143


def test_a_full_memory_passes_where_the_work_is_halved() -> None:
    with pytest.raises(torch.OutOfMemoryError), in_one_line("mine raised", halved=True):
        raising(torch.OutOfMemoryError("full"))
    with pytest.raises(GradscopeError, match=r"^mine raised OutOfMemoryError: full"), in_one_line("mine raised"):
        raising(torch.OutOfMemoryError("full"))

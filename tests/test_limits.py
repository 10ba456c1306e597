import os

import pytest

from gradscope import limits
from gradscope.errors import GradscopeError


def test_the_environment_raises_a_limit(monkeypatch):
    usual = limits.most("CLASSES")
    monkeypatch.setenv("GRADSCOPE_MOST_CLASSES", "200000")
    assert (usual, limits.most("CLASSES")) == (100_000, 200_000)


@pytest.mark.parametrize("given", ["0", "-1", "many", "1e6", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, given):
    monkeypatch.setenv("GRADSCOPE_MOST_PIXELS", given)
    with pytest.raises(GradscopeError, match=r"^GRADSCOPE_MOST_PIXELS must be a whole number above 0, got '") as caught:
        limits.most("PIXELS")
    assert len(str(caught.value)) < 200


def test_memory_is_not_asked_for_where_the_system_does_not_say(monkeypatch):
    with pytest.raises(ValueError, match=r"it asks for 1\d+\.0 GiB, this machine has"):
        limits.require_memory(2**70)
    monkeypatch.delattr(os, "sysconf")
    limits.require_memory(2**70)

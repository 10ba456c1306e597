import os
from functools import partial

import pytest

from gradscope import limits
from gradscope.config import Data
from gradscope.data.image_set import require_few_classes
from gradscope.errors import GradscopeError


def test_the_environment_raises_a_limit(monkeypatch):
    usual = limits.most("CLASSES")
    monkeypatch.setenv("GRADSCOPE_MOST_CLASSES", "200000")
    assert (usual, limits.most("CLASSES")) == (100_000, 200_000)


def test_the_limits_of_data_are_those_of_the_environment(monkeypatch):
    for name, said in (("SIDE", "image_size must be at most 5, got 6; GRADSCOPE_MOST_SIDE"), ("CLASSES", "at most 5 ")):
        refused = partial(Data.parse, {"image_size": 6}) if name == "SIDE" else partial(require_few_classes, 6)
        refused()
        monkeypatch.setenv(f"GRADSCOPE_MOST_{name}", "5")
        with pytest.raises(GradscopeError, match=said):
            refused()


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

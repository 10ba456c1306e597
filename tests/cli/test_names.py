"""``gradscope list``: every table that the commands know by name."""

from collections.abc import Callable

import pytest

from gradscope.attacks.registry import ATTACKS
from gradscope.config import OBJECTIVES
from gradscope.data.names import DATASETS
from gradscope.models.names import ARCHITECTURES
from gradscope.results.metrics import METRICS
from gradscope.training.phases import MODES

Done = Callable[..., str]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("datasets", DATASETS),
        ("architectures", ARCHITECTURES),
        ("metrics", METRICS),
        ("attacks", ATTACKS),
        ("objectives", OBJECTIVES),
        ("modes", MODES),
    ],
)
def test_list_names_each_with_its_meaning(what: str, names: dict[str, object], done: Done) -> None:
    lines = done("list", what).splitlines()
    assert [line.split()[0] for line in lines] == list(names)
    assert all(len(line.split()) > 1 for line in lines)


def test_list_says_what_each_attack_needs(done: Done) -> None:
    lines = {line.split()[0]: line for line in done("list", "attacks").splitlines()}
    assert lines["square"].endswith("[logits]")
    assert lines["pgd-dlr"].endswith("[logits, gradient; 3 classes or more]")
    assert lines["transfer"].endswith("[logits, examples]")


def test_list_alone_lists_all(done: Done) -> None:
    whole = done("list").split("\n\n")
    kinds = ["datasets", "architectures", "metrics", "attacks", "objectives", "modes"]
    assert [part.splitlines()[0] for part in whole] == [f"{kind.capitalize()}:" for kind in kinds]
    for kind, part in zip(kinds, whole, strict=True):
        assert [line.removeprefix("  ") for line in part.splitlines()[1:]] == done("list", kind).splitlines()

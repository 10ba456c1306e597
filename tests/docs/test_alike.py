"""What holds a page against what is printed can fail."""

import re

import pytest

from tests.docs.blocks import PAGES, Block, blocks_of, commands_of
from tests.docs.execution import PARSED, Page, assert_alike, parse, smaller_line

SHOWN = "rl: refuted: at most 71.0 % of 100 images\n...\n"


def test_numbers_may_differ_a_little_and_words_may_not() -> None:
    assert_alike("rl: refuted: at most 70.0 % of 100 images\nand more\n", SHOWN, "here")
    for printed in ("rl: refuted: at most 51.0 % of 100 images\n", "rl: not refuted: at most 71.0 % of 100 images\n"):
        with pytest.raises(AssertionError):
            assert_alike(printed, SHOWN, "here")


@pytest.mark.parametrize(
    "line",
    [
        "gradscope audit sl.pt --budjet quick",
        "gradscope attack sl.pt --attacks pgdd",
        "gradscope train --mode sl --epochs 0",
        "gradscope study no.toml",
        "gradscope nothing",
    ],
)
def test_a_command_that_is_only_parsed_can_be_wrong(line: str) -> None:
    (command,) = commands_of(Block("page.md", 1, "bash", line))
    with pytest.raises(AssertionError, match=r"page.md:1"):
        parse(command, list(command.words[1:]))


@pytest.mark.parametrize("pattern", PARSED)
def test_each_reason_not_to_run_is_one_of_a_command(pattern: str) -> None:
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language in ("bash", "console")]
    assert any(re.search(pattern, command.text) for block in blocks for command in commands_of(block))


@pytest.mark.parametrize("line", ["make nothing", "pip install '.[nothing]'", "python -m tests.nothing"])
def test_other_commands_can_be_wrong(line: str) -> None:
    (command,) = commands_of(Block("page.md", 1, "bash", line))
    with pytest.raises(AssertionError, match=r"page.md:1"):
        Page({}, thoroughly=False).run(command)


def test_a_command_gets_smaller() -> None:
    small = smaller_line(["analyze", "sl.pt", "--steps", "100", "--samples", "5"])
    assert small == ["analyze", "sl.pt", "--steps", "3", "--samples", "5", "--no-figures", "--overwrite"]

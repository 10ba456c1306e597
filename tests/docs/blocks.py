"""The fenced blocks of README and docs/, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = [path for path in sorted((ROOT / "docs").glob("*.md")) if ".head." not in path.name]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *DOCS]

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A name of a file, as the first line of a block says it: the block is the file's content.
_NAME = re.compile(r"# ([\w/.-]+\.(?:py|toml))\n")


def name_of(page: Path) -> str:
    """How a test calls a page: audit, readme, examples."""
    return page.parent.name if page.parent.name == "examples" else page.stem.lower()


@dataclass(frozen=True)
class Block:
    """``output``: what the page says that it prints, the text block right after it; None where it says nothing."""

    page: str
    line: int
    language: str
    text: str
    output: str | None = None

    @property
    def name(self) -> str | None:
        """The file whose content it is."""
        found = _NAME.match(self.text)
        return found[1] if found and self.language in ("python", "toml") else None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line: its words, and what the page says that it prints."""

    where: str
    words: tuple[str, ...]
    output: str | None = None

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(text):
        language, inner = fence[1], fence[2]
        follows = not text[end : fence.start()].strip() and found and found[-1].language == "python"
        if language == "text" and follows:
            before = found.pop()
            found.append(Block(before.page, before.line, before.language, before.text, inner))
        else:
            found.append(Block(page.name, text.count("\n", 0, fence.start()) + 1, language, inner))
        end = fence.end()
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a bash block, or of a console block with what each prints."""
    if block.language == "bash":
        for line in _joined(block.text).splitlines():
            if words := shlex.split(line, comments=True):
                yield Command(block.where, tuple(words))
        return
    pieces = re.split(r"^\$ ", _joined(block.text), flags=re.MULTILINE)
    assert not pieces[0], f"{block.where}: a console block begins with a command"
    for piece in pieces[1:]:
        line, _, output = piece.partition("\n")
        yield Command(block.where, tuple(shlex.split(line, comments=True)), output)


def _joined(text: str) -> str:
    return re.sub(r"\\\n\s*", " ", text)

"""Every command and snippet of README and docs/ runs, or is read to its end where it would take hours.

`make test` runs them on few images, and training, audits and judgements once a page; `make soak` runs all, those whose
output a page shows as they stand. ``pytest tests/docs -k audit`` runs one page.
"""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.docs.blocks import PAGES, Block, blocks_of, commands_of, name_of
from tests.docs.execution import Page

LANGUAGES = {"python", "bash", "console", "toml", "text", "pycon", "bibtex", "json", "yaml", "{toctree}"}
WITH_BLOCKS = [
    page for page in PAGES if any(one.language in ("python", "bash", "console", "toml") for one in blocks_of(page))
]


def run_block(block: Block, page: Page) -> None:
    if block.name is not None:
        path = Path(block.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        sys.modules.pop(path.stem, None)
    elif block.language == "python":
        page.run_python(block.text, block.where, block.output)
    elif block.language in ("bash", "console"):
        for command in commands_of(block):
            page.run(command)


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
@pytest.mark.usefixtures("other_libraries")
def test_a_page_runs_from_top_to_bottom(
    page: Path, files: Path, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gradscope.figures.draw.draw", lambda *_, **__: []
    )  # those that are asked for by name are drawn
    run_page(page, files, tmp_path, Page(names, thoroughly=False, trains=page.stem == "training"))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
@pytest.mark.usefixtures("other_libraries")
def test_a_page_prints_what_it_shows(page: Path, files: Path, names: dict[str, Any], tmp_path: Path) -> None:
    run_page(page, files, tmp_path, Page(names, thoroughly=True))


def run_page(page: Path, files: Path, tmp_path: Path, runner: Page) -> None:
    folder = tmp_path / "work"
    shutil.copytree(files, folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(), warnings.catch_warnings():
        patch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        warnings.simplefilter("ignore")
        blocks = blocks_of(page)
        for block in [one for one in blocks if one.name is not None]:
            run_block(block, runner)
        for block in [one for one in blocks if one.name is None]:
            run_block(block, runner)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page: Path) -> None:
    text = page.read_text()
    assert text.count("```") % 2 == 0
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r}"
        if block.language == "toml":
            assert block.name, f"{block.where}: a TOML block begins with the name of its file"


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 150

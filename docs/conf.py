"""How Sphinx builds the site: ``make docs``. It needs neither gradscope nor torch."""

import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "gradscope"
author = copyright = "the gradscope authors"
release = version = re.search(r'__version__ = "(.*)"', (ROOT / "gradscope" / "__init__.py").read_text())[1]

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "*.head.md", "requirements.txt"]

html_theme = "furo"
html_math_renderer = "mathml"  # which browsers show without a script
html_title = f"gradscope {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_copy_source = False


def link_to_repository(app: Any, name: str, source: list[str]) -> None:
    """Let links to files outside docs/ lead to the repository."""

    def at(link: re.Match[str]) -> str:
        kind = "tree" if (ROOT / link[1]).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{link[1]})"

    source[0] = re.sub(r"\]\(\.\./([^)#]+)", lambda link: at(link)[:-1], source[0])


def write_inline(writer: Any, node: Any) -> None:
    """Write a formula in a line of text as MathML."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_block(writer: Any, node: Any) -> None:
    """Write a formula on a line of its own as MathML."""
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("source-read", link_to_repository)

"""How Sphinx builds the site: ``make docs``. It needs neither gradscope nor torch."""

import re
from pathlib import Path

project = "gradscope"
author = copyright = "the gradscope authors"
release = version = re.search(
    r'__version__ = "(.*)"', (Path(__file__).parents[1] / "gradscope" / "__init__.py").read_text()
)[1]

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "*.head.md", "requirements.txt"]

html_theme = "furo"
html_title = f"gradscope {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_copy_source = False

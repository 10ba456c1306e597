"""``paper/``: the figures as PDF under stable names, and the tables in LaTeX."""

import shutil
from collections.abc import Sequence

from gradscope.report.contents import Contents
from gradscope.report.sections import Section


def write_paper(contents: Contents, chapters: Sequence[Section]) -> None:
    raise NotImplementedError

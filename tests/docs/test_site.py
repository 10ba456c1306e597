"""The site builds without a warning, where `make docs` has made its environment."""

import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT

BUILD = ROOT / ".venv-docs" / "bin" / "sphinx-build"


@pytest.mark.slow
@pytest.mark.skipif(not BUILD.exists(), reason="`make docs` has not been run")
def test_the_site_builds(tmp_path: Path) -> None:
    subprocess.run([BUILD, "--fail-on-warning", "--quiet", ROOT / "docs", tmp_path], check=True, capture_output=True)
    assert {path.stem for path in tmp_path.glob("*.html")} >= {page.stem for page in DOCS}

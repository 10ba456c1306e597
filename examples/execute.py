"""Execute notebooks in place, each in a directory of its own, and keep nothing of the machine: `make examples`."""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> None:
    """Execute the notebook at ``path`` anew and write its outputs into it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute()
        text = nbformat.writes(notebook)
        for place in (folder, str(Path(folder).resolve())):
            text = text.replace(f"{place}/", "")
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))

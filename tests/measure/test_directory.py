"""What a measurement holds and replaces in the directory of its results."""

import os

import pytest

from gradscope.errors import GradscopeError
from gradscope.measure.directory import clear, results_directory
from gradscope.results.schemas import AUDIT, AUDIT_JSON, EXAMPLE_IMAGES, SAMPLES
from gradscope.results.tables import append_rows


@pytest.mark.parametrize("name", [AUDIT.file, f"{SAMPLES.file}.gz", AUDIT_JSON, EXAMPLE_IMAGES])
def test_an_audit_is_a_result_that_is_not_overwritten_unasked(tmp_path, name):
    (tmp_path / name).touch()
    with (
        pytest.raises(GradscopeError, match="holds results"),
        results_directory(tmp_path, "audit", resume=False, overwrite=False),
    ):
        pass


def test_an_audit_its_figures_and_its_report_are_cleared_and_nothing_else(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "paper").mkdir()
    drawn = ["figures/audit-checks.pdf", "figures/audit-evidence-sl-0.png", "paper/audit.tex", "paper/audit.pdf"]
    for name in (
        AUDIT.file,
        f"{SAMPLES.file}.gz",
        AUDIT_JSON,
        EXAMPLE_IMAGES,
        "report.html",
        *drawn,
        "notes.txt",
        "paper/notes.txt",
    ):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "paper", "notes.txt"}
    assert not any((tmp_path / "figures").iterdir())
    assert [path.name for path in (tmp_path / "paper").iterdir()] == ["notes.txt"]


def test_links_and_pipes_called_as_results_are_cleared_and_what_a_link_names_stays(tmp_path):
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / AUDIT.file).symlink_to(tmp_path / "mine.csv")
    (tmp_path / SAMPLES.file).symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / AUDIT_JSON)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_a_folder_called_as_a_table_is_refused_in_one_line(tmp_path):
    (tmp_path / SAMPLES.file).mkdir()
    with pytest.raises(GradscopeError, match=r"^out: .*samples\.csv cannot be written: Is a directory$"):
        append_rows(tmp_path / SAMPLES.file, SAMPLES, [])


def test_an_overwriting_run_that_was_interrupted_at_once_is_unfinished(tmp_path):
    """What it replaces is there, finished, and is not taken for it."""
    (tmp_path / AUDIT.file).touch()
    with pytest.raises(KeyboardInterrupt), results_directory(tmp_path, "audit", resume=False, overwrite=True):
        raise KeyboardInterrupt
    with (
        pytest.raises(GradscopeError, match="holds an unfinished audit; `resume` continues it"),
        results_directory(tmp_path, "audit", resume=False, overwrite=False),
    ):
        pass
    with results_directory(tmp_path, "audit", resume=True, overwrite=False):
        assert (tmp_path / AUDIT.file).exists()


def test_an_overwriting_run_that_is_refused_leaves_what_is_there_finished(tmp_path):
    (tmp_path / AUDIT.file).touch()
    with pytest.raises(GradscopeError, match="no"), results_directory(tmp_path, "audit", resume=False, overwrite=True):
        raise GradscopeError("no")
    assert [path.name for path in tmp_path.iterdir()] == [AUDIT.file]

import io
import sys

import pytest

from gradscope.progress import overall_progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use(bar_of: int) -> None:
    with progress_bar("attack sl", bar_of) as advance:
        for _ in range(bar_of):
            advance(1, "validation 91.0 %")


def test_it_is_silent_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    use(3)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_a_bar_on_stderr_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    use(3)
    shown = terminal.getvalue()
    assert "attack sl" in shown
    assert "100%" in shown
    assert "validation 91.0 %" in shown
    assert shown.endswith("\x1b[2K"), "the line of the bar is cleared at the end"
    assert capfd.readouterr().out == ""


def test_the_bar_goes_away_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def fail() -> None:
        with progress_bar("attack sl", 3):
            raise ValueError("attack")

    with pytest.raises(ValueError, match="attack"):
        fail()
    assert terminal.getvalue().endswith("\x1b[2K")
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown again"


def test_one_display_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with overall_progress("quickstart", 2) as advance:
        use(3)
        advance(1, "")
        with pytest.raises(ValueError, match="stage"), progress_bar("transfer", 3):
            raise ValueError("stage")
        use(3)
        advance(1, "")
    shown = terminal.getvalue()
    assert "quickstart" in shown
    assert shown.count("\x1b[?25l") == 1, "the cursor is hidden once, by one display"
    assert shown.endswith("\x1b[2K")
    use(3)
    assert terminal.getvalue().count("\x1b[?25l") == 2, "a bar of its own again"

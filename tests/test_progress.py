import io
import sys

import pytest

from gradscope.progress import Bar, BarsOfOthers, overall_progress, progress_bar, reported


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


def test_bars_are_reported_and_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    told: list[Bar] = []
    with reported(told.append):
        use(300)
    assert terminal.getvalue() == ""
    assert told[0] == Bar("attack sl", 1, 300, "validation 91.0 %")
    assert told[-1] == Bar("attack sl", 300, 300, "validation 91.0 %")
    assert len(told) < 30, "a few times a second, not at every step"


def test_bars_of_others_are_lines_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bars = BarsOfOthers()
    bars.show("model-sl", Bar("train sl", 1, 2, ""))
    with overall_progress("quickstart", 2) as advance:
        bars.show("model-sl", Bar("train sl", 1, 4, "validation 91.0 %"))
        bars.show("model-rl", Bar("train rl", 1, 5, ""))
        bars.show("model-sl", Bar("test sl", 3, 4, ""))
        bars.remove("model-rl")
        bars.remove("model-rl")
        advance(1, "")
    lines = terminal.getvalue().splitlines()
    assert any("model-sl: test sl" in line and "75%" in line for line in lines)
    assert not any("train" in line for line in lines[-3:])
    assert terminal.getvalue().count("\x1b[?25l") == 1, "the cursor is hidden once, by one display"

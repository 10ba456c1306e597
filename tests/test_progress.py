import io
import sys
import time

import pytest

from gradscope.progress import Bar, BarsOfOthers, lines_a_minute, overall_progress, progress_bar, reported, shown


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


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_the_command_line_writes_a_line_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    """Ten images a second of 1,200: a line at 60 s and one at 120 s, when the last ones are done."""
    clock = Clock()
    with lines_a_minute(clock), progress_bar("sl pgd", 1200, "images") as advance:
        for _ in range(120):
            clock.now += 1.0
            advance(10)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "gradscope: sl pgd: 600 of 1200 images, 60 s left",
        "gradscope: sl pgd: 1200 of 1200 images",
    ]


def test_no_line_is_written_within_the_first_minute(capfd: pytest.CaptureFixture[str]) -> None:
    """The minute is that of the command: many short bars are as quiet as one."""
    clock = Clock()
    with lines_a_minute(clock):
        for _ in range(59):
            with progress_bar("sl pgd", 1, "images") as advance:
                clock.now += 1.0
                advance(1)
        assert capfd.readouterr() == ("", "")
        with progress_bar("rl pgd", 4) as advance:
            clock.now += 1.0
            advance(1, "validation 91.0 %")
    assert capfd.readouterr() == ("", "gradscope: rl pgd: 25 %, validation 91.0 %, 3 s left\n")


def test_work_that_does_not_move_is_written_of_too(capfd: pytest.CaptureFixture[str]) -> None:
    """A thread looks at the clock between two steps, here every hundredth of a second."""
    clock = Clock()
    with lines_a_minute(clock, look_every=0.01), progress_bar("sl pgd", 200, "images"):
        clock.now += 60.0
        written, began = "", time.monotonic()
        while not written and time.monotonic() - began < 10:
            time.sleep(0.01)
            written = capfd.readouterr().err
    assert written == "gradscope: sl pgd: 0 of 200 images\n"


def test_the_time_left_grows_while_work_stands_still(capfd: pytest.CaptureFixture[str]) -> None:
    """Half of it in 10 s, then nothing for 50 s: as much again is left, not 10 s."""
    clock = Clock()
    with lines_a_minute(clock), progress_bar("sl", 10, "images") as advance:
        for _ in range(5):
            clock.now += 2.0
            advance(1)
        clock.now += 50.0
        advance(0)
    assert capfd.readouterr().err == "gradscope: sl: 5 of 10 images, 60 s left\n"


def test_a_study_writes_one_line_of_the_whole_and_its_stages(capfd: pytest.CaptureFixture[str]) -> None:
    clock, bars = Clock(), BarsOfOthers()
    with lines_a_minute(clock), overall_progress("quickstart", 12, "stages") as advance:
        bars.show("model-sl", Bar("train sl", 30, 100, "validation 91.0 %", "updates"))
        clock.now += 60.0
        advance(3)
    whole = "quickstart: 3 of 12 stages, 3.0 min left"
    line = f"{whole}; model-sl: train sl: 30 of 100 updates, validation 91.0 %, 2.3 min left"
    assert capfd.readouterr().err == f"gradscope: {line}\n"


@pytest.mark.parametrize("progress", [True, False])
def test_who_asks_for_bars_or_none_gets_no_lines(capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    clock = Clock()
    with lines_a_minute(clock), shown(progress), progress_bar("sl pgd", 2, "images") as advance:
        clock.now += 60.0
        advance(1)
    assert "1 of 2 images" not in capfd.readouterr().err

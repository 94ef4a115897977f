"""How long work is shown: plain lines in a log, a bar on a terminal, the result alone on stdout."""

import io
import re
import sys
import time

import pytest

from l0prune.cli.progress import BarProgress, LineProgress, progress_for_stderr, share_bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def work(progress) -> None:
    progress.start("gate", 3)
    progress.advance(1, {"loss": 0.5})
    progress.message("froze 3 of 4 gates")
    progress.advance(2, {"loss": 0.25})
    progress.finish()
    progress.finish()


def test_a_log_gets_a_line_at_the_start_and_at_the_end_of_a_phase(capsys):
    work(LineProgress())

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "learning gates: 3 steps",
        "froze 3 of 4 gates",
        "learning gates: 3/3  loss 0.25",
    ]


def test_a_log_gets_lines_in_between_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter(range(0, 100000, 2000)).__next__)
    work(LineProgress(seconds_between_lines=0))

    lines = capsys.readouterr().err.splitlines()
    assert "learning gates: 1/3, 3:20:00 left  loss 0.5" in lines
    assert lines.count("learning gates: 3/3  loss 0.25") == 1


def test_the_time_left_does_not_count_the_steps_of_before_an_interruption(capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter([0.0, 30.0, 30.0, 30.0]).__next__)
    progress = LineProgress(seconds_between_lines=0)
    progress.start("recovery", 100)
    progress.advance(60, {})
    progress.advance(10, {"loss": 0.5})

    assert capsys.readouterr().err.splitlines()[1:] == ["recovery: 70/100, 0:01:30 left  loss 0.5"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    progress = progress_for_stderr()
    work(progress)

    assert isinstance(progress, BarProgress)
    for word in ("learning gates", "3/3", "loss 0.25", "froze 3 of 4 gates"):
        assert word in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_80_columns_hold_the_bar_the_count_the_time_left_and_the_loss(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    figures = {"task_loss": 0.21345, "expected_cost": 0.50123, "hard_cost": 0.50234, "lr": 0.0123, "accuracy": 91.234}
    progress = progress_for_stderr()
    progress.start("gate", 123456)
    for _ in range(3):
        progress.advance(5000, figures)
        time.sleep(0.12)
    progress.finish()

    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", terminal.getvalue())]
    last = [line for line in lines if line.strip()][-1]
    assert len(last) <= 80
    found = re.fullmatch(r"learning gates (\S{16})\s+15000/123456 (\d:\d\d:\d\d) loss 0\.2135 .*", last)
    assert found, last


@pytest.mark.parametrize("kind", [LineProgress, BarProgress])
def test_a_message_is_shown_outside_a_phase_too(kind, capsys):
    kind().message("resumed after step 4 of 8")

    assert "resumed after step 4 of 8" in capsys.readouterr().err


def test_work_that_says_its_share_keeps_count_and_time_left_beside_a_long_text(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with share_bar() as told:
        told(0.5, "layer3.0.conv1 at 61 inputs and 48 outputs, beside layer3.0.downsample.0 and others")
    last = [
        line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())) if line.strip()
    ][-1]
    assert len(last) <= 80
    assert re.fullmatch(r"\S{16}\s+50% \S+ layer3.0.conv1 at 61 .*", last), last

    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    monkeypatch.setattr(time, "monotonic", iter([0.0, 0.0, 600.0, 630.0]).__next__)
    with share_bar() as told:
        told(0.0, "exporting the network")
        told(0.01, "layer1.0.conv1")
        told(0.76, "layer3.0.conv1")
    assert log.getvalue().splitlines() == [
        "  0%  exporting the network",
        "  1%  layer1.0.conv1",
        " 76%, 0:00:10 left  layer3.0.conv1",
    ]

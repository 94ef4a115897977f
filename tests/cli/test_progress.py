"""How long work is shown: plain lines in a log, a bar on a terminal, the result alone on stdout."""

import io
import sys

import pytest

from l0prune.cli.output import BarProgress, LineProgress, progress_for_stderr


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


def test_a_log_gets_lines_in_between_now_and_then(capsys):
    work(LineProgress(seconds_between_lines=0))

    lines = capsys.readouterr().err.splitlines()
    assert "learning gates: 1/3  loss 0.5" in lines
    assert lines.count("learning gates: 3/3  loss 0.25") == 1


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    progress = progress_for_stderr()
    work(progress)

    assert isinstance(progress, BarProgress)
    for word in ("learning gates", "3/3", "loss 0.25", "froze 3 of 4 gates"):
        assert word in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [LineProgress, BarProgress])
def test_a_message_is_shown_outside_a_phase_too(kind, capsys):
    kind().message("resumed after step 4 of 8")

    assert "resumed after step 4 of 8" in capsys.readouterr().err
